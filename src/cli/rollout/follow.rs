//! Follows a rollout to its end, and sums it up.
//!
//! Invariant: a rollout that stopped counts as ended, because only an operator can continue it.

use crate::cli::{Outcome, output};
use shoal_api::rollouts::{RolloutPhase, RolloutView};
use shoal_service::http_client::Client;
use std::time::Duration;

/// Interval between two requests for the state of a followed rollout.
const POLL_EVERY: Duration = Duration::from_millis(300);

/// Follows a rollout until it ends, stops or exceeds the timeout. Prints its events, or JSON at every change.
pub(crate) async fn follow(client: &Client, of: &str, json: bool, timeout: Duration) -> anyhow::Result<Outcome> {
    let until = tokio::time::Instant::now() + timeout;
    let mut printed_until_ms = 0;
    let mut former = None;
    loop {
        let view = super::view::rollout(client, of).await?;
        if json && former.as_ref() != Some(&view) {
            output::json_line(&view)?;
        }
        if !json {
            let fresh = view.events.iter().filter(|event| event.at_ms > printed_until_ms);
            fresh.for_each(|event| output::note(&format!("{}  ({})", event.what, counts(&view))));
            printed_until_ms = view.events.last().map_or(printed_until_ms, |event| event.at_ms);
        }
        let ended = view.phase.is_final() || view.phase == RolloutPhase::Stopped;
        if ended || tokio::time::Instant::now() >= until {
            if !json {
                summary(&view);
            }
            return Ok(outcome(&view));
        }
        former = Some(view);
        tokio::select! {
            () = tokio::time::sleep(POLL_EVERY) => {}
            _ = tokio::signal::ctrl_c() => {
                output::note("the rollout continues; `shoal rollout status` shows its progress");
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

/// The name of the phase, and whether the rollout is paused.
pub(crate) fn phase(view: &RolloutView) -> String {
    format!("{}{}", view.phase.name(), if view.paused { " (paused)" } else { "" })
}

/// Prints the phase and the counts of a rollout, the reason of its phase, and the first hosts that failed.
pub(crate) fn summary(view: &RolloutView) {
    headline(view);
    view.failures.iter().for_each(|failure| output::line(&format!("  failed: {failure}")));
}

/// Prints the phase and the counts of a rollout, and the reason of its phase.
pub(crate) fn headline(view: &RolloutView) {
    output::line(&format!("{} {}: {}, {}", view.spec.name, view.spec.version, phase(view), counts(view)));
    if !view.why.is_empty() {
        output::line(&format!("  why: {}", view.why));
    }
}
