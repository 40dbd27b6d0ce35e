//! Which host of a rack imports which lane.
//!
//! First all hosts of the rack, live or not, share the lanes by weight. Lane by lane, the host with the highest score
//! on the lane takes it, until the host has its quota (weighted rendezvous hashing with a cap). Then the lanes of hosts
//! that are not live go to the live hosts with the fewest lanes.
//! Owns: the scores and the quotas.
//! Invariant: a host that goes away moves only its own lanes, and gets exactly these when it comes back. Only a change
//! of the rack's roster assigns the lanes again, and then most lanes stay.

use crate::membership::{HostRow, mix};
use std::cmp::Reverse;

/// What a lane's scores are computed from.
fn salt(lane: u8) -> u64 {
    mix(u64::from(lane) + 1)
}

/// The score of `host` for `lane`. The highest score owns it.
pub fn score(host: &HostRow, lane: u8) -> u64 {
    mix(host.seed ^ salt(lane))
}

/// The number of lanes of each host: in proportion to weight by largest remainder, so within 1 of the exact share.
fn quotas(hosts: &[&HostRow], lanes: u8) -> Vec<u32> {
    let even = hosts.iter().all(|host| host.weight == 0);
    let weight = |host: &HostRow| if even { 1 } else { u64::from(host.weight) };
    let total: u64 = hosts.iter().map(|host| weight(host)).sum();
    let quota = |host: &HostRow| u64::from(lanes) * weight(host);
    let mut quotas: Vec<u32> = hosts.iter().map(|host| (quota(host) / total) as u32).collect();
    let left = u32::from(lanes) - quotas.iter().sum::<u32>();
    // Equal seeds mean equal first eight bytes of two keys. Then the order in the rack, by whole keys, decides.
    let mut by_remainder: Vec<usize> = (0..hosts.len()).filter(|at| weight(hosts[*at]) > 0).collect();
    by_remainder.sort_unstable_by_key(|at| (Reverse(quota(hosts[*at]) % total), hosts[*at].seed, *at));
    for at in by_remainder.into_iter().take(left as usize) {
        quotas[at] += 1;
    }
    quotas
}

/// Returns the owner of every lane as a place in `hosts`; `None` if no host is live.
pub fn assign(hosts: &[&HostRow], live: impl Fn(&HostRow) -> bool, lanes: u8) -> Option<Box<[u32]>> {
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

/// Moves the lanes of hosts that are not live to live hosts. The host with the fewest lanes for its weight is first.
fn hand_over(hosts: &[&HostRow], live: &[bool], owners: &mut [u32], owned: &mut [u32]) {
    let weighted = (0..hosts.len()).any(|at| live[at] && hosts[at].weight > 0);
    for (lane, owner) in owners.iter_mut().enumerate().filter(|(_, owner)| !live[**owner as usize]) {
        let heir = (0..hosts.len())
            .filter(|at| live[*at] && (!weighted || hosts[*at].weight > 0))
            .min_by_key(|at| {
                // Webster's divisors (1, 3, 5, ...): with equal weights simply the fewest lanes.
                let load = (u64::from(owned[*at]) * 2 + 1) << 32;
                (load / u64::from(hosts[*at].weight.max(1)), Reverse(score(hosts[*at], lane as u8)))
            })
            .expect("assign checked that one is live");
        *owner = heir as u32;
        owned[heir] += 1;
    }
}
