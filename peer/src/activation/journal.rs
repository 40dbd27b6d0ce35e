//! What happened to the versions of this host, when and why: a file of JSON lines beside the store.
//!
//! Invariant: at most two files of [`FILE_BYTES_MAX`] each; a journal that cannot be written delays nothing.

use serde::Serialize;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Size at which a file makes room for the next.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One line.
#[derive(Debug, Serialize)]
pub(crate) struct Entry<'a> {
    /// When, Unix milliseconds.
    pub(crate) at_ms: u64,
    /// The name.
    pub(crate) name: &'a str,
    /// The rollout.
    pub(crate) rollout: String,
    /// Its attempt.
    pub(crate) attempt: u16,
    /// What: `begin`, `switched`, `undone`, `end`, `unhealthy`.
    pub(crate) event: &'a str,
    /// The version before.
    pub(crate) from: &'a str,
    /// The version after.
    pub(crate) to: &'a str,
    /// How it ended.
    pub(crate) state: String,
    /// Why.
    pub(crate) detail: &'a str,
}

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    turn: Arc<Mutex<()>>,
}

/// Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Journal {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { path: dir.join("activations.jsonl"), turn: Arc::default() }
    }

    /// Adds a line.
    pub(crate) fn add(&self, entry: &Entry<'_>) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let written = (|| {
            if fs::metadata(&self.path).is_ok_and(|meta| meta.len() >= FILE_BYTES_MAX) {
                fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            }
            let mut line = serde_json::to_vec(entry)?;
            line.push(b'\n');
            OpenOptions::new().create(true).append(true).open(&self.path)?.write_all(&line)
        })();
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "cannot write the journal");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let detail = "x".repeat(100_000);
        let entry = Entry {
            at_ms: 1,
            name: "a",
            rollout: "r".into(),
            attempt: 1,
            event: "end",
            from: "1",
            to: "2",
            state: "active".into(),
            detail: &detail,
        };
        for _ in 0..30 {
            journal.add(&entry);
        }
        let mut files: Vec<u64> =
            fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).collect();
        files.sort_unstable();
        assert_eq!(files.len(), 2);
        assert!(files.iter().all(|len| *len < FILE_BYTES_MAX + 200_000), "{files:?}");
    }
}
