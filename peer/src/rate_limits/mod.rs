//! RateLimits on what this host's links carry: by tier and way, by time of day, as changed while it runs, and less when the
//! host's own network card is busy.
//!
//! What was set while it runs wins over windows of the day, which win over the rest of the configuration; a restart goes
//! back to the configuration. Days and times are those of a fixed offset from UTC, by default none.
//! Invariant: links keep to what the newest word says within a second.

pub mod api;
mod nic_yield;
pub mod schedule;

pub use schedule::{RateLimitSettings, Window, YieldSettings};

use nic_yield::{Nic, NicYield};
use shoal_api::limits::{LimitsView, Rates, YieldView};
use shoal_net::admission::system_clock;
use shoal_net::links::{LinkEndpoint, LinkRates};
use shoal_service::units::Rate;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often windows of the day are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the network card is looked at, in `yield` mode.
const NIC_EVERY: Duration = Duration::from_millis(250);

struct State {
    set: Rates,
    yielding: Option<YieldView>,
}

/// The limits of a node. Clones are the same.
#[derive(Clone)]
pub struct RateLimits {
    settings: Arc<RateLimitSettings>,
    endpoint: LinkEndpoint,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl RateLimits {
    /// Puts the configuration in force. [`RateLimits::run`] keeps it so.
    pub fn new(settings: RateLimitSettings, endpoint: LinkEndpoint) -> Self {
        let state = Arc::new(Mutex::new(State { set: Rates::default(), yielding: None }));
        let limits = Self { settings: Arc::new(settings), endpoint, state, changed: Arc::default() };
        limits.apply();
        limits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in force.
    pub fn view(&self) -> LimitsView {
        let state = self.state();
        let (scheduled, window) = self.settings.at(system_clock());
        LimitsView {
            effective: schedule::overridden(&scheduled, &state.set),
            set: state.set,
            configured: self.settings.base(),
            window,
            yielding: state.yielding,
        }
    }

    /// Sets rates while it runs, in place of what was set before.
    pub fn set(&self, rates: Rates) {
        self.state().set = rates;
        self.apply();
        self.changed.notify_one();
        tracing::info!(?rates, "limits were set");
    }

    fn apply(&self) {
        let view = self.view();
        let limit = |rate: Option<Rate>| rate.filter(|rate| *rate != Rate::UNLIMITED).map(|rate| rate.0);
        let Rates { uplink_out, uplink_in, rack_out, rack_in } = view.effective;
        self.endpoint.rate_limits().set(LinkRates {
            uplink_out: limit(uplink_out),
            uplink_in: limit(uplink_in),
            rack_out: limit(rack_out),
            rack_in: limit(rack_in),
            bulk_out: limit(view.yielding.map(|view| view.bulk_out)),
            bulk_in: limit(view.yielding.map(|view| view.bulk_in)),
        });
    }

    /// Follows the time of day and the network card until the token is cancelled.
    pub async fn run(self, token: CancellationToken) {
        let governed = self.settings.yielding.clone();
        let mut governor = governed.as_ref().map(|settings| (Nic::new(&settings.interface), NicYield::new(settings)));
        let every = if governor.is_some() { NIC_EVERY } else { LOOK_EVERY };
        let timed = governor.is_some() || !self.settings.window.is_empty();
        let mut warned = false;
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(every), if timed => {}
            }
            if let Some((nic, governor)) = &mut governor {
                let stats = self.endpoint.stats();
                match nic.measure(stats.bytes_out, stats.bytes_in, std::time::Instant::now()) {
                    Ok(Some(use_of)) => self.state().yielding = Some(governor.step(&use_of)),
                    Ok(None) => {}
                    Err(error) if !std::mem::replace(&mut warned, true) => {
                        tracing::warn!(interface = nic.interface(), %error, "cannot read the card's counters; bulk is not held back");
                        self.state().yielding = None;
                    }
                    Err(_) => {}
                }
            }
            self.apply();
        }
    }
}
