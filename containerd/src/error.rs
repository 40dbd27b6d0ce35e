//! What a call that did not succeed means for an image.

use std::path::PathBuf;
use tonic::{Code, Status};

/// How containerd says that bytes are not what a digest names: as they arrive, and once they are unpacked.
const MISMATCHES: [&str; 4] =
    ["unexpected commit digest", "unexpected commit size", "failed size validation", "wrong diff id"];

/// Why containerd did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nobody answers at the socket, or the connection broke. Worth another attempt.
    #[error("containerd does not answer at {}: {why}", .socket.display())]
    Away {
        /// The socket.
        socket: PathBuf,
        /// Why.
        why: String,
    },
    /// Its disk is full.
    #[error("{what}: no space left where containerd keeps images")]
    NoSpace {
        /// What was asked.
        what: String,
    },
    /// What arrived is not what the digest says.
    #[error("{what}: {why}")]
    Mismatch {
        /// What was asked.
        what: String,
        /// Why.
        why: String,
    },
    /// It has no such thing.
    #[error("{what}: not there")]
    Missing {
        /// What was asked.
        what: String,
    },
    /// It took too long.
    #[error("{what}: no end in time")]
    Late {
        /// What was asked.
        what: String,
    },
    /// It said no, for another reason.
    #[error("{what}: {why}")]
    Refused {
        /// What was asked.
        what: String,
        /// Why.
        why: String,
    },
    /// The image cannot be understood.
    #[error("{0}")]
    Malformed(String),
}

impl RuntimeError {
    /// From the status of a call. containerd's codes are coarse, so some are told apart by its words.
    pub(crate) fn from_status(socket: &std::path::Path, what: &str, status: &Status) -> Self {
        let (what, why) = (what.to_string(), status.message().to_string());
        let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
        match status.code() {
            _ if says(&["no space left on device"]) => Self::NoSpace { what },
            _ if says(&MISMATCHES) => Self::Mismatch { what, why },
            // `Unknown` with a transport's words, and `Cancelled`, are how a killed containerd shows.
            Code::Unavailable | Code::Cancelled => Self::Away { socket: socket.to_path_buf(), why },
            Code::Unknown if says(&["transport error", "h2 protocol error", "connection error", "broken pipe"]) => {
                Self::Away { socket: socket.to_path_buf(), why }
            }
            Code::Internal if says(&["h2 protocol error", "connection"]) => {
                Self::Away { socket: socket.to_path_buf(), why }
            }
            Code::NotFound => Self::Missing { what },
            Code::DeadlineExceeded => Self::Late { what },
            _ => Self::Refused { what, why },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn words_tell_what_codes_do_not() {
        let of = |status: Status| RuntimeError::from_status(Path::new("/s"), "pull a", &status);
        let full = "failed to extract layer: write /x: no space left on device: unknown";
        assert!(matches!(of(Status::unknown(full)), RuntimeError::NoSpace { .. }));
        let wrong = "failed commit on ref: unexpected commit digest sha256:1, expected sha256:2";
        assert!(matches!(of(Status::failed_precondition(wrong)), RuntimeError::Mismatch { .. }));
        assert!(matches!(of(Status::unavailable("no")), RuntimeError::Away { .. }));
        assert!(matches!(of(Status::not_found("image")), RuntimeError::Missing { .. }));
        let other = of(Status::unknown("failed to resolve reference: 403"));
        assert_eq!(other.to_string(), "pull a: failed to resolve reference: 403");
    }
}
