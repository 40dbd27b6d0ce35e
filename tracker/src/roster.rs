//! The roster, which assigns each node its permanent index, and the membership that follows from the roster.
//!
//! Invariant: an index names one key for ever. It is on the disk before the host learns it.

use crate::tables::{EPOCH, INDICES, MEMBERS, META, NEXT_INDEX};
use shoal_kv::{Change, Database, KvError, Table};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{Epoch, HostIndex, NodeId};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_swarm::membership::{ApplyError, Membership, MembershipLog};
use std::net::SocketAddr;
use std::sync::Arc;

/// Why the roster cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// The database failed.
    #[error("cannot read or write the roster")]
    Database(#[from] KvError),
    /// A change would give two members one index or one key. Such a roster on disk is damaged.
    #[error("the roster is inconsistent: restore the tracker's folder from a backup")]
    Inconsistent(#[from] ApplyError),
    /// A counter on the disk is higher than the tracker can count.
    #[error("the counter `{key}` of the roster is out of range: restore the tracker's folder from a backup")]
    #[allow(missing_docs, reason = "the message says it")]
    Counter { key: &'static str },
}

/// Epochs that a restart skips. Epochs are not flushed, so the disk may be this far behind what hosts know.
const EPOCHS_SKIPPED: u64 = 1000;

/// The members on disk, and the membership that is made of them.
#[derive(Debug)]
pub struct Roster {
    indices: Table,
    members: Table,
    meta: Table,
    log: MembershipLog,
    next_index: u32,
}

impl Roster {
    /// Continues from the disk. Every host keeps the presence it had, because a tracker's restart does not change it.
    ///
    /// # Errors
    /// [`RosterError`] if the database fails or its rows contradict each other.
    pub fn open(database: &Arc<dyn Database>) -> Result<Self, RosterError> {
        let table = |name| Table::new(database, name);
        let (indices, members, meta) = (table(INDICES), table(MEMBERS), table(META));
        let rows = members.scan([])?;
        let upserts = rows.iter().filter_map(|row| decode_exact::<Member>(&row.value).ok()).collect();
        let former = meta.get_u64(EPOCH)?.unwrap_or(0);
        let epoch = Epoch(former.checked_add(EPOCHS_SKIPPED).ok_or(RosterError::Counter { key: EPOCH })?);
        let mut membership = Membership::default();
        membership.apply(MembershipUpdate { epoch, base: None, upserts, removed: Vec::new() })?;
        let next_index = u32::try_from(meta.get_u64(NEXT_INDEX)?.unwrap_or(0))
            .map_err(|_| RosterError::Counter { key: NEXT_INDEX })?;
        meta.put_u64(EPOCH, epoch.0)?;
        Ok(Self { indices, members, meta, log: MembershipLog::new(membership), next_index })
    }

    /// Returns the membership and its recent changes.
    pub fn log(&self) -> &MembershipLog {
        &self.log
    }

    /// Returns the present membership.
    pub fn members(&self) -> &Membership {
        self.log.current()
    }

    /// Returns the index of a key. A new key gets a new index, which survives a kill when this returns.
    ///
    /// # Errors
    /// [`RosterError`] if the database fails.
    pub fn index_of(&mut self, node: &NodeId) -> Result<HostIndex, RosterError> {
        if let Some(bytes) = self.indices.get(node.0)?
            && let Ok(bytes) = bytes.as_slice().try_into()
        {
            return Ok(HostIndex(u32::from_be_bytes(bytes)));
        }
        let index = HostIndex(self.next_index);
        self.next_index = index.0.checked_add(1).ok_or(RosterError::Counter { key: NEXT_INDEX })?;
        // The counter goes first: a stop in between wastes an index instead of using it twice.
        self.meta.put_u64(NEXT_INDEX, u64::from(self.next_index))?;
        self.indices.put(node.0, index.0.to_be_bytes())?;
        self.indices.flush()?;
        Ok(index)
    }

    /// Adds a host, or updates it. Another key at the same locality was replaced by this one and leaves the membership.
    ///
    /// # Errors
    /// [`RosterError`] if the database fails or the change is inconsistent.
    pub fn admit(&mut self, member: Member) -> Result<(), RosterError> {
        if self.members().get(member.index) == Some(&member) {
            return Ok(());
        }
        let replaced: Vec<HostIndex> = self
            .members()
            .iter()
            .filter(|other| other.locality == member.locality && other.index != member.index)
            .map(|other| other.index)
            .collect();
        self.change(vec![member], replaced)
    }

    /// Marks hosts as up or away.
    ///
    /// # Errors
    /// [`RosterError`] if the database fails.
    pub fn set_presence(&mut self, hosts: &[HostIndex], presence: Presence) -> Result<(), RosterError> {
        let members = self.members();
        let upserts = hosts
            .iter()
            .filter_map(|host| members.get(*host))
            .filter(|member| member.presence != presence)
            .map(|member| Member { presence, ..member.clone() })
            .collect();
        self.change(upserts, Vec::new())
    }

    /// Removes hosts from the membership. Their indices stay taken.
    ///
    /// # Errors
    /// [`RosterError`] if the database fails.
    pub fn evict(&mut self, hosts: Vec<HostIndex>) -> Result<(), RosterError> {
        self.change(Vec::new(), hosts)
    }

    fn change(&mut self, upserts: Vec<Member>, removed: Vec<HostIndex>) -> Result<(), RosterError> {
        if upserts.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let put = |member: &Member| Change::set(member.index.0.to_be_bytes(), Some(encode(member)));
        let delete = |host: &HostIndex| Change::set(host.0.to_be_bytes(), None);
        let changes: Vec<Change> = upserts.iter().map(put).chain(removed.iter().map(delete)).collect();
        self.members.apply(&changes)?;
        let epoch = self.log.change(upserts, removed)?;
        self.meta.put_u64(EPOCH, epoch.0)?;
        Ok(())
    }
}

/// Returns `addr` with the IP address of `remote` if `addr` has none of its own.
pub(crate) fn replace_unspecified(addr: SocketAddr, remote: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() { SocketAddr::new(remote.ip(), addr.port()) } else { addr }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables;
    use shoal_proto::locality::Locality;
    use shoal_proto::trust::Role;

    fn member(index: HostIndex, key: u8, host: &str) -> Member {
        Member {
            index,
            node: NodeId([key; 32]),
            role: Role::Peer,
            locality: Locality::new("r", "s", "k", host).unwrap(),
            labels: Default::default(),
            addrs: Vec::new(),
            weight: 100,
            uplink_mbit: 0,
            presence: Presence::Up,
            credential: Default::default(),
        }
    }

    #[test]
    fn indices_are_given_once_and_epochs_never_go_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = Epoch(0);
        for round in 0..3u8 {
            let database = tables::open(dir.path()).unwrap();
            let mut roster = Roster::open(&database).unwrap();
            assert!(roster.members().epoch() > last);
            for key in 0..=round {
                let index = roster.index_of(&NodeId([key; 32])).unwrap();
                assert_eq!(index.0, u32::from(key));
                roster.admit(member(index, key, &format!("h{key}"))).unwrap();
            }
            last = roster.members().epoch();
            drop(roster);
            database.flush().unwrap();
        }
    }

    #[test]
    fn a_new_key_at_a_place_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let database = tables::open(dir.path()).unwrap();
        let mut roster = Roster::open(&database).unwrap();
        for key in 1..=2 {
            let index = roster.index_of(&NodeId([key; 32])).unwrap();
            roster.admit(member(index, key, "same")).unwrap();
        }
        let left: Vec<u32> = roster.members().iter().map(|member| member.index.0).collect();
        assert_eq!(left, [1]);
    }
}
