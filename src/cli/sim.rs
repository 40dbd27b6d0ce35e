//! `shoal sim`: simulates a push to a region in virtual time.
//!
//! Invariant: the same options print the same figures and digest on every machine.

use super::{Outcome, output};
use anyhow::Context;
use clap::Parser;
use serde::{Deserialize, Serialize};
use shoal_service::units::{ByteSize, Rate, Span};
use shoal_sim::faults;
use shoal_sim::layout::{Layout, Rack};
use shoal_sim::plot;
use shoal_sim::run::{Figures, Scenario, run as simulate};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Below this number of deliveries every invariant is checked without `--check`.
const CHECKED_BELOW: u64 = 1_000_000;

/// Simulate a push to a region of up to 100,000 hosts with the core of the real daemons
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  shoal sim
  shoal sim --racks 100 --hosts 40 --pieces 512 --plot region.svg
  shoal sim --racks 8 --faults crash:10%@40%,slow --seed 7 --json

Exit code 4: a host that is neither dead nor slow to the end was incomplete after --limit.")]
pub(crate) struct Args {
    /// Number of racks
    #[arg(long, default_value_t = 4)]
    racks: u32,
    /// Number of hosts in each rack
    #[arg(long, default_value_t = 4)]
    hosts: u32,
    /// Number of sites. The racks are spread evenly over the sites
    #[arg(long, default_value_t = 1)]
    sites: u32,
    /// Number of pieces of the content
    #[arg(long, default_value_t = 1024)]
    pieces: u32,
    /// Size of a piece
    #[arg(long, default_value = "256 KiB")]
    piece_size: ByteSize,
    /// Number of parity shards in a stripe of 16 pieces
    #[arg(long, default_value_t = 4)]
    parity: u8,
    /// Rate of each rack's uplink in each direction. A number without a unit is in Mbit/s
    #[arg(long, default_value = "200 Mbit/s")]
    uplink: Rate,
    /// Rate of the seeder's link in each direction
    #[arg(long, default_value = "400 Mbit/s")]
    seeder_rate: Rate,
    /// Rate of each host's network card
    #[arg(long, default_value = "10 Gbit/s")]
    nic: Rate,
    /// Rate at which a host's disk writes
    #[arg(long, default_value = "unlimited")]
    disk: Rate,
    /// Rate of each site's link to the others
    #[arg(long, default_value = "unlimited")]
    site_uplink: Rate,
    /// One-way latency between racks. The latency within a rack is a quarter of the value
    #[arg(long, default_value = "200us")]
    latency: Span,
    /// TOML file with sites, racks and rates, instead of the options above
    #[arg(long, conflicts_with_all = ["racks", "hosts", "sites", "uplink", "seeder_rate", "nic", "disk", "site_uplink",
        "latency"])]
    topology: Option<PathBuf>,
    /// Faults: `KIND[:WHO][=RATE][@WHEN][+SPAN]`, joined by commas, such as `crash:10%@40%,slow,seeder@out`
    ///
    /// KIND is crash, slow, uplink, seeder, tracker, flap, corrupt, stale or uneven.
    /// WHO is a number of hosts, a part such as 10%, `owners` (one host of each rack) or RACK/HOST. For uplink, WHO is
    /// the rack. RATE is the rate that is left, such as 1%.
    /// WHEN is a time such as 2s, a part of the least possible makespan such as 40%, `out` or `demoted`. At `out` every
    /// byte has left the seeder. At `demoted` the push and its faults are over, and every rack has demoted the content,
    /// which is then promoted.
    #[arg(long, default_value = "", value_name = "SPEC", hide_default_value = true)]
    faults: String,
    /// Seed of all random choices, such as the hosts that faults hit
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Virtual time after which the simulation ends
    #[arg(long, default_value = "1h")]
    limit: Span,
    /// Check every invariant at every step. Automatic below a million deliveries
    #[arg(long)]
    check: bool,
    /// SVG file for completion curves and a heat map of racks
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// The file of `--topology`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Topology {
    seeder: Rate,
    #[serde(default = "unlimited")]
    site_uplink: Rate,
    #[serde(default = "near")]
    near: Span,
    #[serde(default = "far")]
    far: Span,
    /// Whether the tracker knows the uplink rates.
    #[serde(default)]
    declared: bool,
    rack: Vec<RackForm>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RackForm {
    #[serde(default = "site")]
    site: String,
    /// Number of racks of this form.
    #[serde(default = "one")]
    count: u32,
    hosts: u32,
    uplink: Rate,
    #[serde(default = "nic")]
    nic: Rate,
    #[serde(default = "unlimited")]
    disk: Rate,
}

fn unlimited() -> Rate {
    Rate::UNLIMITED
}

fn nic() -> Rate {
    Rate(1_250_000_000)
}

fn near() -> Span {
    Span(Duration::from_micros(50))
}

fn far() -> Span {
    Span(Duration::from_micros(200))
}

fn site() -> String {
    "site".into()
}

fn one() -> u32 {
    1
}

/// The figures of a run, and the cost of the run itself.
#[derive(Debug, Serialize)]
struct Summary {
    #[serde(flatten)]
    figures: Figures,
    seed: u64,
    wall_s: f64,
    events_per_s: f64,
    peak_rss_bytes: u64,
}

