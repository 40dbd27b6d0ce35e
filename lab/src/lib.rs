//! The lab: a region of real processes in network namespaces behind shaped uplinks, and other systems on the same work.
//!
//! Owns: the command line and the order of runs. The crate is for developers: no shipped crate may depend on it.
//! Invariant: when the lab ends, for whatever reason, its namespaces, processes and files are removed. A run that was
//! killed is cleaned up by the next one. `docs/GLOSSARY.md` defines the terms.
//!
//! Where to look: what is run in [`scenario`]; racks and rates in [`namespaces`]; processes, their CPU time and memory
//! in [`processes`]; everything that one run holds in [`stage`]; one run from start to figures in [`measure`]; the wait
//! for hosts in [`completion`]; faults in [`faults`]; demotion and promotion after the push in [`demotion`]; each
//! system in [`systems`]; the simulator on the same region in [`simulate`]; a feed beside the content in
//! [`feed_traffic`]; the printed table in [`table`].

mod clock;
mod completion;
mod content;
mod demotion;
mod faults;
mod feed_traffic;
mod interrupt;
mod measure;
mod namespaces;
mod output;
mod processes;
mod scenario;
mod simulate;
mod stage;
mod systems;
mod table;

use anyhow::{Context, bail};
use clap::Parser;
use measure::{Figures, Setting};
use output::{note, say};
use scenario::Scenario;
use shoal_service::units::ByteSize;
use shoal_testkit::Program;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use systems::Kind;

/// Size of the content with `--smoke`.
const SMOKE_BYTES: u64 = 4 << 20;

/// Distribute one file in racks made of network namespaces, with Shoal and with other systems, and print the figures
#[derive(Debug, Parser)]
#[command(name = "lab", max_term_width = 100)]
struct Args {
    /// Names of scenarios, repeated or separated by commas; `all` runs every scenario
    #[arg(long, value_delimiter = ',', default_value = "healthy")]
    scenario: Vec<String>,
    /// Systems to run: shoal, libtorrent, aria2, http
    #[arg(long, value_delimiter = ',', default_value = "shoal,libtorrent,aria2,http")]
    system: Vec<Kind>,
    /// Runs of each scenario and system; the table shows medians
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Parity shards in a stripe of 16 pieces, for Shoal
    #[arg(long, default_value_t = 4)]
    parity: u8,
    /// Size of the content, instead of the scenario's own
    #[arg(long)]
    size: Option<ByteSize>,
    /// Also run the simulator on the same regions and print its error
    #[arg(long)]
    sim: bool,
    /// Run a few seconds only: 4 MiB, two racks of two hosts
    #[arg(long)]
    smoke: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Folder for stores and copies during the run [default: the build's folder for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keep the files of each run, with all logs, and print their folder
    #[arg(long)]
    keep: bool,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// Cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
}

/// Runs the lab.
///
/// `program` is the Shoal under test. `files` is the folder for temporary files unless `args` name another one. `args`
/// begin with the name of the lab's program.
pub fn run(program: Program, files: &Path, args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    match start(program, args.dir.as_deref().unwrap_or(files), &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("lab: {error:#}"));
            if interrupt::seen() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

fn start(program: Program, dir: &Path, args: &Args) -> anyhow::Result<()> {
    if args.list {
        scenario::ALL.iter().for_each(|make| say(&make().summary()));
        return Ok(());
    }
    let scenarios = chosen(args)?;
    if let Some(why) = namespaces::unavailable() {
        note(&format!("skipped: {why}"));
        return Ok(());
    }
    interrupt::watch().context("cannot handle signals")?;
    namespaces::sweep();
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
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
            let setting = Setting { kind: *kind, scenario, parity: args.parity, program, dir, keep: args.keep };
            rows.push(repeat(args, &setting)?);
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
            bail!("unknown scenario `{name}`: use one of {}", names.join(", "));
        }
    }
    if let Some(size) = args.size {
        chosen.iter_mut().for_each(|scenario| scenario.bytes = size.0);
    }
    Ok(chosen)
}

/// Runs one system through one scenario `args.repeat` times.
fn repeat(args: &Args, setting: &Setting<'_>) -> anyhow::Result<table::Row> {
    let (scenario, kind) = (setting.scenario, setting.kind);
    let mut runs: Vec<Figures> = Vec::new();
    for number in 1..=args.repeat {
        note(&format!("{} {kind}: run {number} of {}", scenario.name, args.repeat));
        let figures = measure::run(setting).with_context(|| format!("{} with {kind}", scenario.name))?;
        runs.push(figures);
    }
    let sim = (args.sim && kind == Kind::Shoal).then(|| simulate::figures(scenario, &runs[0], args.parity)).flatten();
    Ok(table::Row::new(scenario, kind, args.parity, runs, sim))
}
