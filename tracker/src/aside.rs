//! Rows of hosts about jobs and names that no publisher has announced here yet. The tracker stores them apart.
//!
//! A host may report before a seeder opens the job, so the tracker cannot refuse such rows. They never displace a row
//! of an announced job.
//! Invariant: each host has at most `per_host_max` rows, and all hosts together at most `rows_max`. A host's newest row
//! replaces its oldest one.

use shoal_proto::ids::HostIndex;
use std::collections::{BTreeMap, VecDeque};

/// The rows, by host and key.
#[derive(Debug)]
pub(crate) struct Aside<K, V> {
    hosts: BTreeMap<HostIndex, VecDeque<(K, V)>>,
    len: usize,
    per_host_max: usize,
    rows_max: usize,
}

impl<K: PartialEq, V> Aside<K, V> {
    pub(crate) fn new(per_host_max: usize, rows_max: usize) -> Self {
        Self { hosts: BTreeMap::new(), len: 0, per_host_max, rows_max }
    }

    /// Returns the row of a host.
    pub(crate) fn get(&self, host: HostIndex, key: &K) -> Option<&V> {
        self.hosts.get(&host)?.iter().find(|(other, _)| other == key).map(|(_, value)| value)
    }

    /// Keeps a row. Drops it if all places are taken by other hosts.
    pub(crate) fn put(&mut self, host: HostIndex, key: K, value: V) {
        let rows = self.hosts.entry(host).or_default();
        if let Some(row) = rows.iter_mut().find(|(other, _)| *other == key) {
            row.1 = value;
            return;
        }
        let is_full = rows.len() >= self.per_host_max || self.len >= self.rows_max;
        if is_full && rows.pop_front().is_none() {
            self.hosts.remove(&host);
            return;
        }
        rows.push_back((key, value));
        self.len += usize::from(!is_full);
    }

    /// Returns the rows of a key.
    pub(crate) fn of<'a>(&'a self, key: &'a K) -> impl Iterator<Item = (HostIndex, &'a V)> {
        self.hosts.keys().filter_map(move |host| Some((*host, self.get(*host, key)?)))
    }

    /// Takes the rows of a key.
    pub(crate) fn take(&mut self, key: &K) -> Vec<(HostIndex, V)> {
        let mut taken = Vec::new();
        self.hosts.retain(|host, rows| {
            if let Some((_, value)) = rows.iter().position(|(other, _)| other == key).and_then(|at| rows.remove(at)) {
                taken.push((*host, value));
            }
            !rows.is_empty()
        });
        self.len -= taken.len();
        taken
    }

    /// Drops the rows of a host.
    pub(crate) fn remove_host(&mut self, host: HostIndex) {
        self.len -= self.hosts.remove(&host).map_or(0, |rows| rows.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_replaces_its_own_oldest_row_and_no_other() {
        let mut aside = Aside::new(2, 3);
        for key in 0..5 {
            aside.put(HostIndex(0), key, key);
        }
        aside.put(HostIndex(1), 4, 40);
        aside.put(HostIndex(2), 4, 400);
        assert_eq!(aside.of(&4).collect::<Vec<_>>(), [(HostIndex(0), &4), (HostIndex(1), &40)], "host 2 has no place");
        assert_eq!((aside.get(HostIndex(0), &2), aside.get(HostIndex(0), &3)), (None, Some(&3)));
        aside.put(HostIndex(0), 4, 5);
        assert_eq!(aside.take(&4), [(HostIndex(0), 5), (HostIndex(1), 40)]);
        aside.put(HostIndex(2), 4, 400);
        aside.remove_host(HostIndex(0));
        assert_eq!((aside.len, aside.of(&4).count()), (1, 1));
        aside.remove_host(HostIndex(2));
        assert!(aside.hosts.is_empty() && aside.len == 0);
    }
}
