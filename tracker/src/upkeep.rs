//! The task of the tracker's timers: silent hosts, membership updates, flushes.
//!
//! Invariant: at most `bounds.membership_updates` updates are on their way, and at most one to each host.

use crate::requests::lock;
use crate::state::{StateError, TrackerState};
use shoal_net::control::ControlHandle;
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::{Epoch, NodeId};
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Membership changes within this time go out in one update.
const TICK: Duration = Duration::from_millis(100);

/// How an update to one host ended.
struct SentUpdate {
    node: NodeId,
    /// The update's epoch, if the host confirmed it.
    arrived: Option<Epoch>,
}

/// Runs the timers until the token is cancelled, then writes a last flush.
pub(crate) async fn run(
    state: Arc<Mutex<TrackerState>>,
    control: ControlHandle,
    flush_written: Arc<Notify>,
    updates_max: usize,
    token: CancellationToken,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut updates: JoinSet<SentUpdate> = JoinSet::new();
    loop {
        tokio::select! {
            () = token.cancelled() => break,
            Some(ended) = updates.join_next(), if !updates.is_empty() => {
                if let Ok(SentUpdate { node, arrived }) = ended {
                    lock(&state).on_update_sent(&node, arrived);
                }
                continue;
            }
            _ = tick.tick() => {}
        }
        let written = sweep_and_flush(&mut lock(&state));
        match written {
            Ok(true) => flush_written.notify_one(),
            Ok(false) => {}
            Err(error) => tracing::error!(error = &error as &dyn Error, "cannot write the tracker's records"),
        }
        let due = lock(&state).due_updates(updates_max.saturating_sub(updates.len()));
        for due in due {
            let control = control.clone();
            updates.spawn(async move {
                let epoch = due.update.epoch;
                let answer = control.request(due.node, Request::Membership(due.update)).await;
                SentUpdate { node: due.node, arrived: matches!(answer, Ok(Response::Done)).then_some(epoch) }
            });
        }
    }
    updates.shutdown().await;
    // The flush has the newest reports. The next start sends it if this one no longer can.
    if let Err(error) = lock(&state).flush() {
        tracing::error!(error = &error as &dyn Error, "cannot write the last flush");
    }
}

fn sweep_and_flush(state: &mut TrackerState) -> Result<bool, StateError> {
    state.sweep()?;
    state.flush()
}
