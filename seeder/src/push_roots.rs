//! The folders below which pushes take their paths.
//!
//! Invariant: no push reads a file outside of the configured roots, below a folder of the system, or beside a key or in
//! the state of the seeder, also by a link and also if a local user changes the path meanwhile.

use shoal_service::folder_places::{PlaceError, check_source, real};
use shoal_store::OpenSource;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Where pushes take their paths without a configuration.
pub(crate) const DEFAULT_ROOT: &str = "/var/lib/shoal/drop";
/// Roots that a configuration may name.
const ROOTS_MAX: usize = 64;
/// `EXDEV` of `openat2`: the path leads out of its folder.
const LEADS_OUT: i32 = 18;

/// Why a path cannot be pushed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushPathError {
    #[error("{} is not an absolute path", .0.display())]
    Relative(PathBuf),
    #[error("{} lies below none of the push roots: {}", .path.display(), listed(.roots))]
    Outside { path: PathBuf, roots: Vec<PathBuf> },
    #[error("a link leads from {} out of the push root {}", .path.display(), .root.display())]
    LeadsOut { path: PathBuf, root: PathBuf },
    #[error("{} holds or lies in {}, {what}", .path.display(), .folder.display())]
    Private { path: PathBuf, folder: PathBuf, what: &'static str },
    #[error(transparent)]
    System(PlaceError),
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
}

fn listed(roots: &[PathBuf]) -> String {
    match roots {
        [] => "none is configured".into(),
        roots => roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", "),
    }
}

/// Why a folder cannot be a push root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("use at most {ROOTS_MAX} folders")]
    TooMany,
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("{} lies in {}, {what}: use a folder apart", .root.display(), .folder.display())]
    Private { root: PathBuf, folder: PathBuf, what: &'static str },
}

/// A folder of the seeder that no push may read.
#[derive(Clone, Debug)]
pub(crate) struct PrivateFolder {
    pub(crate) path: PathBuf,
    /// What the folder has, as messages say it.
    pub(crate) what: &'static str,
}

/// The folders below which pushes take their paths.
#[derive(Clone, Debug)]
pub(crate) struct PushRoots {
    pub(crate) roots: Vec<PathBuf>,
    pub(crate) private: Vec<PrivateFolder>,
}

impl PushRoots {
    /// Checks the roots themselves.
    ///
    /// # Errors
    /// Returns an error if a root is no folder for sources, or lies in a private folder.
    pub(crate) fn check(&self) -> Result<(), RootError> {
        if self.roots.len() > ROOTS_MAX {
            return Err(RootError::TooMany);
        }
        for root in &self.roots {
            check_source(root)?;
            for PrivateFolder { path, what } in &self.private {
                if real(root).starts_with(real(path)) {
                    return Err(RootError::Private { root: root.clone(), folder: path.clone(), what });
                }
            }
        }
        Ok(())
    }

    /// Opens a path to be pushed. Blocks.
    ///
    /// # Errors
    /// Returns an error if the path lies outside of the roots, or in a folder that no push may read.
    pub(crate) fn open(&self, path: &Path) -> Result<OpenSource, PushPathError> {
        if !path.is_absolute() {
            return Err(PushPathError::Relative(path.to_path_buf()));
        }
        let has_parent = path.components().any(|part| part == Component::ParentDir);
        let root = self.roots.iter().find(|root| path.starts_with(root)).filter(|_| !has_parent);
        let Some(root) = root else {
            return Err(PushPathError::Outside { path: path.to_path_buf(), roots: self.roots.clone() });
        };
        let below = path.strip_prefix(root).unwrap_or(Path::new(""));
        let opened = match below.as_os_str().is_empty() {
            true => OpenSource::open(root),
            false => OpenSource::open_below(root, below),
        };
        let opened = opened.map_err(|source| match source.raw_os_error() {
            Some(LEADS_OUT) => PushPathError::LeadsOut { path: path.to_path_buf(), root: root.clone() },
            _ => PushPathError::Read { path: path.to_path_buf(), source },
        })?;
        // The root itself may be a link, which leads elsewhere than at the start.
        check_source(opened.real_path()).map_err(PushPathError::System)?;
        self.check_private(path, opened.real_path())?;
        Ok(opened)
    }

