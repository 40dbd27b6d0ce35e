//! The configuration of the mirror.

use serde::{Deserialize, Serialize};
use shoal_service::config::ConfigError;
use shoal_service::units::Span;
use std::net::SocketAddr;
use std::time::Duration;

/// How to run the mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MirrorConfig {
    /// A loopback address and a port, or empty for no mirror. Default `127.0.0.1:7703`.
    pub listen: String,
    /// Longest wait for the first byte of a blob, and longest standstill of an image that is arriving. After that the
    /// client continues with the registry. Default 5 s.
    pub max_wait: Span,
    /// Whether the mirror requests an absent image from the region's seeder. Default false.
    pub fetch_through: bool,
}

impl Default for MirrorConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7703".into(), max_wait: Span(Duration::from_secs(5)), fetch_through: false }
    }
}

impl MirrorConfig {
    /// Returns the address to listen on, or `None` for no mirror.
    ///
    /// # Errors
    /// Fails if the address is malformed or is not a loopback address.
    pub fn addr(&self) -> Result<Option<SocketAddr>, ConfigError> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        let invalid = |why: &str| ConfigError::invalid("mirror.listen", why);
        let addr: SocketAddr =
            self.listen.parse().map_err(|_| invalid("use an address and a port, or leave it empty"))?;
        if !addr.ip().is_loopback() {
            return Err(invalid("use a loopback address: every client of the mirror can read every image"));
        }
        Ok(Some(addr))
    }

    /// Checks the bounds that types cannot express.
    ///
    /// # Errors
    /// Names the first key with an invalid value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.addr()?;
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&self.max_wait.0) {
            return Err(ConfigError::invalid("mirror.max_wait", "use between 100ms and 60s"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_accepted() {
        let of = |listen: &str| MirrorConfig { listen: listen.into(), ..Default::default() };
        assert_eq!(of("").addr().unwrap(), None);
        assert_eq!(of("127.0.0.1:7703").addr().unwrap().unwrap().port(), 7703);
        assert!(of("[::1]:1").addr().unwrap().is_some());
        for bad in ["0.0.0.0:7703", "10.0.0.1:7703", "7703", "localhost"] {
            assert!(of(bad).validate().unwrap_err().to_string().contains("mirror.listen"), "{bad}");
        }
        let slow = MirrorConfig { max_wait: Span(Duration::from_secs(600)), ..Default::default() };
        assert!(slow.validate().is_err());
    }
}
