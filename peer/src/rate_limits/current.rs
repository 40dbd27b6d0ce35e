//! The limits in force, and the task that keeps them current.
//!
//! Invariant: every change of the settings, of the time of day or of the card's use reaches the links at once.

use super::nic_yield::{Nic, NicYield};
use super::schedule::{RateLimitSettings, override_rates};
use shoal_api::limits::{LimitsView, Rates, YieldView};
use shoal_net::admission::system_clock;
use shoal_net::links::{LinkEndpoint, LinkRates};
use shoal_service::units::Rate;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Time between two checks of the windows.
const WINDOWS_EVERY: Duration = Duration::from_secs(1);
/// Time between two measurements of the card, with NIC yield.
const NIC_EVERY: Duration = Duration::from_millis(250);

struct State {
    set: Rates,
    yielding: Option<YieldView>,
}

/// The rate limits of a node. Clones share them.
#[derive(Clone)]
pub struct RateLimits {
    settings: Arc<RateLimitSettings>,
    endpoint: LinkEndpoint,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl RateLimits {
    /// Applies the configuration. [`RateLimits::run`] keeps the limits current.
    pub fn new(settings: RateLimitSettings, endpoint: LinkEndpoint) -> Self {
        let state = Arc::new(Mutex::new(State { set: Rates::default(), yielding: None }));
        let limits = Self { settings: Arc::new(settings), endpoint, state, changed: Arc::default() };
        limits.apply();
        limits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the limits in force.
    pub fn view(&self) -> LimitsView {
        let state = self.state();
        let (scheduled, window) = self.settings.at(system_clock());
        LimitsView {
            effective: override_rates(&scheduled, &state.set),
            set: state.set,
            configured: self.settings.base(),
            window,
            yielding: state.yielding,
        }
    }

    /// Replaces the rates set at run time.
    pub fn set(&self, rates: Rates) {
        self.state().set = rates;
        self.apply();
        self.changed.notify_one();
        tracing::info!(?rates, "set rate limits");
    }

    /// Hands the limits in force to the links.
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

    /// Applies changes of the time of day and of the card's use until the token is cancelled.
    pub async fn run(self, token: CancellationToken) {
        let yielding = self.settings.yielding.clone();
        let mut yielding = yielding.map(|settings| (Nic::new(&settings.interface), NicYield::new(&settings)));
        let every = if yielding.is_some() { NIC_EVERY } else { WINDOWS_EVERY };
        let timed = yielding.is_some() || !self.settings.window.is_empty();
        let mut warned = false;
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(every), if timed => {}
            }
            if let Some((nic, nic_yield)) = &mut yielding {
                let stats = self.endpoint.stats();
                match nic.measure(stats.bytes_out, stats.bytes_in, Instant::now()) {
                    Ok(Some(rates)) => self.state().yielding = Some(nic_yield.step(&rates)),
                    Ok(None) => {}
                    // Without counters, bulk traffic has no yield limit.
                    Err(error) if !std::mem::replace(&mut warned, true) => {
                        let interface = nic.interface();
                        tracing::warn!(interface, %error, "cannot read the card's counters, so NIC yield is off");
                        self.state().yielding = None;
                    }
                    Err(_) => {}
                }
            }
            self.apply();
        }
    }
}
