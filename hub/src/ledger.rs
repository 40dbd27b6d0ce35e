//! What the hub keeps: the roster of each region, and each job as each tracker last reported it.
//!
//! Invariant: a tracker's flush counts only if its sequence is higher than that tracker's last one. If several
//! trackers of a region report one host, the furthest state wins.

use crate::folds::{Folds, counts};
use crate::tables::{self, JOBS, ROSTER, SEQUENCES};
use shoal_api::hub::HubJob;
use shoal_kv::{Change, Database, KvError, Row, Table};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{HostIndex, JobId, NodeId};
use shoal_proto::locality::Locality;
use shoal_proto::report::{HostState, HubFlush, JobFlush, RosterRow, TierBytes};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Whether a flush was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// The flush is on the disk now.
    New,
    /// The flush, or a newer one of the same tracker, was on the disk before.
    Duplicate,
}

/// A job of one region, merged over the region's trackers.
#[derive(Clone, Debug)]
pub struct RegionJob {
    #[allow(missing_docs, reason = "the name says it")]
    pub region: String,
    /// The job's description. Its byte counts are sums over all trackers.
    pub job: JobFlush,
    /// The furthest reported state of every host that the job's selector matches.
    pub hosts: BTreeMap<HostIndex, HostState>,
}

/// The hub's records on disk.
pub struct Ledger {
    database: Arc<dyn Database>,
    sequences: Table,
    roster: Table,
    jobs: Table,
    jobs_max: usize,
    folds: Folds,
}

/// The region, a zero byte, the index. No region contains a zero byte, so a region's rows have a prefix of their own.
fn roster_key(region: &str, index: HostIndex) -> Vec<u8> {
    [region.as_bytes(), &[0], &index.0.to_be_bytes()].concat()
}

/// The job first, so that all reports of one job have a common prefix.
fn job_key(job: &JobId, region: &str, tracker: &NodeId) -> Vec<u8> {
    [&job.0[..], region.as_bytes(), &[0], &tracker.0[..]].concat()
}

/// Returns the job of a key that [`job_key`] made.
fn job_of(key: &[u8]) -> Option<JobId> {
    Some(JobId(key.get(..16)?.try_into().ok()?))
}

/// Returns the region of a key that [`job_key`] made: after 16 bytes of job, before a zero byte and 32 bytes of
/// tracker.
fn region_of(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.get(16..key.len().checked_sub(33)?)?).ok()
}

impl Ledger {
    /// Opens the ledger of a state folder, or creates it.
    ///
    /// # Errors
    /// [`KvError`] if the folder cannot be used.
    pub fn open(dir: &Path, jobs_max: usize) -> Result<Self, KvError> {
        let database = tables::open(dir)?;
        let table = |name| Table::new(&database, name);
        let (sequences, roster, jobs) = (table(SEQUENCES), table(ROSTER), table(JOBS));
        let ledger = Self { sequences, roster, jobs, database, jobs_max, folds: Folds::default() };
        let mut all = BTreeSet::new();
        ledger.jobs.visit([], |key, _| all.extend(job_of(key)))?;
        all.iter().try_for_each(|job| ledger.refresh(job))?;
        Ok(ledger)
    }

    /// Folds the reports of one job again.
    fn refresh(&self, job: &JobId) -> Result<(), KvError> {
        self.folds.refresh(job, || {
            let regions = self.merged(&job.0)?;
            Ok(regions.iter().map(|row| counts(&row.region, &row.job, &row.hosts)).collect())
        })
    }

    /// Returns the counts of jobs, newest first, without a look at the disk.
    pub(crate) fn list(&self, offset: usize, limit: usize) -> Vec<HubJob> {
        self.folds.list(offset, limit)
    }

    /// Returns the database, for a backup.
    pub(crate) fn database(&self) -> Arc<dyn Database> {
        self.database.clone()
    }

    /// Stores a flush. It survives a loss of power when this returns.
    ///
    /// # Errors
    /// [`KvError`] if the database fails. The tracker then sends the flush again.
    pub fn record(&self, flush: &HubFlush) -> Result<Recorded, KvError> {
        let last = self.sequences.get_u64(flush.tracker.0)?;
        if last.is_some_and(|last| flush.sequence <= last) {
            return Ok(Recorded::Duplicate);
        }
        let locality = |row: &RosterRow| Change::set(roster_key(&flush.region, row.index), Some(encode(&row.locality)));
        self.roster.apply(&flush.roster.iter().map(locality).collect::<Vec<_>>())?;
        let job = |job: &JobFlush| Change::set(job_key(&job.job, &flush.region, &flush.tracker), Some(encode(job)));
        self.jobs.apply(&flush.jobs.iter().map(job).collect::<Vec<_>>())?;
        // Last: after a kill in between, the tracker sends the flush again and it says the same.
        self.sequences.put_u64(flush.tracker.0, flush.sequence)?;
        let dropped = self.drop_oldest()?;
        self.database.sync()?;
        let changed: BTreeSet<JobId> = flush.jobs.iter().map(|job| job.job).chain(dropped).collect();
        changed.iter().try_for_each(|job| self.refresh(job))?;
        Ok(Recorded::New)
    }

    /// Drops what exceeds the bound. Returns the jobs of dropped rows.
    fn drop_oldest(&self) -> Result<Vec<JobId>, KvError> {
        if self.jobs.count()? <= self.jobs_max {
            return Ok(Vec::new());
        }
        let mut ages: Vec<(u64, Vec<u8>)> = Vec::new();
        self.jobs.visit([], |key, value| {
            ages.push((decode_exact::<JobFlush>(value).map_or(0, |job| job.created_at), key.to_vec()));
        })?;
        ages.sort();
        let surplus = ages.len().saturating_sub(self.jobs_max);
        ages.truncate(surplus);
        let dropped = ages.iter().filter_map(|(_, key)| job_of(key)).collect();
        let oldest = ages.into_iter().map(|(_, key)| Change::Delete { key });
        self.jobs.apply(&oldest.collect::<Vec<_>>())?;
        Ok(dropped)
    }

