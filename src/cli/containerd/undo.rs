//! Removes what setup wrote.
//!
//! Invariant: a file without later changes is restored exactly. Of a changed file only the lines of shoal go. A file
//! that cannot be restored stays and does not stop the others.

use super::files::{self, ENTRIES_MAX, FILE_NAME};
use super::folders::{DEFAULT, names};
use super::hosts_toml::{Marked, has_mark};
use super::setup::{Change, Changed, canonical};
use anyhow::{Context, bail};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Removes what setup wrote below `dir`, for these registries or for all. A dry run changes nothing.
///
/// # Errors
/// Fails if a name is not that of a registry, or if the folder cannot be listed.
pub(crate) fn undo(dir: &Path, registries: &[String], is_dry_run: bool) -> anyhow::Result<Vec<Changed>> {
    let files = if registries.is_empty() { all(dir)? } else { of_registries(dir, &canonical(registries)?) };
    let mut changed = Vec::new();
    for file in files {
        match undo_one(&file, is_dry_run) {
            Ok(found) => changed.extend(found),
            Err(error) => changed.push(Changed { file, change: Change::Kept, notes: vec![format!("{error:#}")] }),
        }
    }
    Ok(changed)
}

fn of_registries(dir: &Path, registries: &[String]) -> Vec<PathBuf> {
    let own = |registry: &String| {
        let names = names(registry).into_iter();
        // `_default` answers for a registry and is not its own.
        names.filter(|name| name != DEFAULT || registry == DEFAULT).collect::<Vec<_>>()
    };
    registries.iter().flat_map(own).map(|name| dir.join(name).join(FILE_NAME)).collect()
}

fn all(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot_list = || format!("cannot list {}", dir.display());
    let items = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        items => items.with_context(cannot_list)?,
    };
    let mut files = Vec::new();
    for item in items.take(ENTRIES_MAX) {
        files.push(item.with_context(cannot_list)?.path().join(FILE_NAME));
    }
    files.sort();
    Ok(files)
}

fn undo_one(path: &Path, is_dry_run: bool) -> anyhow::Result<Option<Changed>> {
    // There may be files beside the folders of registries, and a folder may have the name of the file.
    if !path.is_file() {
        return Ok(None);
    }
    let Some(bytes) = files::read(path)?.filter(|bytes| has_mark(bytes)) else { return Ok(None) };
    let Ok(text) = std::str::from_utf8(&bytes) else { bail!("it is not UTF-8: remove the lines of shoal by hand") };
    let marked = Marked::parse(text);
    if marked.is_foreign() {
        return Ok(None);
    }
    if marked.is_edited() {
        bail!(
            "the lines between `# shoal begin` and `# shoal end` were changed, and undo would lose the changes: remove \
             the lines by hand"
        );
    }
    let step = step(path, &marked)?;
    if !is_dry_run {
        step.run(path)?;
    }
    Ok(Some(step.changed(path)))
}

/// What undo does with a file.
enum Step {
    /// The backup takes the place of the file.
    Restore,
    /// The file goes, and its folder if setup created it.
    Remove { with_folder: bool },
    /// The file keeps what others wrote after setup.
    Write { text: String, has_backup: bool },
}

fn step(path: &Path, marked: &Marked<'_>) -> anyhow::Result<Step> {
    let (flags, rest) = (marked.flags(), marked.rest());
    let backup = files::read(&files::backup_of(path))?;
    let is_untouched = match &backup {
        Some(_) if flags.is_replacement => rest.trim().is_empty(),
        Some(backup) => !flags.is_new && *backup == rest.as_bytes(),
        None => false,
    };
    Ok(if is_untouched {
        Step::Restore
    } else if flags.is_whole() && rest.trim().is_empty() {
        Step::Remove { with_folder: flags.is_new_folder }
    } else {
        Step::Write { text: rest, has_backup: backup.is_some() && !flags.is_new }
    })
}

impl Step {
    fn run(&self, path: &Path) -> anyhow::Result<()> {
        let shown = path.display();
        match self {
            Self::Restore => {
                fs::rename(files::backup_of(path), path).with_context(|| format!("cannot restore {shown}"))
            }
            Self::Remove { with_folder } => {
                fs::remove_file(path).with_context(|| format!("cannot remove {shown}"))?;
                if let Some(folder) = path.parent().filter(|_| *with_folder) {
                    let _ = fs::remove_dir(folder); // fails if the folder has other files
                }
                Ok(())
            }
            Self::Write { text, .. } => {
                let like = fs::metadata(path).with_context(|| format!("cannot look at {shown}"))?;
                files::write(path, text, Some(&like))
            }
        }
    }

    fn changed(&self, path: &Path) -> Changed {
        let mut notes = Vec::new();
        let change = match self {
            Self::Restore => Change::Restored,
            Self::Remove { .. } => Change::Removed,
            Self::Write { has_backup, .. } => {
                notes.push("the file was changed after setup, so only the lines of shoal are removed".to_string());
                if *has_backup {
                    notes.push(format!("{} is the file before setup", files::backup_of(path).display()));
                }
                Change::LinesRemoved
            }
        };
        Changed { file: path.to_path_buf(), change, notes }
    }
}
