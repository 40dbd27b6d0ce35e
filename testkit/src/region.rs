//! A region of real processes: a hub, a tracker, a seeder and racks of peers.

use crate::http::get;
use crate::process::Launcher;
use crate::settings::{files, issue, node};
use crate::{Process, Program, feeds, own_loopback, until};
use serde_json::Value;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Output;

/// Stands for the region's loopback address in a peer's settings.
pub const ADDR: &str = "{addr}";

/// Stands for the path of the admin token in a peer's settings.
pub const ADMIN_TOKEN: &str = "{admin-token}";

/// Further settings of a peer, by its number.
type PeerSettings<'a> = Box<dyn Fn(usize) -> Vec<String> + 'a>;
/// The name under which others reach a role, from the role and its address.
type Naming<'a> = Box<dyn Fn(&str, &str) -> String + 'a>;

/// What a region is made of, before its start.
pub struct Setup<'a> {
    program: Program,
    racks: usize,
    hosts: usize,
    addr: Ipv4Addr,
    wrap: Vec<String>,
    issuer: bool,
    tracker: Vec<String>,
    seeder: Vec<String>,
    peer: PeerSettings<'a>,
    name: Naming<'a>,
}

impl<'a> Setup<'a> {
    /// Racks of `hosts` peers each, on a loopback address of their own, with default settings.
    pub fn new(program: Program, racks: usize, hosts: usize) -> Self {
        Self {
            program,
            racks,
            hosts,
            addr: own_loopback(),
            wrap: Vec::new(),
            issuer: false,
            tracker: Vec::new(),
            seeder: Vec::new(),
            peer: Box::new(|_| Vec::new()),
            name: Box::new(|_, addr| addr.to_string()),
        }
    }

    /// The address on which all processes listen.
    pub fn addr(&self) -> Ipv4Addr {
        self.addr
    }

    /// Further settings of each peer, by its number. [`ADDR`] and [`ADMIN_TOKEN`] are filled in.
    pub fn peers(mut self, settings: impl Fn(usize) -> Vec<String> + 'a) -> Self {
        self.peer = Box::new(settings);
        self
    }

    /// Adds an issuer of credentials for every role, whose key `cluster/issuer.key` the tracker has.
    pub fn with_issuer(mut self) -> Self {
        self.issuer = true;
        self
    }

    /// Further settings of the tracker.
    pub fn tracker(mut self, settings: &[String]) -> Self {
        self.tracker = settings.to_vec();
        self
    }

    /// Further settings of the seeder.
    pub fn seeder(mut self, settings: &[&str]) -> Self {
        self.seeder = settings.iter().map(|pair| pair.to_string()).collect();
        self
    }

    /// A command that runs the program, for example `unshare`.
    pub fn wrapped_in(mut self, wrap: &[String]) -> Self {
        self.wrap = wrap.to_vec();
        self
    }

    /// How other processes address the hub and the tracker: from the role and its address.
    pub fn named(mut self, name: impl Fn(&str, &str) -> String + 'a) -> Self {
        self.name = Box::new(name);
        self
    }

    /// Starts all processes and waits until every peer is up.
    pub fn start(self) -> Region {
        let folder = tempfile::tempdir().unwrap();
        let cluster = folder.path().join("cluster");
        self.program.ok(&["cluster", "init", "--dir", cluster.to_str().unwrap()]);
        if self.issuer {
            let out = cluster.join("issuer.key");
            let dir = ["cluster", "add-issuer", "--dir", cluster.to_str().unwrap(), "--out", out.to_str().unwrap()];
            self.program.ok(&[&dir[..], &["--role", "peer", "--role", "seeder", "--role", "tracker", "--role", "hub"]].concat());
        }
        let starter = Starter { at: folder.path().to_path_buf(), launcher: Launcher::new(self.program, &self.wrap) };
        let hub = starter.hub(&self);
        let tracker = starter.tracker(&self, &hub);
        let control = (self.name)("tracker", tracker.addrs["control"][0].as_str().unwrap());
        let seeder = starter.seeder(&self, &control);
        let count = self.racks * self.hosts;
        let peers = (0..count).map(|number| starter.peer(&self, &control, number)).collect();
        let Self { program, addr, .. } = self;
        let region = Region { program, addr, hub, tracker, seeder, peers, folder };
        region.wait_up(count);
        region
    }
}

