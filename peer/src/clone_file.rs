//! Makes a file of a content without a copy of its bytes where the file system allows that.
//!
//! Invariant: a file in the store never changes, whatever happens to the clone's name. Only the store's owner can write
//! to a file that a store and another folder share.

use rustix::fs::ioctl_ficlone;
use shoal_store::open_folder::OpenFolder;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Creates `name` in `folder` with the bytes of `stream` and this mode.
///
/// The first possible way is taken: a reflink, a hard link, a copy. A mode belongs to a file and not to its name. So a
/// hard link needs a stream file that has this mode, or that has no other name and gets this mode. Users who cannot
/// enter the state folder reach the stream file only under the new name.
///
/// # Errors
/// Fails if `name` exists, or if the file system fails.
pub(crate) fn clone_file(stream: &Path, size: u64, mode: u32, folder: &OpenFolder, name: &OsStr) -> io::Result<()> {
    let mut copy = folder.create_file(Path::new(name))?;
    // A stream of no bytes has no file in the store.
    if size > 0 {
        let source = File::open(stream)?;
        let (of_stream, of_copy) = (source.metadata()?, copy.metadata()?);
        let same_disk = of_stream.dev() == of_copy.dev();
        let cloned = same_disk && ioctl_ficlone(&copy, &source).is_ok();
        if !cloned {
            let has_mode = of_stream.mode() & 0o7777 == mode;
            let only_owner_writes = mode & 0o022 == 0;
            if same_disk && only_owner_writes && (has_mode || of_stream.nlink() == 1) {
                source.set_permissions(Permissions::from_mode(mode))?;
                folder.remove(name)?;
                match folder.hard_link(stream, name) {
                    Ok(()) => return Ok(()),
                    // Some file systems have no hard links, or no more for this file.
                    Err(_) => copy = folder.create_file(Path::new(name))?,
                }
            }
            io::copy(&mut &source, &mut copy)?;
        }
    }
    copy.set_permissions(Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Modes that several clones of one stream have, in turn. No clone changes the mode of an earlier one.
    #[test]
    fn every_clone_keeps_its_mode_and_only_the_owner_can_write_a_shared_file() {
        let dir = tempfile::tempdir().unwrap();
        let stream = dir.path().join("stream");
        fs::write(&stream, "payload").unwrap();
        fs::set_permissions(&stream, Permissions::from_mode(0o600)).unwrap();
        let folder = OpenFolder::open(dir.path()).unwrap();
        let modes = [0o666, 0o622, 0o644, 0o755, 0o644, 0o600, 0o444, 0o777];
        for (number, mode) in modes.into_iter().enumerate() {
            clone_file(&stream, 7, mode, &folder, OsStr::new(&format!("clone{number}"))).unwrap();
            for (number, mode) in modes.into_iter().enumerate().take(number + 1) {
                let path = dir.path().join(format!("clone{number}"));
                let meta = fs::metadata(&path).unwrap();
                assert_eq!(meta.mode() & 0o7777, mode, "clone{number}");
                assert_eq!(fs::read(&path).unwrap(), b"payload");
                let shared = meta.ino() == fs::metadata(&stream).unwrap().ino();
                assert!(!shared || mode & 0o022 == 0, "{mode:04o}");
            }
        }
        let taken = clone_file(&stream, 7, 0o644, &folder, OsStr::new("clone0"));
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
