//! Which host of a rack imports which lane.
//!
//! First all the rack's hosts, live or not, share the lanes by weight: each takes its quota of the lanes it scores
//! highest on (rendezvous hashing with a cap). Then the lanes of hosts that are not live go to the live ones with the
//! fewest. So a host that leaves moves its own lanes only, and comes back to exactly these.

use super::order::mix;
use shoal_proto::ids::HostIndex;

/// A host that may own lanes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) host: HostIndex,
    /// From its key: what its scores are made of.
    pub(super) key: u64,
    pub(super) weight: u16,
    pub(super) live: bool,
}

fn score(candidate: &Candidate, lane: u8) -> u64 {
    mix(candidate.key ^ mix(u64::from(lane) + 1))
}

/// Lanes each candidate should own: in proportion to weight, by largest remainder.
fn quotas(candidates: &[Candidate], lanes: u8) -> Vec<u32> {
    let even = candidates.iter().all(|candidate| candidate.weight == 0);
    let weight = |candidate: &Candidate| if even { 1 } else { u64::from(candidate.weight) };
    let total: u64 = candidates.iter().map(weight).sum();
    let share = |candidate: &Candidate| u64::from(lanes) * weight(candidate);
    let mut quotas: Vec<u32> = candidates.iter().map(|candidate| (share(candidate) / total) as u32).collect();
    let mut by_remainder: Vec<usize> = (0..candidates.len()).filter(|i| weight(&candidates[*i]) > 0).collect();
    by_remainder.sort_unstable_by_key(|i| {
        let candidate = &candidates[*i];
        (std::cmp::Reverse(share(candidate) % total), mix(candidate.key), candidate.host)
    });
    let left = u32::from(lanes) - quotas.iter().sum::<u32>();
    for place in by_remainder.into_iter().take(left as usize) {
        quotas[place] += 1;
    }
    quotas
}

/// Owner of every lane, as a place in `candidates`; `None` without a live candidate.
pub(super) fn assign(candidates: &[Candidate], lanes: u8) -> Option<Box<[u16]>> {
    if !candidates.iter().any(|candidate| candidate.live) {
        return None;
    }
    let quotas = quotas(candidates, lanes);
    let mut pairs: Vec<(u64, u8, u16)> = candidates
        .iter()
        .enumerate()
        .filter(|(place, _)| quotas[*place] > 0)
        .flat_map(|(place, candidate)| (0..lanes).map(move |lane| (score(candidate, lane), lane, place as u16)))
        .collect();
    pairs.sort_unstable_by(|a, b| b.cmp(a));
    let mut owners: Vec<Option<u16>> = vec![None; usize::from(lanes)];
    let mut owned = vec![0u32; candidates.len()];
    for (_, lane, place) in pairs {
        let slot = &mut owners[usize::from(lane)];
        if slot.is_none() && owned[usize::from(place)] < quotas[usize::from(place)] {
            *slot = Some(place);
            owned[usize::from(place)] += 1;
        }
    }
    let mut owners: Vec<u16> = owners.into_iter().map(|owner| owner.unwrap_or(0)).collect();
    hand_over(candidates, &mut owners, &mut owned);
    Some(owners.into())
}

/// Gives the lanes of candidates that are not live to those that are, fewest lanes (by weight) first.
fn hand_over(candidates: &[Candidate], owners: &mut [u16], owned: &mut [u32]) {
    let weighted = candidates.iter().any(|candidate| candidate.live && candidate.weight > 0);
    for dead in 0..candidates.len() {
        if candidates[dead].live {
            continue;
        }
        for (lane, owner) in owners.iter_mut().enumerate() {
            if usize::from(*owner) != dead {
                continue;
            }
            let heir = (0..candidates.len())
                .filter(|place| candidates[*place].live && (!weighted || candidates[*place].weight > 0))
                .min_by_key(|place| {
                    let candidate = &candidates[*place];
                    let load = u64::from(owned[*place]) * 65_536 / u64::from(candidate.weight.max(1));
                    (load, std::cmp::Reverse(score(candidate, lane as u8)))
                })
                .expect("assign checked that one is live");
            *owner = heir as u16;
            owned[heir] += 1;
        }
    }
}
