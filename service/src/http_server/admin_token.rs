//! The admin token of a role, or the token of a client, from a file.
//!
//! Invariant: the token is read only from a file that only its owner can read.

use super::api_error::ApiError;
use crate::token_hash::TokenHash;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A secret from a file: the admin token of a role, or the token of a client.
#[derive(Clone)]
pub struct AdminToken {
    token: Arc<str>,
    hash: TokenHash,
}

/// The reason for which a token cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The group or others can read the file.
    #[error("others can read the token {} (mode {mode:o}): run `chmod 600` on it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    /// The file holds no usable secret.
    #[error(
        "the token {} is shorter than 16 characters; `shoal cluster` and `shoal token create` make a longer one",
        path.display()
    )]
    Short { path: PathBuf },
}

impl AdminToken {
    /// Reads the token from a file of mode 0600.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read, others can read it, or the token is too short.
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        let name = path.to_path_buf();
        let read = |source| TokenError::Read { path: name.clone(), source };
        let mode = std::fs::metadata(path).map_err(read)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Exposed { path: name, mode });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let token = text.trim();
        if token.len() < 16 {
            return Err(TokenError::Short { path: name });
        }
        Ok(Self { token: token.into(), hash: TokenHash::of(token.as_bytes()) })
    }

    /// Returns the secret, for a client to show.
    pub fn secret(&self) -> &str {
        &self.token
    }

    /// Returns the hash of the secret.
    pub fn hash(&self) -> TokenHash {
        self.hash
    }
}

/// Middleware that refuses requests without the admin token.
pub async fn require_token(State(token): State<AdminToken>, request: Request, next: Next) -> Response {
    if TokenHash::shown(request.headers()) == Some(token.hash) {
        return next.run(request).await;
    }
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "not allowed",
        "the request shows no valid admin token",
        "pass the cluster's admin.token with --token-file",
    )
    .into_response()
}
