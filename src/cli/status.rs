//! `shoal status`: a table of all jobs, or the details of one.

use super::progress::{Display, follow, has_ended_badly, summary, tiers};
use super::seeder::{SeederArgs, block_on};
use super::{Outcome, output, rollout};
use shoal_api::jobs::{HostTotals, JobPhase, JobStatus};
use shoal_api::rollouts::RolloutView;
use shoal_proto::announcement::Order;
use shoal_proto::ids::JobId;
use shoal_service::units::Span;

/// Show the progress of all jobs, or of one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal status
  shoal status JOB
  shoal status JOB --wait --timeout 10m --json")]
pub(crate) struct Args {
    /// Id of one job. Its racks, its first failures and its failed and unfinished hosts are printed
    job: Option<JobId>,
    /// Wait until every host is done or has failed
    #[arg(long, requires = "job")]
    wait: bool,
    /// Time after which --wait ends with exit code 4
    #[arg(long, default_value = "1h", requires = "wait")]
    timeout: Span,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let client = args.seeder.client()?;
    block_on(async {
        let Some(job) = &args.job else {
            let jobs: Vec<JobStatus> = client.get("/v1/jobs").await?;
            return if args.json { output::json(&jobs).map(|()| Outcome::Ok) } else { Ok(list(&jobs)) };
        };
        if args.wait {
            return follow(&client, job, Display::new(args.json), args.timeout.0).await.map(|(outcome, _)| outcome);
        }
        let status: JobStatus = client.get(&format!("/v1/jobs/{job}")).await?;
        if args.json {
            output::json(&status)?;
        } else {
            if status.rollout {
                let view: RolloutView = client.get(&format!("/v1/rollout?of={job}")).await?;
                rollout::headline(&view);
            }
            summary(&status);
            for line in status.lines.iter().filter(|line| !has_ended_badly(line)) {
                let pieces = match status.rollout {
                    true => String::new(),
                    false => format!(" {} of {} pieces", line.pieces, status.pieces),
                };
                output::line(&format!("  {}: {}{pieces} {}", line.host, line.state, line.detail));
            }
        }
        let HostTotals { failed, rolled_back, .. } = status.totals();
        Ok(match status.phase {
            JobPhase::Failed => Outcome::HostsFailed,
            JobPhase::Done if failed + rolled_back > 0 => Outcome::HostsFailed,
            _ => Outcome::Ok,
        })
    })
}

/// The order of a job, and whether its content was demoted afterwards.
fn what(job: &JobStatus) -> &'static str {
    match job.order {
        Some(Order::Demote) => "demote",
        Some(Order::Promote) if job.demoted => "promote (demoted)",
        Some(Order::Promote) => "promote",
        None if job.rollout => "rollout",
        None if job.demoted => "push (demoted)",
        None if job.staged => "staged",
        None => "push",
    }
}

fn list(jobs: &[JobStatus]) -> Outcome {
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            let HostTotals { hosts, has, active, .. } = job.totals();
            vec![
                job.job.to_string(),
                job.name.clone(),
                job.version.clone(),
                what(job).to_string(),
                format!("{:?}", job.phase).to_lowercase(),
                format!("{}/{hosts}", if job.staged { has } else { active }),
                job.failed_hosts().to_string(),
                tiers(&job.tiers),
                output::ago(job.created_at),
            ]
        })
        .collect();
    output::table(&["JOB", "NAME", "VERSION", "WHAT", "PHASE", "DONE", "FAILED", "BYTES", "PUSHED"], &rows);
    Outcome::Ok
}
