//! `shoal doctor`: checks on a host what its role needs, and says what to do about what is wrong.
//!
//! Invariant: the doctor changes nothing, neither here nor at a tracker.

mod machine;
mod network;
mod report;

use super::config::{self, Target};
use super::seeder::{AuthorityArgs, block_on};
use super::{Outcome, output};
use anyhow::bail;
use report::Report;
use serde_json::json;
use std::path::PathBuf;

/// Check what a role needs on this machine: keys, clock, ports, disk, trackers, containerd
///
/// Run it on the host, as the user of the role or as root, before or while the role runs. The exit code is 1 if a check
/// fails. Warnings leave it at 0.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal doctor --role peer /etc/shoal/peer.toml
  shoal doctor --role seeder /etc/shoal/seeder.toml --json")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Folder of hosts.toml files [default: the first folder of containerd's `config_path`, or /etc/containerd/certs.d]
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<PathBuf>,
    /// Configuration of containerd
    #[arg(long, default_value = "/etc/containerd/config.toml", value_name = "FILE")]
    containerd_config: PathBuf,
    #[command(flatten)]
    authority: AuthorityArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let found = config::examine(&args.target);
    let mut report = Report::default();
    match found.findings.rows() {
        [] => report.ok("configuration", "keys, credential, folders and sizes can be used"),
        rows => rows.iter().for_each(|finding| report.finding(finding)),
    }
    if let Some(facts) = found.facts {
        let role = args.target.role().name();
        block_on(async {
            let running = network::role(&mut report, &facts, role, args.authority.ca.as_deref()).await;
            network::ports(&mut report, &facts, running.is_some());
            network::trackers(&mut report, &facts).await?;
            network::rack_peers(&mut report, &facts).await;
            network::hub(&mut report, &facts).await;
            machine::open_files(&mut report, running.and_then(|role| role.open_files_max));
            Ok(())
        })?;
        machine::disks(&mut report, &facts);
        machine::containerd(&mut report, &facts, args.hosts_dir.as_deref(), &args.containerd_config);
    }
    let failed = report.failed();
    if args.target.json() {
        output::json(&json!({ "ok": failed == 0, "role": args.target.role().name(), "checks": report.rows() }))?;
    } else {
        report.print();
    }
    if failed > 0 {
        bail!("{failed} check(s) failed: mend what the rows say and run the doctor again");
    }
    Ok(Outcome::Ok)
}
