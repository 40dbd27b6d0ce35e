//! The checks of a configuration on the machine that will run it: files, folders, sizes and what they risk.
//!
//! Invariant: what the start of a role refuses is refused here by the same function of the role. Nothing is changed.

use super::findings::Findings;
use shoal_hub::HubConfig;
use shoal_net::admission::system_clock;
use shoal_peer::PeerConfig;
use shoal_peer::config::NodeSettings;
use shoal_peer::driver::setup;
use shoal_proto::trust::{Admitted, Role};
use shoal_seeder::SeederConfig;
use shoal_service::folders::{FolderError, check_private};
use shoal_service::http_client::Client;
use shoal_service::http_server::{AdminToken, HttpAccess};
use shoal_service::machine::disk_of;
use shoal_tracker::TrackerConfig;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Remaining validity of a credential below which there is a warning.
const EXPIRES_SOON_S: u64 = 7 * 86_400;
/// How far the time of a file may be ahead of the clock.
const AHEAD_MAX: Duration = Duration::from_secs(300);

/// A configuration that can be checked on this machine.
pub(crate) trait CheckedHere {
    /// Adds what is found to the findings. The values themselves passed their check.
    fn check_here(&self, found: &mut Findings);
}

impl CheckedHere for HubConfig {
    fn check_here(&self, found: &mut Findings) {
        if let Some(credential) = found.check("credential", shoal_hub::check_files(self)) {
            expiry(found, "credential", &credential);
        }
        clock(found, &[("trust", &self.trust), ("key", &self.key), ("credential", &self.credential)]);
        state(found, "dir", &self.dir);
        same_owner(found, &self.dir, &[("key", &self.key)]);
        if let Some(token) = &self.admin_token {
            found.check("admin_token", AdminToken::load(token));
            same_owner(found, &self.dir, &[("admin_token", token)]);
        }
        access(found, self.http, &self.http_access);
    }
}

impl CheckedHere for TrackerConfig {
    fn check_here(&self, found: &mut Findings) {
        if let Some(credential) = found.check("credential", shoal_tracker::check_files(self)) {
            expiry(found, "credential", &credential);
        }
        clock(found, &[("trust", &self.trust), ("key", &self.key), ("credential", &self.credential)]);
        state(found, "dir", &self.dir);
        same_owner(found, &self.dir, &[("key", &self.key)]);
        access(found, self.http, &self.http_access);
        if let Some(hub) = &self.hub {
            found.check("hub_ca", Client::trusting(hub, None, self.hub_ca.as_deref()));
        }
        if let Some(hub) = self.hub.as_ref().filter(|hub| hub.starts_with("http://") && !is_local(hub)) {
            found.warn("hub", format!("{hub} has no TLS, so the network can read reports: use https and hub_ca"));
        }
    }
}

impl CheckedHere for SeederConfig {
    fn check_here(&self, found: &mut Findings) {
        node(found, Role::Seeder, &self.node, &self.dir);
        found.check("publisher_key", shoal_seeder::check_publisher(self));
        found.check("admin_token", AdminToken::load(&self.admin_token));
        let keys = [("publisher_key", &self.publisher_key), ("admin_token", &self.admin_token)];
        same_owner(found, &self.dir, &keys.map(|(key, path)| (key, path.as_path())));
        access(found, self.http, &self.http_access);
        if let Some(path) = &self.docker_config {
            secret(found, "docker_config", path);
        }
        for (name, registry) in &self.registries {
            if let Some(ca) = &registry.ca {
                readable(found, &format!("registries.{name}"), ca);
            }
        }
        self.push_roots.iter().for_each(|root| push_root(found, root, self));
    }
}

impl CheckedHere for PeerConfig {
    fn check_here(&self, found: &mut Findings) {
        node(found, Role::Peer, &self.node, &self.dir);
        if let Some(token) = &self.admin_token {
            found.check("admin_token", AdminToken::load(token));
            same_owner(found, &self.dir, &[("admin_token", token)]);
        }
        access(found, self.http, &self.http_access);
        content(found, self);
        for (name, settings) in &self.activation {
            let hooks = [&settings.pre_stop, &settings.post_start, &settings.check];
            for program in hooks.into_iter().filter_map(|command| command.first()) {
                hook(found, name, program);
            }
        }
    }
}

/// What peers and seeders share.
fn node(found: &mut Findings, role: Role, settings: &NodeSettings, dir: &Path) {
    if let Some(credential) = found.check("node.credential", setup::check_files(role, settings, dir)) {
        expiry(found, "node.credential", &credential);
    }
    found.check("node", settings.check_machine(dir));
    let files =
        [("node.trust", &settings.trust), ("node.key", &settings.key), ("node.credential", &settings.credential)];
    clock(found, &files.map(|(key, path)| (key, path.as_path())));
    state(found, "dir", dir);
    same_owner(found, dir, &[("node.key", &settings.key)]);
    if settings.min_free.0 == 0 {
        found.warn("node.min_free", "0 lets contents fill the disk: keep some space free, for example 1 GiB");
    }
}

fn expiry(found: &mut Findings, key: &str, credential: &Admitted) {
    let left_s = credential.not_after.saturating_sub(system_clock());
    if left_s < EXPIRES_SOON_S {
        let (days, hours) = (left_s / 86_400, left_s % 86_400 / 3600);
        found.warn(key, format!("the credential ends in {days} d {hours} h: issue a new one before"));
    }
}

