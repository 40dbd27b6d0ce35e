//! What an image consists of: from its root descriptor to its layers and the snapshots they become.
//!
//! Invariant: digests are checked to be `sha256:` and 64 lower-case hexadecimal digits before they are used.

use crate::wire;
use crate::{Containerd, RuntimeError};
use serde::Deserialize;

/// Manifests in an index, and layers in a manifest.
const PARTS_MAX: usize = 1024;
/// Indexes within indexes.
const DEPTH_MAX: usize = 4;

/// Whether `text` is a digest we use.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

/// The digest of some bytes, as `sha256:...`.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold("sha256:".to_string(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A blob by digest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// Media type.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// `sha256:...`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// For which machines, in an index.
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

impl Descriptor {
    /// Of a blob.
    pub fn new(media_type: &str, digest: &str, size: u64) -> Self {
        Self { media_type: media_type.into(), digest: digest.into(), size, platform: None }
    }

    pub(crate) fn to_wire(&self) -> wire::Descriptor {
        wire::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
        }
    }

    /// Whether it lists manifests rather than being one.
    pub(crate) fn is_index(&self) -> bool {
        self.media_type == "application/vnd.oci.image.index.v1+json"
            || self.media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
    }

    fn fits(&self) -> bool {
        self.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == architecture())
    }
}

impl From<wire::Descriptor> for Descriptor {
    fn from(wire: wire::Descriptor) -> Self {
        Self::new(&wire.media_type, &wire.digest, u64::try_from(wire.size).unwrap_or(0))
    }
}

/// This machine, in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// A manifest, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ImageIndex {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

fn parse<'a, T: Deserialize<'a>>(digest: &str, bytes: &'a [u8]) -> Result<T, RuntimeError> {
    serde_json::from_slice(bytes).map_err(|error| RuntimeError::Malformed(format!("{digest}: {error}")))
}

fn check<'a>(parts: impl IntoIterator<Item = &'a Descriptor>) -> Result<(), RuntimeError> {
    for (count, part) in parts.into_iter().enumerate() {
        if count >= PARTS_MAX {
            return Err(RuntimeError::Malformed(format!("more than {PARTS_MAX} parts")));
        }
        if !is_digest(&part.digest) {
            return Err(RuntimeError::Malformed(format!("`{}` is no digest", part.digest)));
        }
    }
    Ok(())
}

/// Reads a manifest.
pub(crate) fn manifest(digest: &str, bytes: &[u8]) -> Result<ImageManifest, RuntimeError> {
    let parsed: ImageManifest = parse(digest, bytes)?;
    check(parsed.layers.iter().chain([&parsed.config]))?;
    Ok(parsed)
}

/// The entry of an index for this machine, and all of them.
pub(crate) fn pick(digest: &str, bytes: &[u8]) -> Result<(Descriptor, Vec<Descriptor>), RuntimeError> {
    let index: ImageIndex = parse(digest, bytes)?;
    check(&index.manifests)?;
    let found = index.manifests.iter().find(|entry| entry.fits()).cloned();
    let found = found.ok_or_else(|| {
        RuntimeError::Malformed(format!("{digest}: the image has nothing for linux/{}", architecture()))
    })?;
    Ok((found, index.manifests))
}

/// The uncompressed digests of a configuration's layers, lowest first.
pub(crate) fn diff_ids(digest: &str, bytes: &[u8]) -> Result<Vec<String>, RuntimeError> {
    let config: Config = parse(digest, bytes)?;
    let ids = config.rootfs.diff_ids;
    if ids.len() > PARTS_MAX || !ids.iter().all(|id| is_digest(id)) {
        return Err(RuntimeError::Malformed(format!("{digest}: its layers' digests cannot be used")));
    }
    Ok(ids)
}

/// Names of the snapshots the layers become, lowest first.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for id in diff_ids {
        let next = match chain.last() {
            None => id.clone(),
            Some(parent) => sha256(format!("{parent} {id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// How far containerd is with an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unpacked {
    /// It does not know it, or not all of it.
    No,
    /// It can start containers from it.
    Yes {
        /// Manifest or index.
        root: Descriptor,
        /// The snapshot of its last layer; none for an image without layers.
        snapshot: Option<String>,
    },
}

impl Containerd {
    /// How far it is with an image. Looks at blobs and snapshots themselves: a record alone says nothing of them.
    pub async fn unpacked(&self, name: &str) -> Result<Unpacked, RuntimeError> {
        let Some((root, _)) = self.image(name).await? else { return Ok(Unpacked::No) };
        match self.top_snapshot(&root).await {
            Ok(Some(snapshot)) if !self.is_committed(&snapshot).await? => Ok(Unpacked::No),
            Ok(snapshot) => Ok(Unpacked::Yes { root, snapshot }),
            Err(RuntimeError::Missing { .. }) => Ok(Unpacked::No),
            Err(error) => Err(error),
        }
    }

    async fn top_snapshot(&self, root: &Descriptor) -> Result<Option<String>, RuntimeError> {
        let mut at = root.clone();
        for _ in 0..DEPTH_MAX {
            if !at.is_index() {
                let config = manifest(&at.digest, &self.read(&at.digest).await?)?.config;
                let ids = diff_ids(&config.digest, &self.read(&config.digest).await?)?;
                return Ok(chain_ids(&ids).pop());
            }
            at = pick(&at.digest, &self.read(&at.digest).await?)?.0;
        }
        Err(RuntimeError::Malformed(format!("{}: indexes within indexes", root.digest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_checked() {
        assert_eq!(sha256(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!(is_digest(&sha256(b"a")));
        for bad in ["sha256:../../etc/passwd", "sha256:", "sha512:00", &sha256(b"a").to_uppercase(), "md5:1"] {
            assert!(!is_digest(bad), "{bad}");
        }
    }

    #[test]
    fn chains_are_as_the_image_format_defines_them() {
        let (a, b) = (sha256(b"a"), sha256(b"b"));
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain, [a.clone(), sha256(format!("{a} {b}").as_bytes())]);
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn an_index_gives_what_fits_and_hostile_ones_are_refused() {
        let entry = |os: &str, arch: &str, digest: &str| {
            format!(
                r#"{{"mediaType":"m","digest":"{digest}","size":3,"platform":{{"os":"{os}","architecture":"{arch}"}}}}"#
            )
        };
        let (other, ours) = (sha256(b"other"), sha256(b"ours"));
        let text = format!(
            r#"{{"manifests":[{},{}]}}"#,
            entry("unknown", "unknown", &other),
            entry("linux", architecture(), &ours)
        );
        let (picked, all) = pick("i", text.as_bytes()).unwrap();
        assert_eq!((picked.digest, all.len()), (ours, 2));
        let none = format!(r#"{{"manifests":[{}]}}"#, entry("plan9", "mips", &other));
        assert!(pick("i", none.as_bytes()).unwrap_err().to_string().contains("nothing for linux/"));
        let trick = format!(r#"{{"manifests":[{}]}}"#, entry("linux", architecture(), "sha256:../x"));
        assert!(pick("i", trick.as_bytes()).unwrap_err().to_string().contains("no digest"));
        assert!(pick("i", b"{\"manifests\":{}").is_err());
        let many = vec![entry("linux", architecture(), &other); PARTS_MAX + 1].join(",");
        assert!(pick("i", format!(r#"{{"manifests":[{many}]}}"#).as_bytes()).is_err());
    }
}
