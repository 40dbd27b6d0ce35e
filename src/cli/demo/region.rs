//! The processes of the demo and their folder.
//!
//! Invariant: no process outlives the demo. The standard input of every child is a pipe from the demo, and a role stops
//! when its standard input ends, so that a killed demo leaves no process behind.

use super::credentials;
use anyhow::{Context, bail};
use serde_json::Value;
use shoal_api::hosts::Host;
use shoal_api::hub::HubJob;
use shoal_api::jobs::{HostTotals, JobStatus};
use shoal_proto::ids::JobId;
use shoal_proto::membership::Presence;
use shoal_proto::trust::Role;
use shoal_service::http_client::Client;
use shoal_service::http_server::AdminToken;
use shoal_service::metrics::peak_rss;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// Time for all roles to become ready.
const START: Duration = Duration::from_secs(60);
/// Time for a role to stop before it is killed.
const STOP: Duration = Duration::from_secs(12);
/// Interval of polls for states that have no event.
const POLL_EVERY: Duration = Duration::from_millis(25);

/// The demo's folder. The drop removes the folder unless it is kept.
pub(crate) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    pub(crate) fn create(base: &Path, keep: bool) -> anyhow::Result<Self> {
        std::fs::create_dir_all(base)?;
        // Roles refuse relative folders.
        let path = std::path::absolute(base)?.join(format!("shoal-demo-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create the folder {}", path.display()))?;
        Ok(Self { path, keep })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.path); // a drop has no caller to report to
        }
    }
}

struct Process {
    name: String,
    dir: PathBuf,
    child: Child,
    addrs: Value,
}

impl Process {
    fn http(&self) -> String {
        format!("http://{}", self.addrs["http"].as_str().unwrap_or_default())
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n  ")
    }

