//! A region where each host has its own containerd.

use crate::SHOAL;
use crate::image::{Item, layer, layout, shell};
use crate::runtime::{Release, Runtime, require_packages};
use serde_json::Value;
use shoal_testkit::region::ADDR;
use shoal_testkit::{Region, Setup, noise};
use std::path::{Path, PathBuf};

/// The name of a registry that does not exist.
pub(crate) const REGISTRY: &str = "registry.example:5000";

/// A region where each host has a containerd, which uses the host's mirror.
pub(crate) struct Lab {
    pub(crate) region: Region,
    pub(crate) runtimes: Vec<Runtime>,
    // The last field, so that it outlives the runtimes that use it.
    pub(crate) folder: tempfile::TempDir,
}

impl Lab {
    /// Starts a region. `cri` tells which hosts' containerds serve CRI.
    pub(crate) fn start(
        release: Release,
        racks: usize,
        hosts: usize,
        cri: impl Fn(usize) -> bool,
        extra: impl Fn(usize) -> Vec<String>,
    ) -> Self {
        require_packages();
        let folder = tempfile::tempdir().unwrap();
        let mut runtimes: Vec<Runtime> = (0..racks * hosts)
            .map(|host| Runtime::new(release, &folder.path().join(format!("h{host}")), cri(host)))
            .collect();
        runtimes.iter_mut().for_each(Runtime::start);
        let region = Setup::new(SHOAL, racks, hosts)
            .peers(|host| {
                let socket = runtimes[host].socket();
                let mut set = vec![
                    format!("mirror.listen='{ADDR}:0'"),
                    format!("containerd.socket='{}'", socket.display()),
                    "containerd.min_free=0".into(),
                ];
                set.extend(extra(host));
                set
            })
            .start();
        let lab = Self { region, runtimes, folder };
        (0..racks * hosts).for_each(|host| lab.set_up(host, &[]));
        lab
    }

    pub(crate) fn mirror(&self, host: usize) -> &str {
        self.region.peers[host].addrs["mirror"].as_str().unwrap()
    }

    pub(crate) fn set_up(&self, host: usize, more: &[&str]) {
        let dir = self.runtimes[host].hosts_dir();
        let mut args = vec!["containerd", "setup", REGISTRY, "--mirror", self.mirror(host), "--hosts-dir"];
        args.push(dir.to_str().unwrap());
        args.extend(more);
        SHOAL.ok(&args);
    }

    /// Makes an image with a shell and `len` bytes of noise.
    pub(crate) fn image(&self, tag: &str, len: usize, seed: u64) -> (String, PathBuf, Vec<u8>) {
        let data = noise(len, seed);
        let layers = [shell(), layer(&[Item::Folder("data"), Item::File("data/noise", 0o644, &data)])];
        let reference = format!("{REGISTRY}/lab/app:{tag}");
        let at = layout(&self.folder.path().join(tag), &reference, &layers);
        (reference, at, data)
    }

    pub(crate) fn push(&self, layout: &Path, reference: &str) -> String {
        let args = ["push", layout.to_str().unwrap(), "--kind", "image", "--ref", reference, "--to", "all", "--json"];
        let pushed = self.region.cli_json(&args).expect("the push is accepted");
        pushed["job"].as_str().unwrap().to_string()
    }

    pub(crate) fn metric(&self, host: usize, name: &str) -> u64 {
        self.region.peers[host].metric(name)
    }
}

/// The line of a host in a job's status.
pub(crate) fn line<'a>(status: &'a Value, host: &str) -> &'a Value {
    let lines = status["lines"].as_array().unwrap();
    lines.iter().find(|line| line["host"].as_str().unwrap().ends_with(host)).unwrap_or_else(|| panic!("{status:#}"))
}

/// Runs a container that checks the noise in its image.
pub(crate) fn run_in(runtime: &Runtime, reference: &str, data: &[u8]) {
    let output = runtime.run(reference, "sha256sum < /data/noise");
    assert!(output.contains(&shoal_containerd::sha256(data)["sha256:".len()..]), "{output}");
}
