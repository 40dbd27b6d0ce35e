//! The content that is distributed, and the check of each copy.

use anyhow::Context;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the content's file.
pub(crate) const FILE: &str = "content.bin";

/// A file of bytes that do not compress or repeat.
pub(crate) struct Content {
    /// Its path.
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    hash: blake3::Hash,
}

impl Content {
    /// Writes the file into a folder and syncs it to the disk.
    pub(crate) fn create(dir: &Path, bytes: u64) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let mut file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut noise = blake3::Hasher::new().update(b"lab").finalize_xof();
        let mut hasher = blake3::Hasher::new();
        let mut part = vec![0; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            let part = &mut part[..left.min(1 << 20) as usize];
            noise.fill(part);
            hasher.update(part);
            file.write_all(part)?;
            left -= part.len() as u64;
        }
        file.sync_all()?;
        Ok(Self { path, bytes, hash: hasher.finalize() })
    }

    /// Whether the file at `path` is a complete and correct copy.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let mut hasher = blake3::Hasher::new();
        File::open(path).is_ok_and(|file| hasher.update_reader(file).is_ok()) && hasher.finalize() == self.hash
    }
}
