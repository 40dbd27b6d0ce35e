//! Folders on the disk: state folders that only their role can enter, and folders that other users read.
//!
//! Invariant: [`private`] returns only if no other user can enter the folder.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FolderError {
    #[error("cannot use folder {}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a folder; move it away or configure another folder", .0.display())]
    NotAFolder(PathBuf),
    /// The group or others can enter the folder.
    #[error("state folder {} has mode {mode:04o}, so other users can enter it; run `chmod 700` on it", .path.display())]
    Exposed { path: PathBuf, mode: u32 },
    /// Another user can change the mode.
    #[error(
        "state folder {} belongs to user {owner}, but the role runs as user {user}; run `chown -R {user}` on it",
        .path.display()
    )]
    Foreign { path: PathBuf, owner: u32, user: u32 },
}

/// Makes every file and folder that the process creates from now on its own user's alone.
pub fn restrict_new_files() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Creates a state folder of mode 0700, or checks the mode and the owner of an existing one.
///
/// # Errors
/// Fails if the folder cannot be created, is no folder, belongs to another user, or other users can enter it.
pub fn private(path: &Path) -> Result<(), FolderError> {
    if let Some(parent) = path.parent() {
        shared(parent)?;
    }
    create(path, 0o700)?;
    check_private(path)
}

/// Checks a state folder without changing anything. A missing folder is fine.
///
/// # Errors
/// Fails if the path is no folder, belongs to another user, or other users can enter it.
pub fn check_private(path: &Path) -> Result<(), FolderError> {
    let meta = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta.map_err(|source| FolderError::Io { path: path.to_path_buf(), source })?,
    };
    let (mode, user) = (meta.mode() & 0o7777, rustix::process::geteuid().as_raw());
    if !meta.is_dir() {
        return Err(FolderError::NotAFolder(path.to_path_buf()));
    }
    if meta.uid() != user {
        return Err(FolderError::Foreign { path: path.to_path_buf(), owner: meta.uid(), user });
    }
    if mode & 0o077 != 0 {
        return Err(FolderError::Exposed { path: path.to_path_buf(), mode });
    }
    Ok(())
}

/// Creates a folder that other users can read, with its parents. An existing folder keeps its mode.
///
/// # Errors
/// Fails if a folder cannot be created.
pub fn shared(path: &Path) -> Result<(), FolderError> {
    let mut missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    missing.retain(|folder| !folder.as_os_str().is_empty());
    missing.into_iter().rev().try_for_each(|folder| create(folder, 0o755))
}

/// Creates one folder with exactly this mode, whatever the umask is. An existing one stays as it is.
fn create(path: &Path, mode: u32) -> Result<(), FolderError> {
    let io = |source| FolderError::Io { path: path.to_path_buf(), source };
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created.and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode))).map_err(io),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_new_state_folder_is_private_and_its_parents_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("var/lib/state");
        private(&state).unwrap();
        private(&state).unwrap();
        assert_eq!(mode(&state), 0o700);
        assert_eq!(mode(state.parent().unwrap()), 0o755);
        let readers = dir.path().join("a/b");
        shared(&readers).unwrap();
        assert_eq!((mode(&readers), mode(readers.parent().unwrap())), (0o755, 0o755));
    }

    /// All modes of a folder. Only those without a bit for other users pass, and the error says what to do.
    #[test]
    fn an_exposed_state_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        for bits in 0..=0o7777 {
            fs::set_permissions(&state, Permissions::from_mode(bits)).unwrap();
            match private(&state) {
                Ok(()) => assert_eq!(bits & 0o077, 0, "{bits:04o} passed"),
                Err(error) => {
                    let text = error.to_string();
                    assert_ne!(bits & 0o077, 0, "{text}");
                    let named = [state.to_str().unwrap(), &format!("{bits:04o}"), "chmod 700"];
                    assert!(named.iter().all(|part| text.contains(part)), "{text}");
                }
            }
            assert_eq!(mode(&state), bits, "the mode is left to the operator");
        }
        fs::remove_dir(&state).unwrap();
        fs::write(&state, "").unwrap();
        assert!(matches!(private(&state), Err(FolderError::NotAFolder(_))));
    }

    #[test]
    fn a_state_folder_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return; // only root can make such a folder
        }
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        private(&state).unwrap();
        std::os::unix::fs::chown(&state, Some(65_534), None).unwrap();
        let text = private(&state).unwrap_err().to_string();
        assert!(text.contains("65534") && text.contains("chown"), "{text}");
    }
}
