//! `shoal rollout`: switches a version in batch by batch, and says how it goes.

use super::seeder::{SeederArgs, block_on};
use super::{Outcome, output};
use anyhow::{Context, bail};
use shoal_api::rollouts::{
    Amount, CommandRequest, DryRun, RollbackMode, RolloutAccepted, RolloutCommand as Word, RolloutPhase, RolloutSpec,
    RolloutView,
};
use shoal_proto::announcement::Kind;
use shoal_service::http_client::Client;
use shoal_service::units::Span;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks at a rollout that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Switch a version in on hosts, batch by batch, and back when it is not well
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    begin: Begin,
}

/// What a new rollout is to be. What is not said is as in the file, or a default.
#[derive(Debug, clap::Args)]
struct Begin {
    /// NAME@VERSION
    what: Option<String>,
    /// File or directory on the seeder's machine; without one the version must have been pushed before
    path: Option<PathBuf>,
    /// For which hosts, as for push
    #[arg(long, value_name = "SELECTOR")]
    to: Vec<String>,
    /// Read it from a TOML or YAML file (by its ending); what is said beside counts
    #[arg(long)]
    file: Option<PathBuf>,
    /// Hosts that have switched after each batch, in all, as numbers or percentages; the last is also the step of further
    /// batches [default: 1,100%]
    #[arg(long, value_delimiter = ',', value_name = "N|N%,...")]
    batch: Vec<Amount>,
    /// Hosts of a rack that may be switching at a time [default: 1]
    #[arg(long)]
    per_rack: Option<u32>,
    /// Number or percentage of failed hosts to tolerate [default: 0]
    #[arg(long, value_name = "N|N%")]
    max_failures: Option<Amount>,
    /// A PromQL query with a comparison that must hold after each batch, e.g. `sum(rate(errors[1m])) < 5`; repeat for more
    #[arg(long, value_name = "QUERY")]
    verify: Vec<String>,
    /// Who answers the queries, as http://host:port
    #[arg(long, value_name = "URL")]
    prometheus: Option<String>,
    /// How long all must be well after each batch [default: 10s]
    #[arg(long)]
    soak: Option<Span>,
    /// Wait between two batches, after that [default: none]
    #[arg(long)]
    wait_between: Option<Span>,
    /// When something is not well: auto goes back, manual stops [default: auto]
    #[arg(long, value_name = "auto|manual")]
    rollback: Option<RollbackMode>,
    /// Versions by rule, e.g. label=canary:V2,10%:V2,*:V1
    #[arg(long)]
    split: Option<String>,
    /// How long a host may take to switch [default: 5m]
    #[arg(long)]
    switch_timeout: Option<Span>,
    /// How long all of it may take [default: as long as it takes]
    #[arg(long)]
    deadline: Option<Span>,
    /// What it is for, as for push [default: config]
    #[arg(long)]
    kind: Option<Kind>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Wait until it has ended
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "1d", requires = "wait")]
    timeout: Span,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show how far rollouts are, or one of them
    Status(Which),
    /// Wait until it has ended
    Wait(Waiting),
    /// Let nobody begin to switch until it is resumed
    Pause(One),
    /// Continue; after a stop, tolerate the failures so far
    Resume(One),
    /// Call it off; hosts stay as they are
    Cancel(One),
    /// Take hosts that switched back to what they were on
    Rollback(One),
    /// Let failed hosts try again
    RetryFailed(One),
    /// Go on with the next batch, without waiting
    Promote(Promotion),
    /// List the rollouts there were
    History(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// A name, or a rollout's id
    of: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

#[derive(Debug, clap::Args)]
struct One {
    /// A name, of which the newest rollout is meant, or a rollout's id
    of: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

#[derive(Debug, clap::Args)]
struct Waiting {
    #[command(flatten)]
    one: One,
    /// How long to wait
    #[arg(long, default_value = "1d")]
    timeout: Span,
}

#[derive(Debug, clap::Args)]
struct Promotion {
    #[command(flatten)]
    one: One,
    /// All batches at once, without waiting between them
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.command {
        None => begin(&args.begin),
        Some(Command::Status(which)) => status(which),
        Some(Command::History(which)) => history(which),
        Some(Command::Wait(waiting)) => {
            let (client, one) = (waiting.one.seeder.client()?, &waiting.one);
            block_on(follow(&client, &one.of, one.json, waiting.timeout.0))
        }
        Some(Command::Pause(one)) => tell(one, Word::Pause),
        Some(Command::Resume(one)) => tell(one, Word::Resume),
        Some(Command::Cancel(one)) => tell(one, Word::Cancel),
        Some(Command::Rollback(one)) => tell(one, Word::Rollback),
        Some(Command::RetryFailed(one)) => tell(one, Word::RetryFailed),
        Some(Command::Promote(word)) => tell(&word.one, if word.all { Word::PromoteAll } else { Word::Promote }),
    }
}

/// Reads a job file. A relative path in it is relative to the file.
fn read(file: &Path) -> anyhow::Result<RolloutSpec> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let mut spec: RolloutSpec = match ending {
        "toml" => toml::from_str(&text).with_context(|| file.display().to_string())?,
        "yaml" | "yml" => serde_saphyr::from_str(&text).with_context(|| file.display().to_string())?,
        _ => bail!("{}: its name must end in .toml, .yaml or .yml", file.display()),
    };
    if let Some(path) = &spec.path {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        spec.path = Some(std::path::absolute(folder.join(path))?);
    }
    Ok(spec)
}

/// What is asked for: the file's, then what is said beside it.
fn spec(args: &Begin) -> anyhow::Result<RolloutSpec> {
    let named = match &args.what {
        Some(what) => Some(what.rsplit_once('@').with_context(|| format!("`{what}` is not NAME@VERSION"))?),
        None => None,
    };
    let mut spec = match (&args.file, named) {
        (Some(file), _) => read(file)?,
        (None, Some((name, version))) => RolloutSpec::new(name, version, Vec::new()),
        (None, None) => bail!("say NAME@VERSION, or --file"),
    };
    if let Some((name, version)) = named {
        (spec.name, spec.version) = (name.into(), version.into());
    }
    if let Some(path) = &args.path {
        // The seeder does not share our working directory.
        spec.path = Some(std::path::absolute(path)?);
    }
    fn put<T: Clone>(field: &mut T, said: Option<&T>) {
        if let Some(said) = said {
            field.clone_from(said);
        }
    }
    put(&mut spec.to, Some(&args.to).filter(|to| !to.is_empty()));
    put(&mut spec.batch, Some(&args.batch).filter(|batch| !batch.is_empty()));
    put(&mut spec.verify, Some(&args.verify).filter(|verify| !verify.is_empty()));
    put(&mut spec.per_rack, args.per_rack.as_ref());
    put(&mut spec.max_failures, args.max_failures.as_ref());
    put(&mut spec.soak, args.soak.as_ref());
    put(&mut spec.wait_between, args.wait_between.as_ref());
    put(&mut spec.rollback, args.rollback.as_ref());
    put(&mut spec.switch_timeout, args.switch_timeout.as_ref());
    put(&mut spec.kind, args.kind.as_ref());
    put(&mut spec.prometheus, args.prometheus.is_some().then_some(&args.prometheus));
    put(&mut spec.split, args.split.is_some().then_some(&args.split));
    put(&mut spec.deadline, args.deadline.is_some().then_some(&args.deadline));
    if spec.to.is_empty() {
        bail!("say for which hosts with --to");
    }
    Ok(spec)
}

fn begin(args: &Begin) -> anyhow::Result<Outcome> {
    let spec = spec(args)?;
    let client = args.seeder.client()?;
    block_on(async {
        if args.dry_run {
            let dry: DryRun = client.post("/v1/rollouts/dry-run", &spec).await?;
            if args.json {
                output::json(&dry)?
            } else {
                show_dry(&dry)
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

fn show_dry(dry: &DryRun) {
    output::line(&format!("{} hosts in {} racks, {} away now", dry.hosts, dry.racks, dry.away));
    for (version, hosts) in &dry.versions {
        output::line(&format!("  {version}: {hosts} hosts"));
    }
    for (number, batch) in (1..).zip(&dry.batches) {
        let more = if batch.hosts as usize > batch.named.len() { ", ..." } else { "" };
        output::line(&format!("  batch {number}: {} hosts: {}{more}", batch.hosts, batch.named.join(", ")));
    }
}

async fn look(client: &Client, of: &str) -> anyhow::Result<RolloutView> {
    Ok(client.get(&format!("/v1/rollout?of={of}")).await?)
}

/// Follows a rollout to its end, or until a person must decide.
pub(crate) async fn follow(client: &Client, of: &str, json: bool, timeout: Duration) -> anyhow::Result<Outcome> {
    let until = tokio::time::Instant::now() + timeout;
    let mut said = 0;
    let mut former = None;
    loop {
        let view = look(client, of).await?;
        if json && former.as_ref() != Some(&view) {
            output::json_line(&view)?;
        }
        if !json {
            let fresh = view.events.iter().filter(|event| event.at_ms > said);
            fresh.for_each(|event| output::note(&format!("{}  ({})", event.what, counts(&view))));
            said = view.events.last().map_or(said, |event| event.at_ms);
        }
        let over = view.phase.is_final() || view.phase == RolloutPhase::Stopped;
        if over || tokio::time::Instant::now() >= until {
            if !json {
                summary(&view);
            }
            return Ok(outcome(&view));
        }
        former = Some(view);
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => {
                output::note("the rollout goes on; `shoal rollout status` shows it");
                return Ok(Outcome::Interrupted);
            }
        }
    }
}

fn outcome(view: &RolloutView) -> Outcome {
    match view.phase {
        RolloutPhase::Done if view.tally.failed > 0 => Outcome::HostsFailed,
        RolloutPhase::Done if view.tally.away > 0 => Outcome::Unfinished,
        RolloutPhase::Done => Outcome::Ok,
        RolloutPhase::RolledBack | RolloutPhase::Cancelled | RolloutPhase::Failed | RolloutPhase::Stopped => {
            Outcome::HostsFailed
        }
        _ => Outcome::Unfinished,
    }
}

fn counts(view: &RolloutView) -> String {
    let tally = &view.tally;
    let mut parts = vec![format!("{} of {} hosts active", tally.active, tally.hosts)];
    let more = [
        ("switching", tally.switching),
        ("failed", tally.failed),
        ("rolled back", tally.rolled_back),
        ("away", tally.away),
    ];
    parts.extend(more.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")));
    parts.join(", ")
}

/// A phase in a word.
fn phase(view: &RolloutView) -> String {
    format!("{}{}", view.phase.name(), if view.paused { " (paused)" } else { "" })
}

/// A rollout in a few lines.
pub(crate) fn summary(view: &RolloutView) {
    output::line(&format!("{} {}: {}; {}", view.spec.name, view.spec.version, phase(view), counts(view)));
    if !view.why.is_empty() {
        output::line(&format!("  why: {}", view.why));
    }
}

fn status(which: &Which) -> anyhow::Result<Outcome> {
    let client = which.seeder.client()?;
    block_on(async {
        let Some(of) = &which.of else {
            let all: Vec<RolloutView> = client.get("/v1/rollouts").await?;
            let current: Vec<RolloutView> = all.into_iter().filter(|view| !view.superseded).collect();
            return list(&current, which.json);
        };
        let view = look(&client, of).await?;
        if which.json {
            output::json(&view)?;
        } else {
            summary(&view);
            output::line(&format!("  batch {}: until {} hosts have switched", view.batch, view.goal));
            let last = view.events.iter().rev().take(20).rev();
            last.for_each(|event| output::line(&format!("  {}: {}", output::ago(event.at_ms / 1000), event.what)));
        }
        Ok(Outcome::Ok)
    })
}

fn history(which: &Which) -> anyhow::Result<Outcome> {
    let client = which.seeder.client()?;
    let path = which.of.as_ref().map_or_else(|| "/v1/rollouts".into(), |name| format!("/v1/rollouts?name={name}"));
    let all: Vec<RolloutView> = block_on(async { Ok(client.get(&path).await?) })?;
    list(&all, which.json)
}

fn list(all: &[RolloutView], json: bool) -> anyhow::Result<Outcome> {
    if json {
        output::json(&all)?;
        return Ok(Outcome::Ok);
    }
    let row = |view: &RolloutView| {
        let tally = &view.tally;
        vec![
            view.id.to_string(),
            view.spec.name.clone(),
            view.spec.version.clone(),
            phase(view),
            view.batch.to_string(),
            format!("{}/{}", tally.active, tally.hosts),
            tally.failed.to_string(),
            output::ago(view.began_ms / 1000),
            view.why.clone(),
        ]
    };
    let head = ["ROLLOUT", "NAME", "VERSION", "PHASE", "BATCH", "ACTIVE", "FAILED", "BEGAN", "WHY"];
    output::table(&head, &all.iter().map(row).collect::<Vec<_>>());
    Ok(Outcome::Ok)
}

fn tell(one: &One, command: Word) -> anyhow::Result<Outcome> {
    let client = one.seeder.client()?;
    let told = CommandRequest { of: one.of.clone(), command };
    let view: RolloutView = block_on(async { Ok(client.post("/v1/rollouts/command", &told).await?) })?;
    if one.json {
        output::json(&view)?
    } else {
        summary(&view)
    }
    Ok(Outcome::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_files_are_read_in_both_forms() {
        let dir = tempfile::tempdir().unwrap();
        let toml =
            "name = 'edge/a'\nversion = '2'\npath = 'settings'\nto = ['site=x']\nbatch = [1, '25%']\nsoak = '1m'\n";
        let yaml = "name: edge/a\nversion: '2'\npath: settings\nto: [site=x]\nbatch: [1, 25%]\nsoak: 1m\n";
        let read_as = |ending: &str, text: &str| {
            let file = dir.path().join(format!("job.{ending}"));
            std::fs::write(&file, text).unwrap();
            read(&file)
        };
        let (first, second) = (read_as("toml", toml).unwrap(), read_as("yaml", yaml).unwrap());
        assert_eq!(first, second);
        assert_eq!(first.path, Some(dir.path().join("settings")));
        assert_eq!(first.batch, [Amount::Hosts(1), Amount::Percent(25.0)]);
        assert!(read_as("json", "{}").is_err());
        let wrong = format!("{:#}", read_as("yaml", "name: a\nversions: 2\n").unwrap_err());
        assert!(wrong.contains("versions"), "{wrong}");
    }
}
