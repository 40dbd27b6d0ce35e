//! The errors of backups.
//!
//! Invariant: an error says whether the archive, the folder or the role is at fault.

use std::io;
use std::path::PathBuf;

/// The reason for which an archive cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The disk or the socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The archive is not one that this version can read.
    #[error("not a backup this version can read: {0}")]
    Malformed(&'static str),
    /// The archive ended early or was changed.
    #[error("the backup is damaged: {0}")]
    Damaged(&'static str),
    /// The state folder holds something already.
    #[error("{} is not empty: use --force to move it aside", .0.display())]
    InTheWay(PathBuf),
    /// The database of the role failed.
    #[error("the database failed: {0}")]
    Database(#[from] shoal_kv::KvError),
    /// The role still runs on the state folder.
    #[error("a {role} runs on {}: stop it first", folder.display())]
    #[allow(missing_docs, reason = "the names say it")]
    Running { role: String, folder: PathBuf },
    /// The state folder cannot be created.
    #[error(transparent)]
    Folder(#[from] crate::folders::FolderError),
    /// A row does not belong into the state of the role.
    #[error("the backup is damaged: table `{table}`: {why}")]
    Row {
        /// The table of the row, as the archive names it.
        table: String,
        /// What is invalid.
        why: &'static str,
    },
    /// A record of the role's state cannot be read.
    #[error("{0}")]
    State(String),
}
