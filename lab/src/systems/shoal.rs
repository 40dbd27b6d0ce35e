//! Shoal: a hub, a tracker, a seeder and peers as an operator runs them, with default settings except addresses and
//! folders.

use super::System;
use crate::clock::time_of_day;
use crate::clock::{made_at, until};
use crate::content::FILE;
use crate::namespaces::Place;
use crate::output::tail;
use crate::stage::Stage;
use anyhow::{Context, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The name and the version of the content.
const NAME: &str = "lab";
const VERSION: &str = "1";
const PATIENCE: Duration = Duration::from_secs(60);
/// The seeder's link is silent when less than this has passed during [`SILENCE`], bytes.
const SILENT_BYTES: u64 = 16_384;
const SILENCE: Duration = Duration::from_millis(150);

#[derive(Default)]
pub(crate) struct Shoal {
    push: Option<Push>,
    ingest: Duration,
    last_look: Option<LinkLook>,
}

/// The seeder's link at one moment.
#[derive(Clone, Copy)]
struct LinkLook {
    at: Instant,
    /// Bytes that had left the seeder.
    sent: u64,
}

/// A running `shoal push --wait --json` and its last status.
struct Push {
    child: Child,
    status: Arc<Mutex<PushStatus>>,
}

#[derive(Default)]
struct PushStatus {
    /// When the distribution began, time of day.
    began: Option<Duration>,
    size: u64,
    pieces: u32,
    seeder_sent: u64,
    error: String,
}

impl Drop for Push {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended.
        let _ = self.child.wait();
    }
}