/// Starts the processes of a region one after the other.
struct Starter {
    at: PathBuf,
    launcher: Launcher,
}

impl Starter {
    fn hub(&self, setup: &Setup<'_>) -> Process {
        issue(setup.program, &self.at, "hub", "hub", "t/core/core/hub");
        let mut set = files(&self.at, "hub", "");
        set.extend([self.state("hub"), format!("http={}:0", setup.addr)]);
        let named = (setup.name)("hub", &format!("{}:0", setup.addr));
        set.push(format!("http_access.names=['{}']", named.trim_end_matches(":0")));
        self.launch("hub", "hub", set)
    }

    fn tracker(&self, setup: &Setup<'_>, hub: &Process) -> Process {
        issue(setup.program, &self.at, "tracker", "tracker", "t/core/core/tracker");
        let mut set = files(&self.at, "tracker", "");
        let addr = setup.addr;
        set.extend([self.state("tracker"), format!("listen=['{addr}:0']"), format!("http={addr}:0")]);
        set.push(format!("hub=http://{}", (setup.name)("hub", hub.http())));
        if setup.issuer {
            set.push(format!("issuer_key='{}'", self.at.join("cluster/issuer.key").display()));
        }
        set.extend(setup.tracker.iter().cloned());
        // Shorter than the defaults, so that tests wait less.
        set.extend(["beat=300ms".into(), "flush=200ms".into()]);
        self.launch("tracker", "tracker", set)
    }

    fn seeder(&self, setup: &Setup<'_>, control: &str) -> Process {
        issue(setup.program, &self.at, "seeder", "seeder", "t/core/core/seeder");
        let mut set = node(&self.at, setup.addr, "seeder", control);
        set.push(format!("publisher_key='{}'", self.at.join("cluster/publisher.key").display()));
        set.push(format!("admin_token='{}'", self.at.join("cluster/admin.token").display()));
        // Tests push from folders for temporary files.
        set.push(format!("push_roots=['{}']", std::env::temp_dir().display()));
        set.extend(setup.seeder.iter().cloned());
        self.launch("seeder", "seeder", set)
    }

    fn peer(&self, setup: &Setup<'_>, control: &str, number: usize) -> Process {
        let (rack, host) = (number / setup.hosts, number % setup.hosts);
        let name = format!("rack{rack}-host{host}");
        issue(setup.program, &self.at, &name, "peer", &format!("t/site/rack{rack}/host{host}"));
        let mut set = node(&self.at, setup.addr, &name, control);
        set.push("mirror.listen=''".into());
        set.push(format!("content_dir='{}'", self.at.join(&name).join("content").display()));
        let admin = format!("'{}'", self.at.join("cluster/admin.token").display());
        let fill = |pair: String| pair.replace(ADMIN_TOKEN, &admin).replace(ADDR, &setup.addr.to_string());
        set.extend((setup.peer)(number).into_iter().map(fill));
        self.launch(&name, "peer", set)
    }

    fn state(&self, name: &str) -> String {
        format!("dir='{}'", self.at.join(name).join("state").display())
    }

    fn launch(&self, name: &str, role: &'static str, set: Vec<String>) -> Process {
        let mut process = Process::new(&self.at, name, role, set, &self.launcher);
        process.start();
        process
    }
}

