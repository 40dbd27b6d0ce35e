//! The doctor's checks of this machine: disk space, writes, the limit of open files, containerd.
//!
//! Invariant: a check leaves no file behind.

use super::report::Report;
use crate::cli::containerd::is_looked_at;
use crate::cli::role_facts::Facts;
use shoal_service::machine::disk_of;
use shoal_service::units::ByteSize;
use std::fs::{self, File};
use std::io::{self, Write};
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
pub(crate) fn containerd(report: &mut Report, facts: &Facts, hosts_dir: &Path, config: &Path) {
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
    let (url, dir) = (format!("http://{mirror}"), hosts_dir.display());
    let folders = fs::read_dir(hosts_dir).into_iter().flatten().flatten();
    let leads = folders.filter(|folder| {
        let text = fs::read_to_string(folder.path().join("hosts.toml")).unwrap_or_default();
        text.parse::<toml::Table>().is_ok_and(|table| names_mirror(&table, &url))
    });
    match leads.count() {
        0 => {
            let remedy = format!("run `shoal containerd setup REGISTRY --mirror {mirror}` for each registry");
            report.warn("containerd", format!("no hosts.toml below {dir} leads to the mirror {url}"), remedy);
        }
        count => report.ok("containerd", format!("{count} registries below {dir} lead to the mirror {url}")),
    }
    if is_looked_at(config, hosts_dir) != Some(true) {
        let remedy = format!("set config_path = \"{dir}\" in the registry section of its CRI plugin and restart it");
        report.warn("containerd", format!("{} does not name {dir}", config.display()), remedy);
    }
}

/// Whether a `hosts.toml` has the mirror as one of its hosts.
fn names_mirror(table: &toml::Table, url: &str) -> bool {
    let hosts = table.get("host").and_then(toml::Value::as_table);
    hosts.is_some_and(|hosts| hosts.keys().any(|host| host.trim_end_matches('/') == url))
}
