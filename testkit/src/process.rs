//! One role's process: started, killed, started again with the same ports.

use crate::oci::sha256;
use crate::{Program, http, until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How many lines of each process's log a failed test prints.
const LOG_LINES: usize = 20;

/// What starts the program, and how.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: Program,
    /// A command that runs the program with its arguments, for example `unshare`. Empty: the program itself.
    wrap: Vec<String>,
}

impl Launcher {
    /// Starts the program through `wrap`, or by itself when `wrap` is empty.
    pub fn new(program: Program, wrap: &[String]) -> Self {
        Self { program, wrap: wrap.to_vec() }
    }

    fn command(&self) -> Command {
        let Some((first, rest)) = self.wrap.split_first() else { return self.program.command() };
        let mut command = Command::new(first);
        command.args(rest).arg(self.program.path());
        command
    }
}

/// A role's process. It is killed when this is dropped; a failed test then prints the end of its log.
pub struct Process {
    /// The name of the process and of its folder.
    pub name: String,
    role: &'static str,
    dir: PathBuf,
    set: Vec<String>,
    launcher: Launcher,
    child: Option<Child>,
    /// The addresses on which the process listens, as it wrote them into its ready file.
    pub addrs: Value,
}

impl Process {
    /// A process that is not started. Its folder is `folder/name`, and `set` holds `KEY=VALUE` settings.
    pub fn new(folder: &Path, name: &str, role: &'static str, set: Vec<String>, launcher: &Launcher) -> Self {
        let dir = folder.join(name);
        Self { name: name.into(), role, dir, set, launcher: launcher.clone(), child: None, addrs: Value::Null }
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Panics
    /// When the process ends instead.
    pub fn start(&mut self) {
        let ready = self.spawn();
        self.addrs = until(&format!("{} comes up", self.name), || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("{} ended: {status}\n{}", self.name, self.log());
            }
            serde_json::from_str(&fs::read_to_string(&ready).ok()?).ok()
        });
        self.keep_ports();
    }

    /// Starts the process. Returns the path of its ready file.
    fn spawn(&mut self) -> PathBuf {
        let ready = self.dir.join("ready");
        let _ = fs::remove_file(&ready); // The file is there only after an earlier start.
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = self.launcher.command();
        command.args([self.role, "--exit-with-stdin", "--log", "info,shoal_peer=debug", "--ready-file"]).arg(&ready);
        self.set.iter().for_each(|pair| {
            command.args(["--set", pair]);
        });
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        ready
    }

    /// Starts the process where it must refuse to run; returns its status when it has ended.
    ///
    /// # Panics
    /// When the process becomes ready instead.
    pub fn try_start(&mut self) -> ExitStatus {
        let ready = self.spawn();
        until(&format!("{} refuses to start", self.name), || {
            assert!(!ready.exists(), "{} started", self.name);
            self.child.as_mut()?.try_wait().unwrap()
        })
    }

    /// Makes the next start use the same ports, because other processes know these.
    fn keep_ports(&mut self) {
        if let Some(mirror) = self.addrs["mirror"].as_str() {
            self.set.push(format!("mirror.listen='{mirror}'"));
        }
        if let Some(http) = self.addrs["http"].as_str() {
            self.set.retain(|pair| !pair.starts_with("http="));
            self.set.push(format!("http={http}"));
        }
        if let Some(control) = self.addrs["control"][0].as_str() {
            self.set.retain(|pair| !pair.starts_with("listen="));
            self.set.push(format!("listen=['{control}']"));
        }
    }

    /// The settings of the next start, as `KEY=VALUE`. Later ones count.
    pub fn settings(&self) -> &[String] {
        &self.set
    }

    /// Changes a setting, as `KEY=VALUE`, from the next start on.
    pub fn configure(&mut self, pair: &str) {
        self.set.push(pair.to_string());
    }

    /// Kills the process and starts it again.
    pub fn restart(&mut self) {
        self.kill();
        self.start();
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends a signal, for example `HUP`.
    pub fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("the process runs").id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// Sends SIGTERM; returns how long the process took to end, and its status.
    pub fn terminate(&mut self) -> (Duration, ExitStatus) {
        let mut child = self.child.take().expect("the process runs");
        let began = Instant::now();
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let status = until(&format!("{} stops", self.name), || child.try_wait().unwrap());
        (began.elapsed(), status)
    }

    /// The address of its HTTP API.
    pub fn http(&self) -> &str {
        self.addrs["http"].as_str().expect("the process serves HTTP")
    }

    /// The id of the running process.
    ///
    /// # Panics
    /// When the process does not run.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("the process runs").id()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Digests of all streams in the process's store.
    pub fn stored_digests(&self) -> BTreeSet<String> {
        let mut digests = BTreeSet::new();
        for folder in fs::read_dir(self.dir().join("state/contents")).unwrap().flatten() {
            for file in fs::read_dir(folder.path()).unwrap().flatten() {
                if file.file_name().to_string_lossy().starts_with("stream-") {
                    digests.insert(sha256(&fs::read(file.path()).unwrap()));
                }
            }
        }
        digests
    }

    /// Payload bytes that the process received from these tiers since its start, of `rack`, `site`, `region`, `seeder`
    /// and `local`.
    pub fn received(&self, tiers: &[&str]) -> u64 {
        let of = |tier: &&str| self.metric(&format!("shoal_payload_received_bytes_total{{tier=\"{tier}\"}}"));
        tiers.iter().map(of).sum()
    }

    /// Payload bytes that the process received over its rack's uplink since its start.
    pub fn imported(&self) -> u64 {
        self.received(&["site", "region", "seeder"])
    }

    /// The value of a metric, 0 when nothing was counted yet. `name` includes the labels.
    pub fn metric(&self, name: &str) -> u64 {
        http::metric(self.http(), name).unwrap_or_else(|| panic!("{} does not serve its metrics", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        print_if_failed(&self.name, &self.log());
    }
}

/// Prints the end of a process's log if the calling test has failed.
#[allow(clippy::print_stderr, reason = "a failed test shows the logs of its processes")]
pub fn print_if_failed(name: &str, log: &str) {
    if std::thread::panicking() {
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        eprintln!("--- {name}:\n{tail}");
    }
}
