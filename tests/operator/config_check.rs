//! `shoal config check`: what it refuses, what it warns of, and that a role starts with what passes.

use crate::SHOAL;
use serde_json::Value;
use shoal_testkit::settings::{files, issue, node};
use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Keys, credentials and settings of all roles in one folder.
struct Place {
    folder: tempfile::TempDir,
}

/// The outcome of a check.
struct Checked {
    code: Option<i32>,
    document: Value,
}

impl Checked {
    fn of(&self, severity: &str) -> Vec<(&str, &str)> {
        let rows = self.document["findings"].as_array().unwrap().iter().filter(|row| row["severity"] == severity);
        rows.map(|row| (row["key"].as_str().unwrap(), row["message"].as_str().unwrap())).collect()
    }

    fn has(&self, severity: &str, text: &str) -> bool {
        self.of(severity).iter().any(|(key, message)| key.contains(text) || message.contains(text))
    }
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        SHOAL.ok(&["cluster", "init", "--dir", at.join("cluster").to_str().unwrap()]);
        for role in ["hub", "tracker", "seeder", "peer"] {
            issue(SHOAL, at, role, role, &format!("t/site/rack/{role}"));
        }
        fs::create_dir(at.join("drop")).unwrap();
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn settings(&self, role: &str) -> Vec<String> {
        let path = |key: &str, name: &str| format!("{key}='{}'", self.at(name).display());
        let mut set = match role {
            "hub" | "tracker" => files(self.folder.path(), role, ""),
            _ => node(self.folder.path(), Ipv4Addr::LOCALHOST, role, "127.0.0.1:7710"),
        };
        set.retain(|pair| !pair.starts_with("node.min_free"));
        set.push("http='127.0.0.1:0'".into());
        match role {
            "seeder" => set.extend([
                path("publisher_key", "cluster/publisher.key"),
                path("admin_token", "cluster/admin.token"),
                path("push_roots", "drop").replacen('\'', "['", 1) + "]",
            ]),
            "peer" => set.push(path("content_dir", "peer/content")),
            _ => {}
        }
        set.push(path("dir", &format!("{role}/state")));
        set
    }

    /// Checks a role with its settings and some more.
    fn check(&self, role: &str, more: &[&str]) -> Checked {
        let mut command = SHOAL.command();
        command.args(["config", "check", "--json", "--role", role]);
        for pair in self.settings(role).iter().map(String::as_str).chain(more.iter().copied()) {
            command.args(["--set", pair]);
        }
        let output = command.output().unwrap();
        let document = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{role} {more:?}: {}", String::from_utf8_lossy(&output.stderr)));
        Checked { code: output.status.code(), document }
    }

    #[track_caller]
    fn refused(&self, role: &str, more: &[&str], text: &str) {
        let checked = self.check(role, more);
        assert_eq!((checked.code, &checked.document["ok"]), (Some(1), &false.into()), "{role} {more:?}");
        assert!(checked.has("refused", text), "{role} {more:?}: no `{text}` in {:#}", checked.document);
    }

    #[track_caller]
    fn warned(&self, role: &str, more: &[&str], text: &str) {
        let checked = self.check(role, more);
        assert_eq!((checked.code, checked.of("refused")), (Some(0), vec![]), "{role} {more:?}");
        assert!(checked.has("warning", text), "{role} {more:?}: no `{text}` in {:#}", checked.document);
    }
}

#[test]
fn good_configurations_of_all_roles_pass_without_a_word() {
    let place = Place::new();
    for role in ["hub", "tracker", "seeder", "peer"] {
        let checked = place.check(role, &[]);
        let unsaid = checked.of("warning").into_iter().filter(|(_, message)| !message.contains("in memory"));
        let said: Vec<_> = checked.of("refused").into_iter().chain(unsaid).collect();
        assert_eq!((checked.code, said), (Some(0), vec![]), "{role}");
        assert!(!place.at(role).join("state").exists(), "a check creates nothing");
    }
    let deployed = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for role in ["hub", "tracker", "seeder", "peer"] {
        let file = deployed.join(format!("{role}.toml"));
        SHOAL.ok(&["config", "check", "--role", role, "--values-only", file.to_str().unwrap()]);
    }
}

