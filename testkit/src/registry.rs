//! A real registry: Debian's `docker-registry`.

use crate::oci::{Image, required, skopeo};
use crate::{own_loopback, until};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;

/// A registry with its data in one folder. It ends when this is dropped.
pub struct Registry {
    child: Child,
    /// Its address, without a scheme.
    pub addr: String,
    log: PathBuf,
}

impl Registry {
    /// Starts a registry in a folder, on a loopback address of its own.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(own_loopback(), dir, "")
    }

    /// The same on a given address, with more settings in the `http` section of its configuration.
    pub fn start_with(addr: Ipv4Addr, dir: &Path, more: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        // The registry does not say which port it got. On an address of its own, a drawn port stays free.
        let addr = TcpListener::bind((addr, 0)).unwrap().local_addr().unwrap().to_string();
        let storage = dir.join("data").display().to_string();
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{storage}'}}}}\nhttp: {{addr: '{addr}', {more}}}\n"
        );
        fs::write(dir.join("config.yml"), text).unwrap();
        let log = dir.join("log");
        let file = File::create(&log).unwrap();
        let child = required("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let registry = Self { child, addr, log };
        until("the registry listens", || TcpStream::connect(&registry.addr).ok().map(drop));
        registry
    }

    /// Uploads an image under a name such as `lab/app:v1`. `dir` is an empty folder for its layout.
    pub fn put(&self, image: &Image, dir: &Path, name: &str) {
        image.write(dir, "it");
        self.copy(&format!("oci:{}:it", dir.display()), name);
    }

    /// Uploads an image that `skopeo` finds at `from`. Its bytes and digests stay as they are.
    pub fn copy(&self, from: &str, name: &str) {
        let to = format!("docker://{}/{name}", self.addr);
        skopeo(&["copy", "-q", "--preserve-digests", "--dest-tls-verify=false", from, &to]);
    }

    /// How often the registry sent each blob to anybody, by path.
    pub fn blobs_sent(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for line in fs::read_to_string(&self.log).unwrap().lines() {
            let Some((_, rest)) = line.split_once("\"GET ") else { continue };
            let Some((path, rest)) = rest.split_once(' ') else { continue };
            if path.contains("/blobs/sha256:") && (rest.contains("\" 200 ") || rest.contains("\" 206 ")) {
                *counts.entry(path.to_string()).or_default() += 1;
            }
        }
        counts
    }

    /// How often a Shoal seeder requested each blob, by digest.
    pub fn requested_by_shoal(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for line in fs::read_to_string(&self.log).unwrap().lines() {
            let from_shoal =
                line.contains("\"GET /v2/") && line.contains("/blobs/sha256:") && line.ends_with("\"shoal\"");
            let Some(start) = line.find("/blobs/").filter(|_| from_shoal) else { continue };
            *counts.entry(line[start + 7..start + 7 + 71].to_string()).or_default() += 1;
        }
        counts
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended already.
        let _ = self.child.wait();
    }
}
