//! `cargo bench --bench lab`: hands its arguments to the lab.

#[path = "lab.rs"]
mod lab;

fn main() -> std::process::ExitCode {
    lab::run(std::env::args_os())
}
