//! Errors of the roles' APIs.
//!
//! Invariant: an error says what happened, and carries its HTTP status.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use shoal_api::service::{ErrorAnswer, ErrorBody};

/// An error of a role's API: what happened, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// HTTP status.
    #[serde(skip, default = "server_error")]
    pub status: u16,
    /// What happened, and to what.
    pub what: String,
    /// Why.
    #[serde(default)]
    pub why: String,
    /// What the caller can do.
    #[serde(default, rename = "do")]
    pub remedy: String,
}

fn server_error() -> u16 {
    500
}

impl ApiError {
    /// Returns an error with all its parts. Empty parts are left out of the text.
    pub fn new(status: StatusCode, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: status.as_u16(), what: what.into(), why: why.into(), remedy: remedy.into() }
    }

    /// Returns an error of status 400.
    pub fn bad_request(what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, what, why, remedy)
    }

    /// Returns an error of status 404.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, what, "", "")
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let Self { what, why, remedy, .. } = self.clone();
        let mut response = (status, Json(ErrorAnswer { error: ErrorBody { what, why, remedy } })).into_response();
        // For layers outside of the handler, such as the audit log.
        response.extensions_mut().insert(self);
        response
    }
}
