//! How many refused requests are logged.
//!
//! Invariant: the memory is bounded, and a flood from one address leaves room for entries of other addresses.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

/// Entries of one address at once, and per second afterwards.
const PER_ADDRESS: Rate = Rate { burst: 10.0, per_second: 0.2 };
/// Entries of all addresses at once, and per second afterwards.
const IN_ALL: Rate = Rate { burst: 100.0, per_second: 5.0 };
/// Addresses with a bucket of their own. When there are more, those that are full again are forgotten.
const ADDRESSES_MAX: usize = 1024;

struct Rate {
    burst: f64,
    per_second: f64,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: &Rate, at: Instant) -> Self {
        Self { tokens: rate.burst, at }
    }

    fn fill(&mut self, rate: &Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate.per_second).min(rate.burst);
        self.at = now;
    }
}

/// The buckets of the addresses, and one for all.
#[derive(Default)]
pub(crate) struct Refusals {
    all: Option<Bucket>,
    addresses: HashMap<Option<IpAddr>, Bucket>,
}

#[cfg(test)]
impl Refusals {
    pub(crate) fn addresses_len(&self) -> usize {
        self.addresses.len()
    }
}

/// Returns what shares a bucket: an IPv4 address, or a network of 64 bits, which one host can use whole.
fn network(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX)).into(),
        addr => addr,
    }
}

impl Refusals {
    /// Whether one more refused request is logged.
    pub(crate) fn admits(&mut self, from: Option<IpAddr>, now: Instant) -> bool {
        let key = from.map(network);
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&key) {
            self.addresses.retain(|_, bucket| {
                bucket.fill(&PER_ADDRESS, now);
                bucket.tokens < PER_ADDRESS.burst
            });
            if self.addresses.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let all = self.all.get_or_insert(Bucket::full(&IN_ALL, now));
        all.fill(&IN_ALL, now);
        let bucket = self.addresses.entry(key).or_insert(Bucket::full(&PER_ADDRESS, now));
        bucket.fill(&PER_ADDRESS, now);
        if all.tokens < 1.0 || bucket.tokens < 1.0 {
            return false;
        }
        all.tokens -= 1.0;
        bucket.tokens -= 1.0;
        true
    }
}
