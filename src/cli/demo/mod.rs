//! `shoal demo`: a region of real processes on loopback, one or two pushes, and a check of every copy.
//!
//! Invariant: the demo leaves no process and, without `--keep`, no file behind.

mod region;
mod release;
mod verify;

use super::cluster::{Issue, init, issue};
use super::progress::{Display, follow};
use super::seeder::block_on;
use super::{Outcome, output};
use anyhow::{Context, bail};
use region::Region;
use serde::Serialize;
use shoal_api::jobs::{HostTotals, JobAccepted, JobStatus, PushRequest};
use shoal_proto::announcement::Kind;
use shoal_service::units::{ByteSize, Span};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Run a region of real processes on this machine, push a release to it and verify every copy
///
/// The demo starts a hub, a tracker, a seeder and racks of peers on loopback. It pushes PATH, or a release tree that it
/// generates. It compares every host's copy with the source, prints a summary and removes its files. It needs neither
/// root nor another program.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal demo
  shoal demo --racks 4 --hosts 8 --size '256 MiB'
  shoal demo ./release --then ./next-release --json")]
pub(crate) struct Args {
    /// File or directory to push [default: a generated release tree]
    path: Option<PathBuf>,
    /// Size of the generated release tree
    #[arg(long, default_value = "64 MiB", conflicts_with = "path")]
    size: ByteSize,
    /// Seed of the generated release tree. The same seed and size make the same tree
    #[arg(long, default_value_t = 1, conflicts_with = "path")]
    seed: u64,
    /// Number of racks
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    racks: u16,
    /// Number of hosts in each rack
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    hosts: u16,
    /// File or directory to push afterwards as a second version
    #[arg(long, value_name = "PATH")]
    then: Option<PathBuf>,
    /// Time after which a push ends with exit code 4
    #[arg(long, default_value = "10m")]
    timeout: Span,
    /// Keep the folder with all stores, contents and logs, and print its path
    #[arg(long)]
    keep: bool,
    /// Folder in which the demo creates its own [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// The figures of one push.
#[derive(Debug, Serialize)]
struct Summary {
    hosts: u32,
    complete: u32,
    bytes: u64,
    makespan_s: f64,
    /// Payload bytes that entered each rack, divided by the size of the content.
    rack_import_ratio: BTreeMap<String, f64>,
    seeder_egress_ratio: f64,
    hub_bytes_in: u64,
    hub_messages: u64,
    tracker_bytes_in: u64,
    /// Number of hosts whose copy equals the source.
    verified: u32,
    /// Peak resident memory of the largest process.
    peak_rss_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    then: Option<Box<Summary>>,
}

pub(crate) fn run(args: Args) -> anyhow::Result<Outcome> {
    let path = args.path.as_deref().map(absolute).transpose()?;
    let then = args.then.as_deref().map(absolute).transpose()?;
    let base = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = region::Folder::create(&base, args.keep)?;
    let outcome = block_on(async {
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            done = demo(&args, path.as_deref(), then.as_deref(), folder.path()) => done,
            _ = tokio::signal::ctrl_c() => Ok(Outcome::Interrupted),
            _ = interrupt.recv() => Ok(Outcome::Interrupted),
        }
    });
    if args.keep {
        output::note(&format!("the demo's files are in {}", folder.path().display()));
    }
    outcome
}

/// Returns the absolute path, because the seeder does not run in the working directory of the demo.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| format!("cannot push {}", path.display()))
}

