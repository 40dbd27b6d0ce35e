//! Faults: what goes wrong, to which hosts, when and for how long.
//!
//! Invariant: a fault is plain data, and the hosts it hits depend only on the layout and the seed.
//!
//! A fault is written `KIND[:WHO][=RATE][@WHEN][+SPAN]`. Commas separate several faults.
//!
//! | kind | effect | default of `WHO` |
//! |---|---|---|
//! | `crash` | processes die; after the span they start again with their disks | `10%` of the hosts |
//! | `slow` | network cards run at `RATE` of their speed, `1%` by default | `owners`: one host of each rack |
//! | `uplink` | uplinks run at `RATE` of their speed; `0%` cuts them | rack `0` |
//! | `seeder` | the seeder dies | |
//! | `tracker` | the tracker publishes no memberships | |
//! | `flap` | all links of the hosts break every 2 s | `5%` |
//! | `corrupt` | hosts send corrupt shards | `1` |
//! | `uneven` | links that meet get weights between `RATE` and 1, `40%` by default | |
//! | `stale` | hosts receive no memberships | `10%` |
//!
//! `WHO` is a number of hosts, a percentage of them, `owners`, or `RACK/HOST`. For `uplink` it is the number of a rack.
//!
//! `WHEN` is one of these. Without it the fault begins with the push.
//!
//! | `WHEN` | the fault begins |
//! |---|---|
//! | `2s` | that time after the push |
//! | `40%` | after that part of the least time which the push can take |
//! | `out` | when every shard has left the seeder |
//! | `demoted` | when the push is over and every rack has demoted the content, which is then promoted |
//!
//! `SPAN` is a time such as `10s`. Without it the fault stays.

use crate::Rng;
use crate::layout::Layout;
use shoal_proto::ids::HostIndex;
use std::str::FromStr;
use std::time::Duration;

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Processes die.
    Crash,
    /// Hosts' network cards are slow.
    Slow,
    /// Racks' uplinks are slow or cut.
    Uplink,
    /// The seeder dies.
    Seeder,
    /// The tracker publishes nothing.
    Tracker,
    /// Links break again and again.
    Flap,
    /// Hosts send corrupt shards.
    Corrupt,
    /// Hosts receive no memberships.
    Stale,
    /// Links share ports unevenly.
    Uneven,
}

const KINDS: [(&str, Kind); 9] = [
    ("crash", Kind::Crash),
    ("slow", Kind::Slow),
    ("uplink", Kind::Uplink),
    ("seeder", Kind::Seeder),
    ("tracker", Kind::Tracker),
    ("flap", Kind::Flap),
    ("corrupt", Kind::Corrupt),
    ("stale", Kind::Stale),
    ("uneven", Kind::Uneven),
];

/// The kinds that [`random`] draws.
const DRAWN: [Kind; 8] =
    [Kind::Crash, Kind::Slow, Kind::Uplink, Kind::Seeder, Kind::Tracker, Kind::Flap, Kind::Corrupt, Kind::Stale];

/// The hosts that a fault hits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Who {
    /// This number of hosts, drawn at random.
    Count(u32),
    /// This part of the hosts, at least one, drawn at random.
    Part(f64),
    /// One host of each rack, drawn at random.
    Owners,
    /// This host of this rack.
    Host(u32, u32),
}

/// When a fault begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// This time after the push.
    At(Duration),
    /// After this part of [`Layout::bound`].
    Part(f64),
    /// When every shard has left the seeder.
    Out,
    /// When every rack has demoted the content.
    Demoted,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// What goes wrong.
    pub kind: Kind,
    /// The hosts that a fault hits.
    pub who: Who,
    /// The part of a rate that remains.
    pub rate: f64,
    /// When a fault begins.
    pub when: When,
    /// How long it lasts; to the end when `None`.
    pub span: Option<Duration>,
}

/// A text that is not a valid fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid fault `{text}`: {why}")]
pub struct FaultError {
    text: String,
    why: &'static str,
}

fn part(text: &str) -> Option<f64> {
    let part: f64 = text.strip_suffix('%')?.parse().ok()?;
    (0.0..=1000.0).contains(&part).then_some(part / 100.0)
}

