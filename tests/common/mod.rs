//! A region of real processes for tests: started, waited for, killed, started again.

#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod disk;
pub(crate) mod feeds;
pub(crate) mod http;

pub(crate) use http::get;

use serde_json::Value;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Stands for the region's loopback address in a peer's settings.
pub(crate) const ADDR: &str = "{addr}";

/// Stands for the admin token's path in a peer's settings.
pub(crate) const ADMIN_TOKEN: &str = "{admin-token}";

/// How many lines of each process's log a failed test prints.
const LOG_LINES: usize = 20;

/// The program under test.
pub(crate) fn shoal() -> Command {
    Command::new(env!("CARGO_BIN_EXE_shoal"))
}

/// Runs a command to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    shoal().args(args).output().expect("the program can be started")
}

/// Runs a command that must succeed; gives what it printed.
pub(crate) fn ok(args: &[&str]) -> String {
    let output = run(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{args:?}: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Waits until `look` gives something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "gave up waiting: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A loopback address that no other test uses, in this process or in another.
///
/// A port that a stopped process gave back on it is free until the process starts again. On 127.0.0.1 any connection of
/// another test may take it meanwhile.
pub(crate) fn own_loopback() -> Ipv4Addr {
    static USED: AtomicU8 = AtomicU8::new(0);
    let used = USED.fetch_add(1, Ordering::Relaxed);
    assert!(used < 250, "one process has used all its loopback addresses");
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    // Process ids have at most 22 bits, so the six bits of `high` and the top two of `middle` are folded together.
    Ipv4Addr::new(127, 1 + (high.wrapping_mul(64) ^ middle) % 250, low, 1 + used)
}

/// What a program that packs, or does anything else with its input, makes of bytes.
pub(crate) fn filter(program: &mut Command, bytes: &[u8]) -> Vec<u8> {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program:?}");
        output.stdout
    })
}

/// Bytes that do not compress or repeat, the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A role's process.
pub(crate) struct Process {
    pub(crate) name: String,
    role: &'static str,
    dir: PathBuf,
    set: Vec<String>,
    /// What runs the program, with its arguments after its own.
    wrap: Vec<String>,
    child: Option<Child>,
    pub(crate) addrs: Value,
}

impl Process {
    pub(crate) fn new(folder: &Path, name: &str, role: &'static str, set: Vec<String>, wrap: &[String]) -> Self {
        let dir = folder.join(name);
        Self { name: name.into(), role, dir, set, wrap: wrap.to_vec(), child: None, addrs: Value::Null }
    }

    /// Starts it, and waits until it is ready.
    pub(crate) fn start(&mut self) {
        let ready = self.dir.join("ready");
        let _ = fs::remove_file(&ready);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = match self.wrap.split_first() {
            None => shoal(),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(env!("CARGO_BIN_EXE_shoal"));
                command
            }
        };
        command.args([self.role, "--exit-with-stdin", "--log", "info,shoal_peer=debug", "--ready-file"]).arg(&ready);
        self.set.iter().for_each(|pair| {
            command.args(["--set", pair]);
        });
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        self.addrs = until(&format!("{} comes up", self.name), || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("{} ended: {status}\n{}", self.name, self.log());
            }
            serde_json::from_str(&fs::read_to_string(&ready).ok()?).ok()
        });
        // The same ports after a restart: others know these.
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

    /// Changes a setting, as KEY=VALUE; it counts from the next start on.
    pub(crate) fn configure(&mut self, pair: &str) {
        self.set.push(pair.to_string());
    }

    /// Kills it and starts it again.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.start();
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; gives how long it took to end, and how.
    pub(crate) fn terminate(&mut self) -> (Duration, std::process::ExitStatus) {
        let mut child = self.child.take().expect("it runs");
        let began = Instant::now();
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let status = until("it stops", || child.try_wait().unwrap());
        (began.elapsed(), status)
    }

    pub(crate) fn http(&self) -> &str {
        self.addrs["http"].as_str().expect("it serves HTTP")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Payload bytes that came from these tiers, of `rack`, `site`, `region`, `seeder` and `local`, since it was started.
    pub(crate) fn received(&self, tiers: &[&str]) -> u64 {
        let of = |tier: &&str| self.metric(&format!("shoal_payload_received_bytes_total{{tier=\"{tier}\"}}"));
        tiers.iter().map(of).sum()
    }

    /// Those of them that came over its rack's uplink.
    pub(crate) fn imported(&self) -> u64 {
        self.received(&["site", "region", "seeder"])
    }

    /// A metric's value.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        http::metric(self.http(), name).expect("metrics are served")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        print_if_failed(&self.name, &self.log());
    }
}

