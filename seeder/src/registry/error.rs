//! Errors of registries, and how long a failing request is repeated.
//!
//! Invariant: only a failure that may pass is repeated, and repeating ends after the configured patience.

use super::auth::DockerConfigError;
use shoal_proto::image::Digest;
use shoal_service::http_client::transport::{HttpError, TlsSettingsError};
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// The wait after the first failure. It doubles with each further failure.
const WAIT_FIRST: Duration = Duration::from_millis(250);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// Why a registry does not serve what is needed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("invalid URL `{url}` of registry {registry}; correct it in `registries`")]
    Url { registry: String, url: String },
    #[error("cannot use the credentials for {registry}; correct docker_config")]
    Credentials { registry: String, source: DockerConfigError },
    #[error("cannot use the TLS settings for {registry}; correct `registries`")]
    TlsSettings { registry: String, source: TlsSettingsError },
    /// The text says what to do.
    #[error("{registry} refuses the seeder (401): {why}")]
    Unauthorized { registry: String, why: String },
    #[error("{registry} denies access to {what} (403): {why}; check the account in docker_config")]
    Denied { registry: String, what: String, why: String },
    #[error("{registry} has no {what} (404): {why}; check the reference")]
    NotFound { registry: String, what: String, why: String },
    /// The registry still refused after repeated requests, where repeating makes sense.
    #[error("{registry} answered {status} to the request for {what}: {why}")]
    Refused {
        registry: String,
        status: u16,
        what: String,
        why: String,
        /// How long the registry asked to wait before the next request.
        retry_after: Option<Duration>,
    },
    /// The registry cannot be reached, or breaks off, even after repeated requests.
    #[error("the registry does not answer")]
    Unreachable(#[source] HttpError),
    #[error("{registry} ended blob {digest} after {received} of {expected} bytes")]
    Truncated { registry: String, digest: Digest, received: u64, expected: u64 },
    /// Repeating does not help.
    #[error("TLS fails; for plain HTTP set `plain_http` in `registries`, for an authority of your own set `ca` there")]
    Tls(#[source] HttpError),
    #[error("{registry} sent bytes with the digest {found} for {expected}")]
    WrongDigest { registry: String, expected: Digest, found: Digest },
    /// An answer that breaks the protocol.
    #[error("{registry}: {why}")]
    Malformed { registry: String, why: String },
    #[error("cannot write {}", .path.display())]
    Disk { path: PathBuf, source: io::Error },
}

impl From<HttpError> for RegistryError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Tls { .. } | HttpError::ServerName { .. } => Self::Tls(error),
            _ => Self::Unreachable(error),
        }
    }
}

impl RegistryError {
    /// Whether the same request may succeed soon.
    fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Truncated { .. } => true,
            Self::Refused { status, .. } => *status == 429 || (*status >= 500 && *status != 501),
            _ => false,
        }
    }
}

/// Waits between attempts until the patience has ended.
pub struct Patience {
    until: Instant,
    wait: Duration,
}

impl Patience {
    pub fn new(limit: Duration) -> Self {
        Self { until: Instant::now() + limit, wait: WAIT_FIRST }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// Returns the given error if it is not temporary, or the patience has ended.
    pub async fn after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let asked = if let RegistryError::Refused { retry_after, .. } = &error { *retry_after } else { None };
        let next = Instant::now() + self.wait.min(WAIT_MAX).max(asked.unwrap_or_default());
        if !error.is_temporary() || next > self.until {
            return Err(error);
        }
        tracing::info!(error = crate::errors::with_sources(&error), "repeating a request to a registry");
        tokio::time::sleep_until(next).await;
        self.wait *= 2;
        Ok(())
    }
}
