//! Where a role may keep its folders.
//!
//! Invariant: a folder that passed [`check_place`] is absolute and no folder of the system. So the removal of
//! unfinished files in it touches no other program's files.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Folders that hold other programs' folders. None of them may be a role's folder, but a folder below one may.
const SHARED: [&str; 19] = [
    "/",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/cache",
    "/var/spool",
    "/var/tmp",
    "/var/www",
    "/home",
    "/root",
    "/opt",
    "/srv",
    "/mnt",
    "/media",
    "/run",
    "/tmp",
    "/usr/local",
    "/usr/share",
    "/var/run",
];
/// Folders of the system. Nothing below them may be a role's folder, with the exceptions of [`OPEN`].
const SYSTEM: [&str; 12] =
    ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/lost+found", "/proc", "/sbin", "/sys", "/usr"];
/// Folders below [`SYSTEM`] that hold other programs' data.
const OPEN: [&str; 3] = ["/usr/local", "/usr/share", "/dev/shm"];

/// Folders of [`SHARED`] from which files may be distributed.
const SOURCES: [&str; 6] = ["/tmp", "/var/tmp", "/var/www", "/srv", "/mnt", "/media"];

/// Why a folder cannot be a role's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PlaceError {
    #[error("{} is relative: use an absolute path", .0.display())]
    Relative(PathBuf),
    #[error("{} has a part `..`: write the path without it", .0.display())]
    Parent(PathBuf),
    #[error("{} is a folder of the system: use a folder of its own, for example below /var/lib/shoal", .0.display())]
    System(PathBuf),
    #[error("{} and {} are the same folder: use two folders", .0.display(), .1.display())]
    Same(PathBuf, PathBuf),
    #[error("{} lies in {}: use folders side by side", .0.display(), .1.display())]
    Nested(PathBuf, PathBuf),
}

/// Returns the path that the file system knows, as far as it exists.
pub fn real(path: &Path) -> PathBuf {
    for known in path.ancestors() {
        if let Ok(real) = fs::canonicalize(known) {
            // The rest does not exist, so it has no links.
            return path.strip_prefix(known).map_or_else(|_| path.to_path_buf(), |rest| real.join(rest));
        }
    }
    path.to_path_buf()
}

fn is_of_system(path: &Path) -> bool {
    let is_below = |folders: &[&str]| folders.iter().any(|folder| path.starts_with(folder));
    SHARED.iter().any(|folder| path == Path::new(folder))
        || is_below(&SYSTEM) && !(is_below(&OPEN) && OPEN.iter().all(|folder| path != Path::new(folder)))
}

/// Checks that a role may use a folder as its own. Links on the way count as the folders that they lead to.
///
/// # Errors
/// Fails if the path is relative, has a part `..`, or is a folder of the system.
pub fn check_place(path: &Path) -> Result<(), PlaceError> {
    if !path.is_absolute() {
        return Err(PlaceError::Relative(path.to_path_buf()));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(PlaceError::Parent(path.to_path_buf()));
    }
    let clean: PathBuf = path.components().collect();
    if is_of_system(&clean) || is_of_system(&real(&clean)) {
        return Err(PlaceError::System(path.to_path_buf()));
    }
    Ok(())
}

/// Checks that files may be distributed from a folder. As [`check_place`], but folders that people share pass too.
///
/// # Errors
/// Fails if the path is relative, has a part `..`, or is a folder of the system.
pub fn check_source(path: &Path) -> Result<(), PlaceError> {
    let is_source = |path: &Path| SOURCES.iter().any(|source| path == Path::new(source));
    match check_place(path) {
        Err(PlaceError::System(_)) if is_source(path) && is_source(&real(path)) => Ok(()),
        checked => checked,
    }
}

/// Checks that two folders are not the same and that neither lies in the other.
///
/// # Errors
/// Fails if the folders are equal or nested, also by links.
pub fn check_apart(one: &Path, other: &Path) -> Result<(), PlaceError> {
    let (real_one, real_other) = (real(one), real(other));
    let names = |a: &Path, b: &Path| (a.to_path_buf(), b.to_path_buf());
    if real_one == real_other {
        let (one, other) = names(one, other);
        return Err(PlaceError::Same(one, other));
    }
    let nested = if real_one.starts_with(&real_other) {
        names(one, other)
    } else if real_other.starts_with(&real_one) {
        names(other, one)
    } else {
        return Ok(());
    };
    Err(PlaceError::Nested(nested.0, nested.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_its_own_pass() {
        for good in ["/var/lib/shoal/peer", "/srv/www", "/data", "/tmp/x", "/usr/local/content", "/mnt/disk1/content/"]
        {
            assert_eq!(check_place(Path::new(good)), Ok(()), "{good}");
        }
        for bad in [
            "/",
            "//",
            "/.",
            "/etc",
            "/etc/",
            "/etc/./",
            "/etc/shoal/content",
            "/usr",
            "/usr/bin/x",
            "/usr/local",
            "/var",
            "/var/lib",
            "/home",
            "/root",
            "/tmp",
            "/proc/1",
            "/dev",
            "/sys/fs",
            "/boot/x",
            "/lib/x",
            "/var/lib/.",
        ] {
            assert_eq!(check_place(Path::new(bad)), Err(PlaceError::System(bad.into())), "{bad}");
        }
        for bad in ["content", "./content", ""] {
            assert_eq!(check_place(Path::new(bad)), Err(PlaceError::Relative(bad.into())), "{bad}");
        }
        assert_eq!(check_place(Path::new("/srv/../etc")), Err(PlaceError::Parent("/srv/../etc".into())));
    }

    #[test]
    fn links_count_as_the_folders_they_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("b")).unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(matches!(check_place(&at("link/new")), Err(PlaceError::System(_))));
        assert!(matches!(check_apart(&at("a"), &at("b")), Err(PlaceError::Same(..))));
        assert!(matches!(check_apart(&at("b/new"), &at("a")), Err(PlaceError::Nested(..))));
        assert!(matches!(check_apart(&at("a"), &at("b/x/y")), Err(PlaceError::Nested(..))));
        assert_eq!(check_apart(&at("a"), &at("ab")), Ok(()));
    }
}
