//! Other users of a machine: what they can read, and folders that they can enter.

use crate::SHOAL;
use shoal_testkit::{Process, Region, Setup, until};
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every file and folder below a path, with the path itself.
fn all_below(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_path_buf()];
    if fs::symlink_metadata(path).unwrap().is_dir() {
        // Roles write meanwhile, so an entry may be gone.
        let items = fs::read_dir(path).unwrap().flatten().filter(|item| item.file_type().is_ok());
        found.extend(items.filter(|item| item.path().symlink_metadata().is_ok()).flat_map(|item| {
            let path = item.path();
            if path.is_dir() && !path.is_symlink() { all_below(&path) } else { vec![path] }
        }));
    }
    found
}

fn readable_by_nobody(path: &Path) -> bool {
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "cat"];
    Command::new("setpriv").args(as_nobody).arg(path).output().unwrap().status.success()
}

/// A secret file that a region pushes: each role's state stays closed, and hosts that activate the content show it.
#[test]
fn no_other_user_reads_state_and_every_user_reads_activated_contents() {
    let region = Region::start(SHOAL, 1, 2);
    // Only the modes below this folder are tested.
    fs::set_permissions(region.folder.path(), Permissions::from_mode(0o755)).unwrap();
    let folder = region.folder.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("secret"), "secret").unwrap();
    fs::set_permissions(folder.join("secret"), Permissions::from_mode(0o600)).unwrap();
    fs::write(folder.join("public"), "public").unwrap();
    let single = region.folder.path().join("single");
    fs::write(&single, "single").unwrap();
    for (path, name) in [(&folder, "edge/folder"), (&single, "edge/single")] {
        let job = region.push(path, name, "1");
        region.wait_active(&job, 2);
    }
    let roles = [&region.hub, &region.tracker, &region.seeder].into_iter().chain(&region.peers);
    for role in roles {
        let state = role.dir().join("state");
        assert_eq!(fs::metadata(&state).unwrap().mode() & 0o7777, 0o700, "{}", role.name);
        let paths = all_below(&state);
        assert!(paths.len() > 3, "{paths:?}");
        for path in paths {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            // A file that a content folder shares has the content's mode. The state folder hides this name of it.
            let is_shared = meta.is_file() && meta.nlink() > 1;
            assert!(is_shared || meta.mode() & 0o077 == 0, "{} has mode {:o}", path.display(), meta.mode());
            if meta.file_type().is_socket() {
                assert_eq!(meta.mode() & 0o7777, 0o600, "{}", path.display());
            }
        }
    }
    if !fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0) {
        return; // only root becomes another user
    }
    for peer in &region.peers {
        let streams = all_below(&peer.dir().join("state/contents"));
        assert!(streams.iter().all(|path| !readable_by_nobody(path)));
        let content = peer.dir().join("content/edge");
        assert!(readable_by_nobody(&content.join("folder/current/public")));
        assert!(readable_by_nobody(&content.join("single/current/single")));
        assert!(!readable_by_nobody(&content.join("folder/current/secret")), "a mode of the content holds");
    }
}

/// Each role refuses a state folder that others can enter. It says which one, its mode and the remedy.
#[test]
fn a_role_does_not_start_on_a_state_folder_that_others_can_enter() {
    let mut region = Region::start(SHOAL, 1, 1);
    let refused = |process: &mut Process| {
        process.kill();
        let state = process.dir().join("state");
        for mode in [0o755, 0o710, 0o701, 0o1777] {
            fs::set_permissions(&state, Permissions::from_mode(mode)).unwrap();
            let before = process.log().len();
            let ended = process.try_start();
            assert!(!ended.success(), "{} started with mode {mode:o}", process.name);
            let log = process.log()[before..].to_string();
            for part in [state.to_str().unwrap(), &format!("{mode:04o}"), "chmod 700"] {
                assert!(log.contains(part), "{}: {log}", process.name);
            }
            assert_eq!(fs::metadata(&state).unwrap().mode() & 0o7777, mode);
        }
        fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
        process.start();
    };
    refused(&mut region.hub);
    refused(&mut region.tracker);
    refused(&mut region.seeder);
    region.peers.iter_mut().for_each(refused);
    region.wait_up(1);
}

/// A hook sees only what the documents list, from a fixed place, and ends with its peer.
#[test]
fn a_hook_has_a_clean_environment_and_ends_with_its_peer() {
    // content/edge/hooked/current is four levels below the host's own folder.
    let script = concat!(
        r#"home=$(dirname $(dirname $(dirname $(dirname "$SHOAL_CURRENT")))); "#,
        r#"{ tr "\0" "\n" < /proc/$$/environ | sort; } > $home/env; pwd > $home/pwd; umask > $home/umask; "#,
        r#"for fd in /proc/$$/fd/*; do readlink $fd; done > $home/fds; "#,
        r#"echo $$ > $home/pid.new; mv $home/pid.new $home/pid; sleep 600"#,
    );
    let hook = format!("activation={{ 'edge/hooked' = {{ post_start = ['sh', '-c', '{script}'] }} }}");
    let mut region = Setup::new(SHOAL, 1, 1).peers(|_| vec![hook.clone()]).start();
    let source = region.folder.path().join("hooked");
    fs::write(&source, "x").unwrap();
    let begun = region.cli(&["rollout", "edge/hooked@1", source.to_str().unwrap(), "--to", "all", "--json"]);
    assert!(begun.status.success(), "{}", String::from_utf8_lossy(&begun.stderr));
    let home = region.peers[0].dir().to_path_buf();
    let read = |name: &str| fs::read_to_string(home.join(name)).unwrap();
    let pid: u32 = until("the hook runs", || fs::read_to_string(home.join("pid")).ok()?.trim().parse().ok());
    let env = read("env");
    let names: Vec<&str> = env.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let documented = [
        "HOME",
        "LANG",
        "PATH",
        "SHOAL_ATTEMPT",
        "SHOAL_CURRENT",
        "SHOAL_HOOK",
        "SHOAL_NAME",
        "SHOAL_PATH",
        "SHOAL_PHASE",
        "SHOAL_PREVIOUS",
        "SHOAL_ROLLOUT",
        "SHOAL_VERSION",
    ];
    assert_eq!(names, documented);
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert!(env.lines().any(|line| line == path), "{env}");
    assert_eq!((read("pwd").trim(), read("umask").trim()), ("/", "0077"));
    let state = region.peers[0].dir().join("state");
    let leaked = read("fds").lines().filter(|target| target.starts_with(state.to_str().unwrap())).count();
    assert_eq!(leaked, 0, "{}", read("fds"));
    let sockets = read("fds").lines().filter(|target| target.starts_with("socket:")).count();
    assert_eq!(sockets, 0, "{}", read("fds"));
    region.peers[0].terminate();
    until("the hook is gone", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        stat.is_none_or(|stat| stat.contains(") Z") || stat.contains(") X")).then_some(())
    });
}
