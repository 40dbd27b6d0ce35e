//! Backups of a role's state: one archive, read from the role while it runs, or from its folder while it is stopped.
//!
//! A running role offers its state on a socket in its folder. Only the owner of the folder can open the socket.
//! Invariant: an archive is complete or it is refused. Nothing is restored from an archive before its end was checked.
//!
//! Where to look: the format in `archive.rs`, the socket in `socket.rs`, files on the disk in `restore.rs`.

mod archive;
mod error;
mod restore;
mod socket;
#[cfg(test)]
mod tests;

pub use archive::{Head, Record, Writer, read};
pub use error::BackupError;
pub use restore::{Restored, Rows, SavedArchive, Secret, SecretFile, restore, save};
pub use socket::{Source, Writing, ask, offline, serve};
