//! Who is who: indices given once and for all, and the membership that follows from who is up.
//!
//! Invariant: an index names one key for ever; it is on the disk before the host hears of it.

use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{Epoch, HostIndex, NodeId};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_swarm::membership::{Membership, MembershipLog};

/// The roster's records failed.
#[derive(Debug, thiserror::Error)]
#[error("the roster: {0}")]
pub struct RosterError(String);

impl From<sled::Error> for RosterError {
    fn from(error: sled::Error) -> Self {
        Self(error.to_string())
    }
}

/// Epochs skipped at a restart: more than can have been given out and not written.
const EPOCH_SKIP: u64 = 1000;

/// Rows on disk, and the membership made of them.
pub struct Roster {
    /// Key to index, for keys seen at any time.
    indices: sled::Tree,
    /// Index to row, for hosts of the membership.
    rows: sled::Tree,
    /// The epoch and the next index.
    meta: sled::Tree,
    log: MembershipLog,
    next: u32,
}

fn number(tree: &sled::Tree, key: &str) -> Result<u64, RosterError> {
    Ok(tree.get(key)?.and_then(|bytes| bytes.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes))
}

impl Roster {
    /// Continues from the disk: hosts are as they were, for a tracker's restart says nothing of them.
    pub fn open(db: &sled::Db) -> Result<Self, RosterError> {
        let (indices, rows, meta) = (db.open_tree("indices")?, db.open_tree("rows")?, db.open_tree("meta")?);
        let mut members = Vec::new();
        for row in &rows {
            let (_, value) = row?;
            if let Ok(member) = decode_exact::<Member>(&value) {
                members.push(member);
            }
        }
        let epoch = Epoch(number(&meta, "epoch")? + EPOCH_SKIP);
        let mut membership = Membership::default();
        let update = MembershipUpdate { epoch, base: None, upserts: members, removed: Vec::new() };
        membership.apply(update).map_err(|error| RosterError(error.to_string()))?;
        let next = number(&meta, "next")? as u32;
        let roster = Self { indices, rows, meta, log: MembershipLog::new(membership), next };
        roster.meta.insert("epoch", &epoch.0.to_be_bytes())?;
        Ok(roster)
    }

    /// The rows and how they came about.
    pub fn log(&self) -> &MembershipLog {
        &self.log
    }

    /// The rows now.
    pub fn members(&self) -> &Membership {
        self.log.current()
    }

    /// The index of a key: its own, or a new one.
    pub fn index_of(&mut self, node: &NodeId) -> Result<HostIndex, RosterError> {
        if let Some(bytes) = self.indices.get(node.0)?
            && let Ok(bytes) = bytes.as_ref().try_into()
        {
            return Ok(HostIndex(u32::from_be_bytes(bytes)));
        }
        let index = HostIndex(self.next);
        self.next += 1;
        self.meta.insert("next", &u64::from(self.next).to_be_bytes())?;
        self.indices.insert(node.0, &index.0.to_be_bytes())?;
        self.meta.flush()?;
        Ok(index)
    }

    /// Takes a host in. Another key at its locality has been replaced and leaves.
    pub fn admit(&mut self, member: Member) -> Result<(), RosterError> {
        let replaced: Vec<HostIndex> = self
            .members()
            .iter()
            .filter(|other| other.locality == member.locality && other.index != member.index)
            .map(|other| other.index)
            .collect();
        self.change(vec![member], replaced)
    }

    /// Marks hosts up or away.
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

    /// Forgets hosts; their indices stay taken.
    pub fn evict(&mut self, hosts: Vec<HostIndex>) -> Result<(), RosterError> {
        self.change(Vec::new(), hosts)
    }

    fn change(&mut self, upserts: Vec<Member>, removed: Vec<HostIndex>) -> Result<(), RosterError> {
        if upserts.is_empty() && removed.is_empty() {
            return Ok(());
        }
        for member in &upserts {
            self.rows.insert(member.index.0.to_be_bytes(), encode(member))?;
        }
        for host in &removed {
            self.rows.remove(host.0.to_be_bytes())?;
        }
        let epoch = self.log.change(upserts, removed).map_err(|error| RosterError(error.to_string()))?;
        self.meta.insert("epoch", &epoch.0.to_be_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        }
    }

    #[test]
    fn indices_are_given_once_and_epochs_never_go_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = Epoch(0);
        for round in 0..3u8 {
            let db = sled::open(dir.path()).unwrap();
            let mut roster = Roster::open(&db).unwrap();
            assert!(roster.members().epoch() > last);
            for key in 0..=round {
                let index = roster.index_of(&NodeId([key; 32])).unwrap();
                assert_eq!(index.0, u32::from(key));
                roster.admit(member(index, key, &format!("h{key}"))).unwrap();
            }
            last = roster.members().epoch();
            drop(roster);
            db.flush().unwrap();
        }
    }

    #[test]
    fn a_new_key_at_a_place_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::open(dir.path()).unwrap();
        let mut roster = Roster::open(&db).unwrap();
        for key in 1..=2 {
            let index = roster.index_of(&NodeId([key; 32])).unwrap();
            roster.admit(member(index, key, "same")).unwrap();
        }
        let left: Vec<u32> = roster.members().iter().map(|member| member.index.0).collect();
        assert_eq!(left, [1]);
    }
}
