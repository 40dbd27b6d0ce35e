//! The configuration of containerd on this host.

use serde::{Deserialize, Serialize};
use shoal_service::config::ConfigError;
use shoal_service::units::{ByteSize, Span};
use std::path::PathBuf;
use std::time::Duration;

/// The namespace of the images of CRI.
pub const CRI_NAMESPACE: &str = "k8s.io";

/// How containerd gets an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullMethod {
    /// `Cri` where containerd serves CRI in our namespace, else `Direct`.
    #[default]
    Auto,
    /// CRI pulls the image through the mirror.
    Cri,
    /// The peer writes blobs and layers to containerd, without a registry.
    Direct,
}

/// Which containerd prewarms images, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerdConfig {
    /// The socket of containerd. Default `/run/containerd/containerd.sock`.
    pub socket: PathBuf,
    /// The namespace of the images. Default `k8s.io`, the only one of CRI.
    pub namespace: String,
    /// The snapshotter that unpacks images. Default `overlayfs`.
    pub snapshotter: String,
    /// How containerd gets an image. Default `auto`.
    pub pull: PullMethod,
    /// Images that are prewarmed at one time. Default 1.
    pub concurrency: usize,
    /// Time limit for one image, including unpacking. Default 30 min.
    pub timeout: Span,
    /// How long the peer retries while containerd does not answer. Default 10 min.
    pub retry_for: Span,
    /// Bytes that must stay free on the disk of containerd. Default 1 GiB.
    pub min_free: ByteSize,
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self {
            socket: "/run/containerd/containerd.sock".into(),
            namespace: CRI_NAMESPACE.into(),
            snapshotter: "overlayfs".into(),
            pull: PullMethod::Auto,
            concurrency: 1,
            timeout: Span(Duration::from_secs(30 * 60)),
            retry_for: Span(Duration::from_secs(10 * 60)),
            min_free: ByteSize(1 << 30),
        }
    }
}

impl ContainerdConfig {
    /// Checks the bounds that types cannot express.
    ///
    /// # Errors
    /// Names the first key with an invalid value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        let is_plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        check(self.socket.is_absolute(), "containerd.socket", "use an absolute path")?;
        check(is_plain(&self.namespace), "containerd.namespace", "use letters, digits, `.`, `-`, `_`")?;
        check(is_plain(&self.snapshotter), "containerd.snapshotter", "use letters, digits, `.`, `-`, `_`")?;
        check((1..=16).contains(&self.concurrency), "containerd.concurrency", "use 1 to 16")?;
        let cri_works = self.pull != PullMethod::Cri || self.namespace == CRI_NAMESPACE;
        check(cri_works, "containerd.namespace", "CRI uses `k8s.io` only; set pull = \"direct\" for another namespace")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_configurations_are_refused() {
        assert!(ContainerdConfig::default().validate().is_ok());
        let refused = |change: fn(&mut ContainerdConfig)| {
            let mut config = ContainerdConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(refused(|config| config.socket = "containerd.sock".into()).contains("containerd.socket"));
        assert!(refused(|config| config.namespace = "a b".into()).contains("containerd.namespace"));
        assert!(refused(|config| config.concurrency = 0).contains("containerd.concurrency"));
        let other = refused(|config| (config.pull, config.namespace) = (PullMethod::Cri, "default".into()));
        assert!(other.contains("k8s.io"));
    }
}
