//! Roles whose log has no reader: they work, and they stop in time.

use crate::SHOAL;
use shoal_testkit::{Process, Region, http, until};
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a role may take to stop.
const STOP: Duration = Duration::from_secs(10);

/// Starts a role with the settings of a process, and with this standard error.
fn start(process: &Process, role: &str, stderr: PipeWriter) -> Child {
    let ready = process.dir().join("ready");
    let _ = fs::remove_file(&ready); // it is there only after an earlier start
    let mut command = SHOAL.command();
    command.args([role, "--log", "debug", "--ready-file"]).arg(&ready);
    for pair in process.settings() {
        command.args(["--set", pair]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
    until(&format!("the {role} comes up"), || {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the {role} ended: {status}");
        }
        ready.exists().then_some(())
    });
    child
}

/// A pipe whose reader has gone.
fn without_reader() -> PipeWriter {
    io::pipe().unwrap().1
}

/// A pipe that is full, and its reader, which reads nothing.
fn full() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let mut filling = writer.try_clone().unwrap();
    // Waits for ever once the pipe is full, and ends with the reader.
    std::thread::spawn(move || while filling.write_all(&[b'x'; 512]).is_ok() {});
    std::thread::sleep(Duration::from_millis(100));
    (reader, writer)
}

/// Checks that a role works for a while, and that SIGTERM ends it in time and without an error.
fn works_and_stops(mut child: Child, process: &Process, role: &str, what: &str) {
    let addrs: serde_json::Value = serde_json::from_slice(&fs::read(process.dir().join("ready")).unwrap()).unwrap();
    let addr = addrs["http"].as_str().unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let (status, _) = http::get(addr, "/metrics", None).unwrap_or_else(|| panic!("{what}: the {role} is silent"));
        assert_eq!(status, 200);
        assert!(child.try_wait().unwrap().is_none(), "{what}: the {role} has ended");
    }
    assert!(http::metric(addr, "shoal_log_lines_dropped_total").is_some(), "{what}: {role}");
    let began = Instant::now();
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let status = until(&format!("{what}: the {role} stops"), || child.try_wait().unwrap());
    assert!(began.elapsed() < STOP, "{what}: the {role} took {:?}", began.elapsed());
    assert!(status.success(), "{what}: the {role} ended with {status}");
}

#[test]
fn every_role_works_and_stops_without_a_reader_of_its_log() {
    let mut region = Region::start(SHOAL, 1, 1);
    let Region { hub, tracker, seeder, peers, .. } = &mut region;
    for (role, process) in [("peer", &mut peers[0]), ("seeder", seeder), ("tracker", tracker), ("hub", hub)] {
        process.terminate();
        works_and_stops(start(process, role, without_reader()), process, role, "no reader");
        let (reader, writer) = full();
        works_and_stops(start(process, role, writer), process, role, "a full pipe");
        drop(reader);
        process.start();
    }
}

#[test]
fn a_role_that_cannot_start_says_why_and_ends_whatever_reads_its_log() {
    let run = |stderr: Stdio| {
        let mut command = SHOAL.command();
        command.args(["peer", "--set", "dir=relative"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        command.spawn().unwrap()
    };
    let output = run(Stdio::piped()).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("shoal: "), "{text}");
    let (reader, writer) = full();
    let (mut gone, mut stuck) = (run(without_reader().into()), run(writer.into()));
    for child in [&mut gone, &mut stuck] {
        let status = until("the role ends", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(1));
    }
    drop(reader);
}
