//! `shoal rollout`: starts, follows and commands staged activations.
//!
//! Invariant: the seeder owns the state of a rollout. The commands only send requests and show answers.

mod follow;
mod spec;
mod view;

pub(crate) use follow::{follow, headline, summary};

use super::seeder::{SeederArgs, block_on};
use super::{Outcome, output};
use shoal_api::rollouts::{CommandRequest, DryRun, RolloutAccepted, RolloutCommand, RolloutView};
use shoal_service::units::Span;
use spec::Begin;

/// Activate a version on hosts batch by batch, with health gates and rollback
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  shoal rollout edge/settings@43 ./settings --to service=cache --batch 1,25%,100% --per-rack 1 --wait
  shoal rollout edge/settings@43 --to all --verify 'sum(rate(errors[1m])) < 5' --prometheus http://prom:9090
  shoal rollout --file rollout.toml --dry-run"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    begin: Begin,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the progress of the current rollouts, or of one
    #[command(after_help = "\
Examples:
  shoal rollout status
  shoal rollout status edge/settings --json")]
    Status(Which),
    /// Wait until a rollout has ended
    #[command(after_help = "\
Examples:
  shoal rollout wait edge/settings --timeout 2h")]
    Wait(Waiting),
    /// Pause a rollout: no further host starts to switch
    #[command(after_help = "\
Examples:
  shoal rollout pause edge/settings")]
    Pause(One),
    /// Resume a paused or stopped rollout, and tolerate the failures so far
    #[command(after_help = "\
Examples:
  shoal rollout resume edge/settings")]
    Resume(One),
    /// Cancel a rollout: every host keeps its present version
    #[command(after_help = "\
Examples:
  shoal rollout cancel edge/settings")]
    Cancel(One),
    /// Roll back: switched hosts return to their former version
    #[command(after_help = "\
Examples:
  shoal rollout rollback edge/settings")]
    Rollback(One),
    /// Let failed hosts try again
    #[command(after_help = "\
Examples:
  shoal rollout retry-failed edge/settings")]
    RetryFailed(One),
    /// Open the next batch without further waiting
    #[command(after_help = "\
Examples:
  shoal rollout promote edge/settings --all")]
    Promote(Promotion),
    /// List all rollouts, past and current
    #[command(after_help = "\
Examples:
  shoal rollout history
  shoal rollout history edge/settings")]
    History(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Name of a content, or id of a rollout
    of: Option<String>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

#[derive(Debug, clap::Args)]
struct One {
    /// Name of a content, whose newest rollout is meant, or id of a rollout
    of: String,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

#[derive(Debug, clap::Args)]
struct Waiting {
    /// Time after which the command ends with exit code 4
    #[arg(long, default_value = "1d")]
    timeout: Span,
    #[command(flatten)]
    one: One,
}

#[derive(Debug, clap::Args)]
struct Promotion {
    /// Open all remaining batches at once
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    one: One,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.command {
        None => begin(&args.begin),
        Some(Command::Status(which)) => view::status(which),
        Some(Command::History(which)) => view::history(which),
        Some(Command::Wait(waiting)) => {
            let (client, one) = (waiting.one.seeder.client()?, &waiting.one);
            block_on(follow(&client, &one.of, one.json, waiting.timeout.0))
        }
        Some(Command::Pause(one)) => send(one, RolloutCommand::Pause),
        Some(Command::Resume(one)) => send(one, RolloutCommand::Resume),
        Some(Command::Cancel(one)) => send(one, RolloutCommand::Cancel),
        Some(Command::Rollback(one)) => send(one, RolloutCommand::Rollback),
        Some(Command::RetryFailed(one)) => send(one, RolloutCommand::RetryFailed),
        Some(Command::Promote(promotion)) => {
            let command = if promotion.all { RolloutCommand::PromoteAll } else { RolloutCommand::Promote };
            send(&promotion.one, command)
        }
    }
}

fn begin(args: &Begin) -> anyhow::Result<Outcome> {
    let spec = args.spec()?;
    let client = args.seeder.client()?;
    block_on(async {
        if args.dry_run {
            let dry: DryRun = client.post("/v1/rollouts/dry-run", &spec).await?;
            if args.json {
                output::json(&dry)?;
            } else {
                view::dry_run(&dry);
            }
            return Ok(Outcome::Ok);
        }
        let begun: RolloutAccepted = client.post("/v1/rollouts", &spec).await?;
        if args.json {
            output::json_line(&begun)?;
        } else {
            output::line(&format!("rollout {}", begun.rollout));
        }
        if !args.wait {
            return Ok(Outcome::Ok);
        }
        follow(&client, &begun.rollout.to_string(), args.json, args.timeout.0).await
    })
}

fn send(one: &One, command: RolloutCommand) -> anyhow::Result<Outcome> {
    let client = one.seeder.client()?;
    let request = CommandRequest { of: one.of.clone(), command };
    let view: RolloutView = block_on(async { Ok(client.post("/v1/rollouts/command", &request).await?) })?;
    if one.json {
        output::json(&view)?
    } else {
        summary(&view)
    }
    Ok(Outcome::Ok)
}