/// Checks the options and makes the scenario of them.
fn scenario(args: &Args) -> anyhow::Result<Scenario> {
    let layout = match &args.topology {
        Some(path) => read(path).with_context(|| format!("cannot read the topology {}", path.display()))?,
        None => layout(args),
    };
    let hosts = layout.hosts();
    anyhow::ensure!(hosts > 0, "the region has no hosts; set --racks and --hosts to at least 1");
    anyhow::ensure!(hosts < 1_000_000, "{hosts} hosts are too many; a simulated region has fewer than 1,000,000");
    anyhow::ensure!(args.pieces > 0, "--pieces 0 is invalid; set at least 1");
    let piece_bytes = u32::try_from(args.piece_size.0).ok().filter(|bytes| (1..=64 << 20).contains(bytes));
    let piece_bytes = piece_bytes.context("--piece-size is out of range; set 1 B to 64 MiB")?;
    anyhow::ensure!(args.parity <= 16, "--parity {} is invalid; set at most 16", args.parity);
    let zero = layout.racks.iter().any(|rack| rack.uplink == 0 || rack.nic == 0 || rack.disk == 0);
    anyhow::ensure!(
        !zero && layout.seeder > 0 && layout.site_uplink > 0,
        "a rate is 0, so the push never ends; use --faults uplink to cut a link"
    );
    let deliveries = u64::from(hosts) * u64::from(args.pieces);
    Ok(Scenario {
        layout,
        pieces: args.pieces,
        piece_bytes,
        parity: args.parity,
        faults: faults::parse(&args.faults)?,
        seed: args.seed,
        limit: args.limit.0,
        checked: args.check || deliveries < CHECKED_BELOW,
    })
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let scenario = scenario(args)?;
    let hosts = scenario.layout.hosts();
    let bar = indicatif::ProgressBar::new(1000);
    bar.set_style(indicatif::ProgressStyle::with_template(
        "{bar:40} {percent}% of pieces delivered, {elapsed}, {eta} left",
    )?);
    let began = Instant::now();
    let outcome = simulate(&scenario, |part| bar.set_position((part * 1000.0) as u64));
    let wall_s = began.elapsed().as_secs_f64();
    bar.finish_and_clear();
    if let Some(path) = &args.plot {
        let title = format!("{hosts} hosts, {} pieces, {}", args.pieces, ByteSize(outcome.figures.bytes).rounded());
        let drawing = plot::svg(&outcome, &title);
        std::fs::write(path, drawing).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let complete = outcome.is_complete();
    let events = outcome.figures.events as f64;
    let summary = Summary {
        figures: outcome.figures,
        seed: args.seed,
        wall_s,
        events_per_s: events / wall_s.max(1e-9),
        peak_rss_bytes: shoal_service::metrics::peak_rss("self"),
    };
    if args.json {
        output::json(&summary)?
    } else {
        print(&summary)
    }
    Ok(if complete { Outcome::Ok } else { Outcome::Unfinished })
}

fn layout(args: &Args) -> Layout {
    let rack = |number: u32| Rack {
        site: format!("site{}", number % args.sites.max(1)),
        hosts: args.hosts,
        uplink: args.uplink.0,
        nic: args.nic.0,
        disk: args.disk.0,
    };
    Layout {
        seeder: args.seeder_rate.0,
        racks: (0..args.racks).map(rack).collect(),
        site_uplink: args.site_uplink.0,
        near: args.latency.0 / 4,
        far: args.latency.0,
        declared: false,
    }
}

fn read(path: &Path) -> anyhow::Result<Layout> {
    let file: Topology = toml::from_str(&std::fs::read_to_string(path)?)?;
    let racks = file.rack.iter().flat_map(|row| {
        let rack =
            Rack { site: row.site.clone(), hosts: row.hosts, uplink: row.uplink.0, nic: row.nic.0, disk: row.disk.0 };
        std::iter::repeat_n(rack, row.count as usize)
    });
    Ok(Layout {
        seeder: file.seeder.0,
        racks: racks.collect(),
        site_uplink: file.site_uplink.0,
        near: file.near.0,
        far: file.far.0,
        declared: file.declared,
    })
}

fn print(summary: &Summary) {
    let figures = &summary.figures;
    let lost = match (figures.dead, figures.slow) {
        (0, 0) => String::new(),
        (dead, slow) => format!(", {dead} dead, {slow} slow to the end and not counted"),
    };
    output::line(&format!("{} of {} hosts complete{lost}", figures.complete, figures.hosts));
    output::line(&format!(
        "makespan {:.3} s, {:.3} by the bound ({:.3} s), half of the hosts after {:.3} s, 99 % after {:.3} s",
        figures.makespan_s, figures.ratio, figures.bound_s, figures.p50_s, figures.p99_s
    ));
    output::line(&format!(
        "copies into a rack: {:.3} at worst, {:.3} on average\n\
         egress {:.3}, parity {:.2} % of the bytes over uplinks, depth {}",
        figures.rack_import_max,
        figures.rack_import_mean,
        figures.seeder_egress,
        figures.parity_over_uplinks * 100.0,
        figures.depth
    ));
    if let Some(demotion) = &figures.demotion {
        output::line(&format!(
            "demoted to {:.2} copies per rack\n\
             promoted: {} of {} hosts after {:.3} s, copies into a rack {:.3} at worst, egress {:.3}",
            demotion.copies,
            demotion.complete,
            demotion.hosts,
            demotion.restore_s,
            demotion.rack_import_max,
            demotion.seeder_egress
        ));
    }
    output::line(&format!(
        "{} events in {:.2} s ({:.2} million/s), peak memory {}, seed {}, digest {}",
        figures.events,
        summary.wall_s,
        summary.events_per_s / 1e6,
        ByteSize(summary.peak_rss_bytes).rounded(),
        summary.seed,
        figures.digest
    ));
}
