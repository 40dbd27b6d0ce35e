//! Contents on disk: their pieces, their database, the erasure code, the quota, and the ingest of new ones.
//!
//! Owns: the store's folder. Every function blocks. One thread verifies, one writes, one flushes.
//! Invariant: a content that is marked complete is durable and whole. The store may lose everything else, and finds out
//! at its next start by hashing the disk.
//!
//! Where to look:
//! - the operations in [`mod@store`], and what the parts share in [`inner`]
//! - files in [`layout`], [`direct_io`], [`content`], [`stored_parity`]
//! - threads in [`verifier`] and [`writer`], memory in [`shard_cache`]
//! - fetch in [`fetch`], [`mod@read`], [`local_dedup`], [`space`]
//! - ingest in [`ingest`], [`image_ingest`], [`versions`], [`source`], [`open_folder`], [`walk`], [`cdc`],
//!   [`piece_table`], [`erasure`]
//! - images in [`images`] and [`blob_places`], demotion in [`rack_share`]
//! - small records in [`tables`], [`state_kv`], [`backup`]
//!
//! Terms are in `docs/GLOSSARY.md`.

pub mod backup;
mod blob_places;
pub mod cdc;
mod config;
mod content;
mod direct_io;
pub mod erasure;
mod errors;
mod fetch;
mod image_ingest;
pub mod images;
pub mod ingest;
mod inner;
mod layout;
mod local_dedup;
mod lock;
pub mod open_folder;
mod piece_table;
mod rack_share;
mod read;
mod shard_cache;
mod source;
mod space;
mod state_kv;
pub mod store;
mod stored_parity;
mod tables;
mod verifier;
mod versions;
mod walk;
mod writer;

pub use config::{EventSink, SUBMIT_QUEUE_MAX, StoreConfig, StoreEvent, Usage};
pub use errors::{BeginError, FinishError, OpenError, RackShareError, ReadError, SubmitError};
pub use fetch::Begun;
pub use image_ingest::BlobSource;
pub use read::StoredContent;
pub use shoal_kv::KvError;
pub use source::{OpenSource, Opened};
pub use space::SpaceReservation;
pub use store::Store;
pub use stored_parity::{RackShare, StoredShare};
pub use versions::{VERSION_PIECE_BYTES_AVG, inline_manifest};
