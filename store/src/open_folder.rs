//! An open folder, and what lies below it, reached without following a link.
//!
//! Invariant: no call leaves the folder, whatever another user swaps in below it meanwhile. No open waits for a pipe or
//! opens a device.

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, fchmod, fstat, linkat, mkdirat, openat,
    openat2, readlinkat, renameat, renameat_with, statat, symlinkat, syncfs, unlinkat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

/// Flags of every open. A pipe opens at once, and a link at the end is an error.
const SAFE: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);
const FOLDER: OFlags = SAFE.union(OFlags::RDONLY).union(OFlags::DIRECTORY);
/// How often an open is repeated that a rename elsewhere disturbed.
const ATTEMPTS_MAX: usize = 16;

/// An open folder.
#[derive(Debug)]
pub struct OpenFolder {
    fd: OwnedFd,
}

/// An entry of a folder.
pub struct FoundEntry {
    /// Its name in the folder.
    pub name: OsString,
    /// Whether it is a folder, and not a link to one.
    pub is_dir: bool,
}

impl From<OwnedFd> for OpenFolder {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl OpenFolder {
    /// Opens a folder that the operator named. The path may lead through links.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// Opens a folder below.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn folder(&self, path: &Path) -> io::Result<Self> {
        Ok(Self { fd: open_beneath(&self.fd, path, FOLDER, Mode::empty())? })
    }

    /// Opens the folder that holds `path`. Returns the name in it too.
    fn parent<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => Ok((open_beneath(&self.fd, parent, FOLDER, Mode::empty())?, name)),
            None => Ok((self.fd.try_clone()?, name)),
        }
    }

    /// Opens a folder below and creates what is missing of its path, with mode 0755.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn create_folders(&self, path: &Path) -> io::Result<Self> {
        let mut at = Self { fd: self.fd.try_clone()? };
        for part in path.components() {
            let name = Path::new(part.as_os_str());
            at = match at.folder(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => at.create_folder(name, 0o755)?,
                opened => opened?,
            };
        }
        Ok(at)
    }

    /// Creates a folder with this mode. Fails if another user put a folder of his in its place.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn create_folder(&self, path: &Path, mode: u32) -> io::Result<Self> {
        let (parent, name) = self.parent(path)?;
        mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
        let created = Self { fd: open_beneath(&parent, Path::new(name), FOLDER, Mode::empty())? };
        if fstat(&created.fd)?.st_uid != rustix::process::geteuid().as_raw() {
            return Err(Errno::STALE.into());
        }
        created.set_mode(mode)?;
        Ok(created)
    }

    /// Opens a regular file to read.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn file(&self, path: &Path) -> io::Result<File> {
        let fd = open_beneath(&self.fd, path, SAFE | OFlags::RDONLY, Mode::empty())?;
        match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::RegularFile => Ok(fd.into()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
    }

    /// Opens a file to read. The path may lead through links that stay in the folder, as an OCI layout's can.
    ///
    /// # Errors
    /// Fails if the system refuses a call, the path leads out, or it leads to no regular file.
    pub fn file_through_links(&self, path: &Path) -> io::Result<File> {
        let fd = open_inside(&self.fd, path)?;
        match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::RegularFile => Ok(fd.into()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
    }

    /// Returns the status of an entry of this folder. A link has a status of its own.
    ///
    /// # Errors
    /// Fails if the system refuses the call.
    pub fn status(&self, name: &OsStr) -> io::Result<Stat> {
        Ok(statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Creates a file of mode 0600 to write. Fails if the name is taken, also by a link.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn create_file(&self, path: &Path) -> io::Result<File> {
        let (parent, name) = self.parent(path)?;
        let flags = SAFE | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        Ok(openat(&parent, name, flags, Mode::from_raw_mode(0o600))?.into())
    }

    /// Creates a symbolic link.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn create_link(&self, target: &[u8], path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(symlinkat(OsStr::from_bytes(target), &parent, name)?)
    }

    /// Makes `name` another name of the file `source`, which lies outside.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn hard_link(&self, source: &Path, name: &OsStr) -> io::Result<()> {
        Ok(linkat(CWD, source, &self.fd, name, AtFlags::empty())?)
    }

    /// Returns the target of a link directly in this folder.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        Ok(OsString::from_vec(readlinkat(&self.fd, name, Vec::new())?.into_bytes()))
    }

    /// Whether the folder has an entry of this name, of any type.
    pub fn has(&self, name: &OsStr) -> bool {
        statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Whether the entry of this name is a folder, and not a link to one.
    pub fn has_folder(&self, name: &OsStr) -> bool {
        let found = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Renames an entry of this folder, and replaces a file or link of the new name.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Exchanges two entries of this folder.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<()> {
        Ok(renameat_with(&self.fd, one, &self.fd, other, RenameFlags::EXCHANGE)?)
    }

    /// Returns the entries of the folder, without `.` and `..`.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn entries(&self) -> io::Result<Vec<FoundEntry>> {
        let mut found = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_os_string();
            if name == "." || name == ".." {
                continue;
            }
            let is_dir = match entry.file_type() {
                FileType::Unknown => self.has_folder(&name),
                kind => kind == FileType::Directory,
            };
            found.push(FoundEntry { name, is_dir });
        }
        Ok(found)
    }

    /// Removes an entry and everything below it, whatever modes its folders have. A missing entry is fine.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        if !self.has_folder(name) {
            return match unlinkat(&self.fd, name, AtFlags::empty()) {
                Err(Errno::NOENT) => Ok(()),
                removed => Ok(removed?),
            };
        }
        self.allow_access(name)?;
        let folder = self.folder(Path::new(name))?;
        for entry in folder.entries()? {
            folder.remove(&entry.name)?;
        }
        Ok(unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    /// Makes a folder readable and writable for us. Root needs no such mode.
    fn allow_access(&self, name: &OsStr) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open_beneath(&self.fd, Path::new(name), flags, Mode::empty())?;
        // A descriptor without read permission accepts no `fchmod`, but its name in `/proc` leads to the same folder.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Ok(rustix::fs::chmod(path, Mode::from_raw_mode(0o700))?)
    }

    /// Sets the mode of the folder itself.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(fchmod(&self.fd, Mode::from_raw_mode(mode))?)
    }

    /// Flushes the folder itself to the disk.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Flushes the whole file system of the folder to the disk.
    ///
    /// # Errors
    /// Fails if the system refuses a call, or the path leads out.
    pub fn sync_file_system(&self) -> io::Result<()> {
        Ok(syncfs(&self.fd)?)
    }
}

