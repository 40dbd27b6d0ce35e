//! What one run needs: namespaces, processes, the content and a folder.
//!
//! Invariant: the fields are dropped in their order, so processes end before their namespaces and files disappear.

use crate::content::Content;
use crate::namespaces::Racks;
use crate::output::note;
use crate::processes::Processes;
use anyhow::Context;
use shoal_testkit::Program;
use std::path::{Path, PathBuf};

/// All resources of one run.
pub(crate) struct Stage {
    pub(crate) processes: Processes,
    pub(crate) racks: Racks,
    pub(crate) content: Content,
    /// Parity shards in a stripe, for Shoal.
    pub(crate) parity: u8,
    /// Shoal itself.
    pub(crate) program: Program,
    pub(crate) dir: Folder,
}

/// The files of a run. They are removed with it unless `keep` is set.
pub(crate) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// Makes an empty folder for this process.
    pub(crate) fn create(base: &Path, keep: bool) -> anyhow::Result<Self> {
        let path = std::path::absolute(base)?.join(format!("lab-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path); // An earlier run may have left files here.
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, keep })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep {
            note(&format!("the files are in {}", self.path.display()));
        } else {
            // What cannot be removed stays for the next cleaning of temporary files.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
