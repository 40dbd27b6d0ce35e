//! Errors of registries, and how long a failing request is repeated.
//!
//! Invariant: only a failure that may pass is repeated, and repeating ends after the configured patience.

use super::docker_config::DockerConfigError;
use shoal_proto::image::Digest;
use shoal_service::http_client::transport::{HttpError, TlsSettingsError};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// The wait after the first failure. It doubles with each further failure.
const WAIT_FIRST: Duration = Duration::from_millis(250);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// The longest wait that a registry may ask for. No pull has more patience.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// Why a registry does not serve what is needed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("invalid URL `{url}` of registry {registry}; correct it in `registries`")]
    Url { registry: String, url: String },
    #[error("cannot use the credentials for {registry}; correct docker_config")]
    Credentials { registry: String, source: Box<DockerConfigError> },
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
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Truncated { .. } => true,
            Self::Refused { status, .. } => *status == 429 || (*status >= 500 && *status != 501),
            _ => false,
        }
    }
}

/// Returns how long a `Retry-After` header asks to wait: seconds, or a date (RFC 9110, section 10.2.3).
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let asked = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        // A date that has passed asks for no wait.
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(asked.min(RETRY_AFTER_MAX))
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
        self.wait = (self.wait * 2).min(WAIT_MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_given_in_seconds_or_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let asked = |value: &str| retry_after(value, now).map(|wait| wait.as_secs());
        for (value, seconds) in [
            ("0", 0),
            (" 120 ", 120),
            ("Sun, 06 Nov 1994 08:50:07 GMT", 30),
            ("Sunday, 06-Nov-94 08:49:47 GMT", 10),
            ("Sun Nov  6 08:49:42 1994", 5),
            ("Sat, 05 Nov 1994 08:49:37 GMT", 0),
            ("Sun, 06 Nov 2095 08:49:37 GMT", 86_400),
            ("18446744073709551615", 86_400),
        ] {
            assert_eq!(asked(value), Some(seconds), "{value}");
        }
        for none in ["", "soon", "-1", "1.5", "Sun, 99 Nov 1994 08:49:37 GMT", "99999999999999999999"] {
            assert_eq!(asked(none), None, "{none}");
        }
    }

    fn refused(retry_after: Option<Duration>) -> RegistryError {
        RegistryError::Refused {
            registry: "r.example".into(),
            status: 429,
            what: "a".into(),
            why: "busy".into(),
            retry_after,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_beyond_the_patience_ends_the_request() {
        let mut patience = Patience::new(Duration::from_secs(60));
        let began = Instant::now();
        assert!(patience.after(refused(Some(Duration::from_secs(30)))).await.is_ok());
        assert_eq!(began.elapsed().as_secs(), 30);
        assert!(patience.after(refused(Some(RETRY_AFTER_MAX))).await.is_err());
        assert!(Patience::new(Duration::ZERO).after(refused(None)).await.is_err(), "no patience asks once");
    }
}
