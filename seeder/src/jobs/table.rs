//! The table of jobs.
//!
//! Invariant: at most [`JOBS_MAX`] jobs are in the table.

use super::{JOBS_MAX, Job, PushError, QueuedPush, new_id, new_status};
use crate::errors::{StateError, with_sources};
use crate::push_roots::PushRoots;
use shoal_api::jobs::{JobPhase, JobStatus, PushRequest};
use shoal_net::admission::{Admission, system_clock};
use shoal_peer::handle::NodeHandle;
use shoal_proto::announcement::{Announcement, Kind, Order, is_content_name, is_reserved, is_version};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::locality::Selector;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The jobs of a seeder.
pub(crate) struct Jobs {
    pub(super) node: NodeHandle,
    pub(super) admission: Admission,
    rows: Mutex<BTreeMap<JobId, Job>>,
    changed: Notify,
    roots: PushRoots,
}

fn key(job: &JobId) -> String {
    format!("job/{job}")
}

impl Jobs {
    /// Continues with the jobs on disk. A record that cannot be read is deleted and logged.
    pub(crate) fn open(node: NodeHandle, admission: Admission, roots: PushRoots) -> Arc<Self> {
        let mut rows = BTreeMap::new();
        for (key, bytes) in node.store.scan_state("job/").unwrap_or_default() {
            match Job::from_record(&bytes) {
                Ok(job) => drop(rows.insert(job.status.job, job)),
                Err(error) => {
                    tracing::warn!(key, error = with_sources(&error), "deleted a stored job that cannot be read");
                    let _ = node.store.put_state(&key, None); // a record that stays is deleted at the next start
                }
            }
        }
        Arc::new(Self { node, admission, rows: Mutex::new(rows), changed: Notify::new(), roots })
    }

    /// Returns the folders below which pushes take their paths.
    pub(crate) fn roots(&self) -> &PushRoots {
        &self.roots
    }

    /// Returns the pushes that were not ingested before the seeder stopped.
    pub(crate) fn unfinished(&self) -> Vec<QueuedPush> {
        let rows = self.rows();
        let pending = rows.values().filter(|row| row.is_pending());
        pending.filter_map(|row| Some(QueuedPush { job: row.status.job, request: row.request.clone()? })).collect()
    }

    pub(super) fn rows(&self) -> MutexGuard<'_, BTreeMap<JobId, Job>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes at the next change of any job. Create it before looking, so that no change is missed.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Wakes everything that waits for a change.
    pub(crate) fn notify(&self) {
        self.changed.notify_waiters();
    }

    /// Stores a job. A failure is logged only: the job continues until the next restart.
    pub(super) fn store_or_log(&self, job: &JobId) {
        if let Err(error) = self.store(job) {
            tracing::error!(%job, error = with_sources(&error), "cannot store a job");
        }
    }

    /// Stores a job. The caller syncs if the job must survive a loss of power.
    pub(crate) fn store(&self, job: &JobId) -> Result<(), StateError> {
        let record = match self.rows().get(job) {
            Some(row) => row.to_record()?,
            None => return Ok(()),
        };
        Ok(self.node.store.put_state(&key(job), Some(record))?)
    }

    /// Accepts a push: checks it, draws its sequence, and stores its job durably. Blocks.
    ///
    /// # Errors
    /// Returns why the push is refused.
    pub(crate) fn create(&self, request: &PushRequest) -> Result<JobId, PushError> {
        check(request, &self.roots)?;
        self.select(&request.to)?;
        let selector = Selector::parse(&request.to)?;
        let job = new_id().map_err(StateError::from)?;
        let mut rows = self.rows();
        if let Some(other) = rows.values().find(|row| conflicts(&row.status, request)) {
            let (name, other, kind) = (request.name.clone(), other.status.name.clone(), other.status.kind);
            return Err(PushError::Conflict { name, other, kind });
        }
        self.make_room(&mut rows)?;
        let status = new_status(job, request, selector.to_string(), system_clock());
        let mut row = Job::new(status, Some(request.clone()));
        // Drawn under the lock of the rows, so two pushes of a name never draw the same sequence.
        row.sequence = Some(self.next_sequence(request.kind, &request.name)?);
        rows.insert(job, row);
        drop(rows);
        self.store(&job)?;
        // The answer promises the job, so a kill must not lose it.
        self.node.store.sync().map_err(StateError::from)?;
        Ok(job)
    }

    /// Returns the hosts that selectors match. Empty only while there is no membership.
    ///
    /// # Errors
    /// Returns an error if a selector is invalid or no host matches.
    pub(crate) fn select(&self, to: &[String]) -> Result<Bitmap, PushError> {
        self.select_hosts(&Selector::parse(to)?)
    }

    /// Returns the hosts that a selector matches. Empty only while there is no membership.
    ///
    /// # Errors
    /// Returns an error if no host matches.
    pub(crate) fn select_hosts(&self, selector: &Selector) -> Result<Bitmap, PushError> {
        let membership = self.node.membership.borrow().clone();
        let hosts = membership.select(selector);
        // Without a membership the seeder has met no tracker yet, and cannot know which hosts there are.
        if !membership.is_empty() && hosts.none() {
            return Err(PushError::NoHosts(selector.to_string()));
        }
        Ok(hosts)
    }

    /// Forgets the oldest ended job if the table is full.
    fn make_room(&self, rows: &mut BTreeMap<JobId, Job>) -> Result<(), PushError> {
        if rows.len() >= JOBS_MAX {
            let oldest = rows.values().filter(|row| row.status.is_final()).min_by_key(|row| row.status.created_at);
            let oldest = oldest.map(|row| row.status.job).ok_or(PushError::Busy)?;
            tracing::info!(job = %oldest, jobs_max = JOBS_MAX, "forgot the oldest job that has ended");
            rows.remove(&oldest);
            let _ = self.node.store.put_state(&key(&oldest), None); // a record that stays is only forgotten later
        }
        Ok(())
    }

