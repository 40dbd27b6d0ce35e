//! Contents on disk: their pieces, their index, the erasure codec, the quota, and how new ones are cut.
//!
//! Owns: the store folder. Synchronous; a thread of its own verifies, another writes.
//! Invariant: a content marked complete is durable and whole; everything else can be lost and is found out at restart by
//! hashing what is there.
//!
//! Where to look: [`Store`] in [`mod@store`]; where a piece lies in [`layout`]; the threads in [`verifier`] and [`writer`];
//! recently arrived shards in [`shard_cache`]; parity in [`erasure`]; images and their blobs in [`images`]; what is kept of a demoted
//! content in [`rack_share`]; versions of feeds in `store/versions`; taking a directory in with [`ingest`] and cutting it in
//! [`cdc`]; small records in [`tables`], in and out in [`backup`].

pub mod backup;
pub mod cdc;
mod direct_io;
pub mod erasure;
mod image_ingest;
pub mod images;
pub mod ingest;
mod layout;
mod local_dedup;
pub mod rack_share;
mod shard_cache;
mod space;
mod state_kv;
pub mod store;
mod tables;
mod verifier;
mod walk;
mod writer;

pub use image_ingest::BlobSource;
pub use rack_share::{RackShare, RackShareError, StoredShare};
pub use shoal_kv::KvError;
pub use space::SpaceReservation;
pub use store::{
    BeginError, Begun, FinishError, OpenError, ReadError, SUBMIT_QUEUE_MAX, Store, StoreConfig, StoreEvent,
    StoredContent, SubmitError, Usage, VERSION_PIECE_BYTES_AVG, inline_manifest,
};
