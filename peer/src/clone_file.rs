//! Makes a file of a content without a copy of its bytes where the file system allows that.
//!
//! Invariant: a file in the store never changes, whatever happens to the clone's name.

use rustix::fs::ioctl_ficlone;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Creates `path` with the bytes of `stream` and this mode.
///
/// The first possible way is taken: a reflink, a hard link, a copy. A hard link needs a stream file with the same mode,
/// because a mode belongs to the file and not to its name.
///
/// # Errors
/// Fails if `path` exists, or if the file system fails.
pub(crate) fn clone_file(stream: &Path, size: u64, mode: u32, path: &Path) -> io::Result<()> {
    let mut copy = File::create_new(path)?;
    // A stream of no bytes has no file in the store.
    if size > 0 {
        let source = File::open(stream)?;
        let (of_stream, of_copy) = (source.metadata()?, copy.metadata()?);
        let same_disk = of_stream.dev() == of_copy.dev();
        let cloned = same_disk && ioctl_ficlone(&copy, &source).is_ok();
        if !cloned {
            if same_disk && of_stream.mode() & 0o7777 == mode {
                fs::remove_file(path)?;
                return fs::hard_link(stream, path);
            }
            io::copy(&mut &source, &mut copy)?;
        }
    }
    copy.set_permissions(Permissions::from_mode(mode))
}