    /// Starts a role and waits for its ready file.
    async fn start(folder: &Path, name: &str, role: &str, set: &[String]) -> anyhow::Result<Self> {
        let dir = folder.join(name);
        let ready = dir.join("ready");
        let log = File::create(dir.join("log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).arg("--exit-with-stdin").arg("--ready-file").arg(&ready);
        for pair in set {
            command.arg("--set").arg(pair);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let mut process = Self { name: name.into(), dir, child, addrs: Value::Null };
        let until = Instant::now() + START;
        loop {
            if let Ok(text) = std::fs::read_to_string(&ready) {
                process.addrs = serde_json::from_str(&text)?;
                return Ok(process);
            }
            if let Some(status) = process.child.try_wait()? {
                bail!("{name} ended during its start ({status}):\n  {}", process.log_tail());
            }
            if Instant::now() > until {
                bail!("{name} was not ready within {} s:\n  {}", START.as_secs(), process.log_tail());
            }
            sleep(POLL_EVERY).await;
        }
    }

    async fn stop(mut self) {
        // The role stops when its standard input ends.
        drop(self.child.stdin.take());
        if tokio::time::timeout(STOP, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await; // fails only if the process has ended by itself
        }
    }
}

/// Messages and bytes of the control plane since the start, and the peak memory.
pub(crate) struct Traffic {
    pub(crate) hub_bytes_in: u64,
    pub(crate) hub_messages: u64,
    pub(crate) tracker_bytes_in: u64,
    pub(crate) peak_rss_bytes: u64,
}

/// All processes of the demo.
pub(crate) struct Region {
    cluster: PathBuf,
    hub: Process,
    tracker: Process,
    seeder: Process,
    peers: Vec<Process>,
}

fn quoted(path: &Path) -> String {
    Value::from(path.display().to_string()).to_string()
}

/// Where the roles keep their files. It makes each role's credentials and settings.
struct Settings<'a> {
    folder: &'a Path,
    cluster: &'a Path,
}

impl Settings<'_> {
    /// Makes the credential of a role in the role's folder.
    fn issue(&self, name: &str, role: Role, locality: &str) -> anyhow::Result<()> {
        credentials(self.cluster, role, locality, self.folder.join(name))
    }

    fn trust(&self, name: &str, prefix: &str) -> String {
        format!("{prefix}trust={}", quoted(&self.folder.join(name).join("trust")))
    }

    fn files(&self, name: &str, prefix: &str) -> Vec<String> {
        let file = |key: &str, file: &str| format!("{prefix}{key}={}", quoted(&self.folder.join(name).join(file)));
        vec![self.trust(name, prefix), file("key", "node.key"), file("credential", "node.cred")]
    }

    fn state(&self, name: &str) -> String {
        format!("dir={}", quoted(&self.folder.join(name).join("state")))
    }

    /// The settings that a seeder and a peer share.
    fn node(&self, name: &str, control: &str) -> Vec<String> {
        let mut set = self.files(name, "node.");
        set.extend([
            self.state(name),
            "node.listen=['127.0.0.1:0']".into(),
            "node.min_free=0".into(),
            format!("node.trackers=['{control}']"),
            "http=127.0.0.1:0".into(),
        ]);
        set
    }

    async fn start_hub(&self) -> anyhow::Result<Process> {
        self.issue("hub", Role::Hub, "demo/core/core/hub")?;
        let mut set = self.files("hub", "");
        set.extend([self.state("hub"), "http=127.0.0.1:0".into()]);
        Process::start(self.folder, "hub", "hub", &set).await
    }

    async fn start_tracker(&self, hub: &Process) -> anyhow::Result<Process> {
        self.issue("tracker", Role::Tracker, "demo/core/core/tracker")?;
        let mut set = self.files("tracker", "");
        set.extend([
            self.state("tracker"),
            "listen=['127.0.0.1:0']".into(),
            "http=127.0.0.1:0".into(),
            format!("hub={}", hub.http()),
            "beat=1s".into(),
        ]);
        Process::start(self.folder, "tracker", "tracker", &set).await
    }

    async fn start_seeder(&self, control: &str, sources: &[&Path]) -> anyhow::Result<Process> {
        self.issue("seeder", Role::Seeder, "demo/core/core/seeder")?;
        let mut set = self.node("seeder", control);
        set.push(format!("publisher_key={}", quoted(&self.cluster.join("publisher.key"))));
        set.push(format!("admin_token={}", quoted(&self.cluster.join("admin.token"))));
        let roots: Vec<String> = sources.iter().map(|source| quoted(source)).collect();
        set.push(format!("push_roots=[{}]", roots.join(",")));
        Process::start(self.folder, "seeder", "seeder", &set).await
    }

    async fn start_peers(&self, control: &str, racks: u32, hosts: u32) -> anyhow::Result<Vec<Process>> {
        let mut peers = Vec::new();
        for (rack, host) in (1..=racks).flat_map(|rack| (1..=hosts).map(move |host| (rack, host))) {
            let name = format!("rack{rack}-host{host}");
            self.issue(&name, Role::Peer, &format!("demo/site/rack{rack}/host{host}"))?;
            let mut set = self.node(&name, control);
            set.push("mirror.listen=''".into());
            set.push(format!("content_dir={}", quoted(&self.folder.join(&name).join("content"))));
            peers.push(Process::start(self.folder, &name, "peer", &set).await?);
        }
        Ok(peers)
    }
}

impl Region {
    /// Starts all roles and waits until every host is up. The seeder pushes only the sources.
    pub(crate) async fn start(
        folder: &Path,
        cluster: &Path,
        (racks, hosts): (u32, u32),
        sources: &[&Path],
    ) -> anyhow::Result<Self> {
        let settings = Settings { folder, cluster };
        let hub = settings.start_hub().await?;
        let tracker = settings.start_tracker(&hub).await?;
        let control = tracker.addrs["control"][0].as_str().unwrap_or_default().to_string();
        let seeder = settings.start_seeder(&control, sources).await?;
        let peers = settings.start_peers(&control, racks, hosts).await?;
        let mut region = Self { cluster: cluster.to_path_buf(), hub, tracker, seeder, peers };
        tokio::select! {
            up = region.all_up(racks * hosts) => up?,
            () = sleep(START) => {
                bail!("some hosts were not up within {} s; try fewer --racks and --hosts", START.as_secs());
            }
        }
        if let Some(died) = region.dead() {
            bail!("{died}");
        }
        Ok(region)
    }

