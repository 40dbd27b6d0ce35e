//! The configuration of the audit log.
//!
//! Invariant: a configuration that passed [`AuditConfig::validate`] keeps at least one whole file.

use super::AuditSettings;
use crate::config::ConfigError;
use crate::units::ByteSize;
use serde::{Deserialize, Serialize};

/// How much the audit log keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// The size at which a file of the log ends and the next one begins. Default `16 MiB`.
    pub file_size: ByteSize,
    /// Files that are kept for changes, and as many for refused requests. Default 16.
    pub files: u32,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { file_size: ByteSize(16 << 20), files: 16 }
    }
}

impl AuditConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Names the first key with an invalid value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        let size = 64 << 10..=1 << 30;
        check(size.contains(&self.file_size.0), "audit.file_size", "must be between 64 KiB and 1 GiB")?;
        check((2..=1000).contains(&self.files), "audit.files", "must be between 2 and 1000")
    }

    /// Returns the settings of the log.
    pub fn settings(&self) -> AuditSettings {
        AuditSettings { file_size: self.file_size, files: self.files }
    }
}