fn span(text: &str) -> Option<Duration> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s')?, 1.0),
    };
    let seconds: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(seconds * unit).ok()
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let error = |why| FaultError { text: text.into(), why };
        let cut = |text: &str, mark: char| {
            text.split_once(mark).map_or((text.to_string(), None), |(a, b)| (a.to_string(), Some(b.to_string())))
        };
        let (rest, lasts) = cut(text.trim(), '+');
        let (rest, when) = cut(&rest, '@');
        let (rest, rate) = cut(&rest, '=');
        let (kind, who) = cut(&rest, ':');
        let kind = KINDS.iter().find(|(name, _)| *name == kind).map(|(_, kind)| *kind);
        let kind = kind
            .ok_or_else(|| error("begin with crash, slow, uplink, seeder, tracker, flap, corrupt, stale or uneven"))?;
        let who = match who.as_deref() {
            None => match kind {
                Kind::Slow => Who::Owners,
                Kind::Crash | Kind::Stale => Who::Part(0.10),
                Kind::Flap => Who::Part(0.05),
                Kind::Uplink => Who::Count(0),
                _ => Who::Count(1),
            },
            Some("owners") => Who::Owners,
            Some(who) => match (part(who), who.split_once('/')) {
                (Some(part), _) => Who::Part(part),
                (None, Some((rack, host))) => match (rack.parse(), host.parse()) {
                    (Ok(rack), Ok(host)) => Who::Host(rack, host),
                    _ => return Err(error("RACK/HOST must be two numbers")),
                },
                (None, None) => {
                    Who::Count(who.parse().map_err(|_| error("WHO must be `10%`, `3`, `owners` or `RACK/HOST`"))?)
                }
            },
        };
        let rate = match rate.as_deref() {
            None if kind == Kind::Uplink => 0.0,
            None if kind == Kind::Uneven => 0.4,
            None => 0.01,
            Some(rate) => part(rate).ok_or_else(|| error("RATE must be a percentage such as `1%`"))?,
        };
        let when = match when.as_deref() {
            None => When::At(Duration::ZERO),
            Some("out") => When::Out,
            Some("demoted") => When::Demoted,
            Some(when) => match (part(when), span(when)) {
                (Some(part), _) => When::Part(part),
                (None, Some(at)) => When::At(at),
                (None, None) => return Err(error("WHEN must be `2s`, `40%`, `out` or `demoted`")),
            },
        };
        let span = lasts
            .as_deref()
            .map(|text| span(text).ok_or_else(|| error("SPAN must be a time such as `500ms` or `10s`")))
            .transpose()?;
        Ok(Self { kind, who, rate, when, span })
    }
}

/// Parses faults that are separated by commas.
///
/// # Errors
/// When one of them is invalid.
pub fn parse(text: &str) -> Result<Vec<Fault>, FaultError> {
    text.split(',').filter(|part| !part.trim().is_empty()).map(str::parse).collect()
}

impl Fault {
    /// The hosts that it hits; none for faults of the seeder, the tracker, uplinks and ports.
    pub fn hosts(&self, layout: &Layout, rng: &mut Rng) -> Vec<HostIndex> {
        let all: Vec<HostIndex> = (1..=layout.hosts()).map(HostIndex).collect();
        match self.who {
            _ if matches!(self.kind, Kind::Seeder | Kind::Tracker | Kind::Uplink | Kind::Uneven) => Vec::new(),
            Who::Count(count) => rng.sample(&all, count as usize),
            Who::Part(part) => rng.sample(&all, ((all.len() as f64 * part).round() as usize).max(1)),
            Who::Owners => {
                let racks = (0..layout.racks.len()).map(|rack| layout.hosts_of(rack)).filter(|hosts| !hosts.is_empty());
                racks.map(|hosts| HostIndex(hosts.start + rng.below(hosts.len() as u64) as u32)).collect()
            }
            Who::Host(rack, host) if (rack as usize) < layout.racks.len() => {
                layout.hosts_of(rack as usize).nth(host as usize).map(HostIndex).into_iter().collect()
            }
            Who::Host(..) => Vec::new(),
        }
    }

