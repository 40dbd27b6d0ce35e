//! What the roles need of a database: get, put, delete, scan by prefix, flush.
//!
//! The trait is small on purpose: another backend for a tracker or a hub implements eight functions.
//! Invariant: nothing here depends on a backend.

use crate::errors::KvError;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

/// One record of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Row {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// One change of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Change {
    /// Inserts the row, or replaces the row with the same key.
    Put { key: Vec<u8>, value: Vec<u8> },
    /// Deletes the row, if it exists.
    Delete { key: Vec<u8> },
}

impl Change {
    /// Returns the change that sets `key` to this value, or deletes `key` if there is no value.
    pub fn set(key: impl Into<Vec<u8>>, value: Option<Vec<u8>>) -> Self {
        let key = key.into();
        match value {
            Some(value) => Self::Put { key, value },
            None => Self::Delete { key },
        }
    }
}

/// Receives the key and the value of each row of a scan. [`ControlFlow::Break`] ends the scan.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A set of named tables. A table exists as soon as it is named.
///
/// Every function may block on the disk.
pub trait Database: Send + Sync {
    /// Returns the value of a key.
    ///
    /// # Errors
    /// [`KvError::Read`] if the backend fails.
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// Applies changes in their order. A stop in the middle may leave only the first changes applied.
    ///
    /// # Errors
    /// [`KvError::Write`] if the backend fails.
    fn apply(&self, table: &str, changes: &[Change]) -> Result<(), KvError>;

    /// Calls `each` for the rows whose key begins with `prefix`, in the order of their keys.
    ///
    /// # Errors
    /// [`KvError::Read`] if the backend fails.
    fn visit(&self, table: &str, prefix: &[u8], each: &mut Visitor<'_>) -> Result<(), KvError>;

    /// Returns the number of rows of a table.
    ///
    /// # Errors
    /// [`KvError::Read`] if the backend fails.
    fn count(&self, table: &str) -> Result<usize, KvError>;

    /// Deletes every row of a table.
    ///
    /// # Errors
    /// [`KvError::Write`] if the backend fails.
    fn clear(&self, table: &str) -> Result<(), KvError>;

    /// Returns the names of all tables, in no particular order.
    ///
    /// # Errors
    /// [`KvError::Read`] if the backend fails.
    fn tables(&self) -> Result<Vec<String>, KvError>;

    /// Returns once all earlier changes, of every table, survive a kill of the process.
    ///
    /// # Errors
    /// [`KvError::Flush`] if the backend fails.
    fn flush(&self) -> Result<(), KvError>;

    /// Returns once all earlier changes, of every table, survive a loss of power.
    ///
    /// # Errors
    /// [`KvError::Flush`] if the backend fails.
    fn sync(&self) -> Result<(), KvError>;
}

/// One table of a database. Clones refer to the same table.
#[derive(Clone)]
pub struct Table {
    database: Arc<dyn Database>,
    name: &'static str,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Table").field(&self.name).finish()
    }
}

impl Table {
    /// Returns the table of this name.
    pub fn new(database: &Arc<dyn Database>, name: &'static str) -> Self {
        Self { database: database.clone(), name }
    }

    /// Returns the name that backups use.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the value of a key.
    ///
    /// # Errors
    /// As [`Database::get`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, KvError> {
        self.database.get(self.name, key.as_ref())
    }

    /// Returns the value of a key as a big-endian number. `None` if the key is missing or its value has not 8 bytes.
    ///
    /// # Errors
    /// As [`Database::get`].
    pub fn get_u64(&self, key: impl AsRef<[u8]>) -> Result<Option<u64>, KvError> {
        Ok(self.get(key)?.and_then(|value| value.try_into().ok()).map(u64::from_be_bytes))
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// As [`Database::apply`].
    pub fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Result<(), KvError> {
        self.apply(&[Change::Put { key: key.into(), value: value.into() }])
    }

    /// Sets the value of a key to a number, big-endian in 8 bytes.
    ///
    /// # Errors
    /// As [`Database::apply`].
    pub fn put_u64(&self, key: impl Into<Vec<u8>>, number: u64) -> Result<(), KvError> {
        self.put(key, number.to_be_bytes())
    }

    /// Deletes a key, if it exists.
    ///
    /// # Errors
    /// As [`Database::apply`].
    pub fn delete(&self, key: impl Into<Vec<u8>>) -> Result<(), KvError> {
        self.apply(&[Change::Delete { key: key.into() }])
    }

    /// Applies changes in their order.
    ///
    /// # Errors
    /// As [`Database::apply`].
    pub fn apply(&self, changes: &[Change]) -> Result<(), KvError> {
        self.database.apply(self.name, changes)
    }

    /// Calls `each` for the rows whose key begins with `prefix`, in the order of their keys.
    ///
    /// # Errors
    /// As [`Database::visit`].
    pub fn visit(&self, prefix: impl AsRef<[u8]>, mut each: impl FnMut(&[u8], &[u8])) -> Result<(), KvError> {
        self.database.visit(self.name, prefix.as_ref(), &mut |key, value| {
            each(key, value);
            ControlFlow::Continue(())
        })
    }

    /// Returns the rows whose key begins with `prefix`, in the order of their keys.
    ///
    /// # Errors
    /// As [`Database::visit`].
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Result<Vec<Row>, KvError> {
        let mut rows = Vec::new();
        self.visit(prefix, |key, value| rows.push(Row { key: key.to_vec(), value: value.to_vec() }))?;
        Ok(rows)
    }

    /// Returns the row with the smallest key.
    ///
    /// # Errors
    /// As [`Database::visit`].
    pub fn first(&self) -> Result<Option<Row>, KvError> {
        let mut first = None;
        self.database.visit(self.name, &[], &mut |key, value| {
            first = Some(Row { key: key.to_vec(), value: value.to_vec() });
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// Returns the number of rows.
    ///
    /// # Errors
    /// As [`Database::count`].
    pub fn count(&self) -> Result<usize, KvError> {
        self.database.count(self.name)
    }

    /// Deletes every row.
    ///
    /// # Errors
    /// As [`Database::clear`].
    pub fn clear(&self) -> Result<(), KvError> {
        self.database.clear(self.name)
    }

    /// Returns once all earlier changes of the whole database survive a kill of the process.
    ///
    /// # Errors
    /// As [`Database::flush`].
    pub fn flush(&self) -> Result<(), KvError> {
        self.database.flush()
    }

    /// Returns once all earlier changes of the whole database survive a loss of power.
    ///
    /// # Errors
    /// As [`Database::sync`].
    pub fn sync(&self) -> Result<(), KvError> {
        self.database.sync()
    }
}