/// A running region. Its processes end when it is dropped.
pub struct Region {
    /// The program that all processes run.
    pub program: Program,
    /// The address on which all processes listen.
    pub addr: Ipv4Addr,
    /// The hub.
    pub hub: Process,
    /// The tracker.
    pub tracker: Process,
    /// The seeder.
    pub seeder: Process,
    /// The peers, rack by rack.
    pub peers: Vec<Process>,
    // The last field, so that it outlives the processes whose state and logs it holds.
    /// Where the processes have their folders. A test may put its own files here.
    pub folder: tempfile::TempDir,
}

impl Region {
    /// Starts a region with default settings and waits until every peer is up.
    pub fn start(program: Program, racks: usize, hosts: usize) -> Self {
        Setup::new(program, racks, hosts).start()
    }

    /// Waits until this many peers are up.
    pub fn wait_up(&self, count: usize) {
        until("every host is up", || {
            let hosts = self.cli_json(&["hosts", "--json"])?;
            let up = hosts.as_array()?.iter().filter(|row| row["role"] == "peer" && row["presence"] == "up").count();
            (up == count).then_some(())
        });
    }

    /// Runs a command against the seeder.
    pub fn cli(&self, args: &[&str]) -> Output {
        let token = self.folder.path().join("cluster/admin.token");
        let url = format!("http://{}", self.seeder.http());
        let seeder = ["--seeder", &url, "--token-file", token.to_str().unwrap()];
        self.program.run(&[args, &seeder].concat())
    }

    /// Runs a command against the seeder; returns its JSON if it succeeded.
    pub fn cli_json(&self, args: &[&str]) -> Option<Value> {
        let output = self.cli(args);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())?
    }

    /// A publisher of feeds at the seeder.
    pub fn publisher(&self) -> feeds::Publisher {
        let token = fs::read_to_string(self.folder.path().join("cluster/admin.token")).unwrap();
        feeds::Publisher::new(self.seeder.http(), &token)
    }

    /// Starts a push to all hosts; returns the job.
    pub fn push(&self, path: &Path, name: &str, version: &str) -> String {
        let args = ["push", path.to_str().unwrap(), "--name", name, "--version", version, "--to", "all", "--json"];
        let pushed = self.cli_json(&args).expect("the push is accepted");
        pushed["job"].as_str().unwrap().to_string()
    }

    /// The status of a job.
    pub fn status(&self, job: &str) -> Value {
        let output = self.cli(&["status", job, "--json"]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no status of {job}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The sum of a number over the racks of a job's status.
    pub fn total(status: &Value, key: &str) -> u64 {
        status["racks"].as_array().map_or(0, |racks| racks.iter().filter_map(|rack| rack[key].as_u64()).sum())
    }

    /// Waits until this many hosts have the job's version active; returns the job's status then.
    pub fn wait_active(&self, job: &str, count: u64) -> Value {
        until("the hosts are active", || {
            let status = self.status(job);
            assert_ne!(status["phase"], "failed", "{status:#}");
            (Self::total(&status, "active") >= count).then_some(status)
        })
    }

    /// Waits until all hosts together have this percentage of the job's pieces.
    pub fn wait_progress(&self, job: &str, percent: u64) {
        until("some progress", || {
            let status = self.status(job);
            let all = Self::total(&status, "hosts") * status["pieces"].as_u64()?;
            (all > 0 && Self::total(&status, "pieces") * 100 >= all * percent).then_some(())
        });
    }

    /// Checks a peer's copy of a single file.
    pub fn assert_copy(&self, peer: usize, name: &str, file: &str, bytes: &[u8]) {
        let path = self.peers[peer].dir().join("content").join(name).join("current").join(file);
        let copy = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(copy == bytes, "{} differs", path.display());
    }

    /// How many hosts the hub counts as active in a job.
    pub fn hub_active(&self, job: &str) -> Option<u64> {
        let token = fs::read_to_string(self.folder.path().join("cluster/admin.token")).ok()?;
        let (status, body) = get(self.hub.http(), &format!("/v1/jobs/{job}"), Some(token.trim()))?;
        (status == 200).then(|| serde_json::from_str::<Value>(&body).ok()?[0]["active"].as_u64())?
    }
}
