//! The disk space that folders use.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of disk blocks below a folder. A file with two hard links counts once.
pub fn on_disk(folder: &Path) -> u64 {
    let (mut sum, mut seen, mut folders) = (0, BTreeSet::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = item.path().symlink_metadata() else { continue };
            if meta.is_dir() {
                folders.push(item.path());
            } else if seen.insert(meta.ino()) {
                sum += meta.blocks() * 512;
            }
        }
    }
    sum
}
