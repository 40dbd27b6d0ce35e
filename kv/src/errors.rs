//! Why a database operation fails.
//!
//! Invariant: each error names the folder or the table, and keeps the backend's own error as its source.

use std::path::PathBuf;

/// The backend's own error. Its type differs from backend to backend.
pub type BackendError = Box<dyn std::error::Error + Send + Sync>;

/// Why a database cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The folder is not readable, not writable, or its files are damaged.
    #[error("cannot open the database in {}", .dir.display())]
    #[allow(missing_docs, reason = "the message says it")]
    Open {
        dir: PathBuf,
        #[source]
        source: BackendError,
    },
    /// The lock of the database stays taken.
    #[error("the database in {} is in use: stop the process that has it open", .dir.display())]
    #[allow(missing_docs, reason = "the message says it")]
    InUse {
        dir: PathBuf,
        #[source]
        source: BackendError,
    },
    /// A lookup or a scan failed.
    #[error("cannot read table `{table}` of the database")]
    #[allow(missing_docs, reason = "the message says it")]
    Read {
        table: String,
        #[source]
        source: BackendError,
    },
    /// A change failed. Changes before it in the same call may be applied.
    #[error("cannot write table `{table}` of the database")]
    #[allow(missing_docs, reason = "the message says it")]
    Write {
        table: String,
        #[source]
        source: BackendError,
    },
    /// Earlier changes may be lost at a stop.
    #[error("cannot flush the database to the disk")]
    Flush(#[source] BackendError),
}
