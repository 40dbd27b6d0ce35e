//! Contents on disk: their pieces, their index, the erasure codec, the quota, and how new ones are cut.
//!
//! Owns: the store folder. Synchronous; a thread of its own verifies, another writes.
//! Invariant: a content marked complete is durable and whole; everything else can be lost and is found out at restart by
//! hashing what is there.
//!
//! Where to look: [`Store`] in [`mod@store`]; where a piece lies in [`layout`]; the threads in [`verify`] and [`writer`];
//! recently arrived shards in [`hot`]; parity in [`codec`]; images and their blobs in [`images`]; what is kept of a demoted
//! content in [`share`]; versions of feeds in `store/versions`; taking a directory in with [`ingest`] and cutting it in
//! [`cut`]; small records in [`index`], in and out in [`backup`].

pub mod backup;
pub mod codec;
pub mod cut;
mod direct;
mod hot;
mod image_ingest;
pub mod images;
pub mod index;
pub mod ingest;
mod layout;
mod records;
mod reuse;
mod room;
pub mod share;
pub mod store;
mod verify;
mod walk;
mod writer;

pub use image_ingest::BlobSource;
pub use room::Promise;
pub use share::{FoundShare, Share, ShareError};
pub use store::{
    BeginError, Begun, FinishError, OpenError, PutError, ReadError, Record, Store, StoreConfig, StoreEvent, Usage,
    VERSION_PIECE_BYTES_AVG, small_manifest,
};
