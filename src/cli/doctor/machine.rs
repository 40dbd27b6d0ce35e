//! The doctor's checks of this machine: disk space, writes, the limit of open files, containerd.
//!
//! Invariant: a check leaves no file behind.

use super::report::Report;
use crate::cli::containerd::{self, ContainerdConfig};
use crate::cli::role_facts::Facts;
use shoal_service::machine::disk_of;
use shoal_service::units::ByteSize;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Free space of a disk below which there is a warning, percent.
const FREE_PERCENT_MIN: u64 = 5;
/// Open files that a role needs at least.
const OPEN_FILES_MIN: u64 = 4096;
/// What the units set.
const OPEN_FILES_UNIT: u64 = 65_536;
/// Bytes of the trial write.
const TRIAL_BYTES: usize = 64 << 10;

/// Checks the disks of the role's folders.
pub(crate) fn disks(report: &mut Report, facts: &Facts) {
    for dir in [Some(&facts.dir), facts.content_dir.as_ref()].into_iter().flatten() {
        space(report, dir, facts.min_free);
        trial(report, dir);
    }
}

fn space(report: &mut Report, dir: &Path, min_free: u64) {
    let shown = dir.display();
    let disk = match disk_of(dir) {
        Ok(disk) => disk,
        Err(error) => return report.fail("disk", format!("cannot look at {shown}: {error}"), "check the disk"),
    };
    let (free, total) = (ByteSize(disk.available).rounded(), ByteSize(disk.total).rounded());
    let found = format!("{free} of {total} are free for {shown}");
    if disk.available < min_free.max(TRIAL_BYTES as u64) {
        let wanted = ByteSize(min_free).rounded();
        let remedy = format!("free the disk or enlarge it: node.min_free keeps {wanted} free, so nothing can arrive");
        report.fail("disk", found, remedy);
    } else if disk.available < disk.total / 100 * FREE_PERCENT_MIN {
        report.warn("disk", found, "free the disk, enlarge it, or set node.quota");
    } else {
        report.ok("disk", found);
    }
}

/// Writes a small file and flushes it to the disk.
fn trial(report: &mut Report, dir: &Path) {
    let shown = dir.display();
    if !dir.exists() {
        return report.ok("write", format!("{shown} does not exist yet; the role creates it"));
    }
    match write_and_remove(dir) {
        Ok(()) => report.ok("write", format!("a write to {shown} reaches the disk")),
        Err(error) => {
            let remedy = "check owner and mode of the folder, the space and the health of the disk";
            report.fail("write", format!("a write to {shown} fails: {error}"), remedy);
        }
    }
}

fn write_and_remove(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".shoal-doctor-{}", std::process::id()));
    let written = File::options().write(true).create_new(true).mode(0o600).open(&path).and_then(|mut file| {
        file.write_all(&[0; TRIAL_BYTES])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// Checks the limit of open files: that of the running role, or that of this command.
pub(crate) fn open_files(report: &mut Report, of_role: Option<u64>) {
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let (limit, whose) = match of_role {
        Some(limit) => (limit, "the running role"),
        None => (own, "this shell, because the role does not run,"),
    };
    let found = format!("{whose} may open {limit} files");
    if limit < OPEN_FILES_MIN {
        let remedy = format!("set LimitNOFILE={OPEN_FILES_UNIT} in the unit, as deploy/systemd does, and restart");
        report.warn("open files", found, remedy);
    } else {
        report.ok("open files", found);
    }
}

/// Checks containerd's socket, and that its registries lead to the mirror.
pub(crate) fn containerd(report: &mut Report, facts: &Facts, hosts_dir: Option<&Path>, config: &Path) {
    let Some(socket) = &facts.containerd else { return };
    let shown = socket.display();
    match UnixStream::connect(socket) {
        Ok(_) => report.ok("containerd", format!("{shown} answers")),
        Err(error) => {
            let remedy = "start containerd, and let the role's group use its socket (see docs/operations/install.md)";
            report.fail("containerd", format!("cannot connect to {shown}: {error}"), remedy);
        }
    }
    let Some(mirror) = facts.mirror else { return };
    let config = ContainerdConfig::read(config);
    let reading = config.reading(hosts_dir, containerd::installed());
    registries(report, &reading.roots.dir, mirror);
    for note in containerd::notes(&config, &reading) {
        if note.is_failure {
            report.fail("containerd", note.found, note.remedy);
        } else {
            report.warn("containerd", note.found, note.remedy);
        }
    }
    if reading.is_read == Some(true) {
        report.ok("containerd", format!("containerd reads {}", reading.roots.dir.display()));
    }
}

/// Checks which folders lead to the mirror, and that containerd does not take others before them.
fn registries(report: &mut Report, dir: &Path, mirror: SocketAddr) {
    let (url, shown) = (format!("http://{mirror}"), dir.display());
    let leading = containerd::leading_to(dir, &url);
    match leading.len() {
        0 => {
            let remedy = format!("run `shoal containerd setup REGISTRY --mirror {mirror}` for each registry");
            report.warn("containerd", format!("no hosts.toml below {shown} leads to the mirror {url}"), remedy);
        }
        count => report.ok("containerd", format!("{count} registries below {shown} lead to the mirror {url}")),
    }
    for name in leading {
        if let Some(first) = containerd::hidden_by(dir, &name) {
            let found = format!("containerd takes {} before {}", first.display(), dir.join(&name).display());
            let remedy = format!("run `shoal containerd setup {name}` again, or remove one of the two folders");
            report.warn("containerd", found, remedy);
        }
    }
}
