//! The meaning of a failed call to containerd.
//!
//! Invariant: each variant tells a caller whether another attempt can help.

use crate::image::ImageError;
use std::io;
use std::path::{Path, PathBuf};
use tonic::metadata::errors::InvalidMetadataValue;
use tonic::{Code, Status};

/// Messages of containerd about bytes that do not have the expected digest, during a write and after unpacking.
const MISMATCHES: [&str; 4] =
    ["unexpected commit digest", "unexpected commit size", "failed size validation", "wrong diff id"];

/// Why containerd did not do what was asked.
///
/// `action` is a verb with its object, for example `pull nginx`. `reason` is containerd's own message.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the enum's comment explains the fields")]
pub enum RuntimeError {
    /// The socket refuses connections, or the connection broke. A later attempt can succeed.
    #[error("containerd does not answer at {}: {reason}", .socket.display())]
    Unreachable { socket: PathBuf, reason: String },
    /// The disk of containerd is full.
    #[error("cannot {action}: no space left on containerd's disk")]
    NoSpace { action: String },
    /// Bytes do not have the digest that the image names.
    #[error("cannot {action}: {reason}")]
    DigestMismatch { action: String, reason: String },
    #[error("cannot {action}: containerd does not have it")]
    NotFound { action: String },
    #[error("cannot {action}: it exists already")]
    AlreadyExists { action: String },
    /// The call did not end before its deadline.
    #[error("cannot {action}: containerd did not finish in time")]
    Timeout { action: String },
    /// Any other failure that containerd reports.
    #[error("cannot {action}: {reason}")]
    Failed { action: String, reason: String },
    /// The caller's [`crate::BlobReader`] failed.
    #[error("cannot read blob {digest}")]
    ReadBlob {
        digest: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot use image {digest}")]
    InvalidImage {
        digest: String,
        #[source]
        source: ImageError,
    },
    /// A namespace or lease that gRPC cannot carry.
    #[error("cannot send `{value}` to containerd: use visible ASCII characters only")]
    InvalidHeader {
        value: String,
        #[source]
        source: InvalidMetadataValue,
    },
}

impl RuntimeError {
    /// Converts the status of a call. The codes of containerd are coarse, so its message decides in some cases.
    pub(crate) fn from_status(socket: &Path, action: &str, status: &Status) -> Self {
        let (action, reason) = (action.to_string(), status.message().to_string());
        let says = |texts: &[&str]| texts.iter().any(|text| reason.contains(text));
        let unreachable = match status.code() {
            Code::Unavailable | Code::Cancelled => true,
            // A killed containerd shows as one of these two codes and a message of the transport.
            Code::Unknown => says(&["transport error", "h2 protocol error", "connection error", "broken pipe"]),
            Code::Internal => says(&["h2 protocol error", "connection"]),
            _ => false,
        };
        match status.code() {
            _ if says(&["no space left on device"]) => Self::NoSpace { action },
            _ if says(&MISMATCHES) => Self::DigestMismatch { action, reason },
            _ if unreachable => Self::Unreachable { socket: socket.to_path_buf(), reason },
            Code::NotFound => Self::NotFound { action },
            Code::AlreadyExists => Self::AlreadyExists { action },
            Code::DeadlineExceeded => Self::Timeout { action },
            _ => Self::Failed { action, reason },
        }
    }

    /// Adds the digest of the document that could not be used.
    pub(crate) fn invalid_image(digest: &str) -> impl FnOnce(ImageError) -> Self {
        move |source| Self::InvalidImage { digest: digest.to_string(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_decide_where_codes_are_coarse() {
        let of = |status: Status| RuntimeError::from_status(Path::new("/s"), "pull a", &status);
        let full = "failed to extract layer: write /x: no space left on device: unknown";
        assert!(matches!(of(Status::unknown(full)), RuntimeError::NoSpace { .. }));
        let wrong = "failed commit on ref: unexpected commit digest sha256:1, expected sha256:2";
        assert!(matches!(of(Status::failed_precondition(wrong)), RuntimeError::DigestMismatch { .. }));
        assert!(matches!(of(Status::unavailable("no")), RuntimeError::Unreachable { .. }));
        assert!(matches!(of(Status::not_found("image")), RuntimeError::NotFound { .. }));
        assert!(matches!(of(Status::already_exists("lease")), RuntimeError::AlreadyExists { .. }));
        let other = of(Status::unknown("failed to resolve reference: 403"));
        assert_eq!(other.to_string(), "cannot pull a: failed to resolve reference: 403");
    }
}
