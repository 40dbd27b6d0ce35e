//! The version of each name that each host runs, as the hosts report it.
//!
//! Invariant: a host has one version per name. Only names that a publisher announced take one of the [`NAMES_MAX`]
//! places. A host's other names wait aside.

use crate::aside::Aside;
use crate::tables::VERSIONS;
use shoal_kv::{Change, Database, KvError, Table};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::control::{CurrentVersion, VersionSet};
use shoal_proto::ids::HostIndex;
use shoal_proto::limits;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Announced names that are kept. A new one replaces one that no host reports.
const NAMES_MAX: usize = 4096;
/// Names that no publisher announced here, of one host and of all hosts. After the loss of its folder a tracker knows
/// no announcement, but hosts report what they run.
const ASIDE_PER_HOST_MAX: usize = 64;
const ASIDE_MAX: usize = 256 * 1024;

/// The versions in memory, and their copy on disk.
pub(crate) struct RunningVersions {
    names: BTreeMap<String, BTreeMap<HostIndex, String>>,
    aside: Aside<String, String>,
    /// Announcements of names that found no place.
    unplaced: u64,
    table: Table,
}

/// Index first, so that all rows of one host have a common prefix.
fn key(host: HostIndex, name: &str) -> Vec<u8> {
    [&host.0.to_be_bytes()[..], name.as_bytes()].concat()
}

fn split_key(key: &[u8]) -> Option<(HostIndex, &str)> {
    let (host, name) = key.split_at_checked(4)?;
    Some((HostIndex(u32::from_be_bytes(host.try_into().ok()?)), std::str::from_utf8(name).ok()?))
}

impl RunningVersions {
    /// Continues from the disk.
    pub(crate) fn open(database: &Arc<dyn Database>) -> Result<Self, KvError> {
        let aside = Aside::new(ASIDE_PER_HOST_MAX, ASIDE_MAX);
        let table = Table::new(database, VERSIONS);
        let mut versions = Self { names: BTreeMap::new(), aside, unplaced: 0, table };
        for row in versions.table.scan([])? {
            if let (Some((host, name)), Ok(version)) = (split_key(&row.key), decode_exact::<String>(&row.value)) {
                versions.names.entry(name.to_string()).or_default().insert(host, version);
            }
        }
        Ok(versions)
    }

    /// Makes a place for an announced name, and moves there what hosts reported before.
    pub(crate) fn announce(&mut self, name: &str) -> Result<(), KvError> {
        if self.names.contains_key(name) {
            return Ok(());
        }
        if self.names.len() >= NAMES_MAX {
            self.names.retain(|_, hosts| !hosts.is_empty());
            if self.names.len() >= NAMES_MAX {
                self.unplaced += 1;
                tracing::warn!(
                    name,
                    names_max = NAMES_MAX,
                    "no place is left for the versions that hosts have of a name"
                );
                return Ok(());
            }
        }
        self.names.insert(name.to_string(), BTreeMap::new());
        for (host, version) in self.aside.take(&name.to_string()) {
            self.set(host, CurrentVersion { name: name.to_string(), version })?;
        }
        Ok(())
    }

    /// Returns how often an announced name found no place since the start.
    pub(crate) fn unplaced(&self) -> u64 {
        self.unplaced
    }

    /// Stores what a host reports.
    pub(crate) fn set(&mut self, host: HostIndex, current: CurrentVersion) -> Result<(), KvError> {
        match self.names.get_mut(&current.name) {
            Some(hosts) => {
                if hosts.get(&host) != Some(&current.version) {
                    self.table.put(key(host, &current.name), encode(&current.version))?;
                    hosts.insert(host, current.version);
                }
            }
            None => self.aside.put(host, current.name, current.version),
        }
        Ok(())
    }

