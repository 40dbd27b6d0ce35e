//! A registry of Debian's with an image in it, and what was asked of it.

use crate::common::{get, own_loopback, until};
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub(crate) struct Registry {
    child: Child,
    pub(crate) addr: String,
    log: PathBuf,
}

impl Registry {
    /// Starts it in `dir` and puts the layout's image there, as `lab/app:v1`.
    pub(crate) fn start(dir: &Path, layout: &Path) -> Self {
        // The registry does not say which port it got. On an address of its own, a drawn port stays free.
        let addr = TcpListener::bind((own_loopback(), 0)).unwrap().local_addr().unwrap().to_string();
        let config = dir.join("registry.yml");
        let data = dir.join("registry");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{addr}\"}}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let log = dir.join("registry.log");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.stdout(fs::File::create(&log).unwrap()).spawn().unwrap();
        let registry = Self { child, addr, log };
        until("the registry answers", || get(&registry.addr, "/v2/", None));
        let copied = Command::new("skopeo")
            .args(["copy", "-q", "--preserve-digests", "--dest-tls-verify=false"])
            .args([format!("oci:{}", layout.display()), format!("docker://{}/lab/app:v1", registry.addr)])
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        registry
    }

    /// How often each blob was sent, by its path.
    pub(crate) fn blob_gets(&self) -> BTreeMap<String, usize> {
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
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
