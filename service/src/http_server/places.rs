//! The places of a server's connections: how many there are, for whom, and who gives way when all are taken.
//!
//! The naive answer to a full server is to accept nothing until a connection ends. Then silent connections from a few
//! addresses shut the server for as long as they are renewed. Here the newest connection always takes a place from the
//! one that does the least: one without a request, or one whose client has not read for [`STUCK_AFTER`].
//!
//! Invariant: an address range never holds more than its share, and connections from outside never take the places of
//! this machine or of known addresses. A full class takes the place from the range that holds the most idle ones.

#![allow(unreachable_pub, reason = "the server is the only user of this module")]

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Places of each class.
const PLACES: usize = 256;
/// Places that one IPv4 address or one IPv6 network of 64 bits may hold.
const PLACES_PER_RANGE: usize = PLACES / 4;
/// A client that reads nothing for this long, while an answer waits for it, may lose its place.
const STUCK_AFTER: Duration = Duration::from_secs(2);
/// How long an address stays known after the last proof.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// Known addresses that are remembered.
const KNOWN_MAX: usize = 1024;

/// Who a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// This machine.
    Local,
    /// An address from which a signed request came.
    Known,
    /// Any other.
    Stranger,
}

/// An IPv4 address, or the first 64 bits of an IPv6 address. A site's hosts share such a network, so one attacker has
/// all of its addresses.
fn range(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

/// Addresses that proved who they are. Their connections have places of their own.
#[derive(Clone, Debug, Default)]
pub struct KnownAddresses {
    until: Arc<Mutex<HashMap<IpAddr, Instant>>>,
}

impl KnownAddresses {
    /// Remembers an address from which a signed request came.
    pub fn add(&self, addr: IpAddr) {
        let (now, mut until) = (Instant::now(), lock(&self.until));
        if until.len() >= KNOWN_MAX {
            until.retain(|_, until| *until > now);
        }
        if until.len() < KNOWN_MAX || until.contains_key(&addr) {
            until.insert(addr.to_canonical(), now + KNOWN_FOR);
        }
    }

    fn contains(&self, addr: IpAddr) -> bool {
        lock(&self.until).get(&addr).is_some_and(|until| *until > Instant::now())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a connection is doing. The connection writes it, and the table reads it.
#[derive(Debug)]
pub struct Activity {
    start: Instant,
    /// Requests whose answer has not ended.
    requests: AtomicUsize,
    /// When a byte last moved, in ms since `start`.
    moved_at_ms: AtomicU64,
    /// When a write began to wait for the client, in ms since `start` plus 1. 0 if none waits.
    blocked_at_ms: AtomicU64,
}

impl Activity {
    pub fn new(start: Instant) -> Self {
        let now = start.elapsed().as_millis() as u64;
        Self { start, requests: 0.into(), moved_at_ms: now.into(), blocked_at_ms: 0.into() }
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Notes that bytes moved.
    pub fn moved(&self) {
        self.moved_at_ms.store(self.now_ms(), Ordering::Relaxed);
        self.blocked_at_ms.store(0, Ordering::Relaxed);
    }

    /// Notes that a write waits for the client. Returns whether none waited before.
    pub fn blocked(&self) -> bool {
        let now = self.now_ms() + 1;
        self.blocked_at_ms.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Returns for how long a write has waited for the client.
    fn blocked_for(&self) -> Duration {
        match self.blocked_at_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            at => Duration::from_millis((self.now_ms() + 1).saturating_sub(at)),
        }
    }

    /// Notes that a request has arrived. The answer has ended when the result is dropped.
    pub fn request(self: &Arc<Self>) -> RunningRequest {
        self.requests.fetch_add(1, Ordering::Relaxed);
        RunningRequest(self.clone())
    }

    fn is_working(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0 && self.blocked_for() < STUCK_AFTER
    }
}

/// A request whose answer has not ended.
pub struct RunningRequest(Arc<Activity>);

impl Drop for RunningRequest {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Taken {
    range: IpAddr,
    class: Class,
    activity: Arc<Activity>,
    /// Ends the connection.
    end: CancellationToken,
}

/// All places of a server. Cheap to clone.
#[derive(Clone)]
pub struct Places {
    start: Instant,
    known: KnownAddresses,
    taken: Arc<Mutex<BTreeMap<u64, Taken>>>,
    next: Arc<AtomicU64>,
}

impl Places {
    pub fn new(known: KnownAddresses) -> Self {
        Self { start: Instant::now(), known, taken: Arc::default(), next: Arc::default() }
    }

    /// Returns a place for a connection from `addr`, or `None` if every place it could have is at work.
    pub fn take(&self, addr: IpAddr) -> Option<Place> {
        let addr = addr.to_canonical();
        let class = match addr {
            _ if addr.is_loopback() => Class::Local,
            _ if self.known.contains(addr) => Class::Known,
            _ => Class::Stranger,
        };
        let (range, mut taken) = (range(addr), lock(&self.taken));
        let full = |taken: &BTreeMap<u64, Taken>, all: usize, is: &dyn Fn(&Taken) -> bool| {
            taken.values().filter(|one| is(one)).count() >= all
        };
        // Addresses of this machine are all one owner's.
        if class != Class::Local && full(&taken, PLACES_PER_RANGE, &|one| one.range == range && one.class == class) {
            give_way(&mut taken, |one| one.range == range && one.class == class)?;
        } else if full(&taken, PLACES, &|one| one.class == class) {
            // The range with the most connections loses one. So connections that a few addresses renew all the time do
            // not end the only one of another address before its request arrives.
            let mut counts: HashMap<IpAddr, usize> = HashMap::new();
            let idle = taken.values().filter(|one| one.class == class && !one.activity.is_working());
            idle.for_each(|one| *counts.entry(one.range).or_default() += 1);
            let most = counts.values().copied().max()?;
            give_way(&mut taken, |one| one.class == class && counts.get(&one.range) == Some(&most))?;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (activity, end) = (Arc::new(Activity::new(self.start)), CancellationToken::new());
        taken.insert(id, Taken { range, class, activity: activity.clone(), end: end.clone() });
        Some(Place { id, taken: self.taken.clone(), activity, end })
    }
}

/// Ends the connection, among those that `may`, that does the least.
fn give_way(taken: &mut BTreeMap<u64, Taken>, may: impl Fn(&Taken) -> bool) -> Option<()> {
    let idle = taken.iter().filter(|(_, one)| may(one) && !one.activity.is_working());
    let oldest = idle.min_by_key(|(_, one)| one.activity.moved_at_ms.load(Ordering::Relaxed));
    let id = *oldest?.0;
    taken.remove(&id)?.end.cancel();
    Some(())
}

/// The place of one connection. Dropping it makes room for another.
pub struct Place {
    id: u64,
    taken: Arc<Mutex<BTreeMap<u64, Taken>>>,
    /// What the connection does.
    pub activity: Arc<Activity>,
    /// Cancelled when the connection must give way.
    pub end: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_idle_give_way_and_the_working_stay() {
        let places = Places::new(KnownAddresses::default());
        let mut first: Vec<Place> = (0..PLACES_PER_RANGE).map(|_| places.take(ip("192.0.2.1")).unwrap()).collect();
        let working: Vec<_> = first.iter().skip(1).map(|place| place.activity.request()).collect();
        let _one = places.take(ip("192.0.2.1")).unwrap();
        assert!(first[0].end.is_cancelled(), "the only one without a request gives way");
        let two = places.take(ip("192.0.2.1")).unwrap();
        let _request = two.activity.request();
        assert!(places.take(ip("192.0.2.1")).is_none(), "all others of this address are at work");
        assert!(places.take(ip("192.0.2.2")).is_some());
        drop((working, first.pop()));
        assert!(places.take(ip("192.0.2.1")).is_some());
    }

    #[test]
    fn strangers_take_no_place_of_this_machine_or_of_known_addresses() {
        let known = KnownAddresses::default();
        let places = Places::new(known.clone());
        let requests: Vec<_> = (0..PLACES * 2)
            .filter_map(|number| places.take(ip(&format!("2001:db8:0:{:x}::1", number / 4))))
            .map(|place| (place.activity.request(), place))
            .collect();
        assert_eq!(requests.len(), PLACES);
        assert!(places.take(ip("203.0.113.9")).is_none());
        assert!(places.take(ip("127.0.0.1")).is_some() && places.take(ip("::ffff:127.0.0.1")).is_some());
        known.add(ip("203.0.113.9"));
        assert!(places.take(ip("203.0.113.9")).is_some());
    }

    #[test]
    fn a_flood_does_not_end_the_only_connection_of_another_address() {
        let places = Places::new(KnownAddresses::default());
        let mut held = Vec::new();
        let mut take = |last: usize| held.push(places.take(ip(&format!("198.51.100.{last}"))).unwrap());
        (0..PLACES).for_each(|number| take(number % 6));
        let honest = places.take(ip("203.0.113.9")).unwrap();
        (0..PLACES * 2).for_each(|number| take(number % 6));
        assert!(!honest.end.is_cancelled());
        // Where every address has one connection, the least active one goes.
        let quiet = Places::new(KnownAddresses::default());
        let first: Vec<_> = (0..PLACES)
            .map(|number| quiet.take(ip(&format!("10.0.{}.{}", number / 200, number % 200))).unwrap())
            .collect();
        let _new = quiet.take(ip("203.0.113.9")).unwrap();
        assert_eq!(first.iter().filter(|place| place.end.is_cancelled()).count(), 1);
    }

    #[test]
    fn a_network_of_64_bits_is_one_owner() {
        let places = Places::new(KnownAddresses::default());
        let held: Vec<_> = (0..PLACES_PER_RANGE * 2)
            .filter_map(|number| places.take(ip(&format!("2001:db8::{number:x}"))))
            .map(|place| (place.activity.request(), place))
            .collect();
        assert_eq!(held.len(), PLACES_PER_RANGE);
    }
}
