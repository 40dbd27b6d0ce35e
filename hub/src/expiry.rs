//! The task that warns before the hub's credential ends.
//!
//! Invariant: a credential that trackers renew in time causes no line in the log.

use shoal_net::own_credential::OwnCredential;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often the task looks at the clock.
const TICK: Duration = Duration::from_secs(60);

/// Runs until the token is cancelled.
pub(crate) async fn run(own: Arc<Mutex<OwnCredential>>, token: CancellationToken) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Trackers renew the credential a little after it is due. The second reminder means that none did.
    let mut reminders = 0;
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            _ = tick.tick() => {}
        }
        let mut own = own.lock().await;
        if !own.should_renew() {
            continue;
        }
        reminders += 1;
        if reminders > 1 {
            tracing::warn!(
                left_s = own.seconds_left(),
                "no tracker renews the hub's credential, which ends soon: run `shoal cluster renew`, copy node.cred and \
                 restart the hub, or add an issuer with a mandate for hubs"
            );
        }
    }
}
