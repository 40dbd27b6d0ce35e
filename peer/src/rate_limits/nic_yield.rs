//! NIC yield: bulk traffic slows down so that the card's total rate stays below a part of the card's capacity.
//!
//! Per direction, with `T` the target rate and `other` the measured traffic that is not ours, one step computes
//!
//! ```text
//! limit = max(bulk_min, min(T - other, limit + T / 20))
//! ```
//!
//! So bulk slows down within one measurement, and speeds up over 20 measurements.
//! Invariant: the limit is never below `bulk_min`, and above it never exceeds `T - other`.

use super::schedule::YieldSettings;
use shoal_api::limits::YieldView;
use shoal_service::units::Rate;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// One step raises the limit by at most the target divided by this, so that bulk does not collide with bursts of
/// others.
const STEPS_TO_TARGET: u64 = 20;
/// Shortest time of a measurement. The error of a shorter one is too large.
const MEASUREMENT_MIN: Duration = Duration::from_millis(50);

/// The traffic of a card in one measurement, in bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicRates {
    /// Sent, ours and other traffic.
    total_out: u64,
    our_out: u64,
    /// Received, ours and other traffic.
    total_in: u64,
    our_in: u64,
}

/// Computes the limits of bulk traffic. All rates are in bytes per second.
#[derive(Debug)]
pub struct NicYield {
    target: u64,
    bulk_min: u64,
    limit_out: u64,
    limit_in: u64,
}

impl NicYield {
    pub fn new(settings: &YieldSettings) -> Self {
        let target = settings.nic_rate.0 / 100 * u64::from(settings.nic_percent);
        let bulk_min = settings.bulk_min.0;
        let limit = target.max(bulk_min);
        Self { target, bulk_min, limit_out: limit, limit_in: limit }
    }

    fn next_limit(&self, limit: u64, total: u64, ours: u64) -> u64 {
        let other = total.saturating_sub(ours);
        let available = self.target.saturating_sub(other);
        available.min(limit.saturating_add(self.target / STEPS_TO_TARGET)).max(self.bulk_min)
    }

    /// Computes the limits from a measurement.
    pub fn step(&mut self, rates: &NicRates) -> YieldView {
        self.limit_out = self.next_limit(self.limit_out, rates.total_out, rates.our_out);
        self.limit_in = self.next_limit(self.limit_in, rates.total_in, rates.our_in);
        YieldView {
            bulk_out: Rate(self.limit_out),
            bulk_in: Rate(self.limit_in),
            nic_out: Rate(rates.total_out),
            nic_in: Rate(rates.total_in),
        }
    }
}

/// Byte counters at one time.
#[derive(Clone, Copy, Debug)]
struct Counts {
    at: Instant,
    total_out: u64,
    our_out: u64,
    total_in: u64,
    our_in: u64,
}

/// Measures a card by the kernel's counters.
#[derive(Debug)]
pub struct Nic {
    interface: String,
    folder: PathBuf,
    former: Option<Counts>,
}

impl Nic {
    pub fn new(interface: &str) -> Self {
        Self::at(interface, PathBuf::from("/sys/class/net").join(interface).join("statistics"))
    }

    fn at(interface: &str, folder: PathBuf) -> Self {
        Self { interface: interface.into(), folder, former: None }
    }

    pub fn interface(&self) -> &str {
        &self.interface
    }

    fn read(&self, name: &str) -> io::Result<u64> {
        let text = fs::read_to_string(self.folder.join(name))?;
        text.trim().parse().map_err(|_| io::Error::other(format!("the counter {name} is not a number")))
    }

    /// Returns the rates since the last measurement. Returns `None` at the first call and for too short a time.
    ///
    /// `our_out` and `our_in` are the counters of our links in bytes.
    pub fn measure(&mut self, our_out: u64, our_in: u64, now: Instant) -> io::Result<Option<NicRates>> {
        let counts =
            Counts { at: now, total_out: self.read("tx_bytes")?, our_out, total_in: self.read("rx_bytes")?, our_in };
        let Some(former) = self.former else {
            self.former = Some(counts);
            return Ok(None);
        };
        let span = now.saturating_duration_since(former.at);
        if span < MEASUREMENT_MIN {
            return Ok(None);
        }
        self.former = Some(counts);
        // A counter that went backwards counts as 0: the card was removed and came back.
        let rate = |now: u64, then: u64| {
            let bytes = u128::from(now.saturating_sub(then));
            u64::try_from(bytes * 1_000_000_000 / span.as_nanos()).unwrap_or(u64::MAX)
        };
        Ok(Some(NicRates {
            total_out: rate(counts.total_out, former.total_out),
            our_out: rate(counts.our_out, former.our_out),
            total_in: rate(counts.total_in, former.total_in),
            our_in: rate(counts.our_in, former.our_in),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn nic_yield() -> NicYield {
        let (nic_rate, bulk_min) = (Rate(125 * MB), Rate(5 * MB));
        NicYield::new(&YieldSettings { interface: "eth0".into(), nic_rate, nic_percent: 80, bulk_min })
    }

    /// Runs steps with other traffic at a rate and ours at the limit. Returns the last limit.
    fn settle(nic_yield: &mut NicYield, others: u64, steps: usize) -> u64 {
        let mut ours = nic_yield.limit_out;
        for _ in 0..steps {
            let total = others + ours;
            let rates = NicRates { total_out: total, our_out: ours, total_in: total, our_in: ours };
            ours = nic_yield.step(&rates).bulk_out.0;
        }
        ours
    }

    #[test]
    fn bulk_and_other_traffic_together_stay_below_the_target() {
        let mut nic_yield = nic_yield();
        for others in [0, 30 * MB, 90 * MB, 60 * MB] {
            let ours = settle(&mut nic_yield, others, 40);
            assert_eq!(ours, 100 * MB - others, "bulk gets exactly what other traffic leaves");
        }
    }

    #[test]
    fn bulk_slows_down_at_once_and_speeds_up_slowly() {
        let mut nic_yield = nic_yield();
        assert_eq!(settle(&mut nic_yield, 80 * MB, 1), 20 * MB);
        assert_eq!(settle(&mut nic_yield, 0, 1), 25 * MB);
        assert_eq!(settle(&mut nic_yield, 0, 40), 100 * MB);
    }

    #[test]
    fn bulk_keeps_its_minimum() {
        let mut nic_yield = nic_yield();
        assert_eq!(settle(&mut nic_yield, 125 * MB, 10), 5 * MB);
    }

    #[test]
    fn counters_become_rates() {
        let dir = tempfile::tempdir().unwrap();
        let write = |tx: u64, rx: u64| {
            fs::write(dir.path().join("tx_bytes"), format!("{tx}\n")).unwrap();
            fs::write(dir.path().join("rx_bytes"), format!("{rx}\n")).unwrap();
        };
        let mut nic = Nic::at("eth0", dir.path().into());
        let start = Instant::now();
        assert!(nic.measure(0, 0, start).is_err(), "there is no such card");
        write(1000, 5000);
        assert_eq!(nic.measure(0, 0, start).unwrap(), None);
        write(3000, 5500);
        let seen = nic.measure(400, 100, start + Duration::from_millis(500)).unwrap();
        assert_eq!(seen, Some(NicRates { total_out: 4000, our_out: 800, total_in: 1000, our_in: 200 }));
        // The counters of a card that was removed and came back start at 0.
        write(0, 0);
        let seen = nic.measure(400, 100, start + Duration::from_secs(1)).unwrap().unwrap();
        assert_eq!((seen.total_out, seen.our_out), (0, 0));
    }
}
