//! Compares a host's copy with the source.
//!
//! Invariant: copies match only if all names, kinds, link targets and bytes are equal, and each mode is the source's
//! mode within the hosts' mask.

use anyhow::{Context, bail};
use shoal_peer::activation::mode_mask::ModeMask;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file system entry at one path below the root.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, hash: blake3::Hash },
    Link { target: PathBuf },
}

/// All entries below a root, by relative path. A single file has its own name as its path.
#[derive(Debug)]
pub(crate) struct Fingerprint {
    entries: BTreeMap<PathBuf, Entry>,
    single: bool,
}

impl Entry {
    /// The entry that a host makes of this one, with the default of `mode_mask`.
    fn on_a_host(self) -> Self {
        let masked = |mode| ModeMask::default().apply(mode);
        match self {
            Self::Directory { mode } => Self::Directory { mode: masked(mode) },
            Self::File { mode, hash } => Self::File { mode: masked(mode), hash },
            Self::Link { target } => Self::Link { target },
        }
    }
}

fn read_entry(path: &Path) -> anyhow::Result<Entry> {
    let meta = fs::symlink_metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mode = meta.mode() & 0o7777;
    Ok(if meta.is_symlink() {
        Entry::Link { target: fs::read_link(path)? }
    } else if meta.is_dir() {
        Entry::Directory { mode }
    } else {
        let mut hasher = blake3::Hasher::new();
        let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        hasher.update_reader(&mut file)?;
        Entry::File { mode, hash: hasher.finalize() }
    })
}

fn walk(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, Entry>> {
    let mut entries = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for found in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = found?.path();
            let entry = read_entry(&path)?;
            if matches!(entry, Entry::Directory { .. }) {
                folders.push(path.clone());
            }
            entries.insert(path.strip_prefix(root)?.to_path_buf(), entry);
        }
    }
    Ok(entries)
}

/// Reads and hashes the source.
///
/// # Errors
///
/// An entry is unreadable.
pub(crate) fn fingerprint(source: &Path) -> anyhow::Result<Fingerprint> {
    if source.is_dir() {
        let mut entries = walk(source)?;
        entries.insert(PathBuf::new(), read_entry(source)?);
        let entries = entries.into_iter().map(|(path, entry)| (path, entry.on_a_host())).collect();
        return Ok(Fingerprint { entries, single: false });
    }
    let name = source.file_name().context("the source has no file name")?;
    Ok(Fingerprint { entries: BTreeMap::from([(PathBuf::from(name), read_entry(source)?.on_a_host())]), single: true })
}

/// Compares a copy with the source.
///
/// # Errors
///
/// The error names the first difference.
pub(crate) fn matches(truth: &Fingerprint, copy: &Path) -> anyhow::Result<()> {
    // `current` is a link to the version's folder.
    let copy = fs::canonicalize(copy).context("no version is active")?;
    let mut entries = walk(&copy)?;
    if !truth.single {
        entries.insert(PathBuf::new(), read_entry(&copy)?);
    }
    for (path, entry) in &truth.entries {
        match entries.remove(path) {
            None => bail!("{} is missing", path.display()),
            Some(found) if found != *entry => bail!("{} is {found:?} instead of {entry:?}", path.display()),
            Some(_) => {}
        }
    }
    match entries.keys().next() {
        Some(extra) => bail!("{} is not in the source", extra.display()),
        None => Ok(()),
    }
}
