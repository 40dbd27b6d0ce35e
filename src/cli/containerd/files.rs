//! Files in folders where others keep theirs: bounded reads, atomic writes, backups.
//!
//! Invariant: a reader sees the old file or the new one, never a part. A new file has mode and owner of the old one.

use anyhow::{Context, bail};
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// The file in a registry's folder that containerd reads.
pub(crate) const FILE_NAME: &str = "hosts.toml";
/// Entries of a folder that are read at most.
pub(crate) const ENTRIES_MAX: usize = 10_000;
/// The file as it was before setup.
const BACKUP_NAME: &str = "hosts.toml.before-shoal";
const TEMPORARY_NAME: &str = ".hosts.toml.shoal";
/// Longest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
const MODE_NEW: u32 = 0o644;

/// Returns the bytes of a file, or `None` if there is no file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let shown = path.display();
    let found = match fs::metadata(path) {
        Ok(found) => found,
        // A new file would take the place of the link, and nothing could bring it back.
        Err(_) if path.is_symlink() => bail!("{shown} is a link to a file that does not exist: remove the link"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
    };
    // The read of a pipe would wait without limit.
    if !found.is_file() && !found.file_type().is_char_device() {
        bail!("cannot read {shown}, because it is not a file");
    }
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("cannot read {shown}, because it is longer than {FILE_BYTES_MAX} bytes");
    }
    Ok(Some(bytes))
}

/// Writes a file whole, with mode and owner of `like`.
pub(crate) fn write(path: &Path, text: &str, like: Option<&Metadata>) -> anyhow::Result<()> {
    let temporary = path.with_file_name(TEMPORARY_NAME);
    let _ = fs::remove_file(&temporary); // an earlier run may have been killed
    let written = write_new(&temporary, text.as_bytes(), like).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // the error of the write is the one to report
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn write_new(path: &Path, bytes: &[u8], like: Option<&Metadata>) -> io::Result<()> {
    let mode = like.map_or(MODE_NEW, |like| like.mode() & 0o7777);
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    if let Some(like) = like {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        // The umask and a change of the owner take bits from the mode.
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

/// Returns where the backup of a file is.
pub(crate) fn backup_of(path: &Path) -> PathBuf {
    path.with_file_name(BACKUP_NAME)
}

/// Keeps a file beside itself before another one takes its place.
pub(crate) fn back_up(path: &Path) -> anyhow::Result<()> {
    let (backup, temporary) = (backup_of(path), path.with_file_name(TEMPORARY_NAME));
    let _ = fs::remove_file(&temporary); // an earlier run may have been killed
    // A link keeps mode, owner, times and a symbolic link as they are. Some file systems have none.
    let linked = fs::hard_link(path, &temporary).or_else(|_| copy(path, &temporary));
    let kept = linked.and_then(|()| fs::rename(&temporary, &backup));
    // A rename of two names of one file does nothing, and the first name stays.
    let _ = fs::remove_file(&temporary);
    kept.with_context(|| format!("cannot keep {} as {}", path.display(), backup.display()))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let like = fs::metadata(from)?;
    write_new(to, &fs::read(from)?, Some(&like))
}