/// Files that were written in the future tell that the clock is behind, so that credentials seem invalid.
fn clock(found: &mut Findings, files: &[(&str, &Path)]) {
    let now = SystemTime::now();
    for (key, path) in files {
        let Ok(written) = fs::metadata(path).and_then(|meta| meta.modified()) else { continue };
        let Ok(ahead) = written.duration_since(now) else { continue };
        if ahead > AHEAD_MAX {
            let (path, ahead_s) = (path.display(), ahead.as_secs());
            found.warn(key, format!("{path} was written {ahead_s} s in the future: set the clock of this machine"));
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A state folder, as the start of a role checks it.
fn state(found: &mut Findings, key: &str, dir: &Path) {
    match check_private(dir) {
        // Root checks for the user of the service.
        Err(FolderError::Foreign { owner, .. }) if is_root() => {
            let mode = fs::metadata(dir).map_or(0, |meta| meta.mode() & 0o7777);
            if mode & 0o077 != 0 {
                found.check(key, Err::<(), _>(FolderError::Exposed { path: dir.to_path_buf(), mode }));
            }
            let dir = dir.display();
            found.warn(key, format!("{dir} belongs to user {owner}: the role must run as that user"));
        }
        checked => drop(found.check(key, checked)),
    }
    disk(found, key, dir);
}

fn disk(found: &mut Findings, key: &str, dir: &Path) {
    if disk_of(dir).is_ok_and(|disk| disk.is_in_memory) {
        found.warn(key, format!("{} is in memory and is lost at a restart: use a disk", dir.display()));
    }
}

/// Files that only the owner of the state folder should have.
fn same_owner(found: &mut Findings, dir: &Path, files: &[(&str, &Path)]) {
    let Ok(owner) = fs::metadata(dir).map(|meta| meta.uid()) else { return };
    for (key, path) in files {
        let Ok(other) = fs::metadata(path).map(|meta| meta.uid()) else { continue };
        if other != owner {
            let path = path.display();
            let what = format!("{path} belongs to user {other}, but the state folder to user {owner}");
            found.warn(key, format!("{what}: run `chown {owner}` on the file"));
        }
    }
}

fn access(found: &mut Findings, http: SocketAddr, access: &HttpAccess) {
    found.check("http_access.tls", access.check_files());
    if !http.ip().to_canonical().is_loopback() && access.tls.is_none() && access.behind_proxy {
        let what = format!("{http} is open to other machines without TLS by http_access.behind_proxy");
        found.warn("http", format!("{what}: check that a proxy or a firewall protects the port"));
    }
    let key = access.tls.as_ref().map(|tls| &tls.key);
    let is_shared = key.is_some_and(|key| fs::metadata(key).is_ok_and(|meta| meta.mode() & 0o040 != 0));
    if let Some(key) = key.filter(|_| is_shared) {
        let key = key.display();
        found.warn("http_access.tls", format!("the group of {key} can read it: check who is in the group"));
    }
}

fn is_local(url: &str) -> bool {
    let host = url.trim_start_matches("http://");
    ["127.", "localhost", "[::1]"].iter().any(|local| host.starts_with(local))
}

fn readable(found: &mut Findings, key: &str, path: &Path) {
    if let Err(error) = fs::File::open(path) {
        found.refuse(key, format!("cannot read {}: {error}", path.display()));
    }
}

/// A file with secrets that is read at each use.
fn secret(found: &mut Findings, key: &str, path: &Path) {
    readable(found, key, path);
    let mode = fs::metadata(path).map_or(0, |meta| meta.mode() & 0o7777);
    if mode & 0o077 != 0 {
        let path = path.display();
        found.refuse(key, format!("{path} has mode {mode:04o}, so others can read it; run `chmod 600` on it"));
    }
}

fn push_root(found: &mut Findings, root: &Path, config: &SeederConfig) {
    let (key, shown) = ("push_roots", root.display());
    let Ok(meta) = fs::metadata(root) else {
        found.warn(key, format!("{shown} does not exist or cannot be read: create it, or pushes from it fail"));
        return;
    };
    if meta.mode() & 0o002 != 0 {
        found.warn(key, format!("every user of this machine can put files into {shown}: use a folder of its own"));
    }
    if config.dir.starts_with(root) || config.node.key.starts_with(root) {
        let what = format!("{shown} holds keys or state of the seeder, which only checks at each push protect");
        found.warn(key, format!("{what}: use a narrower folder"));
    }
}

fn content(found: &mut Findings, config: &PeerConfig) {
    let (dir, key) = (&config.content_dir, "content_dir");
    disk(found, key, dir);
    let device = |path: &Path| path.ancestors().find_map(|path| fs::metadata(path).ok()).map(|meta| meta.dev());
    if device(dir) != device(&config.dir) {
        let (dir, store) = (dir.display(), config.dir.display());
        found.warn(key, format!("{dir} is on another disk than {store}, so files are copied: use one disk for both"));
    }
    if fs::metadata(dir).is_ok_and(|meta| !meta.is_dir()) {
        found.refuse(key, format!("{} is not a folder: use another path", dir.display()));
    }
    if config.mode_mask.lets_others_write() {
        let mask = config.mode_mask;
        found.warn("mode_mask", format!("{mask} lets other users write to contents: use \"0755\" if they need not"));
    }
}

fn hook(found: &mut Findings, name: &str, program: &str) {
    let path = Path::new(program);
    // Other programs are found along the PATH of hooks, at the time of the switch.
    if path.is_absolute() && !fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0) {
        let key = format!("activation.\"{name}\"");
        found.warn(&key, format!("{program} is not a program: install it, or switches of this name fail"));
    }
}
