//! Small records beside the contents: jobs, and what a role needs again after a restart.
//!
//! Invariant: a record survives a loss of power only after [`Store::sync`].

use crate::store::Store;
use shoal_kv::{Change, KvError};
use shoal_proto::ids::JobId;

impl Store {
    /// Stores a job's signed announcement.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn save_job(&self, job: &JobId, envelope: &[u8]) -> Result<(), KvError> {
        self.tables().jobs.put(job.0, envelope)
    }

    /// Deletes a job.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn forget_job(&self, job: &JobId) -> Result<(), KvError> {
        self.tables().jobs.delete(job.0)
    }

    /// Returns the stored jobs with their signed announcements.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn jobs(&self) -> Result<Vec<(JobId, Vec<u8>)>, KvError> {
        let rows = self.tables().jobs.scan([])?;
        Ok(rows.into_iter().filter_map(|row| Some((JobId(row.key.try_into().ok()?), row.value))).collect())
    }

    /// Returns one of the role's own records.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn get_state(&self, key: &str) -> Result<Option<Vec<u8>>, KvError> {
        self.tables().state.get(key)
    }

    /// Stores one of the role's own records. `None` deletes it.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn put_state(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), KvError> {
        self.tables().state.apply(&[Change::set(key, value)])
    }

    /// Returns the role's records whose key begins with `prefix`, in the order of their keys.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn scan_state(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, KvError> {
        let rows = self.tables().state.scan(prefix)?;
        Ok(rows.into_iter().filter_map(|row| Some((String::from_utf8(row.key).ok()?, row.value))).collect())
    }

    /// Returns once all records so far survive a loss of power.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn sync(&self) -> Result<(), KvError> {
        self.tables().sync()
    }
}
