//! Compares a host's copy with the source: names, kinds, modes, link targets, bytes.

use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is at a path below the root.
#[derive(Debug, PartialEq, Eq)]
enum Thing {
    Directory { mode: u32 },
    File { mode: u32, hash: blake3::Hash },
    Link { target: PathBuf },
}

/// Everything below a root, by relative path. A single file stands under its own name.
#[derive(Debug)]
pub(super) struct Fingerprint {
    things: BTreeMap<PathBuf, Thing>,
    single: bool,
}

fn look(path: &Path) -> anyhow::Result<Thing> {
    let meta = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    let mode = meta.mode() & 0o7777;
    Ok(if meta.is_symlink() {
        Thing::Link { target: fs::read_link(path)? }
    } else if meta.is_dir() {
        Thing::Directory { mode }
    } else {
        let mut hasher = blake3::Hasher::new();
        let mut file = File::open(path).with_context(|| path.display().to_string())?;
        hasher.update_reader(&mut file)?;
        Thing::File { mode, hash: hasher.finalize() }
    })
}

fn walk(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, Thing>> {
    let mut things = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = item?.path();
            let thing = look(&path)?;
            if matches!(thing, Thing::Directory { .. }) {
                folders.push(path.clone());
            }
            things.insert(path.strip_prefix(root)?.to_path_buf(), thing);
        }
    }
    Ok(things)
}

/// Reads the source.
pub(super) fn fingerprint(source: &Path) -> anyhow::Result<Fingerprint> {
    if source.is_dir() {
        let mut things = walk(source)?;
        things.insert(PathBuf::new(), look(source)?);
        return Ok(Fingerprint { things, single: false });
    }
    let name = source.file_name().context("a file has a name")?;
    Ok(Fingerprint { things: BTreeMap::from([(PathBuf::from(name), look(source)?)]), single: true })
}

/// Says how a copy differs, if it does.
pub(super) fn matches(truth: &Fingerprint, copy: &Path) -> anyhow::Result<()> {
    // `current` is a link to the version.
    let copy = fs::canonicalize(copy).context("no copy is switched in")?;
    let mut things = walk(&copy)?;
    if !truth.single {
        things.insert(PathBuf::new(), look(&copy)?);
    }
    for (path, thing) in &truth.things {
        match things.remove(path) {
            None => bail!("{} is missing", path.display()),
            Some(found) if found != *thing => bail!("{} differs: {found:?}, not {thing:?}", path.display()),
            Some(_) => {}
        }
    }
    match things.keys().next() {
        Some(extra) => bail!("{} should not be there", extra.display()),
        None => Ok(()),
    }
}
