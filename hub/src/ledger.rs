//! What the hub keeps: the roster of each region, and each job as each tracker last told it.
//!
//! Invariant: a tracker's flush counts if its sequence is higher than that tracker's last, else it changes nothing. What
//! several trackers of a region say of one host is merged by taking the furthest state.

use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{HostIndex, JobId, NodeId};
use shoal_proto::locality::Locality;
use shoal_proto::report::{HostState, HubFlush, JobFlush, RosterRow, TierBytes};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The database failed.
#[derive(Debug, thiserror::Error)]
#[error("the hub's database: {0}")]
pub struct LedgerError(String);

impl From<sled::Error> for LedgerError {
    fn from(error: sled::Error) -> Self {
        Self(error.to_string())
    }
}

/// Whether a flush counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is on the disk.
    New,
    /// It was known.
    Known,
}

/// A job of one region, all its trackers merged.
#[derive(Clone, Debug)]
pub struct RegionJob {
    /// The region.
    pub region: String,
    /// The job as told by the tracker that said the most recent; states merged.
    pub job: JobFlush,
    /// Every targeted host's state.
    pub hosts: BTreeMap<HostIndex, HostState>,
}

/// The hub's records on disk.
pub struct Ledger {
    db: sled::Db,
    sequences: sled::Tree,
    roster: sled::Tree,
    jobs: sled::Tree,
    file: PathBuf,
    jobs_max: usize,
}

const CACHE_BYTES: u64 = 32 * 1024 * 1024;

fn roster_key(region: &str, index: HostIndex) -> Vec<u8> {
    let mut key = region.as_bytes().to_vec();
    key.push(0);
    key.extend_from_slice(&index.0.to_be_bytes());
    key
}

fn job_key(job: &JobId, region: &str, tracker: &NodeId) -> Vec<u8> {
    [&job.0[..], region.as_bytes(), &[0], &tracker.0[..]].concat()
}

fn region_of(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.get(16..key.len().checked_sub(33)?)?).ok()
}

/// Opens or creates the database of a state folder.
pub(crate) fn open_db(dir: &Path) -> Result<sled::Db, sled::Error> {
    sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).mode(sled::Mode::LowSpace).open()
}

impl Ledger {
    /// The database, for a backup.
    pub(crate) fn db(&self) -> sled::Db {
        self.db.clone()
    }

    /// Opens or creates.
    pub fn open(dir: &Path, jobs_max: usize) -> Result<Self, LedgerError> {
        let db = open_db(dir)?;
        Ok(Self {
            sequences: db.open_tree("sequences")?,
            roster: db.open_tree("roster")?,
            jobs: db.open_tree("jobs")?,
            file: dir.join("db"),
            db,
            jobs_max,
        })
    }

    /// Takes a flush in. It is durable when this returns.
    pub fn take(&self, flush: &HubFlush) -> Result<Taken, LedgerError> {
        let last = self.sequences.get(flush.tracker.0)?;
        let last = last.and_then(|bytes| bytes.as_ref().try_into().ok()).map(u64::from_be_bytes);
        if last.is_some_and(|last| flush.sequence <= last) {
            return Ok(Taken::Known);
        }
        for row in &flush.roster {
            self.roster.insert(roster_key(&flush.region, row.index), encode(&row.locality))?;
        }
        for job in &flush.jobs {
            self.jobs.insert(job_key(&job.job, &flush.region, &flush.tracker), encode(job))?;
        }
        // Last: after a kill in between, the flush is sent again and says the same.
        self.sequences.insert(flush.tracker.0, &flush.sequence.to_be_bytes())?;
        self.drop_oldest()?;
        self.db.flush()?;
        // Sled's flush leaves out the disk's own cache.
        let synced = std::fs::File::open(&self.file).and_then(|file| file.sync_data());
        synced.map_err(|error| LedgerError(error.to_string()))?;
        Ok(Taken::New)
    }

    fn drop_oldest(&self) -> Result<(), LedgerError> {
        if self.jobs.len() <= self.jobs_max {
            return Ok(());
        }
        let mut ages: Vec<(u64, sled::IVec)> = Vec::new();
        for row in &self.jobs {
            let (key, value) = row?;
            ages.push((decode_exact::<JobFlush>(&value).map_or(0, |job| job.created_at), key));
        }
        ages.sort();
        let surplus = ages.len().saturating_sub(self.jobs_max);
        for (_, key) in ages.into_iter().take(surplus) {
            self.jobs.remove(key)?;
        }
        Ok(())
    }

    /// A host's locality.
    pub fn locality(&self, region: &str, index: HostIndex) -> Option<Locality> {
        decode_exact(&self.roster.get(roster_key(region, index)).ok()??).ok()
    }

    /// The roster of a region.
    pub fn roster(&self, region: &str) -> Vec<RosterRow> {
        let mut prefix = region.as_bytes().to_vec();
        prefix.push(0);
        let rows = self.roster.scan_prefix(&prefix).filter_map(Result::ok);
        rows.filter_map(|(key, value)| {
            let index = HostIndex(u32::from_be_bytes(key[prefix.len()..].try_into().ok()?));
            Some(RosterRow { index, locality: decode_exact(&value).ok()? })
        })
        .collect()
    }

