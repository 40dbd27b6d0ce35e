//! Folders that containerd takes before others, with files of others in them: the mirror is asked all the same.

use crate::SHOAL;
use crate::lab::{Lab, run_in};
use crate::runtime::{Release, on_each_release};
use std::fs;
use std::path::Path;

on_each_release!(the_mirror_is_asked_beside_files_of_others);

/// A file of a site whose registry and cache are away.
const OF_A_SITE: &str = "\
# Managed by the site.
server = \"http://127.0.0.1:9\"

[host.\"http://127.0.0.1:9\"]
  capabilities = [\"pull\", \"resolve\"]
";

fn undo(hosts: &Path) {
    SHOAL.ok(&["containerd", "setup", "--undo", "--hosts-dir", hosts.to_str().unwrap()]);
}

/// Both spellings of the registry's folder, and `_default`, which a new folder repeats.
fn the_mirror_is_asked_beside_files_of_others(release: Release) {
    let lab = Lab::start(release, 1, 1, |_| true, |_| Vec::new());
    let hosts = lab.runtimes[0].hosts_dir();
    undo(&hosts);
    for (number, name) in ["registry.example_5000_", "registry.example:5000", "_default"].into_iter().enumerate() {
        let folder = hosts.join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("hosts.toml"), OF_A_SITE).unwrap();
        lab.set_up(0, &[]);
        let (reference, at, data) = lab.image(&format!("v{number}"), 2_000_000, number as u64 + 1);
        let job = lab.push(&at, &reference);
        lab.region.wait_active(&job, 1);
        run_in(&lab.runtimes[0], &reference, &data);
        undo(&hosts);
        assert_eq!(fs::read_to_string(folder.join("hosts.toml")).unwrap(), OF_A_SITE, "{name}");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(fs::read_dir(&hosts).unwrap().count(), 0, "{name}");
    }
}
