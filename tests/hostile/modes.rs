//! Mode bits: a pushed file never becomes another user's program, and other users of a host write to no content.

use crate::SHOAL;
use shoal_testkit::Setup;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn set(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A file of another user with set-id bits, a sticky folder and world-writable entries, on hosts with the default mask
/// and on one with a mask of its own.
#[test]
fn set_id_and_world_writable_bits_do_not_reach_hosts() {
    let mask = |peer| if peer == 1 { vec!["mode_mask='0770'".into()] } else { vec![] };
    let region = Setup::new(SHOAL, 1, 2).peers(mask).start();
    let source = region.folder.path().join("source");
    fs::create_dir_all(source.join("shared")).unwrap();
    for (name, bits) in [("root", 0o6755), ("open", 0o666), ("all", 0o7777), ("plain", 0o644), ("secret", 0o600)] {
        let path = source.join(name);
        fs::write(&path, name).unwrap();
        let _ = chown(&path, Some(65_534), Some(65_534)); // only root can
        set(&path, bits);
    }
    set(&source.join("shared"), 0o3777);
    set(&source, 0o2777);
    let job = region.push(&source, "edge/modes", "1");
    region.wait_active(&job, 2);
    let file = region.folder.path().join("one");
    fs::write(&file, "one").unwrap();
    set(&file, 0o6777);
    let job = region.push(&file, "edge/one", "1");
    region.wait_active(&job, 2);
    for (peer, mask) in [(0, 0o755), (1, 0o770)] {
        let content = region.peers[peer].dir().join("content/edge");
        let (folder, single) = (content.join("modes/1"), content.join("one/1/one"));
        for name in ["root", "open", "all", "plain", "secret", "shared"] {
            let pushed = mode(&source.join(name));
            assert_eq!(mode(&folder.join(name)), pushed & 0o777 & mask, "{name} on peer {peer}");
        }
        assert_eq!(mode(&folder), 0o777 & mask, "the folder on peer {peer}");
        assert_eq!(mode(&single), 0o777 & mask, "the single file on peer {peer}");
    }
    let wrong = SHOAL.run(&["config", "check", "--role", "peer", "--set", "mode_mask='4755'"]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("mode mask"));
}