    /// A job, by region.
    pub fn job(&self, job: &JobId) -> Vec<RegionJob> {
        self.merge(self.jobs.scan_prefix(job.0).filter_map(Result::ok))
    }

    /// All jobs, by region, newest first.
    pub fn jobs(&self) -> Vec<RegionJob> {
        let mut jobs = self.merge(self.jobs.iter().filter_map(Result::ok));
        jobs.sort_by_key(|row| (std::cmp::Reverse(row.job.created_at), row.job.job, row.region.clone()));
        jobs
    }

    fn merge(&self, rows: impl Iterator<Item = (sled::IVec, sled::IVec)>) -> Vec<RegionJob> {
        let mut merged: BTreeMap<(JobId, String), RegionJob> = BTreeMap::new();
        for (key, value) in rows {
            let (Some(region), Ok(job)) = (region_of(&key), decode_exact::<JobFlush>(&value)) else { continue };
            let row = merged.entry((job.job, region.to_string())).or_insert_with(|| RegionJob {
                region: region.to_string(),
                job: JobFlush { tiers: TierBytes::default(), ..job.clone() },
                hosts: BTreeMap::new(),
            });
            row.job.tiers.add(&job.tiers);
            for host in job.targets.iter() {
                row.hosts.entry(HostIndex(host)).or_insert(HostState::Unknown);
            }
            for set in &job.states {
                for host in set.hosts.iter() {
                    let state = row.hosts.entry(HostIndex(host)).or_insert(set.state);
                    *state = (*state).max(set.state);
                }
            }
        }
        merged.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_proto::announcement::Kind;
    use shoal_proto::ids::{ContentId, Epoch};
    use shoal_proto::report::{Reason, StateSet};

    fn flush(tracker: u8, sequence: u64, states: &[(HostState, &[u32])]) -> HubFlush {
        HubFlush {
            tracker: NodeId([tracker; 32]),
            region: "north".into(),
            sequence,
            epoch: Epoch(1),
            roster: vec![RosterRow { index: HostIndex(3), locality: Locality::new("north", "a", "r1", "h3").unwrap() }],
            jobs: vec![JobFlush {
                job: JobId([1; 16]),
                content: ContentId([2; 32]),
                kind: Kind::Config,
                name: "edge".into(),
                version: "1".into(),
                size: 10,
                created_at: 5,
                targets: (0..6).collect(),
                states: states
                    .iter()
                    .map(|(state, hosts)| StateSet { state: *state, hosts: hosts.iter().copied().collect() })
                    .collect(),
                tiers: TierBytes::default(),
            }],
        }
    }

    fn states(ledger: &Ledger) -> Vec<HostState> {
        ledger.job(&JobId([1; 16]))[0].hosts.values().copied().collect()
    }

    #[test]
    fn flushes_count_once_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), 100).unwrap();
        assert_eq!(ledger.take(&flush(1, 7, &[(HostState::Has, &[0, 1])])).unwrap(), Taken::New);
        assert_eq!(ledger.take(&flush(1, 7, &[])).unwrap(), Taken::Known);
        assert_eq!(ledger.take(&flush(1, 6, &[])).unwrap(), Taken::Known);
        drop(ledger);
        let ledger = Ledger::open(dir.path(), 100).unwrap();
        assert_eq!(ledger.take(&flush(1, 7, &[])).unwrap(), Taken::Known);
        assert_eq!(states(&ledger).iter().filter(|state| **state == HostState::Has).count(), 2);
        assert_eq!(ledger.locality("north", HostIndex(3)).unwrap().host, "h3");
        assert_eq!(ledger.roster("north").len(), 1);
    }

    #[test]
    fn the_oldest_jobs_go() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), 2).unwrap();
        for number in 1..=4u8 {
            let mut flush = flush(1, u64::from(number), &[]);
            flush.jobs[0].job = JobId([number; 16]);
            flush.jobs[0].created_at = u64::from(number);
            ledger.take(&flush).unwrap();
        }
        let kept: Vec<u64> = ledger.jobs().iter().map(|job| job.job.created_at).collect();
        assert_eq!(kept, [4, 3]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn order_and_repetition_of_trackers_do_not_matter(order in Just([0usize, 1, 2, 0, 1]).prop_shuffle()) {
            let all = [
                flush(1, 1, &[(HostState::Has, &[0, 1])]),
                flush(2, 1, &[(HostState::Active, &[1, 2])]),
                flush(3, 1, &[(HostState::Failed(Reason::NoSpace), &[0, 4])]),
            ];
            let dir = tempfile::tempdir().unwrap();
            let ledger = Ledger::open(dir.path(), 100).unwrap();
            for which in order {
                ledger.take(&all[which]).unwrap();
            }
            let failed = HostState::Failed(Reason::NoSpace);
            let expected =
                [failed, HostState::Active, HostState::Active, HostState::Unknown, failed, HostState::Unknown];
            prop_assert_eq!(states(&ledger), expected);
        }
    }
}