/// In a failed test, prints the end of what a process said.
#[allow(clippy::print_stderr, reason = "a failed test shows what its processes said")]
pub(crate) fn print_if_failed(name: &str, log: &str) {
    if std::thread::panicking() {
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        eprintln!("--- {name}:\n{tail}");
    }
}

/// A region.
pub(crate) struct Region {
    /// Where all its processes listen.
    pub(crate) addr: Ipv4Addr,
    pub(crate) hub: Process,
    pub(crate) tracker: Process,
    pub(crate) seeder: Process,
    pub(crate) peers: Vec<Process>,
    // Last, so that it outlives the processes whose state and logs it holds.
    pub(crate) folder: tempfile::TempDir,
}

impl Region {
    /// Starts one and waits until every host is up. `extra` gives further settings by peer.
    pub(crate) fn start(racks: usize, hosts: usize, extra: impl Fn(usize) -> Vec<String>) -> Self {
        Self::start_with(racks, hosts, &[], extra)
    }

    /// The same, with further settings for the seeder.
    pub(crate) fn start_with(
        racks: usize,
        hosts: usize,
        seeder_extra: &[&str],
        extra: impl Fn(usize) -> Vec<String>,
    ) -> Self {
        Self::start_named(own_loopback(), racks, hosts, seeder_extra, &[], |_, addr| addr.to_string(), extra)
    }

    /// The same, listening on `addr`, with the program run by `wrap`, and hub and tracker reached under what `name` returns.
    pub(crate) fn start_named(
        addr: Ipv4Addr,
        racks: usize,
        hosts: usize,
        seeder_extra: &[&str],
        wrap: &[String],
        name: impl Fn(&str, &str) -> String,
        extra: impl Fn(usize) -> Vec<String>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().to_path_buf();
        let cluster = at.join("cluster");
        ok(&["cluster", "init", "--dir", cluster.to_str().unwrap()]);
        issue(&at, "hub", "hub", "t/core/core/hub");
        let trust = |name: &str| format!("trust='{}'", at.join(name).join("trust").display());
        let dir = |name: &str| format!("dir='{}'", at.join(name).join("state").display());
        let http = format!("http={addr}:0");
        let mut hub = Process::new(&at, "hub", "hub", vec![trust("hub"), dir("hub"), http.clone()], wrap);
        hub.start();
        issue(&at, "tracker", "tracker", "t/core/core/tracker");
        let mut set = files(&at, "tracker", "");
        set.extend([dir("tracker"), format!("listen=['{addr}:0']"), http]);
        set.extend([format!("hub=http://{}", name("hub", hub.http())), "beat=300ms".into(), "flush=200ms".into()]);
        let mut tracker = Process::new(&at, "tracker", "tracker", set, wrap);
        tracker.start();
        let control = name("tracker", tracker.addrs["control"][0].as_str().unwrap());
        issue(&at, "seeder", "seeder", "t/core/core/seeder");
        let mut set = node(&at, addr, "seeder", &control);
        set.push(format!("publisher_key='{}'", cluster.join("publisher.key").display()));
        set.push(format!("admin_token='{}'", cluster.join("admin.token").display()));
        set.extend(seeder_extra.iter().map(|pair| pair.to_string()));
        let mut seeder = Process::new(&at, "seeder", "seeder", set, wrap);
        seeder.start();
        let mut peers = Vec::new();
        for number in 0..racks * hosts {
            let (rack, host) = (number / hosts, number % hosts);
            let host_name = format!("rack{rack}-host{host}");
            issue(&at, &host_name, "peer", &format!("t/site/rack{rack}/host{host}"));
            let mut set = node(&at, addr, &host_name, &control);
            set.push("mirror.listen=''".into());
            set.push(format!("content_dir='{}'", at.join(&host_name).join("content").display()));
            let admin = cluster.join("admin.token").display().to_string();
            let fill = |pair: String| pair.replace(ADMIN_TOKEN, &format!("'{admin}'")).replace(ADDR, &addr.to_string());
            set.extend(extra(number).into_iter().map(fill));
            let mut peer = Process::new(&at, &host_name, "peer", set, wrap);
            peer.start();
            peers.push(peer);
        }
        let region = Self { addr, hub, tracker, seeder, peers, folder };
        region.wait_up(racks * hosts);
        region
    }

