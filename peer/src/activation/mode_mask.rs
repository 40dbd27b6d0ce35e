//! The mode bits that a host accepts from contents.
//!
//! Invariant: a mask has only read, write and execute bits, and all of the owner's.

use serde::{Deserialize, Serialize};
use shoal_proto::manifest::MODE_BITS;
use std::fmt;

/// Mode bits that files and folders of contents may have on this host. The configuration writes it as `"0755"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModeMask(u32);

/// Why a text is no mask.
#[derive(Debug, thiserror::Error)]
#[error("invalid mode mask `{0}`: use octal digits with all bits of the owner, from \"0700\" to \"0777\"")]
pub struct ModeMaskError(String);

impl Default for ModeMask {
    /// Only the owner may write.
    fn default() -> Self {
        Self(0o755)
    }
}

impl ModeMask {
    /// Returns a mode without the bits that this host does not accept.
    pub fn apply(self, mode: u32) -> u32 {
        mode & self.0
    }

    /// Whether users other than the owner may write to contents.
    pub fn lets_others_write(self) -> bool {
        self.0 & 0o022 != 0
    }
}

impl fmt::Display for ModeMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl From<ModeMask> for String {
    fn from(mask: ModeMask) -> Self {
        mask.to_string()
    }
}

impl TryFrom<String> for ModeMask {
    type Error = ModeMaskError;

    fn try_from(text: String) -> Result<Self, ModeMaskError> {
        let digits = text.strip_prefix("0o").unwrap_or(&text);
        let bits = u32::from_str_radix(digits, 8).ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
        match bits {
            Some(bits) if bits & !MODE_BITS == 0 && bits & 0o700 == 0o700 => Ok(Self(bits)),
            _ => Err(ModeMaskError(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All masks with all modes.
    #[test]
    fn no_mode_leaves_the_mask() {
        for bits in 0..=0o17777u32 {
            let parsed = ModeMask::try_from(format!("{bits:04o}"));
            let Ok(mask) = parsed else {
                assert!(bits > 0o777 || bits & 0o700 != 0o700, "{bits:o}");
                continue;
            };
            assert_eq!(String::from(mask), format!("{bits:04o}"));
            for mode in 0..=0o7777 {
                assert_eq!(mask.apply(mode), mode & bits);
            }
        }
        for mode in 0..=0o7777 {
            assert_eq!(ModeMask::default().apply(mode) & 0o7022, 0, "{mode:o}");
        }
        for text in ["", "0o", "-755", "+755", "0x1ff", "rwxr-xr-x", "4755", "0855", " 755"] {
            assert!(ModeMask::try_from(text.to_string()).is_err(), "{text}");
        }
        assert_eq!(ModeMask::try_from("0o750".to_string()).unwrap().to_string(), "0750");
    }
}