    /// Returns a host's locality. `None` until a flush brings it.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn locality(&self, region: &str, index: HostIndex) -> Result<Option<Locality>, KvError> {
        Ok(self.roster.get(roster_key(region, index))?.and_then(|value| decode_exact(&value).ok()))
    }

    /// Returns the roster of a region.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn roster(&self, region: &str) -> Result<Vec<RosterRow>, KvError> {
        let prefix = [region.as_bytes(), &[0]].concat();
        let row = |row: Row| {
            let index = HostIndex(u32::from_be_bytes(row.key[prefix.len()..].try_into().ok()?));
            Some(RosterRow { index, locality: decode_exact(&row.value).ok()? })
        };
        Ok(self.roster.scan(&prefix)?.into_iter().filter_map(row).collect())
    }

    /// Returns one job, by region.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn job(&self, job: &JobId) -> Result<Vec<RegionJob>, KvError> {
        self.merged(&job.0)
    }

    /// Merges the reports of all trackers, by job and region.
    fn merged(&self, prefix: &[u8]) -> Result<Vec<RegionJob>, KvError> {
        let mut merged: BTreeMap<(JobId, String), RegionJob> = BTreeMap::new();
        self.jobs.visit(prefix, |key, value| {
            let (Some(region), Ok(job)) = (region_of(key), decode_exact::<JobFlush>(value)) else { return };
            let row = merged.entry((job.job, region.to_string())).or_insert_with(|| RegionJob {
                region: region.to_string(),
                job: JobFlush { tiers: TierBytes::default(), ..job.clone() },
                hosts: BTreeMap::new(),
            });
            // A tracker may claim any number, as its hosts may.
            let hosts = u64::from(job.targets.count());
            row.job.tiers.add(&job.tiers.capped(TierBytes::most_of(job.size).saturating_mul(hosts)));
            for host in job.targets.iter() {
                row.hosts.entry(HostIndex(host)).or_insert(HostState::Unknown);
            }
            for set in &job.states {
                for host in set.hosts.iter() {
                    let state = row.hosts.entry(HostIndex(host)).or_insert(set.state);
                    *state = (*state).max(set.state);
                }
            }
        })?;
        Ok(merged.into_values().collect())
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
        ledger.job(&JobId([1; 16])).unwrap()[0].hosts.values().copied().collect()
    }

    #[test]
    fn flushes_count_once_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), 100).unwrap();
        assert_eq!(ledger.record(&flush(1, 7, &[(HostState::Has, &[0, 1])])).unwrap(), Recorded::New);
        assert_eq!(ledger.record(&flush(1, 7, &[])).unwrap(), Recorded::Duplicate);
        assert_eq!(ledger.record(&flush(1, 6, &[])).unwrap(), Recorded::Duplicate);
        drop(ledger);
        let ledger = Ledger::open(dir.path(), 100).unwrap();
        assert_eq!(ledger.record(&flush(1, 7, &[])).unwrap(), Recorded::Duplicate);
        assert_eq!(states(&ledger).iter().filter(|state| **state == HostState::Has).count(), 2);
        assert_eq!(ledger.locality("north", HostIndex(3)).unwrap().unwrap().host, "h3");
        assert_eq!(ledger.roster("north").unwrap().len(), 1);
    }

    #[test]
    fn the_oldest_jobs_go() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), 2).unwrap();
        for number in 1..=4u8 {
            let mut flush = flush(1, u64::from(number), &[]);
            flush.jobs[0].job = JobId([number; 16]);
            flush.jobs[0].created_at = u64::from(number);
            ledger.record(&flush).unwrap();
        }
        let kept = |ledger: &Ledger| ledger.list(0, 9).iter().map(|job| job.created_at).collect::<Vec<_>>();
        assert_eq!(kept(&ledger), [4, 3]);
        drop(ledger);
        assert_eq!(kept(&Ledger::open(dir.path(), 2).unwrap()), [4, 3], "the folds are made again from the disk");
    }

    /// The counts in memory are those that a fold of all reports has.
    #[test]
    fn lists_contain_every_report() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), 100).unwrap();
        let listed = |ledger: &Ledger| {
            let rows = ledger.list(0, 9);
            rows.iter().map(|row| (row.hosts, row.has, row.active, row.failed)).collect::<Vec<_>>()
        };
        assert!(listed(&ledger).is_empty());
        ledger.record(&flush(1, 1, &[(HostState::Has, &[0, 1])])).unwrap();
        assert_eq!(listed(&ledger), [(6, 2, 0, 0)]);
        ledger.record(&flush(2, 1, &[(HostState::Active, &[1, 2]), (HostState::Failed(Reason::Disk), &[4])])).unwrap();
        assert_eq!(listed(&ledger), [(6, 3, 2, 1)]);
        let mut other = flush(2, 2, &[]);
        other.region = "south".into();
        ledger.record(&other).unwrap();
        assert_eq!(listed(&ledger).len(), 2, "one row a region");
        assert_eq!((ledger.list(1, 9).len(), ledger.list(0, 1).len(), ledger.list(2, 9).len()), (1, 1, 0));
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
                ledger.record(&all[which]).unwrap();
            }
            let failed = HostState::Failed(Reason::NoSpace);
            let expected =
                [failed, HostState::Active, HostState::Active, HostState::Unknown, failed, HostState::Unknown];
            prop_assert_eq!(states(&ledger), expected);
        }
    }
}
