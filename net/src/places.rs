//! Places of connections before admission, and which connection gives way to another.
//!
//! Strangers that renew their connections all the time would keep everybody else out if new connections were refused.
//! So the oldest one goes, of the address range that has the most. Ranges from which a node was admitted before have
//! places of their own.
//!
//! Invariant: at most [`PlaceLimits::places`] connections of strangers, and as many of known ranges, have a place. A
//! range has at most [`PlaceLimits::places_per_range`] of each kind.

use crate::range::{KnownRanges, range_of};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A connection from a known range gives way only after this time. Hosts that return together after a restart would
/// otherwise end one another's handshakes.
const KNOWN_STAYS: Duration = Duration::from_secs(1);

/// Bounds on connections before admission.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlaceLimits {
    /// Places of strangers. Known ranges have as many.
    pub(crate) places: usize,
    /// Places of one address range.
    pub(crate) places_per_range: usize,
}

/// There is no place for one more connection.
#[derive(Debug, thiserror::Error)]
#[error("too many connections wait for admission")]
pub(crate) struct NoPlace;

#[derive(Debug)]
struct Place<V> {
    range: IpAddr,
    known: bool,
    since: Instant,
    value: V,
}

/// The connections that have a place, by a key that grows with each connection.
#[derive(Debug)]
pub(crate) struct Places<K, V> {
    limits: PlaceLimits,
    known: KnownRanges,
    taken: BTreeMap<K, Place<V>>,
}

impl<K: Ord + Copy, V> Places<K, V> {
    pub(crate) fn new(limits: PlaceLimits, known: KnownRanges) -> Self {
        Self { limits, known, taken: BTreeMap::new() }
    }

    /// Takes a place for a connection from `addr`. Returns the connection that gives way, if there was no room.
    pub(crate) fn take(&mut self, key: K, addr: IpAddr, value: V, now: Instant) -> Result<Option<V>, NoPlace> {
        let range = range_of(addr);
        let known = self.known.contains(&range);
        let gone = self.make_room(range, known, now)?;
        self.taken.insert(key, Place { range, known, since: now, value });
        Ok(gone)
    }

    fn make_room(&mut self, range: IpAddr, known: bool, now: Instant) -> Result<Option<V>, NoPlace> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        let same_kind = self.taken.values().filter(|place| place.known == known);
        same_kind.for_each(|place| *counts.entry(place.range).or_default() += 1);
        let from = if counts.get(&range).is_some_and(|count| *count >= self.limits.places_per_range) {
            range
        } else if counts.values().sum::<usize>() >= self.limits.places {
            // Many connections from a few ranges do not end the only one of another range. Of equal ranges, the one
            // with the oldest connection loses it.
            let largest = counts.values().copied().max().unwrap_or(0);
            let mut same_kind = self.taken.values().filter(|place| place.known == known);
            let of_largest = same_kind.find(|place| counts.get(&place.range) == Some(&largest));
            of_largest.map(|place| place.range).ok_or(NoPlace)?
        } else {
            return Ok(None);
        };
        let oldest = self.taken.iter().find(|(_, place)| place.known == known && place.range == from);
        let (key, since) = oldest.map(|(key, place)| (*key, place.since)).ok_or(NoPlace)?;
        if known && now.saturating_duration_since(since) < KNOWN_STAYS {
            return Err(NoPlace);
        }
        Ok(self.remove(&key))
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        Some(&self.taken.get(key)?.value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        Some(&mut self.taken.get_mut(key)?.value)
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        Some(self.taken.remove(key)?.value)
    }

    /// Removes a connection whose node is admitted. Its range is known from now on.
    pub(crate) fn admit(&mut self, key: &K) -> Option<V> {
        let place = self.taken.remove(key)?;
        self.known.add(place.range);
        Some(place.value)
    }

    /// Removes the connections that `is_over`. Returns their number.
    pub(crate) fn remove_if(&mut self, is_over: impl Fn(&V) -> bool) -> usize {
        let before = self.taken.len();
        self.taken.retain(|_, place| !is_over(&place.value));
        before - self.taken.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Door {
        places: Places<usize, usize>,
        next: usize,
    }

    impl Door {
        fn new(places: usize, places_per_range: usize, known: KnownRanges) -> Self {
            Self { places: Places::new(PlaceLimits { places, places_per_range }, known), next: 0 }
        }

        /// Takes a place. Returns the number of the connection that went for it.
        fn take(&mut self, addr: &str, now: Instant) -> Result<Option<usize>, NoPlace> {
            let number = self.next;
            self.next += 1;
            self.places.take(number, addr.parse().unwrap(), number, now)
        }
    }

    #[test]
    fn the_oldest_of_a_full_range_or_of_the_largest_one_goes() {
        let (known, now) = (KnownRanges::default(), Instant::now());
        known.add("192.0.2.4".parse().unwrap());
        let mut door = Door::new(4, 2, known);
        for addr in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"] {
            assert_eq!(door.take(addr, now).unwrap(), None);
        }
        assert_eq!(door.take("2001:db8::3", now).unwrap(), Some(2), "the oldest of the network");
        assert_eq!(door.take("192.0.2.3", now).unwrap(), Some(3), "the oldest of the largest range");
        assert_eq!(door.take("192.0.2.4", now).unwrap(), None, "known ranges have their own places");
    }

    #[test]
    fn a_known_host_finishes_its_handshake_and_cannot_hold_its_place() {
        let (known, now) = (KnownRanges::default(), Instant::now());
        known.add("192.0.2.1".parse().unwrap());
        let mut door = Door::new(2, 2, known);
        door.take("192.0.2.1", now).unwrap();
        door.take("192.0.2.1", now).unwrap();
        assert!(door.take("192.0.2.1", now).is_err());
        assert_eq!(door.take("192.0.2.1", now + SECOND).unwrap(), Some(0));
    }
}
