//! The region's hosts, as every host knows them ([`Membership`]) and as the tracker keeps them ([`MembershipLog`]).
//!
//! Owns: the rows by roster index, the rules by which updates apply, and the grouping that plans start from.
//! Invariant: two memberships at one epoch of one log have the same rows, whichever updates led there.

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

/// Why an update was not applied. The membership is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The delta begins after our epoch: a full update is needed.
    #[error("membership delta from epoch {base} does not apply to epoch {have}: request a full update")]
    NeedFull {
        /// The epoch of the membership.
        have: Epoch,
        /// The epoch that the delta begins at.
        base: Epoch,
    },
    /// One node or one index would have two rows. The tracker is at fault.
    #[error("membership update has two rows for host {host}")]
    Duplicate {
        /// The index of the second row.
        host: HostIndex,
    },
    /// A value is out of range. The tracker is at fault.
    #[error("invalid membership update")]
    Invalid(#[from] DecodeError),
}

/// How far apart two hosts are, for counting bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// In the same rack, behind one uplink.
    Rack,
    /// In the same site.
    Site,
    /// Elsewhere in the region.
    Region,
    /// The sender is a seeder.
    Seeder,
}

impl Tier {
    /// Returns the tier of bytes that `to` receives from `from`.
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

/// The region's hosts. Rows are shared, so a clone costs one or two pointers for each host.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    epoch: Epoch,
    /// By roster index. The last row is `Some`.
    rows: Vec<Option<Arc<Member>>>,
    by_node: BTreeMap<NodeId, HostIndex>,
    /// Computed on first use, dropped on change.
    topology: OnceLock<Arc<Topology>>,
    /// All peers. Computed and dropped like `topology`.
    everyone: OnceLock<Bitmap>,
}

impl PartialEq for Membership {
    fn eq(&self, other: &Self) -> bool {
        self.epoch == other.epoch && self.rows == other.rows
    }
}

impl Eq for Membership {}

impl Membership {
    /// Returns the version of these rows.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the number of hosts.
    pub fn len(&self) -> usize {
        self.by_node.len()
    }

    /// Whether no host is known.
    pub fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }

    /// Returns a host's row.
    pub fn get(&self, host: HostIndex) -> Option<&Member> {
        self.rows.get(host.index())?.as_deref()
    }

    /// Returns the host with this key.
    pub fn by_node(&self, node: &NodeId) -> Option<HostIndex> {
        self.by_node.get(node).copied()
    }

    /// Returns the rows in order of index.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.rows.iter().filter_map(Option::as_deref)
    }

    /// Returns one more than the highest index.
    pub fn index_space(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Applies an update.
    ///
    /// A full update replaces everything at any epoch, because the tracker may have started again without its rows. A
    /// delta has every row that changed since its base, as the row is at the delta's epoch. So it applies to any epoch
    /// from its base to its own. A delta to an epoch that has passed is ignored.
    ///
    /// # Errors
    ///
    /// Fails if the delta begins after our epoch, or if the update is invalid. Nothing has changed then.
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

    /// Returns everything as one full update.
    pub fn to_update(&self) -> MembershipUpdate {
        MembershipUpdate { epoch: self.epoch, base: None, upserts: self.iter().cloned().collect(), removed: Vec::new() }
    }

    /// Returns the peers that a selector names, up or away, by roster index.
    pub fn select(&self, selector: &Selector) -> Bitmap {
        if selector.is_everyone() {
            self.everyone().clone()
        } else {
            self.peers(|member| selector.matches(&member.locality, &member.labels))
        }
    }

    /// Returns all peers, up or away, by roster index. Computed once for each membership.
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

    /// Returns the tier of bytes that `me` receives from `other`. An unknown host counts as far.
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

    /// Returns the rack peers of a peer, up or away, in the order of their keys' hashes.
    pub fn rack_peers(&self, host: HostIndex) -> Vec<HostIndex> {
        self.topology().rack_of(host).iter().map(|row| row.host).filter(|peer| *peer != host).collect()
    }

    /// Returns the peers by site and rack. Computed once for each membership and shared by its plans.
    pub fn topology(&self) -> &Arc<Topology> {
        self.topology.get_or_init(|| Arc::new(Topology::new(self.iter(), self.index_space())))
    }
}
