//! The lab: a region of real processes in network namespaces, its racks behind shaped uplinks, and other systems on the
//! same work beside it.
//!
//! Owns: the command line, and the order of runs. Invariant: when it ends, however it ends, its namespaces, processes and files are gone;
//! what a killed run left behind goes when the next one begins.
//!
//! Where to look: what is run in [`scenario`]; racks and rates in [`namespaces`]; processes, their CPU time and memory in [`processes`];
//! one run from start to figures in [`measure`]; what goes wrong in [`troubles`]; demotion and promotion after the push in
//! [`cold`]; each system in [`systems`]; the simulator on the same region in [`simulate`]; feeds beside the content in
//! [`traffic`]; what is printed in [`table`].

mod cold;
mod content;
#[path = "../../tests/common/disk.rs"]
mod disk;
#[path = "../../tests/common/feeds.rs"]
mod feeds;
#[path = "../../tests/common/http.rs"]
mod http;
mod interrupt;
mod measure;
mod namespaces;
mod processes;
mod scenario;
mod simulate;
mod systems;
mod table;
mod traffic;
mod troubles;

use anyhow::{Context, bail};
use clap::Parser;
use measure::{Figures, Setting};
use scenario::Scenario;
use shoal_service::units::ByteSize;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use systems::Kind;

/// Size of the content in short runs.
const SMOKE_BYTES: u64 = 4 << 20;

/// Distribute one file in racks made of network namespaces, with shoal and with others, and say what it took
#[derive(Debug, Parser)]
#[command(name = "lab", max_term_width = 100)]
struct Args {
    /// What to run, by name; repeat or separate by commas; `all` runs every one
    #[arg(long, value_delimiter = ',', default_value = "healthy")]
    scenario: Vec<String>,
    /// Which systems: shoal, libtorrent, aria2, http
    #[arg(long, value_delimiter = ',', default_value = "shoal,libtorrent,aria2,http")]
    system: Vec<Kind>,
    /// Runs of each; medians are shown
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Parity shards in a stripe of 16 pieces, for shoal
    #[arg(long, default_value_t = 4)]
    parity: u8,
    /// Size of the content, instead of the scenario's own
    #[arg(long)]
    size: Option<ByteSize>,
    /// Run the simulator on the same regions, and say how far off it is
    #[arg(long)]
    sim: bool,
    /// A few seconds only: 4 MiB, two racks of two
    #[arg(long)]
    smoke: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Where stores and copies are kept while it runs
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Leave the files of each run, with all logs, and say where they are
    #[arg(long)]
    keep: bool,
    /// Name the scenarios
    #[arg(long)]
    list: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Runs the lab with these arguments, the program's name first.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("lab: {error:#}"));
            if interrupt::seen() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

fn start(args: &Args) -> anyhow::Result<()> {
    if args.list {
        scenario::ALL.iter().for_each(|make| say(&make().summary()));
        return Ok(());
    }
    let scenarios = chosen(args)?;
    if let Some(why) = namespaces::unavailable() {
        note(&format!("skipped: {why}"));
        return Ok(());
    }
    interrupt::watch().context("cannot listen for signals")?;
    namespaces::sweep();
    std::fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    let mut systems = Vec::new();
    for kind in &args.system {
        match kind.missing() {
            Some(how) => note(&format!("{kind} is skipped: {how}")),
            None => systems.push(*kind),
        }
    }
    let mut rows = Vec::new();
    for scenario in &scenarios {
        for kind in systems.iter().filter(|kind| scenario.suits(**kind)) {
            rows.push(repeat(args, scenario, *kind)?);
        }
    }
    if args.json {
        say(&serde_json::to_string_pretty(&rows)?);
    } else {
        table::print(&rows);
    }
    let wrong: Vec<String> = rows.iter().filter_map(table::Row::complaint).collect();
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(())
}

fn chosen(args: &Args) -> anyhow::Result<Vec<Scenario>> {
    if args.smoke {
        return Ok(vec![scenario::smoke(args.size.map_or(SMOKE_BYTES, |size| size.0))]);
    }
    let mut chosen = Vec::new();
    for name in &args.scenario {
        let before = chosen.len();
        chosen
            .extend(scenario::ALL.iter().map(|make| make()).filter(|scenario| name == "all" || *name == scenario.name));
        if chosen.len() == before {
            let names: Vec<&str> = scenario::ALL.iter().map(|make| make().name).collect();
            bail!("there is no scenario `{name}`; there are: {}", names.join(", "));
        }
    }
    if let Some(size) = args.size {
        chosen.iter_mut().for_each(|scenario| scenario.bytes = size.0);
    }
    Ok(chosen)
}

/// Runs one system through one scenario as often as asked.
fn repeat(args: &Args, scenario: &Scenario, kind: Kind) -> anyhow::Result<table::Row> {
    let mut runs: Vec<Figures> = Vec::new();
    for number in 1..=args.repeat {
        note(&format!("{} {kind}: run {number} of {}", scenario.name, args.repeat));
        let setting = Setting { kind, scenario, parity: args.parity, dir: &args.dir, keep: args.keep };
        let figures = measure::run(&setting).with_context(|| format!("{} with {kind}", scenario.name))?;
        runs.push(figures);
    }
    let sim = (args.sim && kind == Kind::Shoal).then(|| simulate::figures(scenario, &runs[0], args.parity)).flatten();
    Ok(table::Row::new(scenario, kind, args.parity, runs, sim))
}

/// Prints a line; a reader that went away is no error.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints a note that is not the result.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The program under test.
fn shoal() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_shoal"))
}
