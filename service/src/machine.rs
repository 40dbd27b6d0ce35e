//! What this machine has: memory, and disks below folders.
//!
//! Invariant: every figure is of this machine at this moment, and nothing is changed to find it.

use crate::config::ConfigError;
use rustix::fs::{statfs, statvfs};
use std::io;
use std::path::Path;

/// Types of file systems in memory, from Linux' `magic.h`: tmpfs and ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// The memory of the machine, bytes.
pub fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    // The types differ between processors.
    #[allow(clippy::useless_conversion, reason = "the types differ between processors")]
    let (ram, unit) = (u64::from(info.totalram), u64::from(info.mem_unit));
    ram.saturating_mul(unit)
}

/// The disk below a folder.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Size of the file system, bytes.
    pub total: u64,
    /// What a user without privileges may still write, bytes.
    pub available: u64,
    /// Whether the file system loses its files at a restart of the machine.
    pub is_in_memory: bool,
}

/// Returns the disk below a folder. A folder that does not exist is on the disk of its nearest parent.
///
/// # Errors
/// Fails if the system refuses to tell.
pub fn disk_of(folder: &Path) -> io::Result<Disk> {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let (space, kind) = (statvfs(existing)?, statfs(existing)?);
    #[allow(clippy::useless_conversion, reason = "the types differ between processors")]
    let is_in_memory = IN_MEMORY.contains(&i64::from(kind.f_type));
    Ok(Disk {
        total: space.f_blocks.saturating_mul(space.f_frsize),
        available: space.f_bavail.saturating_mul(space.f_frsize),
        is_in_memory,
    })
}

/// Checks that an amount of memory fits into the machine.
///
/// # Errors
/// Names the key of an amount that is zero or larger than the machine's memory.
pub fn check_memory(key: &str, bytes: u64) -> Result<(), ConfigError> {
    let all = memory_bytes();
    match bytes {
        0 => Err(ConfigError::invalid(key, "must be more than zero")),
        bytes if bytes > all => Err(ConfigError::invalid(
            key,
            format!("{bytes} bytes are more than the {all} bytes of this machine's memory: use less"),
        )),
        _ => Ok(()),
    }
}

/// Checks that an amount of disk space fits on the disk of a folder.
///
/// # Errors
/// Names the key of an amount that is larger than the disk.
pub fn check_disk(key: &str, bytes: u64, folder: &Path) -> Result<(), ConfigError> {
    // A folder that cannot be looked at is reported by what opens it.
    let Ok(disk) = disk_of(folder) else { return Ok(()) };
    if bytes <= disk.total {
        return Ok(());
    }
    let (total, folder) = (disk.total, folder.display());
    let why = format!("{bytes} bytes are more than the {total} bytes of the disk of {folder}: use less");
    Err(ConfigError::invalid(key, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_compared_with_this_machine() {
        assert!(memory_bytes() > 64 << 20);
        check_memory("x", 1).unwrap();
        for bytes in [0, memory_bytes() + 1, u64::MAX] {
            assert!(check_memory("x", bytes).unwrap_err().to_string().contains("`x`"), "{bytes}");
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = disk_of(&dir.path().join("not/yet/there")).unwrap();
        assert!(disk.total > 0 && disk.available <= disk.total);
        check_disk("y", disk.total, dir.path()).unwrap();
        assert!(check_disk("y", u64::MAX, dir.path()).unwrap_err().to_string().contains("`y`"));
        assert!(disk_of(Path::new("/dev/shm")).map_or(true, |disk| disk.is_in_memory));
    }
}
