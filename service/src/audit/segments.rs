//! The files of the audit log: lines of JSON, one file after the other.
//!
//! Invariant: a file only grows, and is deleted only when newer files exist in the kept number.

use super::AuditSettings;
use shoal_api::access::AuditEntry;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The beginning of the names of files of changes.
pub(crate) const CHANGES: &str = "changes";
/// The beginning of the names of files of refused requests.
pub(crate) const REFUSED: &str = "refused";
/// The longest line that a reader takes, bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// The files of one kind, of which the last one grows.
pub(crate) struct Segments {
    dir: PathBuf,
    kind: &'static str,
    settings: AuditSettings,
    number: u64,
    file: File,
    len: u64,
    /// The last line has no end, because a write failed half-way.
    is_torn: bool,
}

fn path_of(dir: &Path, kind: &str, number: u64) -> PathBuf {
    dir.join(format!("{kind}-{number:010}.log"))
}

/// Returns the numbers of the files of a kind, in order.
fn numbers(dir: &Path, kind: &str) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for item in fs::read_dir(dir)? {
        let name = item?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(kind)?.strip_prefix('-')?.strip_suffix(".log"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

impl Segments {
    /// Continues with the newest file, or begins the first one.
    pub(crate) fn open(dir: &Path, kind: &'static str, settings: AuditSettings) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let number = numbers(dir, kind)?.last().copied().unwrap_or(1);
        let mut file = open_file(&path_of(dir, kind, number))?;
        let len = file.metadata()?.len();
        let mut last = [b'\n'];
        if len > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        File::open(dir)?.sync_all()?;
        Ok(Self { dir: dir.to_path_buf(), kind, settings, number, file, len, is_torn: last != [b'\n'] })
    }

    /// Writes entries. The caller syncs if they must be durable.
    pub(crate) fn append(&mut self, entries: &[AuditEntry]) -> io::Result<()> {
        let mut lines = if self.is_torn { vec![b'\n'] } else { Vec::new() };
        for entry in entries {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        if self.len > 0 && self.len + lines.len() as u64 > self.settings.file_size.0 {
            self.begin_next()?;
        }
        self.is_torn = true;
        self.file.write_all(&lines)?;
        self.is_torn = false;
        self.len += lines.len() as u64;
        Ok(())
    }

    /// Returns once all entries survive a loss of power.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn begin_next(&mut self) -> io::Result<()> {
        let file = open_file(&path_of(&self.dir, self.kind, self.number + 1))?;
        // The former file may have entries that nobody waited for.
        self.file.sync_data()?;
        File::open(&self.dir)?.sync_all()?;
        (self.file, self.number, self.len, self.is_torn) = (file, self.number + 1, 0, false);
        let numbers = numbers(&self.dir, self.kind)?;
        let surplus = numbers.len().saturating_sub(self.settings.files as usize);
        numbers[..surplus].iter().try_for_each(|number| fs::remove_file(path_of(&self.dir, self.kind, *number)))
    }
}

/// Returns the newest `limit` entries of a kind that match, oldest first. Lines that cannot be read are skipped.
pub(crate) fn read(
    dir: &Path,
    kind: &str,
    since_ms: u64,
    limit: usize,
    matches: &impl Fn(&AuditEntry) -> bool,
) -> io::Result<Vec<AuditEntry>> {
    let mut found: Vec<AuditEntry> = Vec::new();
    for number in numbers(dir, kind)?.into_iter().rev() {
        let file = match File::open(path_of(dir, kind, number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break, // rotated away meanwhile
            file => file?,
        };
        let mut lines = BufReader::new(file);
        let mut of_file: Vec<AuditEntry> = Vec::new();
        let mut is_older = false;
        let mut line = Vec::new();
        while lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? > 0 {
            if let Ok(entry) = serde_json::from_slice::<AuditEntry>(&line) {
                is_older |= entry.time_ms < since_ms;
                of_file.extend(matches(&entry).then_some(entry));
            }
            line.clear();
            // Bounded by a part of the file: entries before the last `limit` ones are not wanted.
            if of_file.len() >= limit.saturating_mul(2).max(64) {
                of_file.drain(..of_file.len() - limit);
            }
        }
        of_file.append(&mut found);
        found = of_file;
        found.drain(..found.len().saturating_sub(limit));
        if is_older || found.len() >= limit {
            break;
        }
    }
    Ok(found)
}
