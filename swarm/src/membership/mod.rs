//! Who is in the region, as every host holds it ([`Membership`]), and as the tracker keeps it ([`MembershipLog`]).
//!
//! Owns: the rows by roster index, the rules by which updates apply, and the grouping that plans start from.
//! Invariant: two memberships at one epoch of one log hold the same rows, whichever updates led there.

mod delta_log;
#[cfg(test)]
mod tests;
mod topology;

pub use delta_log::{HISTORY_ROWS_MAX, MembershipLog};
pub use topology::Topology;
pub(crate) use topology::{HostRow, mix};

use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::DecodeError;
use shoal_proto::ids::{Epoch, HostIndex, NodeId};
use shoal_proto::locality::Selector;
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

/// Why an update was not applied. The membership is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It applies to an epoch we do not have yet: ask for a full one.
    #[error("update from epoch {base} does not fit on epoch {have}")]
    NeedFull {
        /// Epoch held.
        have: Epoch,
        /// Epoch the update applies to.
        base: Epoch,
    },
    /// It would leave one node, or one index, with two rows. The tracker is at fault.
    #[error("two rows for host {host}")]
    Duplicate {
        /// The second row.
        host: HostIndex,
    },
    /// A value is out of its range. The tracker is at fault.
    #[error("invalid membership update")]
    Invalid(#[from] DecodeError),
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

impl Tier {
    /// What bytes that `to` gets from `from` count as.
    pub fn between(from: &Member, to: &Member) -> Self {
        if from.role == Role::Seeder {
            Self::Seeder
        } else if from.locality.same_rack(&to.locality) {
            Self::Rack
        } else if from.locality.same_site(&to.locality) {
            Self::Site
        } else {
            Self::Region
        }
    }
}

/// The region's hosts. Rows are shared, so a clone costs a pointer or two a host.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    epoch: Epoch,
    /// By roster index; the last one is `Some`.
    rows: Vec<Option<Arc<Member>>>,
    by_node: BTreeMap<NodeId, HostIndex>,
    /// Made on first use, dropped on change.
    topology: OnceLock<Arc<Topology>>,
    /// All peers; the same.
    everyone: OnceLock<Bitmap>,
}

impl PartialEq for Membership {
    fn eq(&self, other: &Self) -> bool {
        self.epoch == other.epoch && self.rows == other.rows
    }
}

impl Eq for Membership {}

impl Membership {
    /// Version of these rows.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Number of hosts.
    pub fn len(&self) -> usize {
        self.by_node.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }

    /// A host's row.
    pub fn get(&self, host: HostIndex) -> Option<&Member> {
        self.rows.get(host.index())?.as_deref()
    }

    /// The host with this key.
    pub fn by_node(&self, node: &NodeId) -> Option<HostIndex> {
        self.by_node.get(node).copied()
    }

    /// Rows in order of index.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.rows.iter().filter_map(Option::as_deref)
    }

    /// One past the highest index.
    pub fn index_space(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Applies an update.
    ///
    /// A full update replaces everything, whatever its epoch: its author may have started anew. A delta applies on any
    /// epoch from its base to its own, since it holds every row changed since its base as it is at its epoch; a delta
    /// to an epoch already passed is ignored. On an error nothing has changed.
    pub fn apply(&mut self, update: MembershipUpdate) -> Result<(), ApplyError> {
        if let Some(base) = update.base {
            if base > self.epoch {
                return Err(ApplyError::NeedFull { have: self.epoch, base });
            }
            if update.epoch <= self.epoch {
                return Ok(());
            }
        }
        update.validate()?;
        self.check_unique(&update)?;
        if update.base.is_none() {
            self.rows.clear();
            self.by_node.clear();
        }
        for host in update.removed {
            self.remove(host);
        }
        for member in update.upserts {
            self.remove(member.index);
            let at = member.index.index();
            if self.rows.len() <= at {
                self.rows.resize(at + 1, None);
            }
            self.by_node.insert(member.node, member.index);
            self.rows[at] = Some(Arc::new(member));
        }
        while self.rows.last().is_some_and(Option::is_none) {
            self.rows.pop();
        }
        self.epoch = update.epoch;
        self.topology = OnceLock::new();
        self.everyone = OnceLock::new();
        Ok(())
    }

    fn check_unique(&self, update: &MembershipUpdate) -> Result<(), ApplyError> {
        let removed: BTreeSet<HostIndex> = update.removed.iter().copied().collect();
        let mut hosts = BTreeSet::new();
        let mut nodes = BTreeSet::new();
        for row in &update.upserts {
            let taken = update.base.is_some()
                && self.by_node(&row.node).is_some_and(|former| former != row.index && !removed.contains(&former));
            if taken || !hosts.insert(row.index) || !nodes.insert(row.node) {
                return Err(ApplyError::Duplicate { host: row.index });
            }
        }
        Ok(())
    }

    fn remove(&mut self, host: HostIndex) {
        if let Some(member) = self.rows.get_mut(host.index()).and_then(Option::take) {
            self.by_node.remove(&member.node);
        }
    }

    /// Everything, as one update.
    pub fn to_update(&self) -> MembershipUpdate {
        MembershipUpdate { epoch: self.epoch, base: None, upserts: self.iter().cloned().collect(), removed: Vec::new() }
    }

    /// The peers a selector names, whether up or away, by roster index.
    pub fn select(&self, selector: &Selector) -> Bitmap {
        if selector.is_everyone() {
            self.everyone().clone()
        } else {
            self.peers(|member| selector.matches(&member.locality, &member.labels))
        }
    }

    /// All peers, whether up or away, by roster index: made once a membership.
    pub fn everyone(&self) -> &Bitmap {
        self.everyone.get_or_init(|| self.peers(|_| true))
    }

    fn peers(&self, wanted: impl Fn(&Member) -> bool) -> Bitmap {
        let mut hosts = Bitmap::new(self.index_space());
        for member in self.iter().filter(|member| member.role == Role::Peer && wanted(member)) {
            hosts.set(member.index.0);
        }
        hosts
    }

    /// What bytes that `me` gets from `other` count as; from an unknown host as coming from far.
    pub fn tier(&self, me: HostIndex, other: HostIndex) -> Tier {
        match (self.get(me), self.get(other)) {
            (Some(me), Some(other)) => Tier::between(other, me),
            (None, Some(other)) if other.role == Role::Seeder => Tier::Seeder,
            _ => Tier::Region,
        }
    }

    /// Whether a host is known and up.
    pub fn is_up(&self, host: HostIndex) -> bool {
        self.get(host).is_some_and(|member| member.presence == Presence::Up)
    }

    /// Peers behind the same uplink as the peer `host`, up or away, itself apart, in the order of their keys' hash.
    pub fn rack_peers(&self, host: HostIndex) -> Vec<HostIndex> {
        self.topology().rack_of(host).iter().map(|row| row.host).filter(|peer| *peer != host).collect()
    }

    /// Peers by site and rack: made once a membership, shared by its plans.
    pub fn topology(&self) -> &Arc<Topology> {
        self.topology.get_or_init(|| Arc::new(Topology::new(self.iter(), self.index_space())))
    }
}
