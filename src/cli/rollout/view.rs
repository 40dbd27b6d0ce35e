//! Tables and details of rollouts.

use super::Which;
use super::follow::{phase, summary};
use crate::cli::seeder::block_on;
use crate::cli::{Outcome, output};
use shoal_api::rollouts::{DryRun, RolloutView};
use shoal_service::http_client::Client;

/// The number of newest events that `status` prints.
const EVENTS_SHOWN: usize = 20;

/// Asks the seeder for one rollout.
pub(crate) async fn rollout(client: &Client, of: &str) -> anyhow::Result<RolloutView> {
    Ok(client.get(&format!("/v1/rollout?of={of}")).await?)
}

pub(crate) fn status(which: &Which) -> anyhow::Result<Outcome> {
    let client = which.seeder.client()?;
    block_on(async {
        let Some(of) = &which.of else {
            let all: Vec<RolloutView> = client.get("/v1/rollouts").await?;
            let current: Vec<RolloutView> = all.into_iter().filter(|view| !view.superseded).collect();
            return list(&current, which.json);
        };
        let view = rollout(&client, of).await?;
        if which.json {
            output::json(&view)?;
        } else {
            summary(&view);
            output::line(&format!("  batch {}, up to {} hosts", view.batch, view.goal));
            let last = view.events.iter().rev().take(EVENTS_SHOWN).rev();
            last.for_each(|event| output::line(&format!("  {}: {}", output::ago(event.at_ms / 1000), event.what)));
        }
        Ok(Outcome::Ok)
    })
}

pub(crate) fn history(which: &Which) -> anyhow::Result<Outcome> {
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

/// Prints what a rollout would do.
pub(crate) fn dry_run(dry: &DryRun) {
    output::line(&format!("{} hosts in {} racks, {} away now", dry.hosts, dry.racks, dry.away));
    for (version, hosts) in &dry.versions {
        output::line(&format!("  {version}: {hosts} hosts"));
    }
    for (number, batch) in (1..).zip(&dry.batches) {
        let more = if batch.hosts as usize > batch.named.len() { ", ..." } else { "" };
        output::line(&format!("  batch {number}: {} hosts: {}{more}", batch.hosts, batch.named.join(", ")));
    }
}
