//! Holders of a push token, and users of the seeder's machine, who want files outside of the push roots on the hosts.

use super::tokens::{admin, post};
use crate::SHOAL;
use serde_json::json;
use shoal_testkit::{Region, Setup, noise};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A region whose seeder pushes only from `drop` in the folder.
struct Place {
    region: Region,
    folder: tempfile::TempDir,
}

impl Place {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["drop/whole/app", "outside"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("drop/whole/app/file"), noise(100_000, 1)).unwrap();
        fs::write(folder.path().join("outside/file"), "secret").unwrap();
        let roots = format!("push_roots=['{}']", folder.path().join("drop").display());
        let region = Setup::new(SHOAL, 1, 1).seeder(&[&roots]).start();
        Self { region, folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Pushes with the admin token. Returns the status and the reason.
fn push(region: &Region, path: &Path) -> (u16, String) {
    let body = json!({ "path": path, "name": "edge/app", "version": "1", "kind": "blob", "to": ["all"] });
    post(region, "/v1/push", &admin(region), &body)
}

#[test]
fn nothing_outside_of_the_roots_is_pushed() {
    let place = Place::start();
    let (region, drop) = (&place.region, place.at("drop"));
    symlink("/etc/passwd", drop.join("absolute")).unwrap();
    symlink("../outside", drop.join("up")).unwrap();
    symlink("/proc/self/environ", drop.join("magic")).unwrap();
    symlink("whole/app", drop.join("near")).unwrap();
    let outside = [
        "/etc/passwd".into(),
        "/proc/self/environ".into(),
        "/".into(),
        place.at("outside/file"),
        place.at("drop/../outside/file"),
        place.at("dropx"),
        region.seeder.dir().join("node.key"),
        region.folder.path().join("cluster/root.key"),
    ];
    for path in outside {
        let (status, answer) = push(region, &path);
        assert_eq!(status, 400, "{}: {answer}", path.display());
        assert!(answer.contains(drop.to_str().unwrap()), "the answer names the roots: {answer}");
    }
    for link in ["absolute", "up/file", "up", "magic"] {
        let (status, answer) = push(region, &drop.join(link));
        assert_eq!(status, 400, "{link}: {answer}");
        assert!(answer.contains("push root"), "{link}: {answer}");
    }
    let image = json!({ "path": place.at("outside"), "kind": "image", "to": ["all"], "name": "", "version": "" });
    let (status, answer) = post(region, "/v1/push", &admin(region), &image);
    assert!(status == 400 && answer.contains("push roots"), "{answer}");
    let rollout = json!({ "name": "edge/r", "version": "1", "to": ["all"], "path": "/etc/passwd", "batch": ["100%"] });
    let (status, answer) = post(region, "/v1/rollouts", &admin(region), &rollout);
    assert!(status == 400 && answer.contains("push roots"), "{answer}");
    assert_eq!(
        region.cli_json(&["status", "--json"]).unwrap().as_array().unwrap().len(),
        0,
        "a refused push made a job"
    );

    // A link that stays below the root is as good as what it leads to.
    let job = region.push(&drop.join("near"), "edge/app", "1");
    region.wait_active(&job, 1);
    region.assert_copy(0, "edge/app", "file", &noise(100_000, 1));
}

/// The root holds the seeder's keys and state, as a root that an operator chose too wide.
#[test]
fn keys_and_state_below_a_root_stay_on_the_machine() {
    let region = Region::start(SHOAL, 1, 1);
    let cluster = region.folder.path().join("cluster");
    let link = region.folder.path().join("link");
    symlink("cluster/publisher.key", &link).unwrap();
    let seeder = region.seeder.dir();
    for path in [&cluster, &cluster.join("root.key"), &link, seeder, &seeder.join("state"), region.folder.path()] {
        let (status, answer) = push(&region, path);
        assert_eq!(status, 400, "{}: {answer}", path.display());
        assert!(answer.contains("of the seeder"), "{answer}");
    }
}

/// A user who can write to the root swaps a folder for a link to a folder outside while pushes read it.
#[test]
fn a_swapped_folder_leaks_nothing() {
    let place = Place::start();
    let (folder, link) = (place.at("drop/whole/app"), place.at("drop/link"));
    symlink(place.at("outside"), &link).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &folder, rustix::fs::CWD, &link, flags).unwrap();
            }
        });
        for version in 0..40 {
            let (name, path) = match version % 2 {
                0 => ("edge/file", folder.join("file")),
                _ => ("edge/whole", place.at("drop/whole")),
            };
            let (path, version) = (path.to_str().unwrap(), version.to_string());
            let args = ["push", path, "--name", name, "--version", &version, "--to", "all", "--wait"];
            let _ = place.region.cli(&args); // refused or failed while the link is in the place of the folder
        }
        stop.store(true, Ordering::Relaxed);
    });
    let content = place.region.peers[0].dir().join("content");
    assert!(!holds(&content, b"secret"), "a file from outside of the root reached a host");
}

/// Whether a file below a folder is the secret.
fn holds(folder: &Path, secret: &[u8]) -> bool {
    let Ok(items) = fs::read_dir(folder) else { return false };
    items.map(Result::unwrap).any(|item| match item.file_type().unwrap() {
        kind if kind.is_dir() => holds(&item.path(), secret),
        kind if kind.is_file() => fs::read(item.path()).unwrap() == secret,
        _ => false,
    })
}