    /// Removes a host that left the region.
    pub(crate) fn remove_host(&mut self, host: HostIndex) -> Result<(), KvError> {
        let rows = self.table.scan(host.0.to_be_bytes())?;
        self.table.apply(&rows.into_iter().map(|row| Change::Delete { key: row.key }).collect::<Vec<_>>())?;
        self.names.values_mut().for_each(|hosts| drop(hosts.remove(&host)));
        self.aside.remove_host(host);
        Ok(())
    }

    /// Returns the hosts of each version of a name. The version of the most hosts comes first.
    pub(crate) fn sets(&self, name: &str) -> Vec<VersionSet> {
        let mut sets: BTreeMap<&str, Bitmap> = BTreeMap::new();
        let name = name.to_string();
        let announced = self.names.get(&name).into_iter().flatten().map(|(host, version)| (*host, version));
        for (host, version) in announced.chain(self.aside.of(&name)) {
            let hosts = sets.entry(version).or_default();
            hosts.grow(host.0 + 1);
            hosts.set(host.0);
        }
        let mut sets: Vec<VersionSet> =
            sets.into_iter().map(|(version, hosts)| VersionSet { version: version.to_string(), hosts }).collect();
        sets.sort_by_key(|set| std::cmp::Reverse(set.hosts.count()));
        sets.truncate(limits::VERSION_SETS_MAX);
        sets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables;

    fn current(name: &str, version: &str) -> CurrentVersion {
        CurrentVersion { name: name.into(), version: version.into() }
    }

    #[test]
    fn versions_are_kept_by_host_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        {
            let database = tables::open(dir.path()).unwrap();
            let mut versions = RunningVersions::open(&database).unwrap();
            versions.announce("edge/a").unwrap();
            versions.announce("edge/b").unwrap();
            for host in 0..5 {
                versions.set(HostIndex(host), current("edge/a", "1")).unwrap();
            }
            versions.set(HostIndex(2), current("edge/a", "2")).unwrap();
            versions.set(HostIndex(3), current("edge/b", "")).unwrap();
            database.flush().unwrap();
        }
        let database = tables::open(dir.path()).unwrap();
        let mut versions = RunningVersions::open(&database).unwrap();
        let sets = versions.sets("edge/a");
        assert_eq!(sets[0].version, "1");
        assert_eq!(sets[0].hosts.iter().collect::<Vec<_>>(), [0, 1, 3, 4]);
        assert_eq!(sets[1].hosts.iter().collect::<Vec<_>>(), [2]);
        assert_eq!(versions.sets("edge/b").len(), 1);
        versions.remove_host(HostIndex(3)).unwrap();
        assert_eq!(versions.sets("edge/a")[0].hosts.count(), 3);
        assert!(versions.sets("edge/b").is_empty());
        drop(versions);
        assert!(RunningVersions::open(&database).unwrap().sets("edge/b").is_empty());
    }

    #[test]
    fn names_of_one_host_take_no_place_of_announced_names() {
        let dir = tempfile::tempdir().unwrap();
        let database = tables::open(dir.path()).unwrap();
        let mut versions = RunningVersions::open(&database).unwrap();
        versions.set(HostIndex(1), current("edge/early", "1")).unwrap();
        for number in 0..2 * NAMES_MAX {
            versions.set(HostIndex(0), current(&format!("fake/{number}"), "1")).unwrap();
        }
        assert!(versions.names.is_empty());
        assert_eq!(versions.sets("edge/early")[0].hosts.iter().collect::<Vec<_>>(), [1], "shown before its push");
        versions.announce("edge/early").unwrap();
        versions.announce("edge/late").unwrap();
        versions.set(HostIndex(1), current("edge/late", "1")).unwrap();
        for name in ["edge/early", "edge/late"] {
            assert_eq!(versions.sets(name)[0].hosts.iter().collect::<Vec<_>>(), [1], "{name}");
        }
        drop(versions);
        let versions = RunningVersions::open(&database).unwrap();
        assert_eq!(versions.names.keys().collect::<Vec<_>>(), ["edge/early", "edge/late"]);
    }
}
