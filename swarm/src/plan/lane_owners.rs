//! Which host of a rack imports which lane.
//!
//! First all the rack's hosts, live or not, share the lanes by weight: lane by lane, the host that scores highest on it
//! takes it, until it has its quota (weighted rendezvous hashing with a cap). Then the lanes of hosts that are not live
//! go to the live ones with the fewest. So a host that goes away moves its own lanes only, and comes back to exactly
//! these; only a change of the rack's roster placements anew, and then most lanes stay where they were.

use crate::membership::{HostRow, mix};
use std::cmp::Reverse;

/// Forest of a lane's scores.
fn salt(lane: u8) -> u64 {
    mix(u64::from(lane) + 1)
}

/// How much `host` is for owning `lane`.
pub(super) fn score(host: &HostRow, lane: u8) -> u64 {
    mix(host.seed ^ salt(lane))
}

/// Lanes each host should own: in proportion to weight, by largest remainder, so within 1 of the exact share.
fn quotas(hosts: &[&HostRow], lanes: u8) -> Vec<u32> {
    let even = hosts.iter().all(|host| host.weight == 0);
    let weight = |host: &HostRow| if even { 1 } else { u64::from(host.weight) };
    let total: u64 = hosts.iter().map(|host| weight(host)).sum();
    let share = |host: &HostRow| u64::from(lanes) * weight(host);
    let mut quotas: Vec<u32> = hosts.iter().map(|host| (share(host) / total) as u32).collect();
    let left = u32::from(lanes) - quotas.iter().sum::<u32>();
    // Equal seeds mean equal first eight bytes of a key; their order in the rack, by the whole key, decides then.
    let mut by_remainder: Vec<usize> = (0..hosts.len()).filter(|at| weight(hosts[*at]) > 0).collect();
    by_remainder.sort_unstable_by_key(|at| (Reverse(share(hosts[*at]) % total), hosts[*at].seed, *at));
    for at in by_remainder.into_iter().take(left as usize) {
        quotas[at] += 1;
    }
    quotas
}

/// Owner of every lane, as a place in `hosts`; `None` when none of them is live.
pub(super) fn assign(hosts: &[&HostRow], live: impl Fn(&HostRow) -> bool, lanes: u8) -> Option<Box<[u32]>> {
    let live: Vec<bool> = hosts.iter().map(|host| live(host)).collect();
    if !live.contains(&true) {
        return None;
    }
    let mut left = quotas(hosts, lanes);
    let mut owned = vec![0u32; hosts.len()];
    let mut owners: Box<[u32]> = (0..lanes)
        .map(|lane| {
            let salt = salt(lane);
            let best = (0..hosts.len())
                .filter(|at| left[*at] > 0)
                .max_by_key(|at| mix(hosts[*at].seed ^ salt))
                .expect("the quotas add up to the lanes");
            left[best] -= 1;
            owned[best] += 1;
            best as u32
        })
        .collect();
    if live.contains(&false) {
        hand_over(hosts, &live, &mut owners, &mut owned);
    }
    Some(owners)
}

/// Gives the lanes of hosts that are not live to those that are, fewest lanes (by weight) first.
fn hand_over(hosts: &[&HostRow], live: &[bool], owners: &mut [u32], owned: &mut [u32]) {
    let weighted = (0..hosts.len()).any(|at| live[at] && hosts[at].weight > 0);
    for (lane, owner) in owners.iter_mut().enumerate().filter(|(_, owner)| !live[**owner as usize]) {
        let heir = (0..hosts.len())
            .filter(|at| live[*at] && (!weighted || hosts[*at].weight > 0))
            .min_by_key(|at| {
                // Webster's divisors: with equal weights simply the fewest.
                let load = (u64::from(owned[*at]) * 2 + 1) << 32;
                (load / u64::from(hosts[*at].weight.max(1)), Reverse(score(hosts[*at], lane as u8)))
            })
            .expect("assign checked that one is live");
        *owner = heir as u32;
        owned[heir] += 1;
    }
}
