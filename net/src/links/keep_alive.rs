//! Pings on a quiet link, and the decision that a silent link is dead.
//!
//! TCP notices a dead path late. A kernel whose packets are lost doubles its waits, so after a cut of 10 s it may send
//! nothing for 5 s more. It reports an error only after about 15 minutes. So both ends of a busy link send something
//! each second, however long a frame takes. A busy link that receives nothing for 5 s is given up, and a new connection
//! starts at once.
//!
//! Invariant: time during which this end does not read is never held against the other end.

use super::config::LinkConfig;
use super::error::LinkError;
use super::link::Link;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Pings a quiet link. Returns the reason when the link is dead.
pub async fn run(config: &LinkConfig, link: &Link) -> LinkError {
    let activity = &link.activity();
    let mut pinged = Instant::now();
    loop {
        let busy = activity.is_busy();
        let ping_after = if busy { config.busy_ping_after } else { config.ping_after };
        // On a busy link our own silence counts too, because what we send shows the other end that we live.
        let quiet_for = || match busy {
            true => activity.since_received().max(activity.since_sent()),
            false => activity.since_received(),
        };
        let wait = ping_after.saturating_sub(quiet_for().min(pinged.elapsed()));
        tokio::select! {
            () = sleep(wait.max(Duration::from_millis(1))) => {}
            () = activity.until_busy() => continue,
        }
        if let Some(error) = death(config, link, busy) {
            return error;
        }
        if quiet_for() >= ping_after {
            // Also while we do not read, because the ping shows the other end that we live.
            link.queue().ping();
            pinged = Instant::now();
        }
    }
}

/// Returns the reason for which the link is dead, if it is.
fn death(config: &LinkConfig, link: &Link, busy: bool) -> Option<LinkError> {
    let activity = &link.activity();
    if activity.is_reading_paused() {
        return None;
    }
    let silent = activity.since_received();
    // A link that became busy just now may have been quiet before, as an idle link may.
    let busy_silent = silent.min(activity.since_busy());
    if silent >= config.dead_after || busy && busy_silent >= config.busy_dead_after {
        return Some(LinkError::Silent(silent.as_secs()));
    }
    (activity.part_stalled_for() >= 2 * config.dead_after).then_some(LinkError::PartStalled)
}