async fn demo(args: &Args, path: Option<&Path>, then: Option<&Path>, folder: &Path) -> anyhow::Result<Outcome> {
    let say = |text: String| {
        if !args.json {
            output::line(&text);
        }
    };
    let (path, what) = match path {
        Some(path) => (path.to_path_buf(), path.display().to_string()),
        None => {
            let release = release::generate(&folder.join("release"), args.size.0, args.seed)?;
            let what = release.to_string();
            (release.path, what)
        }
    };
    let (racks, hosts) = (u32::from(args.racks), u32::from(args.hosts));
    say(format!("starting a hub, a tracker, a seeder and {racks} racks of {hosts} hosts"));
    let cluster = folder.join("cluster");
    init(&cluster)?;
    let sources: Vec<&Path> = [path.as_path()].into_iter().chain(then).collect();
    let mut region = Region::start(folder, &cluster, (racks, hosts), &sources).await?;
    say(format!("pushing {what} as demo 1"));
    let (outcome, mut first) = push(args, &mut region, &path, "1", &say).await?;
    let mut worst = outcome;
    if let Some(path) = then {
        say(format!("pushing {} as demo 2", path.display()));
        let (outcome, second) = push(args, &mut region, path, "2", &say).await?;
        first.then = Some(Box::new(second));
        worst = if worst == Outcome::Ok { outcome } else { worst };
    }
    region.stop().await;
    if args.json {
        output::json(&first)?;
    }
    Ok(worst)
}

async fn push(
    args: &Args,
    region: &mut Region,
    path: &Path,
    version: &str,
    say: &impl Fn(String),
) -> anyhow::Result<(Outcome, Summary)> {
    let before = region.traffic().await?;
    let request = PushRequest {
        path: path.to_path_buf(),
        name: "demo".into(),
        version: version.into(),
        kind: Kind::Blob,
        to: vec!["all".into()],
        staged: false,
        image: None,
        replace: false,
    };
    let client = region.seeder()?;
    let pushed: JobAccepted = client.post("/v1/push", &request).await?;
    let display = if args.json { Display::Silent } else { Display::new(false) };
    let (outcome, status) = tokio::select! {
        followed = follow(&client, &pushed.job, display, args.timeout.0) => followed?,
        died = region.watch() => bail!("{died}"),
    };
    region.hub_settled(&pushed.job, &status).await?;
    let after = region.traffic().await?;
    let truth = verify::fingerprint(path).context("cannot read the source again")?;
    let mut verified = 0;
    for host in region.content_dirs() {
        let copy = host.join("demo/current");
        match verify::matches(&truth, &copy) {
            Ok(()) => verified += 1,
            Err(why) => output::note(&format!("{}: {why:#}", copy.display())),
        }
    }
    let summary = summarise(&status, verified, &before, &after);
    say(format!(
        "verified {verified} of {} copies byte for byte\n\
         the hub received {} messages ({}), the seeder sent {:.3} copies",
        summary.hosts,
        summary.hub_messages,
        ByteSize(summary.hub_bytes_in).rounded(),
        summary.seeder_egress_ratio,
    ));
    let whole = verified == summary.hosts;
    Ok((if outcome == Outcome::Ok && !whole { Outcome::HostsFailed } else { outcome }, summary))
}

fn summarise(status: &JobStatus, verified: u32, before: &region::Traffic, after: &region::Traffic) -> Summary {
    let size = status.size.max(1) as f64;
    let HostTotals { hosts, active, .. } = status.totals();
    Summary {
        hosts,
        complete: active,
        bytes: status.size,
        makespan_s: status.elapsed_s,
        rack_import_ratio: status
            .racks
            .iter()
            .map(|rack| (rack.rack.clone(), rack.tiers.imported() as f64 / size))
            .collect(),
        seeder_egress_ratio: status.seeder_sent as f64 / size,
        hub_bytes_in: after.hub_bytes_in - before.hub_bytes_in,
        hub_messages: after.hub_messages - before.hub_messages,
        tracker_bytes_in: after.tracker_bytes_in - before.tracker_bytes_in,
        verified,
        peak_rss_bytes: after.peak_rss_bytes,
        then: None,
    }
}

/// Issues the credential of one node of the demo, valid for a day.
fn credentials(cluster: &Path, role: shoal_proto::trust::Role, locality: &str, out: PathBuf) -> anyhow::Result<()> {
    issue(&Issue {
        dir: cluster.to_path_buf(),
        role,
        locality: locality.parse()?,
        out,
        valid: Span(Duration::from_secs(86_400)),
        label: Vec::new(),
        weight_max: shoal_proto::trust::Credential::WEIGHT_DEFAULT,
        address: vec!["127.0.0.0/8".parse()?],
        replace: false,
        json: false,
    })?;
    Ok(())
}
