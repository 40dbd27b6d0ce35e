//! A real containerd of one host: started, killed and started again.
//!
//! Invariant: two runtimes share nothing. Each has its own folders, its own runc root, and containers with unique
//! names.

use shoal_testkit::process::print_if_failed;
use shoal_testkit::until;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The programs that these tests run, and their Debian packages.
const NEEDED: [(&str, &str); 6] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("skopeo", "skopeo"),
    ("docker-registry", "docker-registry"),
    ("/bin/busybox", "busybox-static"),
];

/// Fails when a program is missing.
pub(crate) fn require_packages() {
    let missing = NEEDED.into_iter().find(|(program, _)| {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
        !found.unwrap().success()
    });
    if let Some((program, _)) = missing {
        panic!(
            "{program} is missing: apt-get install -y --no-install-recommends containerd runc skopeo docker-registry busybox-static"
        );
    }
}

/// A containerd. It is killed when this is dropped.
pub(crate) struct Runtime {
    pub(crate) dir: PathBuf,
    child: Option<Child>,
}

impl Runtime {
    /// Writes the configuration of a containerd. `cri` tells whether it serves CRI.
    pub(crate) fn new(dir: &Path, cri: bool) -> Self {
        fs::create_dir_all(dir.join("hosts")).unwrap();
        let mut off =
            vec!["snapshotter.v1.aufs", "snapshotter.v1.btrfs", "snapshotter.v1.devmapper", "snapshotter.v1.zfs"];
        if !cri {
            off.push("grpc.v1.cri");
        }
        let off: Vec<String> = off.iter().map(|name| format!("\"io.containerd.{name}\"")).collect();
        let at = dir.display();
        let config = format!(
            r#"version = 2
root = "{at}/root"
state = "{at}/state"
disabled_plugins = [{}]
[grpc]
  address = "{at}/c.sock"
[ttrpc]
  address = ""
[plugins."io.containerd.internal.v1.opt"]
  path = "{at}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{at}/hosts"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{at}/cni"
"#,
            off.join(", ")
        );
        fs::write(dir.join("config.toml"), config).unwrap();
        Self { dir: dir.to_path_buf(), child: None }
    }

    /// The path of its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// The folder of its `hosts.toml` files.
    pub(crate) fn hosts_dir(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    /// Starts containerd and waits until it answers.
    pub(crate) fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.dir.join("config.toml")).stdin(Stdio::null()).stdout(Stdio::null());
        self.child = Some(command.stderr(log).spawn().unwrap());
        until("containerd answers", || self.ctr(&["version"]).status.success().then_some(()));
    }

    /// Sends SIGKILL and waits for the end.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Runs `ctr` in the namespace of Kubernetes.
    pub(crate) fn ctr(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The same command, not started.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.socket()).args(["-n", "k8s.io"]).args(args).stdin(Stdio::null());
        command
    }

    /// Runs a shell script in a new container of an image. Returns what the script printed.
    pub(crate) fn run(&self, reference: &str, script: &str) -> String {
        // Control groups are named after the container, so a name must be unique on the machine, not only in its runc
        // root.
        static CONTAINERS: AtomicU32 = AtomicU32::new(0);
        let number = CONTAINERS.fetch_add(1, Ordering::Relaxed);
        let container = format!("shoal-test-{}-{number}", std::process::id());
        let root = self.dir.join("runc");
        let root = root.to_str().unwrap();
        self.ok(&["run", "--rm", "--runc-root", root, reference, &container, "/bin/sh", "-c", script])
    }

    /// Runs `ctr`, which must succeed; returns what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.ctr(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "ctr {args:?}: {out}\n{err}");
        out.into_owned()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.kill();
        print_if_failed("containerd", &fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        // A kill during unpacking leaves mounts.
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in points.filter(|mount| Path::new(mount).starts_with(&self.dir)) {
            let _ = Command::new("umount").args(["-l", mount]).status(); // Best effort in a destructor.
        }
    }
}
