//! Who is in the region, as every host holds it, and the tracker's log of how it came to be so.
//!
//! Owns: the rows by roster index, and the rules by which updates apply.
//! Invariant: two memberships at one epoch of one tracker hold the same rows.

use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{Epoch, HostIndex, NodeId};
use shoal_proto::locality::Selector;
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::Role;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An update does not fit on what is held: ask for a full one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("update from epoch {base} does not fit on epoch {have}")]
pub struct NeedFull {
    /// Epoch held.
    pub have: Epoch,
    /// Epoch the update applies to.
    pub base: Epoch,
}

/// How far two hosts are apart, for counting bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Behind the same uplink.
    Rack,
    /// In the same site.
    Site,
    /// Elsewhere in the region.
    Region,
    /// The other one is a seeder.
    Seeder,
}

/// The region's hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    epoch: Epoch,
    rows: BTreeMap<HostIndex, Member>,
    by_node: BTreeMap<NodeId, HostIndex>,
}

impl Membership {
    /// Version of these rows.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Number of hosts.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A host's row.
    pub fn get(&self, host: HostIndex) -> Option<&Member> {
        self.rows.get(&host)
    }

    /// The host with this key.
    pub fn by_node(&self, node: &NodeId) -> Option<HostIndex> {
        self.by_node.get(node).copied()
    }

    /// Rows in order of index.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.rows.values()
    }

    /// One past the highest index.
    pub fn index_space(&self) -> u32 {
        self.rows.last_key_value().map_or(0, |(index, _)| index.0 + 1)
    }

    /// Applies an update. An update to an epoch already held is ignored.
    pub fn apply(&mut self, update: MembershipUpdate) -> Result<(), NeedFull> {
        match update.base {
            Some(_) if update.epoch <= self.epoch => return Ok(()),
            Some(base) if base > self.epoch => return Err(NeedFull { have: self.epoch, base }),
            Some(_) => {}
            None => {
                self.rows.clear();
                self.by_node.clear();
            }
        }
        for host in update.removed {
            self.remove(host);
        }
        for member in update.upserts {
            self.remove(member.index);
            // A key re-admitted at another index takes its name along.
            if let Some(former) = self.by_node.insert(member.node, member.index) {
                self.rows.remove(&former);
            }
            self.rows.insert(member.index, member);
        }
        self.epoch = update.epoch;
        Ok(())
    }

    fn remove(&mut self, host: HostIndex) {
        if let Some(member) = self.rows.remove(&host) {
            self.by_node.remove(&member.node);
        }
    }

    /// Everything, as one update.
    pub fn to_update(&self) -> MembershipUpdate {
        MembershipUpdate {
            epoch: self.epoch,
            base: None,
            upserts: self.rows.values().cloned().collect(),
            removed: Vec::new(),
        }
    }

    /// The peers a selector names, whether up or away.
    pub fn select(&self, selector: &Selector) -> Bitmap {
        let mut hosts = Bitmap::new(self.index_space());
        for member in self.iter().filter(|member| member.role == Role::Peer) {
            if selector.matches(&member.locality, &member.labels) {
                hosts.set(member.index.0);
            }
        }
        hosts
    }

    /// How far `other` is from `me`; unknown hosts count as far.
    pub fn tier(&self, me: HostIndex, other: HostIndex) -> Tier {
        match (self.get(me), self.get(other)) {
            (_, Some(other)) if other.role == Role::Seeder => Tier::Seeder,
            (Some(me), Some(other)) if me.locality.same_rack(&other.locality) => Tier::Rack,
            (Some(me), Some(other)) if me.locality.same_site(&other.locality) => Tier::Site,
            _ => Tier::Region,
        }
    }

    /// Whether a host is known and up.
    pub fn is_up(&self, host: HostIndex) -> bool {
        self.get(host).is_some_and(|member| member.presence == Presence::Up)
    }

    /// Peers behind the same uplink as `host`, itself apart, in order of index.
    pub fn rack_mates(&self, host: HostIndex) -> Vec<HostIndex> {
        let Some(me) = self.get(host) else { return Vec::new() };
        self.iter()
            .filter(|other| other.role == Role::Peer && other.index != host && other.locality.same_rack(&me.locality))
            .map(|other| other.index)
            .collect()
    }
}

/// Changes the log keeps for deltas. A host further behind gets everything.
const HISTORY_MAX: usize = 4096;

/// The tracker's side: the rows, and which of them changed when.
#[derive(Clone, Debug, Default)]
pub struct MembershipLog {
    current: Membership,
    /// (epoch, host) of each change, oldest first.
    history: VecDeque<(Epoch, HostIndex)>,
    /// Deltas reach back to here.
    reach: Epoch,
}

impl MembershipLog {
    /// Starts from rows kept on disk. Hosts behind `current`'s epoch get everything once.
    pub fn new(current: Membership) -> Self {
        let reach = current.epoch();
        Self { current, history: VecDeque::new(), reach }
    }

    /// The rows now.
    pub fn current(&self) -> &Membership {
        &self.current
    }

    /// Applies a change and moves to the next epoch. Without a change the epoch stays.
    pub fn change(&mut self, upserts: Vec<Member>, removed: Vec<HostIndex>) -> Epoch {
        let upserts: Vec<Member> = upserts.into_iter().filter(|new| self.current.get(new.index) != Some(new)).collect();
        let removed: Vec<HostIndex> = removed.into_iter().filter(|host| self.current.get(*host).is_some()).collect();
        if upserts.is_empty() && removed.is_empty() {
            return self.current.epoch();
        }
        let base = self.current.epoch();
        let epoch = Epoch(base.0 + 1);
        for host in upserts.iter().map(|member| member.index).chain(removed.iter().copied()) {
            self.history.push_back((epoch, host));
        }
        while self.history.len() > HISTORY_MAX {
            if let Some((dropped, _)) = self.history.pop_front() {
                self.reach = dropped;
            }
        }
        let update = MembershipUpdate { epoch, base: Some(base), upserts, removed };
        self.current.apply(update).expect("the base is our own epoch");
        epoch
    }

    /// What a host at `known` lacks; `None` when it is up to date.
    pub fn update_since(&self, known: Option<Epoch>) -> Option<MembershipUpdate> {
        let epoch = self.current.epoch();
        let Some(known) = known.filter(|known| (self.reach..=epoch).contains(known)) else {
            return Some(self.current.to_update());
        };
        if known == epoch {
            return None;
        }
        let changed: BTreeSet<HostIndex> =
            self.history.iter().filter(|(at, _)| *at > known).map(|(_, host)| *host).collect();
        let (mut upserts, mut removed) = (Vec::new(), Vec::new());
        for host in changed {
            match self.current.get(host) {
                Some(member) => upserts.push(member.clone()),
                None => removed.push(host),
            }
        }
        Some(MembershipUpdate { epoch, base: Some(known), upserts, removed })
    }
}
