//! Small records kept beside the contents: jobs, and whatever a role wants to find again after a restart.

use crate::store::Store;
use shoal_kv::KvError;
use shoal_proto::ids::JobId;

impl Store {
    /// Keeps a job's signed announcement.
    pub fn save_job(&self, job: &JobId, envelope: &[u8]) -> Result<(), KvError> {
        self.inner.index.jobs.put(job.0, envelope)
    }

    /// Forgets a job.
    pub fn forget_job(&self, job: &JobId) -> Result<(), KvError> {
        self.inner.index.jobs.delete(job.0)
    }

    /// Jobs kept, with their announcements.
    pub fn jobs(&self) -> Result<Vec<(JobId, Vec<u8>)>, KvError> {
        let rows = self.inner.index.jobs.scan([])?;
        Ok(rows.into_iter().filter_map(|row| Some((JobId(row.key.try_into().ok()?), row.value))).collect())
    }

    /// One of the role's own records.
    pub fn get_state(&self, key: &str) -> Result<Option<Vec<u8>>, KvError> {
        self.inner.index.state.get(key)
    }

    /// Keeps one of the role's own records; `None` deletes it.
    pub fn put_state(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), KvError> {
        self.inner.index.state.apply(&[shoal_kv::Change::set(key, value)])
    }

    /// The role's records whose key begins with `prefix`, in order.
    pub fn scan_state(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, KvError> {
        let rows = self.inner.index.state.scan(prefix)?;
        Ok(rows.into_iter().filter_map(|row| Some((String::from_utf8(row.key).ok()?, row.value))).collect())
    }

    /// Returns once all records so far survive a loss of power.
    pub fn sync(&self) -> Result<(), KvError> {
        self.inner.index.sync()
    }
}
