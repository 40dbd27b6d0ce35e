//! Which version of each name each host is on, as the hosts say.
//!
//! Invariant: a host has one version a name; at most [`NAMES_MAX`] names are kept.

use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::encode;
use shoal_proto::control::{CurrentVersion, VersionSet};
use shoal_proto::ids::HostIndex;
use shoal_proto::limits;
use std::collections::BTreeMap;

/// Names kept; hosts' words on more are passed over.
const NAMES_MAX: usize = 1024;

/// The versions, in memory and on disk.
pub(crate) struct Versions {
    names: BTreeMap<String, BTreeMap<HostIndex, String>>,
    tree: sled::Tree,
}

fn key(host: HostIndex, name: &str) -> Vec<u8> {
    [&host.0.to_be_bytes()[..], name.as_bytes()].concat()
}

impl Versions {
    /// Continues from the disk.
    pub(crate) fn open(db: &sled::Db) -> Result<Self, sled::Error> {
        let mut versions = Self { names: BTreeMap::new(), tree: db.open_tree("versions")? };
        for row in &versions.tree.clone() {
            let (key, value) = row?;
            let (host, name) = key.split_at(4.min(key.len()));
            let host = host.try_into().map(u32::from_be_bytes);
            let (name, version) = (std::str::from_utf8(name), shoal_proto::codec::decode_exact::<String>(&value));
            if let (Ok(host), Ok(name), Ok(version)) = (host, name, version) {
                versions.names.entry(name.to_string()).or_default().insert(HostIndex(host), version);
            }
        }
        Ok(versions)
    }

    /// A host's word.
    pub(crate) fn take(&mut self, host: HostIndex, told: CurrentVersion) -> Result<(), sled::Error> {
        if self.names.len() >= NAMES_MAX && !self.names.contains_key(&told.name) {
            return Ok(());
        }
        self.tree.insert(key(host, &told.name), encode(&told.version))?;
        self.names.entry(told.name).or_default().insert(host, told.version);
        Ok(())
    }

    /// A host is no longer of the region.
    pub(crate) fn forget(&mut self, host: HostIndex) -> Result<(), sled::Error> {
        for row in self.tree.scan_prefix(host.0.to_be_bytes()).keys() {
            self.tree.remove(row?)?;
        }
        self.names.values_mut().for_each(|hosts| drop(hosts.remove(&host)));
        self.names.retain(|_, hosts| !hosts.is_empty());
        Ok(())
    }

    /// The hosts of each version of a name, the versions most are on first.
    pub(crate) fn sets(&self, name: &str) -> Vec<VersionSet> {
        let mut sets: BTreeMap<&str, Bitmap> = BTreeMap::new();
        for (host, version) in self.names.get(name).into_iter().flatten() {
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

    fn told(name: &str, version: &str) -> CurrentVersion {
        CurrentVersion { name: name.into(), version: version.into() }
    }

    #[test]
    fn versions_are_kept_by_host_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        {
            let db = sled::open(dir.path()).unwrap();
            let mut versions = Versions::open(&db).unwrap();
            for host in 0..5 {
                versions.take(HostIndex(host), told("edge/a", "1")).unwrap();
            }
            versions.take(HostIndex(2), told("edge/a", "2")).unwrap();
            versions.take(HostIndex(3), told("edge/b", "")).unwrap();
            db.flush().unwrap();
        }
        let db = sled::open(dir.path()).unwrap();
        let mut versions = Versions::open(&db).unwrap();
        let sets = versions.sets("edge/a");
        assert_eq!(sets[0].version, "1");
        assert_eq!(sets[0].hosts.iter().collect::<Vec<_>>(), [0, 1, 3, 4]);
        assert_eq!(sets[1].hosts.iter().collect::<Vec<_>>(), [2]);
        assert_eq!(versions.sets("edge/b").len(), 1);
        versions.forget(HostIndex(3)).unwrap();
        assert_eq!(versions.sets("edge/a")[0].hosts.count(), 3);
        assert!(versions.sets("edge/b").is_empty());
        drop(versions);
        assert!(Versions::open(&db).unwrap().sets("edge/b").is_empty());
    }
}