#[test]
fn folders_and_sizes_that_must_not_be_are_refused() {
    let place = Place::new();
    let state = place.at("peer/state");
    let (state, below) = (state.display(), state.join("below").display().to_string());
    for folder in ["/", "/etc", "/etc/shoal/content", "/usr/lib", "/proc", "/home", "content"] {
        place.refused("peer", &[&format!("content_dir='{folder}'")], "content_dir");
    }
    place.refused("peer", &[&format!("content_dir='{state}'")], "same folder");
    place.refused("peer", &[&format!("content_dir='{below}'")], "side by side");
    for role in ["hub", "tracker", "seeder", "peer"] {
        place.refused(role, &["dir='/'"], "dir");
        place.refused(role, &["dir='relative'"], "dir");
    }
    for root in ["/", "/etc", "/proc", "/sys", "/dev", "/root", "relative"] {
        place.refused("seeder", &[&format!("push_roots=['{root}']")], "push_roots");
    }
    let keys = place.at("cluster");
    place.refused("seeder", &[&format!("push_roots=['{}']", keys.display())], "keys of the seeder");
    for role in ["seeder", "peer"] {
        place.refused(role, &["node.receive_memory='900 TiB'"], "node.receive_memory");
        place.refused(role, &["node.receive_memory=0"], "node.receive_memory");
        place.refused(role, &["node.quota='4000 PiB'"], "node.quota");
        place.refused(role, &["node.quota=0"], "node.quota");
        place.refused(role, &["node.min_free='4000 PiB'"], "node.min_free");
        place.refused(role, &["http='0.0.0.0:7799'"], "has no TLS");
    }
    place.refused("hub", &["http='[::]:7799'"], "has no TLS");
    place.refused("hub", &["http='[::]:7799'", "http_access.behind_proxy=true"], "admin_token");
    place.refused("hub", &["jobs_max=0"], "jobs_max");
    place.refused("peer", &["keep_versions=0"], "keep_versions");
    place.refused("peer", &["keep_version=1"], "keep_version");
}

#[test]
fn keys_and_credentials_that_cannot_be_used_are_refused() {
    let place = Place::new();
    let of = |role: &str, name: &str| place.at(role).join(name);
    for role in ["hub", "tracker", "seeder", "peer"] {
        let key = of(role, "node.key");
        fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
        place.refused(role, &[], "chmod 600");
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        let prefix = if ["hub", "tracker"].contains(&role) { "" } else { "node." };
        for name in ["key", "credential", "trust"] {
            place.refused(role, &[&format!("{prefix}{name}='{}'", of(role, "none").display())], "none");
        }
        // Another node's credential, and another role's files.
        let other = if role == "peer" { "seeder" } else { "peer" };
        let credential = format!("{prefix}credential='{}'", of(other, "node.cred").display());
        place.refused(role, &[&credential], "shown by");
        let key = format!("{prefix}key='{}'", of(other, "node.key").display());
        let checked = place.check(role, &[&credential, &key]);
        assert!(checked.code == Some(1) && !checked.of("refused").is_empty(), "{role} as {other}");
    }
    let token = place.at("cluster/admin.token");
    fs::set_permissions(&token, Permissions::from_mode(0o640)).unwrap();
    place.refused("seeder", &[], "admin.token");
    fs::set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    let own = format!("publisher_key='{}'", of("seeder", "node.key").display());
    place.refused("seeder", &[&own], "names no publisher key");

    let tls = format!("http_access.tls={{cert='{0}/tls.crt', key='{0}/tls.key'}}", place.at("hub").display());
    place.refused("hub", &[&tls], "tls");
    let (cluster, out) = (place.at("cluster"), place.at("hub"));
    let names = ["--name", "hub.example", "--out", out.to_str().unwrap()];
    SHOAL.ok(&[&["cluster", "tls", "--dir", cluster.to_str().unwrap()], &names[..]].concat());
    let admin = format!("admin_token='{}'", token.display());
    assert_eq!(place.check("hub", &[&tls, "http='0.0.0.0:7799'", &admin]).code, Some(0));
    fs::set_permissions(of("hub", "tls.key"), Permissions::from_mode(0o644)).unwrap();
    place.refused("hub", &[&tls], "private key");
    fs::set_permissions(of("hub", "tls.key"), Permissions::from_mode(0o640)).unwrap();
    place.warned("hub", &[&tls], "the group of");

    let state = of("peer", "state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o755)).unwrap();
    place.refused("peer", &[], "chmod 700");
}

/// Issues a peer's files again, with this validity.
fn issue_for(place: &Place, out: &str, valid: &str) -> Vec<String> {
    let (cluster, at) = (place.at("cluster"), place.at(out));
    let args = ["cluster", "issue", "--role", "peer", "--locality", "t/site/rack/peer", "--replace", "--valid", valid];
    SHOAL.ok(&[&args[..], &["--dir", cluster.to_str().unwrap(), "--out", at.to_str().unwrap()]].concat());
    files(place.folder.path(), out, "node.")
}

#[test]
fn the_end_of_a_credential_and_a_wrong_clock_are_seen() {
    let place = Place::new();
    fn check(place: &Place, set: &[String]) -> Checked {
        place.check("peer", &set.iter().map(String::as_str).collect::<Vec<_>>())
    }
    let soon = issue_for(&place, "soon", "6d");
    let checked = check(&place, &soon);
    assert!(checked.code == Some(0) && checked.has("warning", "the credential ends in"), "{:#}", checked.document);
    // The credential began five minutes ago, so a span of one second has passed when the check runs again.
    let ended = issue_for(&place, "ended", "1s");
    shoal_testkit::until("the credential ends", || {
        let checked = check(&place, &ended);
        (checked.code == Some(1) && checked.has("refused", "valid from")).then_some(())
    });
    let written = fs::File::options().write(true).open(place.at("peer/trust")).unwrap();
    written.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(86_400)).unwrap();
    place.warned("peer", &[], "set the clock");
}

