//! `yield`: bulk gives way so that the host's card, with what its customers send, stays under its share.
//!
//! Invariant: bulk's rate is never below the floor, nor above what the share leaves beside others.

use super::schedule::YieldSettings;
use shoal_api::limits::YieldView;
use shoal_service::units::Rate;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Bulk takes back at most one part in this many of the share at a time, so that others' bursts do not meet it head-on.
const STEP: u64 = 20;
/// Shorter spans say little.
const SPAN_MIN: Duration = Duration::from_millis(50);

/// What a card carried lately, bytes/s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    /// Sent, ours and others'.
    pub(super) out: u64,
    /// Sent, ours.
    pub(super) our_out: u64,
    /// Received, ours and others'.
    pub(super) into: u64,
    /// Received, ours.
    pub(super) our_in: u64,
}

/// Decides bulk's rates.
#[derive(Debug)]
pub(super) struct NicYield {
    share: u64,
    floor: u64,
    out: u64,
    into: u64,
}

impl NicYield {
    pub(super) fn new(settings: &YieldSettings) -> Self {
        let share = settings.nic.0 / 100 * u64::from(settings.share_percent);
        let floor = settings.floor.0;
        Self { share, floor, out: share.max(floor), into: share.max(floor) }
    }

    /// Down at once to what others leave of the share, up in steps.
    fn next(&self, rate: u64, used: u64, ours: u64) -> u64 {
        let others = used.saturating_sub(ours);
        let left = self.share.saturating_sub(others);
        left.min(rate.saturating_add(self.share / STEP)).max(self.floor)
    }

    pub(super) fn step(&mut self, seen: &Use) -> YieldView {
        self.out = self.next(self.out, seen.out, seen.our_out);
        self.into = self.next(self.into, seen.into, seen.our_in);
        YieldView {
            bulk_out: Rate(self.out),
            bulk_in: Rate(self.into),
            nic_out: Rate(seen.out),
            nic_in: Rate(seen.into),
        }
    }
}

/// A card's counters, and ours beside them.
#[derive(Debug)]
pub(super) struct Nic {
    interface: String,
    folder: PathBuf,
    former: Option<([u64; 4], Instant)>,
}

impl Nic {
    pub(super) fn new(interface: &str) -> Self {
        Self::at(interface, PathBuf::from("/sys/class/net").join(interface).join("statistics"))
    }

    fn at(interface: &str, folder: PathBuf) -> Self {
        Self { interface: interface.into(), folder, former: None }
    }

    pub(super) fn interface(&self) -> &str {
        &self.interface
    }

    fn read(&self, name: &str) -> io::Result<u64> {
        let text = fs::read_to_string(self.folder.join(name))?;
        text.trim().parse().map_err(|_| io::Error::other(format!("{name}: not a number")))
    }

    /// What the card carried since the last call; nothing the first time.
    pub(super) fn measure(&mut self, our_out: u64, our_in: u64, now: Instant) -> io::Result<Option<Use>> {
        let counts = [self.read("tx_bytes")?, our_out, self.read("rx_bytes")?, our_in];
        let Some((former, at)) = self.former else {
            self.former = Some((counts, now));
            return Ok(None);
        };
        let span = now.saturating_duration_since(at);
        if span < SPAN_MIN {
            return Ok(None);
        }
        self.former = Some((counts, now));
        let rate = |place: usize| {
            let bytes = counts[place].saturating_sub(former[place]);
            u64::try_from(u128::from(bytes) * 1_000_000_000 / span.as_nanos()).unwrap_or(u64::MAX)
        };
        Ok(Some(Use { out: rate(0), our_out: rate(1), into: rate(2), our_in: rate(3) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn governor() -> NicYield {
        let nic = Rate(125 * MB);
        NicYield::new(&YieldSettings { interface: "eth0".into(), nic, share_percent: 80, floor: Rate(5 * MB) })
    }

    /// Steps with others at a rate and us at whatever is allowed; gives what is allowed then.
    fn settle(governor: &mut NicYield, others: u64, steps: usize) -> u64 {
        let mut ours = governor.out;
        for _ in 0..steps {
            let seen = Use { out: others + ours, our_out: ours, into: others + ours, our_in: ours };
            ours = governor.step(&seen).bulk_out.0;
        }
        ours
    }

    #[test]
    fn bulk_and_others_together_stay_under_the_share() {
        let mut governor = governor();
        for others in [0, 30 * MB, 90 * MB, 60 * MB] {
            let ours = settle(&mut governor, others, 40);
            assert_eq!(ours, 100 * MB - others, "all that others leave, and no more");
        }
    }

    #[test]
    fn it_gives_way_at_once_and_comes_back_slowly() {
        let mut governor = governor();
        assert_eq!(settle(&mut governor, 80 * MB, 1), 20 * MB);
        assert_eq!(settle(&mut governor, 0, 1), 25 * MB);
        assert_eq!(settle(&mut governor, 0, 40), 100 * MB);
    }

    #[test]
    fn never_below_the_floor() {
        let mut governor = governor();
        assert_eq!(settle(&mut governor, 125 * MB, 10), 5 * MB);
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
        assert!(nic.measure(0, 0, start).is_err(), "no such card");
        write(1000, 5000);
        assert_eq!(nic.measure(0, 0, start).unwrap(), None);
        write(3000, 5500);
        let seen = nic.measure(400, 100, start + Duration::from_millis(500)).unwrap();
        assert_eq!(seen, Some(Use { out: 4000, our_out: 800, into: 1000, our_in: 200 }));
        // A card that was taken away and came back counts anew.
        write(0, 0);
        let seen = nic.measure(400, 100, start + Duration::from_secs(1)).unwrap().unwrap();
        assert_eq!((seen.out, seen.our_out), (0, 0));
    }
}