/// Opens a path below a folder. No part of the path may be a link.
fn open_beneath(folder: &OwnedFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..ATTEMPTS_MAX {
        match openat2(folder, path, flags, mode, resolve) {
            // Linux before 5.6 lacks the call, and some system call filters refuse it.
            Err(Errno::NOSYS | Errno::PERM) => return walk_beneath(folder, path, flags, mode),
            Err(Errno::AGAIN) => {}
            opened => return Ok(opened?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Opens a path below a folder to read. Links on the way may lead anywhere in the folder and never out of it.
///
/// # Errors
/// Fails if the system refuses the call or a link leads out. Linux before 5.6 follows no link at all.
pub(crate) fn open_inside(folder: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    for _ in 0..ATTEMPTS_MAX {
        match openat2(folder, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::NOSYS | Errno::PERM) => return walk_beneath(folder, path, flags, Mode::empty()),
            Err(Errno::AGAIN) => {}
            opened => return Ok(opened?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// As [`open_beneath`], one part of the path at a time.
fn walk_beneath(folder: &OwnedFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let mut at = folder.try_clone()?;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else { return Err(Errno::XDEV.into()) };
        if parts.peek().is_none() {
            return Ok(openat(&at, name, flags | OFlags::NOFOLLOW, mode)?);
        }
        let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = openat(&at, name, through, Mode::empty())?;
    }
    Err(Errno::NOENT.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    type Opening = fn(&OwnedFd, &Path, OFlags, Mode) -> io::Result<OwnedFd>;
    const WAYS: [Opening; 2] = [open_beneath, walk_beneath];

    /// Both ways agree on every path, and neither leaves the folder or waits.
    #[test]
    fn links_pipes_and_parents_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
        fs::create_dir_all(inside.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(inside.join("a/b/file"), "in").unwrap();
        fs::write(outside.join("file"), "out").unwrap();
        symlink(&outside, inside.join("away")).unwrap();
        symlink("a", inside.join("near")).unwrap();
        symlink("../outside/file", inside.join("a/up")).unwrap();
        rustix::fs::mknodat(CWD, inside.join("a/pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let folder = OpenFolder::open(&inside).unwrap();
        for way in WAYS {
            let open = |path: &str| way(&folder.fd, Path::new(path), SAFE | OFlags::RDONLY, Mode::empty());
            assert!(open("a/b/file").is_ok());
            for path in ["away/file", "near/b/file", "a/up", "../outside/file", "a/../../outside/file", "away", ""] {
                assert!(open(path).is_err(), "{path}");
            }
            assert!(open("/etc/passwd").is_err());
            assert!(open("a/pipe").is_ok(), "the open of a pipe does not wait");
        }
        assert!(folder.file(Path::new("a/pipe")).is_err(), "a pipe is no file");
        for inside in ["near/b/file", "a/../a/b/file"] {
            assert!(folder.file_through_links(Path::new(inside)).is_ok(), "{inside}");
        }
        for outside in ["away/file", "a/up", "../outside/file", "/etc/passwd"] {
            assert!(folder.file_through_links(Path::new(outside)).is_err(), "{outside}");
        }
        assert!(folder.create_file(Path::new("away/new")).is_err());
        assert!(folder.create_file(Path::new("a/up")).is_err(), "a link takes its name");
        assert!(folder.create_folders(Path::new("away/new")).is_err());
        assert!(!outside.join("new").exists());
        folder.remove(OsStr::new("away")).unwrap();
        folder.remove(OsStr::new("a")).unwrap();
        folder.remove(OsStr::new("missing")).unwrap();
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"out", "a removal follows no link");
    }

    #[test]
    fn folders_without_any_mode_bit_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = OpenFolder::open(dir.path()).unwrap();
        let made = folder.create_folders(Path::new("x/y/z")).unwrap();
        made.set_mode(0).unwrap();
        folder.folder(Path::new("x/y")).unwrap().set_mode(0).unwrap();
        folder.remove(OsStr::new("x")).unwrap();
        assert!(!folder.has(OsStr::new("x")));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        folder.create_folders(Path::new("p/q")).unwrap();
        assert_eq!(mode(&dir.path().join("p/q")), 0o755);
    }
}