    /// Checks that a path, as the system knows it, is apart from keys and state.
    fn check_private(&self, path: &Path, known: &Path) -> Result<(), PushPathError> {
        for PrivateFolder { path: folder, what } in &self.private {
            let private = real(folder);
            if known.starts_with(&private) || private.starts_with(known) {
                return Err(PushPathError::Private { path: path.to_path_buf(), folder: folder.clone(), what });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SeederConfig;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Place {
        dir: tempfile::TempDir,
        config: SeederConfig,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["drop/sub", "keys", "state", "other"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["drop/file", "drop/sub/file", "keys/a.key", "state/db", "other/file", "drop2"] {
            fs::write(at(file), file).unwrap();
        }
        let mut config = SeederConfig {
            dir: at("state"),
            publisher_key: at("keys/a.key"),
            admin_token: at("keys/a.token"),
            push_roots: vec![at("drop")],
            ..SeederConfig::default()
        };
        config.node.key = at("keys/node.key");
        Place { dir, config }
    }

    #[test]
    fn only_paths_below_a_root_open() {
        let Place { dir, config } = place();
        let at = |name: &str| dir.path().join(name);
        symlink("sub", at("drop/near")).unwrap();
        symlink("/etc/passwd", at("drop/away")).unwrap();
        symlink("../other", at("drop/up")).unwrap();
        let roots = config.push_roots();
        for good in ["drop", "drop/", "drop/file", "drop/sub", "drop/sub/file", "drop/near", "drop/near/file"] {
            assert!(roots.open(&at(good)).is_ok(), "{good}");
        }
        for bad in ["drop2", "other/file", "keys/a.key", "", "drop/../other/file", "drop/sub/.."] {
            let error = roots.open(&at(bad)).unwrap_err();
            assert!(matches!(error, PushPathError::Outside { .. }), "{bad}: {error}");
            assert!(error.to_string().contains(at("drop").to_str().unwrap()), "{error}");
        }
        for bad in ["drop/away", "drop/up/file", "drop/up"] {
            let error = roots.open(&at(bad)).unwrap_err();
            assert!(matches!(error, PushPathError::LeadsOut { .. }), "{bad}: {error}");
        }
        assert!(matches!(roots.open(Path::new("drop/file")), Err(PushPathError::Relative(_))));
        assert!(matches!(roots.open(&at("drop/none")), Err(PushPathError::Read { .. })));
    }

    #[test]
    fn keys_and_state_below_a_root_stay_private() {
        let Place { dir, mut config } = place();
        config.push_roots = vec![dir.path().to_path_buf()];
        let roots = config.push_roots();
        roots.check().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("keys", at("other/link")).unwrap();
        symlink("../keys/a.key", at("other/key")).unwrap();
        for bad in ["", "keys", "keys/a.key", "state", "state/db", "other/key"] {
            let error = roots.open(&at(bad)).unwrap_err();
            assert!(matches!(error, PushPathError::Private { .. }), "{bad}: {error}");
        }
        assert!(roots.open(&at("other/file")).is_ok());
    }

    #[test]
    fn roots_of_the_system_or_beside_keys_are_refused() {
        let Place { dir, config } = place();
        let with =
            |root: &Path| SeederConfig { push_roots: vec![root.to_path_buf()], ..config.clone() }.push_roots().check();
        for bad in ["/", "/etc", "/etc/shoal/x", "/proc/self", "/sys", "/dev", "/root", "/home", "/var/lib", "drop"] {
            assert!(with(Path::new(bad)).is_err(), "{bad}");
        }
        for bad in ["keys", "keys/below", "state", "state/x"] {
            assert!(with(&dir.path().join(bad)).is_err(), "{bad}");
        }
        symlink("/etc", dir.path().join("link")).unwrap();
        assert!(with(&dir.path().join("link")).is_err(), "a link to a folder of the system");
        with(&dir.path().join("drop")).unwrap();
        with(Path::new("/srv")).unwrap();
    }

    /// A root that becomes a link after the start.
    #[test]
    fn a_root_that_turns_into_a_link_reads_nothing_private() {
        let Place { dir, config } = place();
        let roots = config.push_roots();
        for target in ["/etc", "keys"] {
            let _ = fs::rename(dir.path().join("drop"), dir.path().join("away"));
            symlink(target, dir.path().join("drop")).unwrap();
            for path in ["drop", "drop/passwd", "drop/a.key"] {
                let opened = roots.open(&dir.path().join(path));
                assert!(opened.is_err(), "{path} through {target}");
            }
            fs::remove_file(dir.path().join("drop")).unwrap();
        }
    }
}