    async fn all_up(&self, hosts: u32) -> anyhow::Result<()> {
        let client = self.seeder()?;
        loop {
            let rows: Vec<Host> = client.get("/v1/hosts").await?;
            let up = rows.iter().filter(|row| row.role == "peer" && row.presence == Presence::Up).count();
            if up as u32 == hosts {
                return Ok(());
            }
            sleep(POLL_EVERY).await;
        }
    }

    /// Returns a client of the seeder's API.
    pub(crate) fn seeder(&self) -> anyhow::Result<Client> {
        let token = AdminToken::load(&self.cluster.join("admin.token"))?;
        Ok(Client::new(&self.seeder.http(), Some(token.secret().to_string()))?)
    }

    /// The content folders of all hosts.
    pub(crate) fn content_dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.peers.iter().map(|peer| peer.dir.join("content"))
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Process> {
        [&mut self.hub, &mut self.tracker, &mut self.seeder].into_iter().chain(&mut self.peers)
    }

    fn dead(&mut self) -> Option<String> {
        self.all().find_map(|process| {
            let status = process.child.try_wait().ok()??;
            Some(format!("{} ended ({status}):\n  {}", process.name, process.log_tail()))
        })
    }

    /// Completes when a process ends unexpectedly. Returns its name, status and last log lines.
    pub(crate) async fn watch(&mut self) -> String {
        loop {
            if let Some(died) = self.dead() {
                return died;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until the hub has the seeder's totals of a job.
    pub(crate) async fn hub_settled(&self, job: &JobId, status: &JobStatus) -> anyhow::Result<()> {
        let HostTotals { active, failed, .. } = status.totals();
        let client = Client::new(&self.hub.http(), None)?;
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let views: Vec<HubJob> = client.get(&format!("/v1/jobs/{job}")).await.unwrap_or_default();
            if views.iter().any(|view| view.active == active && view.failed == failed) {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("the hub did not receive the totals of the job within 30 s:\n  {}", self.tracker.log_tail());
            }
            sleep(POLL_EVERY).await;
        }
    }

    pub(crate) async fn traffic(&self) -> anyhow::Result<Traffic> {
        let scrape = |process: &Process| {
            let client = Client::new(&process.http(), None);
            async move { anyhow::Ok(client?.get_text("/metrics").await?) }
        };
        let (hub, tracker) = (scrape(&self.hub).await?, scrape(&self.tracker).await?);
        let all = self.peers.iter().chain([&self.hub, &self.tracker, &self.seeder]);
        let peak_rss_bytes = all.filter_map(|process| process.child.id()).map(|id| peak_rss(&id.to_string())).max();
        Ok(Traffic {
            hub_bytes_in: value(&hub, "shoal_hub_received_bytes_total"),
            hub_messages: value(&hub, "shoal_hub_reports_total"),
            tracker_bytes_in: value(&tracker, "shoal_tracker_received_bytes_total"),
            peak_rss_bytes: peak_rss_bytes.unwrap_or(0),
        })
    }

    /// Stops all roles at the same time.
    pub(crate) async fn stop(self) {
        let mut ending = tokio::task::JoinSet::new();
        for process in self.peers.into_iter().chain([self.seeder, self.tracker, self.hub]) {
            ending.spawn(process.stop());
        }
        while ending.join_next().await.is_some() {}
    }
}

/// Returns a metric's value, or 0 if the metric is absent.
fn value(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.parse::<f64>().ok()).map_or(0, |number| number as u64)
}
