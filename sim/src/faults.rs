//! What goes wrong, to whom, when and for how long.
//!
//! A fault is written `KIND[:WHO][=RATE][@WHEN][+SPAN]`, several with commas between:
//!
//! | kind | what | who, by default |
//! |---|---|---|
//! | `crash` | processes die; after the span they come back with their disks | `10%` of the hosts |
//! | `slow` | network cards at `RATE` of their speed, by default `1%` | `owners`: one host of each rack |
//! | `uplink` | uplinks at `RATE` of their speed; `0%` cuts them | rack `0` |
//! | `seeder` | the seeder dies | |
//! | `tracker` | no news of who is up | |
//! | `flap` | every 2 s all links of the hosts break | `5%` |
//! | `corrupt` | hosts send broken shards | `1` |
//! | `uneven` | where links meet, some get as little as `RATE` of what others get, by default `40%` | |
//! | `stale` | hosts hear no news of who is up | `10%` |
//!
//! `WHO` is a number of hosts, a part of them, `owners`, or `RACK/HOST`; for `uplink` it is the number of a rack. `WHEN` is a
//! time since the push began (`2s`), a part of the least time the push can take (`40%`), `out`: every shard has left the
//! seeder, or `cold`: the push is over, what went wrong in it has ended, and every rack has demoted the content, which is
//! then promoted. Without it a fault is there from the start. Without a span it stays.

use crate::Rng;
use crate::layout::Layout;
use shoal_proto::ids::HostIndex;
use std::str::FromStr;
use std::time::Duration;

/// What goes wrong.
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
    /// The tracker is away.
    Tracker,
    /// Links break again and again.
    Flap,
    /// Broken shards are sent.
    Corrupt,
    /// Hosts do not hear of membership.
    Stale,
    /// Links share rates unevenly.
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

/// What [`random`] draws from.
const DRAWN: [Kind; 8] =
    [Kind::Crash, Kind::Slow, Kind::Uplink, Kind::Seeder, Kind::Tracker, Kind::Flap, Kind::Corrupt, Kind::Stale];

/// To whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Who {
    /// As many hosts, taken at random.
    Count(u32),
    /// This part of the hosts, at least one, taken at random.
    Part(f64),
    /// One host of each rack, taken at random.
    Owners,
    /// This host of this rack.
    Host(u32, u32),
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// So long after the push began.
    At(Duration),
    /// After this part of the bound.
    Part(f64),
    /// Once every shard has left the seeder.
    Out,
    /// Once every rack has demoted the content.
    Cold,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// To whom.
    pub who: Who,
    /// What remains of a rate.
    pub rate: f64,
    /// When.
    pub when: When,
    /// For how long; for good when `None`.
    pub span: Option<Duration>,
}

/// A text that is no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no fault: {why}")]
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
        let kind = kind.ok_or_else(|| {
            error("it begins with none of crash, slow, uplink, seeder, tracker, flap, corrupt, stale, uneven")
        })?;
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
                    _ => return Err(error("RACK/HOST are two numbers")),
                },
                (None, None) => {
                    Who::Count(who.parse().map_err(|_| error("WHO is `10%`, `3`, `owners` or `RACK/HOST`"))?)
                }
            },
        };
        let rate = match rate.as_deref() {
            None if kind == Kind::Uplink => 0.0,
            None if kind == Kind::Uneven => 0.4,
            None => 0.01,
            Some(rate) => part(rate).ok_or_else(|| error("RATE is a part such as `1%`"))?,
        };
        let when = match when.as_deref() {
            None => When::At(Duration::ZERO),
            Some("out") => When::Out,
            Some("cold") => When::Cold,
            Some(when) => match (part(when), span(when)) {
                (Some(part), _) => When::Part(part),
                (None, Some(at)) => When::At(at),
                (None, None) => return Err(error("WHEN is `2s`, `40%`, `out` or `cold`")),
            },
        };
        let span =
            lasts.as_deref().map(|text| span(text).ok_or_else(|| error("SPAN is `500ms` or `10s`"))).transpose()?;
        Ok(Self { kind, who, rate, when, span })
    }
}

/// Reads faults with commas between.
pub fn parse(text: &str) -> Result<Vec<Fault>, FaultError> {
    text.split(',').filter(|part| !part.trim().is_empty()).map(str::parse).collect()
}

impl Fault {
    /// The hosts it is about, none for faults that are about no hosts.
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

    /// Whether nobody waits for its hosts: they are lost for good, or slow to the end.
    pub fn loses(&self) -> bool {
        matches!(self.kind, Kind::Crash | Kind::Slow) && self.span.is_none()
    }

    /// The rack whose uplink it is about.
    pub fn rack(&self, layout: &Layout) -> Option<usize> {
        match self.who {
            Who::Count(rack) | Who::Host(rack, _) if self.kind == Kind::Uplink => {
                ((rack as usize) < layout.racks.len()).then_some(rack as usize)
            }
            _ => None,
        }
    }
}

/// Up to four faults that a region of several hosts a rack must get over.
pub fn random(layout: &Layout, rng: &mut Rng) -> Vec<Fault> {
    let count = 1 + rng.below(4);
    let mut faults: Vec<Fault> = Vec::new();
    for _ in 0..count {
        let kind = DRAWN[rng.below(DRAWN.len() as u64) as usize];
        // Two of a kind would undo each other's ends.
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
            // What never left the seeder cannot come from anybody else.
            Kind::Seeder => When::Out,
            _ => When::Part(rng.below(120) as f64 / 100.0),
        };
        let rate: f64 = rng.pick(&[0.0, 0.01, 0.1, 0.5]);
        let seconds = 1 + rng.below(15);
        let stays = matches!(kind, Kind::Crash | Kind::Slow | Kind::Seeder | Kind::Corrupt) && rng.below(2) == 0;
        let rate = if stays && kind == Kind::Slow { rate.max(0.01) } else { rate };
        faults.push(Fault { kind, who, rate, when, span: (!stays).then(|| Duration::from_secs(seconds)) });
    }
    // What only lost or lying hosts have had from a seeder that is gone for good is gone too.
    let loses = |fault: &Fault| matches!(fault.kind, Kind::Crash | Kind::Corrupt);
    if faults.iter().any(loses) {
        for seeder in faults.iter_mut().filter(|fault| fault.kind == Kind::Seeder) {
            seeder.span.get_or_insert(Duration::from_secs(10));
        }
    }
    faults
}

/// In one region of two, links that share rates unevenly all the time.
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
            "crash:25%@2s+5s, slow, uplink:3=10%@40%+10s, seeder@out, crash:1/2, corrupt:2, crash:owners@cold+1s";
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
                of(Kind::Crash, Who::Owners, 0.01, When::Cold, some(1)),
            ]
        );
        for wrong in ["boom", "crash:x", "crash@x", "slow=5", "crash+5", "crash:1/x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
