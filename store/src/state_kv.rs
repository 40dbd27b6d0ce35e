//! Small records kept beside the contents: jobs, and whatever a role wants to find again after a restart.

use crate::index::{IndexError, Tree};
use crate::store::Store;
use shoal_proto::ids::JobId;

impl Store {
    /// Keeps a job's signed announcement.
    pub fn save_job(&self, job: &JobId, envelope: &[u8]) -> Result<(), IndexError> {
        self.inner.index.apply(Tree::Jobs, vec![(job.0.to_vec(), Some(envelope.to_vec()))])
    }

    /// Forgets a job.
    pub fn forget_job(&self, job: &JobId) -> Result<(), IndexError> {
        self.inner.index.apply(Tree::Jobs, vec![(job.0.to_vec(), None)])
    }

    /// Jobs kept, with their announcements.
    pub fn jobs(&self) -> Result<Vec<(JobId, Vec<u8>)>, IndexError> {
        let rows = self.inner.index.scan(Tree::Jobs, &[])?;
        Ok(rows.into_iter().filter_map(|(key, value)| Some((JobId(key.try_into().ok()?), value))).collect())
    }

    /// One of the role's own records.
    pub fn get_state(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.inner.index.get(Tree::State, key.as_bytes())
    }

    /// Keeps one of the role's own records; `None` deletes it.
    pub fn put_state(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), IndexError> {
        self.inner.index.apply(Tree::State, vec![(key.as_bytes().to_vec(), value)])
    }

    /// The role's records whose key begins with `prefix`, in order.
    pub fn scan_state(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, IndexError> {
        let rows = self.inner.index.scan(Tree::State, prefix.as_bytes())?;
        Ok(rows.into_iter().filter_map(|(key, value)| Some((String::from_utf8(key).ok()?, value))).collect())
    }

    /// Returns once all records so far survive a loss of power.
    pub fn sync(&self) -> Result<(), IndexError> {
        self.inner.index.sync()
    }
}
