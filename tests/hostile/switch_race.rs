//! A local user who may write in the content folder swaps files, links and pipes below it while versions are switched.

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, linkat, openat2, renameat, symlinkat, unlinkat};
use shoal_peer::activation::content_dir::{ContentDir, ContentSettings};
use shoal_peer::activation::mode_mask::ModeMask;
use shoal_proto::ids::ContentId;
use shoal_store::ingest::{IngestOptions, IngestProgress};
use shoal_store::{Store, StoreConfig};
use shoal_testkit::{PATIENCE, noise};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

const ROUNDS: usize = 150;
const NAME: &str = "edge/site";

fn ingest(store: &Store, dir: &Path, number: u64) -> ContentId {
    let source = dir.join(format!("source{number}"));
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/file"), noise(20_000, number)).unwrap();
    fs::write(source.join("top"), format!("version {number}")).unwrap();
    store.ingest(&source, &IngestOptions::default(), &Arc::new(IngestProgress::default())).unwrap().content
}

/// Opens a folder below the content folder, if the way there has no link. The attacker's own baits must not lead the
/// attacker out of it.
fn open_below(content: &OwnedFd, below: &Path) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(content, below, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH).ok()
}

/// Puts a pipe, a link, a device or a folder in the place of one thing after the other. Each is undone again.
fn attack(content: &Path, victim: &Path, stop: &AtomicBool) {
    let aside = content.join("aside");
    assert!(Command::new("mkfifo").arg(content.join("pipe")).status().unwrap().success());
    let below =
        ["", ".shoal-versions", "current", ".shoal-current", "1", "2", ".shoal-new-1", "1/sub", "2/top", "1/sub/file"];
    let root = OwnedFd::from(fs::File::open(content).unwrap());
    // The switch changes the same paths, so each step of the attack may fail.
    while !stop.load(Ordering::Relaxed) {
        for part in below {
            let place = Path::new(NAME).join(part);
            let Some(parent) = open_below(&root, place.parent().unwrap()) else { continue };
            let last = place.file_name().unwrap();
            for bait in [Some(victim.to_path_buf()), Some(victim.join("file")), None] {
                let _ = fs::remove_dir_all(&aside);
                let moved = renameat(&parent, last, &root, "aside").is_ok();
                let _ = match bait {
                    Some(target) => symlinkat(target, &parent, last),
                    None => linkat(&root, "pipe", &parent, last, AtFlags::empty()),
                };
                std::thread::yield_now();
                let _ = unlinkat(&parent, last, AtFlags::empty());
                if moved {
                    let _ = renameat(&root, "aside", &parent, last);
                }
            }
        }
    }
    let _ = fs::remove_dir_all(&aside);
}

/// No switch hangs, nothing outside of the content folder changes, and the first switch after the attack is right.
#[test]
fn a_local_user_who_swaps_files_neither_stops_nor_redirects_a_switch() {
    let dir = tempfile::tempdir().unwrap();
    let (content, victim) = (dir.path().join("content"), dir.path().join("victim"));
    fs::create_dir_all(victim.join("sub")).unwrap();
    fs::write(victim.join("file"), "precious").unwrap();
    fs::write(victim.join("sub/file"), "precious").unwrap();
    let store = Store::open(StoreConfig::new(dir.path().join("store")), Box::new(|_| {})).unwrap();
    let versions = [1, 2].map(|number| (number.to_string(), ingest(&store, dir.path(), number)));
    let settings = ContentSettings { dir: content.clone(), keep_versions: 1, mode_mask: ModeMask::default() };
    let folder = ContentDir::open(settings.clone()).unwrap();
    let stop = AtomicBool::new(false);
    let (ended, end) = sync_channel(1);
    std::thread::scope(|scope| {
        scope.spawn(|| attack(&content, &victim, &stop));
        let (folder, store, versions) = (folder.clone(), store.clone(), versions.clone());
        // A thread of its own, because a switch that hangs in the kernel never ends.
        std::thread::spawn(move || {
            for round in 0..ROUNDS {
                let (version, id) = &versions[round % 2];
                // The attacker can make a switch fail. The error names the path.
                let _ = folder.activate(&store, id, NAME, version);
                let _ = (folder.current(NAME), folder.content_of(NAME, version), folder.current_of(id));
                let _ = folder.withdraw(id);
                let _ = ContentDir::open(settings.clone());
            }
            ended.send(()).unwrap();
        });
        let finished = end.recv_timeout(PATIENCE);
        stop.store(true, Ordering::Relaxed);
        assert!(finished.is_ok(), "a switch hangs");
    });
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|item| item.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&victim), ["file", "sub"], "something was written or removed outside");
    assert_eq!(names(&victim.join("sub")), ["file"]);
    for file in ["file", "sub/file"] {
        assert_eq!(fs::read_to_string(victim.join(file)).unwrap(), "precious", "{file}");
    }
    let _ = fs::remove_dir_all(content.join(NAME)); // what the attacker left
    let _ = fs::remove_file(content.join(NAME));
    folder.activate(&store, &versions[0].1, NAME, "1").unwrap();
    assert_eq!(fs::read(content.join(NAME).join("current/sub/file")).unwrap(), noise(20_000, 1));
}