    /// Whether its hosts need not finish, because they are lost for good or slow to the end.
    pub fn loses(&self) -> bool {
        matches!(self.kind, Kind::Crash | Kind::Slow) && self.span.is_none()
    }

    /// The rack whose uplink it hits.
    pub fn rack(&self, layout: &Layout) -> Option<usize> {
        match self.who {
            Who::Count(rack) | Who::Host(rack, _) if self.kind == Kind::Uplink => {
                ((rack as usize) < layout.racks.len()).then_some(rack as usize)
            }
            _ => None,
        }
    }
}

/// Up to four faults that a region with several hosts in each rack must survive.
pub fn random(layout: &Layout, rng: &mut Rng) -> Vec<Fault> {
    let count = 1 + rng.below(4);
    let mut faults: Vec<Fault> = Vec::new();
    for _ in 0..count {
        let kind = DRAWN[rng.below(DRAWN.len() as u64) as usize];
        // The end of one fault would end another one of the same kind.
        if faults.iter().any(|fault| fault.kind == kind) {
            continue;
        }
        let who = match kind {
            Kind::Uplink => Who::Count(rng.below(layout.racks.len() as u64) as u32),
            Kind::Corrupt => Who::Count(1),
            Kind::Slow if rng.below(2) == 0 => Who::Owners,
            _ => Who::Part(0.05 + rng.below(25) as f64 / 100.0),
        };
        let when = match kind {
            // Shards that never left the seeder cannot come from another host.
            Kind::Seeder => When::Out,
            _ => When::Part(rng.below(120) as f64 / 100.0),
        };
        let rate: f64 = rng.pick(&[0.0, 0.01, 0.1, 0.5]);
        let seconds = 1 + rng.below(15);
        let stays = matches!(kind, Kind::Crash | Kind::Slow | Kind::Seeder | Kind::Corrupt) && rng.below(2) == 0;
        let rate = if stays && kind == Kind::Slow { rate.max(0.01) } else { rate };
        faults.push(Fault { kind, who, rate, when, span: (!stays).then(|| Duration::from_secs(seconds)) });
    }
    // Only lost or corrupting hosts may have received a shard from the seeder. Then the seeder must come back.
    let loses = |fault: &Fault| matches!(fault.kind, Kind::Crash | Kind::Corrupt);
    if faults.iter().any(loses) {
        for seeder in faults.iter_mut().filter(|fault| fault.kind == Kind::Seeder) {
            seeder.span.get_or_insert(Duration::from_secs(10));
        }
    }
    faults
}

/// In every second region, links that share ports unevenly from the start.
pub fn random_shares(rng: &mut Rng) -> Option<Fault> {
    let rate = rng.pick(&[0.2, 0.4, 0.7]);
    let when = When::At(Duration::ZERO);
    (rng.below(2) == 0).then_some(Fault { kind: Kind::Uneven, who: Who::Count(1), rate, when, span: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        let text =
            "crash:25%@2s+5s, slow, uplink:3=10%@40%+10s, seeder@out, crash:1/2, corrupt:2, crash:owners@demoted+1s";
        let faults = parse(text).unwrap();
        let of = |kind, who, rate, when, span| Fault { kind, who, rate, when, span };
        let at = |seconds| When::At(Duration::from_secs(seconds));
        let some = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(
            faults,
            [
                of(Kind::Crash, Who::Part(0.25), 0.01, at(2), some(5)),
                of(Kind::Slow, Who::Owners, 0.01, at(0), None),
                of(Kind::Uplink, Who::Count(3), 0.10, When::Part(0.40), some(10)),
                of(Kind::Seeder, Who::Count(1), 0.01, When::Out, None),
                of(Kind::Crash, Who::Host(1, 2), 0.01, at(0), None),
                of(Kind::Corrupt, Who::Count(2), 0.01, at(0), None),
                of(Kind::Crash, Who::Owners, 0.01, When::Demoted, some(1)),
            ]
        );
        for wrong in ["boom", "crash:x", "crash@x", "slow=5", "crash+5", "crash:1/x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
