//! The operator's log of switches on this host: a file of JSON lines beside the store.
//!
//! Invariant: there are at most two files of about [`FILE_BYTES_MAX`]. A failed write never delays a switch.

use serde::Serialize;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Size in bytes from which a new file replaces the current one.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One line of the journal.
#[derive(Debug, Serialize)]
pub(crate) struct Entry<'a> {
    /// Unix time in milliseconds.
    pub(crate) at_ms: u64,
    pub(crate) name: &'a str,
    pub(crate) rollout: String,
    pub(crate) attempt: u16,
    /// One of `begin`, `switched`, `undone`, `end` and `unhealthy`.
    pub(crate) event: &'a str,
    /// The version before the attempt. Empty for none.
    pub(crate) from: &'a str,
    /// The version that the attempt installs. Empty for none.
    pub(crate) to: &'a str,
    /// The host's state as in reports.
    pub(crate) state: String,
    /// The reason of `state`. Often empty.
    pub(crate) detail: &'a str,
}

/// The journal. Clones write to the same file.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    write_lock: Arc<Mutex<()>>,
}

impl Journal {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { path: dir.join("activations.jsonl"), write_lock: Arc::default() }
    }

    /// Appends a line.
    pub(crate) fn add(&self, entry: &Entry<'_>) {
        let _guard = self.write_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let written = (|| {
            if fs::metadata(&self.path).is_ok_and(|meta| meta.len() >= FILE_BYTES_MAX) {
                fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            }
            let mut line = serde_json::to_vec(entry)?;
            line.push(b'\n');
            OpenOptions::new().create(true).append(true).open(&self.path)?.write_all(&line)
        })();
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "cannot write the journal of switches");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_replaced() {
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
