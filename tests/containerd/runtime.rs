//! A real containerd of one host: started, killed and started again.
//!
//! Invariant: two runtimes share nothing. Each has its own folders, its own runc root, and containers with unique
//! names.

use shoal_testkit::process::print_if_failed;
use shoal_testkit::until;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
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

/// A release of containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// Debian's package, release 1.6.
    V1,
    /// The release that `tools/containerd` pins, 2.4.
    V2,
}

impl Release {
    /// The folder of the programs, or `None` for those of the system.
    fn programs(self) -> Option<&'static Path> {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let build = || {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/build");
            let output = Command::new(script).arg("containerd").stderr(Stdio::inherit()).output().unwrap();
            assert!(output.status.success(), "{script} containerd failed: is Go installed?");
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
        };
        (self == Self::V2).then(|| BUILT.get_or_init(build).as_path())
    }

    /// A command that runs one of the release's programs, and finds the others.
    fn command(self, program: &str) -> Command {
        let Some(folder) = self.programs() else { return Command::new(program) };
        let mut command = Command::new(folder.join(program));
        command.env("PATH", format!("{}:{}", folder.display(), std::env::var("PATH").unwrap()));
        command
    }

    /// The configuration. `at` is the folder of the runtime.
    fn config(self, at: &Path, cri: bool) -> String {
        let (version, unused, sections) = match self {
            Self::V1 => (
                2,
                &["aufs", "btrfs", "devmapper", "zfs"][..],
                format!(
                    r#"[grpc]
  address = "{0}/c.sock"
[ttrpc]
  address = ""
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{0}/hosts"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{0}/cni"
"#,
                    at.display()
                ),
            ),
            Self::V2 => (
                4,
                &["btrfs", "devmapper", "zfs", "erofs", "blockfile"][..],
                format!(
                    r#"[plugins."io.containerd.server.v1.grpc"]
  address = "{0}/c.sock"
[plugins."io.containerd.server.v1.ttrpc"]
  address = "{0}/t.sock"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{0}/hosts"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  conf_dir = "{0}/cni"
"#,
                    at.display()
                ),
            ),
        };
        let mut off: Vec<String> =
            unused.iter().map(|name| format!("\"io.containerd.snapshotter.v1.{name}\"")).collect();
        if !cri {
            off.push("\"io.containerd.grpc.v1.cri\"".into());
        }
        format!(
            r#"version = {version}
root = "{0}/root"
state = "{0}/state"
disabled_plugins = [{1}]
[plugins."io.containerd.internal.v1.opt"]
  path = "{0}/opt"
{sections}"#,
            at.display(),
            off.join(", ")
        )
    }
}

/// Makes of each function a test with every release.
macro_rules! on_each_release {
    ($($name:ident),+ $(,)?) => {
        mod containerd_1 {
            $(#[test] fn $name() { super::$name(crate::runtime::Release::V1) })+
        }
        mod containerd_2 {
            $(#[test] fn $name() { super::$name(crate::runtime::Release::V2) })+
        }
    };
}
pub(crate) use on_each_release;

/// A containerd. It is killed when this is dropped.
pub(crate) struct Runtime {
    pub(crate) dir: PathBuf,
    release: Release,
    child: Option<Child>,
}

impl Runtime {
    /// Writes the configuration of a containerd. `cri` tells whether it serves CRI.
    pub(crate) fn new(release: Release, dir: &Path, cri: bool) -> Self {
        fs::create_dir_all(dir.join("hosts")).unwrap();
        fs::write(dir.join("config.toml"), release.config(dir, cri)).unwrap();
        Self { dir: dir.to_path_buf(), release, child: None }
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
        let mut command = self.release.command("containerd");
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
        let mut command = self.release.command("ctr");
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