    /// Waits until this many peers are up.
    pub(crate) fn wait_up(&self, count: usize) {
        until("every host is up", || {
            let hosts = self.cli_json(&["hosts", "--json"])?;
            let up = hosts.as_array()?.iter().filter(|row| row["role"] == "peer" && row["presence"] == "up").count();
            (up == count).then_some(())
        });
    }

    fn with_seeder(&self, args: &[&str]) -> Vec<String> {
        let token = self.folder.path().join("cluster/admin.token");
        let mut all: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        all.extend(["--seeder".into(), format!("http://{}", self.seeder.http())]);
        all.extend(["--token-file".into(), token.display().to_string()]);
        all
    }

    /// Runs a command against the seeder.
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        let args = self.with_seeder(args);
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs a command against the seeder; gives its JSON if it succeeded.
    pub(crate) fn cli_json(&self, args: &[&str]) -> Option<Value> {
        let output = self.cli(args);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())?
    }

    /// One who publishes feeds at its seeder.
    pub(crate) fn publisher(&self) -> feeds::Publisher {
        let token = fs::read_to_string(self.folder.path().join("cluster/admin.token")).unwrap();
        feeds::Publisher::new(self.seeder.http(), &token)
    }

    /// Pushes without waiting; gives the job.
    pub(crate) fn push(&self, path: &Path, name: &str, version: &str) -> String {
        let args = ["push", path.to_str().unwrap(), "--name", name, "--version", version, "--to", "all", "--json"];
        let pushed = self.cli_json(&args).expect("the push is accepted");
        pushed["job"].as_str().unwrap().to_string()
    }

    /// A job's status.
    pub(crate) fn status(&self, job: &str) -> Value {
        let output = self.cli(&["status", job, "--json"]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no status: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Sum of a number over the racks of a job.
    pub(crate) fn total(status: &Value, key: &str) -> u64 {
        status["racks"].as_array().map_or(0, |racks| racks.iter().filter_map(|rack| rack[key].as_u64()).sum())
    }

    /// Waits until this many hosts have the job active.
    pub(crate) fn wait_active(&self, job: &str, count: u64) -> Value {
        until("the hosts are active", || {
            let status = self.status(job);
            assert_ne!(status["phase"], "failed", "{status:#}");
            (Self::total(&status, "active") >= count).then_some(status)
        })
    }

    /// Waits until this part of the pieces is there, over all hosts.
    pub(crate) fn wait_progress(&self, job: &str, percent: u64) {
        until("some progress", || {
            let status = self.status(job);
            let all = Self::total(&status, "hosts") * status["pieces"].as_u64()?;
            (all > 0 && Self::total(&status, "pieces") * 100 >= all * percent).then_some(())
        });
    }

    /// Checks a peer's copy of a single file.
    pub(crate) fn assert_copy(&self, peer: usize, name: &str, file: &str, bytes: &[u8]) {
        let path = self.peers[peer].dir().join("content").join(name).join("current").join(file);
        let copy = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(copy == bytes, "{} differs", path.display());
    }

    /// Peers whose state at the hub is active, for a job.
    pub(crate) fn hub_active(&self, job: &str) -> Option<u64> {
        let (status, body) = get(self.hub.http(), &format!("/v1/jobs/{job}"), None)?;
        (status == 200).then(|| serde_json::from_str::<Value>(&body).ok()?[0]["active"].as_u64())?
    }
}

pub(crate) fn issue(folder: &Path, name: &str, role: &str, locality: &str) {
    let (cluster, out) = (folder.join("cluster"), folder.join(name));
    let (cluster, out) = (cluster.to_str().unwrap(), out.to_str().unwrap());
    ok(&["cluster", "issue", "--dir", cluster, "--role", role, "--locality", locality, "--out", out]);
}

pub(crate) fn files(folder: &Path, name: &str, prefix: &str) -> Vec<String> {
    let dir = folder.join(name);
    [("trust", "trust"), ("key", "node.key"), ("credential", "node.cred")]
        .map(|(key, file)| format!("{prefix}{key}='{}'", dir.join(file).display()))
        .to_vec()
}

pub(crate) fn node(folder: &Path, addr: Ipv4Addr, name: &str, control: &str) -> Vec<String> {
    let mut set = files(folder, name, "node.");
    set.push(format!("dir='{}'", folder.join(name).join("state").display()));
    set.push(format!("node.listen=['{addr}:0']"));
    set.push("node.min_free=0".into());
    set.push(format!("node.trackers=['{control}']"));
    set.push(format!("http={addr}:0"));
    set
}