    /// Adds a job that has its announcement.
    ///
    /// # Errors
    /// Returns an error if the table is full of running jobs, or the disk fails.
    pub(crate) fn insert(&self, job: Job) -> Result<(), PushError> {
        let id = job.status.job;
        {
            let mut rows = self.rows();
            self.make_room(&mut rows)?;
            rows.insert(id, job);
        }
        Ok(self.store(&id)?)
    }

    /// Adds a job without a bound, for a rollout that was accepted before.
    pub(super) fn insert_rollout(&self, job: Job) -> Result<(), StateError> {
        let id = job.status.job;
        self.rows().insert(id, job);
        self.store(&id)
    }

    /// Returns the announcement of a job, once there is one.
    pub(crate) fn announcement(&self, job: &JobId) -> Option<Announcement> {
        self.rows().get(job)?.announcement()
    }

    /// Returns the jobs that a test accepts.
    pub(crate) fn filter(&self, accepts: impl Fn(&Job) -> bool) -> Vec<Job> {
        self.rows().values().filter(|row| accepts(row)).cloned().collect()
    }

    /// Returns a job's status.
    pub(crate) fn status(&self, job: &JobId) -> Option<JobStatus> {
        let rows = self.rows();
        rows.get(job).map(|row| shown(row, &demoted(&rows)))
    }

    /// Returns all jobs, newest first.
    pub(crate) fn all(&self) -> Vec<JobStatus> {
        let rows = self.rows();
        let demoted = demoted(&rows);
        let mut all: Vec<JobStatus> = rows.values().map(|row| shown(row, &demoted)).collect();
        all.sort_by_key(|row| std::cmp::Reverse((row.created_at, row.job)));
        all
    }
}

/// Checks a push by itself.
fn check(request: &PushRequest, roots: &PushRoots) -> Result<(), PushError> {
    if !is_content_name(&request.name) || is_reserved(&request.name) {
        return Err(PushError::Name(request.name.clone()));
    }
    if !is_version(&request.version) {
        return Err(PushError::Version(request.version.clone()));
    }
    if request.image.as_ref().is_some_and(|image| image.pull) {
        return Ok(());
    }
    Ok(roots.open(&request.path).map(drop)?)
}

/// Returns the contents whose newest order is a demotion.
fn demoted(rows: &BTreeMap<JobId, Job>) -> BTreeSet<ContentId> {
    /// Compared by sequence first: the newest job of a content decides.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    struct Newest {
        sequence: Option<u64>,
        is_demotion: bool,
    }
    let mut newest: BTreeMap<ContentId, Newest> = BTreeMap::new();
    for row in rows.values().filter(|row| row.status.phase != JobPhase::Failed) {
        let Some(content) = row.status.content else { continue };
        let found = Newest { sequence: row.sequence, is_demotion: row.status.order == Some(Order::Demote) };
        newest.entry(content).and_modify(|former| *former = found.max(*former)).or_insert(found);
    }
    newest.into_iter().filter(|(_, newest)| newest.is_demotion).map(|(content, _)| content).collect()
}

/// Returns a job's status as the API shows it.
fn shown(row: &Job, demoted: &BTreeSet<ContentId>) -> JobStatus {
    let demoted = row.status.content.is_some_and(|content| demoted.contains(&content));
    JobStatus { demoted, ..row.status.clone() }
}

/// Whether a push cannot stand beside another job.
///
/// On the hosts a name is a folder of versions. So a name has one kind, and no name lies within another name's folder.
/// Images have no folder.
fn conflicts(other: &JobStatus, request: &PushRequest) -> bool {
    let is_within = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
    let (name, former) = (&request.name, &other.name);
    let other_kind = name == former && request.kind != other.kind;
    let have_folders = other.kind != Kind::Image && request.kind != Kind::Image;
    let nested = have_folders && (is_within(name, former) || is_within(former, name));
    other.phase != JobPhase::Failed && (other_kind || nested)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(name: &str, kind: Kind) -> PushRequest {
        let to = vec!["all".into()];
        let (path, name, version) = ("/".into(), name.into(), "1".into());
        PushRequest { path, name, version, kind, to, staged: false, image: None, replace: false }
    }

    #[test]
    fn names_are_folders_of_versions() {
        let there = |name, kind| new_status(JobId([0; 16]), &push(name, kind), "all".into(), 0);
        let main = there("gslb/main", Kind::Gslb);
        assert!(!conflicts(&main, &push("gslb/main", Kind::Gslb)), "another version of the name");
        assert!(conflicts(&main, &push("gslb/main", Kind::Blob)));
        assert!(conflicts(&main, &push("gslb", Kind::Gslb)), "`main` would be a version of `gslb`");
        assert!(conflicts(&main, &push("gslb/main/x", Kind::Gslb)));
        assert!(!conflicts(&main, &push("gslb/mainz", Kind::Blob)));
        assert!(!conflicts(&main, &push("gslb/other", Kind::Blob)));
        let app = there("r.example/app/v1", Kind::Image);
        assert!(!conflicts(&app, &push("r.example/app/v1/v2", Kind::Image)), "a repository below another");
        assert!(conflicts(&app, &push("r.example/app/v1", Kind::Blob)));
        let mut failed = there("a", Kind::Blob);
        failed.phase = JobPhase::Failed;
        assert!(!conflicts(&failed, &push("a", Kind::Config)), "a failed push left no folder");
    }
}
