//! Why the store does not do what it was asked.
//!
//! Invariant: each says who is at fault: the disk, the content, or the asker.

use bytes::Bytes;
use shoal_kv::KvError;
use shoal_proto::codec::DecodeError;
use std::io;
use std::path::PathBuf;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error("cannot use the store {}: {source}", .dir.display())]
    Io {
        /// The folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The index cannot be opened.
    #[error(transparent)]
    Index(#[from] KvError),
}

/// Why a content cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// It would not fit.
    #[error("needs {need} bytes, {room} can be had (quota and disk, after eviction)")]
    WouldNotFit {
        /// Bytes needed.
        need: u64,
        /// Bytes there are.
        room: u64,
    },
    /// The manifest is not acceptable.
    #[error("bad manifest: {0}")]
    Manifest(#[from] DecodeError),
    /// The disk failed.
    #[error("disk: {0}")]
    Io(#[from] io::Error),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] KvError),
}

/// Why a shard was not taken.
#[derive(Debug)]
pub enum SubmitError {
    /// The thread is behind; try again after the next event.
    Full(Bytes),
    /// No such content.
    Unknown,
}

/// Why a shard cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No such content, or the piece is not here.
    #[error("not here")]
    NotHere,
    /// The disk failed.
    #[error("disk: {0}")]
    Io(#[from] io::Error),
}

/// Why a content is not durable.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// Pieces are missing.
    #[error("{0} pieces are missing")]
    Incomplete(u32),
    /// No such content.
    #[error("not here")]
    Unknown,
    /// The disk failed.
    #[error("disk: {0}")]
    Io(#[from] io::Error),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] KvError),
}
