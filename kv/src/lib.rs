//! Tables of small records on disk, behind one trait.
//!
//! Owns: the choice of the embedded database and the work-arounds that it needs. No other crate names it.
//! Invariant: a change that [`Database::sync`] covers survives a loss of power, and rows of a table are visited in the
//! order of their keys.
//!
//! Where to look:
//! - the trait, and the handle of one table, in [`database`]
//! - sled in [`sled_database`]
//! - errors in [`errors`]
//! - all tables of a database, for backups, in [`backup`]
//!
//! Terms are in `docs/GLOSSARY.md`.

pub mod backup;
pub mod database;
pub mod errors;
pub mod sled_database;

pub use database::{Change, Database, Row, Table};
pub use errors::KvError;
pub use sled_database::{SledDatabase, SledOptions};