#[test]
fn risks_are_warnings_and_leave_the_exit_code_at_zero() {
    let place = Place::new();
    let admin = format!("admin_token='{}'", place.at("cluster/admin.token").display());
    place.warned("hub", &["http='0.0.0.0:7799'", "http_access.behind_proxy=true", &admin], "behind_proxy");
    place.warned("tracker", &["hub='http://192.0.2.1:7740'"], "has no TLS");
    place.warned("peer", &["node.min_free=0"], "node.min_free");
    place.warned("peer", &["mode_mask='0777'"], "mode_mask");
    place.warned("peer", &["activation.*.pre_stop=['/no/such/program']"], "/no/such/program");
    place.warned("seeder", &[&format!("push_roots=['{}']", place.at("missing").display())], "does not exist");
    place.warned("seeder", &[&format!("push_roots=['{}']", place.folder.path().display())], "narrower");
    let shared = place.at("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    place.warned("seeder", &[&format!("push_roots=['{}']", shared.display())], "every user");
    // Not on every machine, but wherever tests run on Linux.
    if Path::new("/dev/shm").is_dir() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        place.warned("peer", &[&format!("content_dir='{}'", folder.path().join("content").display())], "in memory");
    }
}

/// What the check passes, a role starts with, and what the check refuses, the role refuses as well.
#[test]
fn roles_refuse_the_same() {
    let place = Place::new();
    let start = |more: &str| {
        let mut command = SHOAL.command();
        command.args(["peer", "--exit-with-stdin"]).stdin(std::process::Stdio::null());
        for pair in place.settings("peer").iter().map(String::as_str).chain([more, "mirror.listen=''"]) {
            command.args(["--set", pair]);
        }
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let refused = ["node.receive_memory='900 TiB'", "node.quota='4000 PiB'", "content_dir='/etc'", "node.key='/none'"];
    for more in refused {
        place.refused("peer", &[more], "");
        let (is_up, why) = start(more);
        let key = more.split_once('=').unwrap().0.trim_start_matches("node.");
        assert!(!is_up && why.contains(key), "{more}: {why}");
    }
    let (is_up, why) = start("keep_versions=2");
    assert!(is_up, "{why}");
}
