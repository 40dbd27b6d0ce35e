//! Why the store refuses or fails an operation.
//!
//! Invariant: each error tells whether the disk, the content or the caller is at fault.

use bytes::Bytes;
use shoal_kv::KvError;
use shoal_proto::codec::DecodeError;
use shoal_proto::ids::StripeIndex;
use std::io;
use std::path::PathBuf;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum OpenError {
    #[error("cannot use the store's folder {}", .dir.display())]
    Io {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Database(#[from] KvError),
}

/// Why a content cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The content does not fit, even after the eviction of everything that may go.
    #[error("the content needs {need} bytes and the store can free {available}: raise the quota or free the disk")]
    #[allow(missing_docs, reason = "the message says it")]
    WouldNotFit { need: u64, available: u64 },
    /// The manifest breaks a rule of the format.
    #[error("the manifest is invalid: {0}")]
    Manifest(#[from] DecodeError),
    /// The disk failed.
    #[error("cannot write the content's files: {0}")]
    Io(#[from] io::Error),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] KvError),
}

/// Why a shard was not accepted.
#[derive(Debug)]
pub enum SubmitError {
    /// The verifying thread is behind. The caller submits the payload again after the next event.
    Full(Bytes),
    /// The store does not have the content.
    UnknownContent,
}

/// Why a shard cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store does not have the content or the piece.
    #[error("the store does not have the shard")]
    NotHere,
    /// The disk failed.
    #[error("cannot read the content's files: {0}")]
    Io(#[from] io::Error),
}

/// Why a content is not durable.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// Pieces are missing.
    #[error("{0} pieces are missing")]
    Incomplete(u32),
    /// The store does not have the content.
    #[error("the store does not have the content")]
    UnknownContent,
    /// An earlier write-out failed, so the disk may have other bytes than the pieces.
    #[error("an earlier write of the content failed: check the disk and fetch the content again")]
    WriteFailed,
    /// The manifest breaks a rule of the format.
    #[error("the manifest is invalid: {0}")]
    Manifest(#[from] DecodeError),
    /// The disk failed.
    #[error("cannot write the content's files: {0}")]
    Io(#[from] io::Error),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] KvError),
}

/// Why a rack share is not made, or the whole content not dropped. The content is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum RackShareError {
    /// The store does not have the content, or not all of it, or no share of it.
    #[error("the store does not have the whole content")]
    NotWhole,
    /// A piece on the disk is not what it was.
    #[error("stripe {0} is damaged on the disk: fetch the content again")]
    Damaged(StripeIndex),
    /// The share does not fit beside the whole content.
    #[error("there is no space for the rack share: {0}")]
    NoSpace(BeginError),
    /// The disk failed.
    #[error("cannot write the rack share: {0}")]
    Io(#[from] io::Error),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] KvError),
}