impl Push {
    fn start(stage: &Stage) -> anyhow::Result<Self> {
        let mut command = client(stage, "push");
        command.arg(&stage.content.path).args([
            "--name",
            NAME,
            "--version",
            VERSION,
            "--to",
            "all",
            "--wait",
            "--json",
        ]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("the output of `shoal push` is a pipe")?).lines();
        let status = Arc::new(Mutex::new(PushStatus::default()));
        let shared = status.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
                let mut status = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let phase = line["phase"].as_str().unwrap_or_default();
                if status.began.is_none() && matches!(phase, "distributing" | "done") {
                    status.began = Some(time_of_day());
                }
                let number = |key: &str| line[key].as_u64().unwrap_or(0);
                status.size = number("size");
                status.pieces = number("pieces") as u32;
                status.seeder_sent = number("seeder_sent");
                status.error = line["error"].as_str().unwrap_or_default().into();
            }
        });
        Ok(Self { child, status })
    }

    fn status<T>(&self, look: impl FnOnce(&PushStatus) -> T) -> T {
        look(&self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A command of the CLI on the seeder's machine.
fn client(stage: &Stage, command: &str) -> Command {
    let mut client = stage.racks.command(Place::Seeder, stage.program.path());
    client.arg(command).arg("--token-file").arg(cluster(stage).join("admin.token"));
    client
}

fn cluster(stage: &Stage) -> PathBuf {
    stage.dir.path().join("cluster")
}

/// Where a host has the versions of the content's name.
fn versions(stage: &Stage, host: Place) -> PathBuf {
    stage.dir.path().join(host.to_string()).join("content").join(NAME)
}

/// The content as `demote` and `promote` name it.
fn target() -> String {
    format!("{NAME}@{VERSION}")
}

fn text(path: &Path) -> String {
    Value::from(path.display().to_string()).to_string()
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Issues a machine's key and credential; returns its role and settings.
fn settings(stage: &Stage, place: Place) -> anyhow::Result<(&'static str, Vec<String>)> {
    let folder = stage.processes.folder(place)?;
    let (role, locality) = match place {
        Place::Seeder => ("seeder", "lab/core/core/seeder".into()),
        Place::Tracker => ("tracker", "lab/core/core/tracker".into()),
        Place::Hub => ("hub", "lab/core/core/hub".into()),
        Place::Host { rack, host } => ("peer", format!("lab/site/rack{}/host{}", rack + 1, host + 1)),
    };
    if !folder.join("node.key").exists() {
        let mut issue = stage.program.command();
        issue.args(["cluster", "issue", "--dir"]).arg(cluster(stage));
        run(issue.args(["--role", role, "--locality", &locality, "--out"]).arg(&folder))?;
    }
    let files = |prefix: &str| {
        [("trust", "trust"), ("key", "node.key"), ("credential", "node.cred")]
            .map(|(key, file)| format!("{prefix}{key}={}", text(&folder.join(file))))
    };
    // The lab's networks exist on this machine only.
    let mut set = vec![format!("dir={}", text(&folder.join("state"))), "http_access.behind_proxy=true".into()];
    match place {
        Place::Hub => {
            set.extend(files(""));
            set.push(format!("http={}:7731", place.addr()));
            set.push(format!("admin_token={}", text(&cluster(stage).join("admin.token"))));
        }
        Place::Tracker => {
            set.extend(files(""));
            set.push(format!("listen=['{}:7710']", place.addr()));
            set.push(format!("hub=http://{}:7731", Place::Hub.addr()));
        }
        Place::Seeder | Place::Host { .. } => {
            set.extend(files("node."));
            set.push(format!("node.listen=['{}:7700']", place.addr()));
            set.push(format!("node.trackers=['{}:7710']", Place::Tracker.addr()));
            set.push("node.min_free=0".into());
        }
    }
    match place {
        Place::Seeder => set.extend([
            format!("publisher_key={}", text(&cluster(stage).join("publisher.key"))),
            format!("admin_token={}", text(&cluster(stage).join("admin.token"))),
            format!("parity_shards={}", stage.parity),
            format!("push_roots=[{}, {}]", text(&stage.content.path), text(stage.dir.path())),
        ]),
        Place::Host { .. } => set.push(format!("content_dir={}", text(&folder.join("content")))),
        Place::Tracker | Place::Hub => {}
    }
    Ok((role, set))
}

fn start(stage: &mut Stage, place: Place) -> anyhow::Result<()> {
    let (role, set) = settings(stage, place)?;
    let ready = stage.processes.folder(place)?.join("ready");
    let _ = std::fs::remove_file(&ready);
    let mut command = stage.racks.command(place, stage.program.path());
    command.args([role, "--exit-with-stdin", "--ready-file"]).arg(&ready);
    set.iter().for_each(|pair| {
        command.args(["--set", pair]);
    });
    stage.processes.start(place, &mut command)
}

fn wait_ready(stage: &mut Stage, place: Place) -> anyhow::Result<()> {
    let ready = stage.processes.folder(place)?.join("ready");
    let up = until(&format!("{place} comes up"), PATIENCE, || match stage.processes.is_running(place) {
        true => ready.exists().then_some(true),
        false => Some(false),
    })?;
    anyhow::ensure!(up, "{place} ended during its start:\n{}", stage.processes.log_tail(place));
    Ok(())
}

impl System for Shoal {
    fn prepare(&mut self, stage: &mut Stage, hosts: &[Place]) -> anyhow::Result<()> {
        run(stage.program.command().args(["cluster", "init", "--dir"]).arg(cluster(stage)))?;
        for place in [Place::Hub, Place::Tracker] {
            start(stage, place)?;
            wait_ready(stage, place)?;
        }
        start(stage, Place::Seeder)?;
        wait_ready(stage, Place::Seeder)?;
        // One after the other, so that the roster has the order of the layout. Then rack shares fall on the same hosts
        // as in the simulator.
        for (earlier, host) in hosts.iter().enumerate() {
            start(stage, *host)?;
            wait_ready(stage, *host)?;
            until(&format!("{host} is up"), PATIENCE, || {
                let rows: Value = serde_json::from_str(&run(client(stage, "hosts").arg("--json")).ok()?).ok()?;
                let up = rows.as_array()?.iter().filter(|row| row["role"] == "peer" && row["presence"] == "up").count();
                (up == earlier + 1).then_some(())
            })?;
        }
        Ok(())
    }

    fn begin(&mut self, stage: &mut Stage, _: &[Place]) -> anyhow::Result<Duration> {
        let asked = time_of_day();
        let push = Push::start(stage)?;
        let began = until("the seeder has ingested the content", PATIENCE, || {
            let failed = push.status(|status| (!status.error.is_empty()).then(|| status.error.clone()));
            push.status(|status| status.began).map(Ok).or_else(|| failed.map(Err))
        })?;
        let began =
            began.map_err(|error| anyhow::anyhow!("{error}\n{}", tail(&stage.processes.log_tail(Place::Seeder))))?;
        self.ingest = began.saturating_sub(asked);
        self.push = Some(push);
        Ok(began)
    }

    fn start_host(&mut self, stage: &mut Stage, host: Place) -> anyhow::Result<()> {
        start(stage, host)
    }

    fn done(&self, stage: &Stage, host: Place) -> PathBuf {
        versions(stage, host).join("current")
    }

    fn copy(&self, stage: &Stage, host: Place) -> PathBuf {
        self.done(stage, host).join(FILE)
    }

    /// The seeder has sent as many bytes as the content has, and its link is silent, so repeated shards are out as
    /// well.
    fn all_out(&mut self, stage: &mut Stage) -> anyhow::Result<bool> {
        let Some(push) = &self.push else { return Ok(false) };
        if !push.status(|status| status.size > 0 && status.seeder_sent >= status.size) {
            return Ok(false);
        }
        let now = Instant::now();
        let last = match self.last_look {
            Some(last) if now < last.at + SILENCE => return Ok(false),
            Some(last) => last,
            None => LinkLook { at: now, sent: 0 },
        };
        let sent = stage.racks.crossed(&Place::Seeder.to_string(), "eth0")?.out;
        self.last_look = Some(LinkLook { at: now, sent });
        Ok(now > last.at && sent - last.sent < SILENT_BYTES)
    }

    fn demote(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        // The push counts as running until the last host has reported.
        let push = self.push.as_mut().context("the content was pushed")?;
        until("the push is over", PATIENCE, || push.child.try_wait().ok().flatten())?;
        // An active version is not demoted, so another version replaces it first.
        let next = stage.dir.path().join("next");
        std::fs::write(&next, "next")?;
        let mut push = client(stage, "push");
        run(push.arg(&next).args(["--name", NAME, "--version", "2", "--to", "all", "--wait", "--timeout", "60s"]))?;
        run(client(stage, "demote").args([target().as_str(), "--wait", "--timeout", "60s"]))?;
        until("the demoted version is gone", PATIENCE, || {
            let gone = |host: &Place| !versions(stage, *host).join(VERSION).exists();
            stage.racks.hosts().iter().all(gone).then_some(())
        })
    }

    fn promote(&mut self, stage: &Stage) -> anyhow::Result<()> {
        run(client(stage, "promote").arg(target())).map(drop)
    }

    fn restored(&self, stage: &Stage, host: Place) -> Option<Duration> {
        let current = self.done(stage, host);
        (std::fs::read_link(&current).ok()? == Path::new(VERSION)).then(|| made_at(&current)).flatten()
    }

    fn feed_token(&self, stage: &Stage) -> anyhow::Result<String> {
        let path = cluster(stage).join("admin.token");
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn ingest_s(&self) -> f64 {
        self.ingest.as_secs_f64()
    }

    fn pieces(&self) -> u32 {
        self.push.as_ref().map_or(0, |push| push.status(|status| status.pieces))
    }
}
