//! Archives on the disk, and state folders made from them.
//!
//! Invariant: an archive file and a restored folder appear in one step, under their final names, only when they are
//! complete.

use super::archive::{Head, Record, Writer, read};
use super::error::BackupError;
use super::socket::{is_running, unix_now};
use crate::folders;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A secret to include in an archive.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct SecretFile {
    pub name: &'static str,
    pub path: PathBuf,
}

/// A secret of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Secret {
    pub name: String,
    pub body: Vec<u8>,
}

/// An archive that [`save`] wrote.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct SavedArchive {
    pub head: Head,
    pub bytes: u64,
}

/// Writes the archive that comes from a role to the file `out` of mode 0600, and appends `secrets`.
///
/// # Errors
///
/// Fails if the input is malformed or damaged, or a file cannot be read or written. `out` is unchanged then.
pub fn save(input: impl Read, out: &Path, secrets: &[SecretFile]) -> Result<SavedArchive, BackupError> {
    let temporary = out.with_extension("part");
    let _ = fs::remove_file(&temporary); // a killed process may have left it
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let saved = copy_archive(input, file, secrets).and_then(|saved| {
        fs::rename(&temporary, out)?;
        Ok(saved)
    });
    if saved.is_err() {
        let _ = fs::remove_file(&temporary); // the error is reported in any case
    }
    saved
}

/// Copies an archive, checks it, appends the secrets and flushes the file to the disk.
fn copy_archive(input: impl Read, file: File, secrets: &[SecretFile]) -> Result<SavedArchive, BackupError> {
    let mut file = Some(BufWriter::new(file));
    let mut writer: Option<Writer<BufWriter<File>>> = None;
    let head = read(input, |head, record| {
        // The head is known from the first record on.
        if let Some(file) = file.take() {
            writer = Some(Writer::new(file, head)?);
        }
        let Some(writer) = &mut writer else { return Ok(()) };
        match record {
            Record::Row { table, key, value } => writer.row(table, key, value)?,
            Record::Secret { name, body } => writer.secret(name, body)?,
            Record::File { path, len, body } => writer.file_body(path, len, body)?,
        }
        Ok(())
    })?;
    let mut writer = match (writer, file) {
        (Some(writer), _) => writer,
        // An archive without records.
        (None, Some(file)) => Writer::new(file, &head)?,
        (None, None) => return Err(BackupError::Damaged("it is empty")),
    };
    for SecretFile { name, path } in secrets {
        writer.secret(name, &fs::read(path)?)?;
    }
    let file = writer.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    let bytes = file.metadata()?.len();
    Ok(SavedArchive { head, bytes })
}

/// Takes the rows of an archive.
pub trait Rows {
    /// Takes one row.
    ///
    /// # Errors
    ///
    /// Fails if the row cannot be stored.
    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError>;

    /// Checks the path of a file of the archive, relative to the state folder. Most roles keep rows only.
    ///
    /// # Errors
    ///
    /// Fails if the role has no such file.
    fn check_file(&self, path: &Path) -> Result<(), BackupError> {
        let _ = path;
        Err(BackupError::Malformed("the role has no such file"))
    }

    /// Ends the rows. They survive a loss of power from then on.
    ///
    /// # Errors
    ///
    /// Fails if the rows cannot be flushed to the disk.
    fn finish(self: Box<Self>) -> Result<(), BackupError>;
}

/// A state folder that [`restore`] made.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Restored {
    pub head: Head,
    pub secrets: Vec<Secret>,
}

/// Makes a state folder from an archive. `open` makes the tables in the folder that it gets. With `force`, a folder
/// that is not empty is moved aside.
///
/// # Errors
///
/// Fails if the archive is malformed, damaged or of another role, the role runs on the folder, or the folder is not
/// empty and `force` is not set. `folder` is unchanged then.
pub fn restore(
    archive: &Path,
    role: &str,
    folder: &Path,
    force: bool,
    open: impl FnOnce(&Path) -> Result<Box<dyn Rows>, BackupError>,
) -> Result<Restored, BackupError> {
    // The first pass checks the whole archive before anything is made.
    let head = read(BufReader::new(File::open(archive)?), |_, _| Ok(()))?;
    if head.role != role {
        return Err(BackupError::Malformed("it is the backup of another role"));
    }
    if is_running(folder) {
        return Err(BackupError::Running { role: role.to_string(), folder: folder.to_path_buf() });
    }
    let occupied = fs::read_dir(folder).is_ok_and(|mut items| items.next().is_some());
    if occupied && !force {
        return Err(BackupError::InTheWay(folder.to_path_buf()));
    }
    let new_folder = beside(folder, "restoring");
    if new_folder.exists() {
        fs::remove_dir_all(&new_folder)?;
    }
    folders::private(&new_folder)?;
    let secrets = open(&new_folder).and_then(|rows| restore_records(archive, &new_folder, rows));
    let moved = secrets.and_then(|secrets| {
        if occupied {
            fs::rename(folder, beside(folder, &format!("before-{}", unix_now())))?;
        } else if folder.exists() {
            fs::remove_dir(folder)?;
        }
        fs::rename(&new_folder, folder)?;
        Ok(secrets)
    });
    if moved.is_err() {
        let _ = fs::remove_dir_all(&new_folder); // the cause of the failure is reported
    }
    Ok(Restored { head, secrets: moved? })
}

fn restore_records(archive: &Path, folder: &Path, mut rows: Box<dyn Rows>) -> Result<Vec<Secret>, BackupError> {
    let mut secrets = Vec::new();
    read(BufReader::new(File::open(archive)?), |_, record| {
        match record {
            Record::Row { table, key, value } => rows.row(table, key, value)?,
            Record::Secret { name, body } => secrets.push(Secret { name: name.to_string(), body: body.to_vec() }),
            Record::File { path, body, .. } => {
                rows.check_file(path)?;
                let path = folder.join(path);
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                let mut file = File::create_new(path)?;
                io::copy(body, &mut file)?;
                file.sync_data()?;
            }
        }
        Ok(())
    })?;
    rows.finish()?;
    Ok(secrets)
}

/// Returns the path of a folder beside `folder`, so that a rename between them stays on one file system.
fn beside(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{suffix}"));
    folder.with_file_name(name)
}
