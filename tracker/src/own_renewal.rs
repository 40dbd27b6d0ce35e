//! The task that renews the tracker's own credential with the tracker's issuer key.
//!
//! Invariant: a tracker whose issuer may not sign for trackers warns in its log and goes on until its credential ends.

use crate::requests::lock;
use crate::state::TrackerState;
use shoal_net::own_credential::OwnCredential;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the task looks at the clock.
const TICK: Duration = Duration::from_secs(1);

/// Runs until the token is cancelled.
pub(crate) async fn run(state: Arc<Mutex<TrackerState>>, mut own: OwnCredential, token: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            _ = tick.tick() => {}
        }
        if !own.should_renew() {
            continue;
        }
        let left_s = own.seconds_left();
        let issued = {
            let state = lock(&state);
            state.credentials().renew_own(state.key())
        };
        match issued {
            Ok(bytes) => match own.replace(bytes).await {
                Ok(()) => tracing::info!(left_s = own.seconds_left(), "renewed the tracker's credential"),
                Err(error) => tracing::warn!(left_s, error = &error as &dyn Error, "cannot use the new credential"),
            },
            Err(error) => tracing::warn!(
                left_s,
                error = &error as &dyn Error,
                "cannot renew the tracker's credential, which ends soon: run `shoal cluster renew`, copy node.cred and \
                 restart the tracker, or add an issuer with a mandate for trackers"
            ),
        }
    }
}
