//! Shoal: hub, tracker, seeder and peers as an operator runs them, each with the defaults but for addresses and folders.

use super::System;
use crate::lab::content::FILE;
use crate::lab::measure::{Stage, clock, tail};
use crate::lab::namespaces::Place;
use crate::lab::processes::{made_at, until};
use crate::lab::shoal;
use anyhow::{Context, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is pushed.
const NAME: &str = "lab";
const VERSION: &str = "1";
const PATIENCE: Duration = Duration::from_secs(60);
/// The seeder's link is silent when less than this passed in [`SILENCE`], bytes.
const SILENT_BYTES: u64 = 16_384;
const SILENCE: Duration = Duration::from_millis(150);

#[derive(Default)]
pub(super) struct Shoal {
    push: Option<Push>,
    take_in: Duration,
    /// When the seeder's link was looked at last, and what it had sent.
    quiet: Option<(Instant, u64)>,
}

/// `shoal push --wait --json`, and the last it said.
struct Push {
    child: Child,
    said: Arc<Mutex<Said>>,
}

#[derive(Default)]
struct Said {
    /// When the hosts were told, time of day.
    told: Option<Duration>,
    size: u64,
    pieces: u32,
    seeder_sent: u64,
    error: String,
}

impl Drop for Push {
    fn drop(&mut self) {
        let _ = self.child.kill();
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
        let lines = BufReader::new(child.stdout.take().context("its output is ours")?).lines();
        let said = Arc::new(Mutex::new(Said::default()));
        let shared = said.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(status) = serde_json::from_str::<Value>(&line) else { continue };
                let mut said = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let phase = status["phase"].as_str().unwrap_or_default();
                if said.told.is_none() && matches!(phase, "distributing" | "done") {
                    said.told = Some(clock());
                }
                let number = |key: &str| status[key].as_u64().unwrap_or(0);
                said.size = number("size");
                said.pieces = number("pieces") as u32;
                said.seeder_sent = number("seeder_sent");
                said.error = status["error"].as_str().unwrap_or_default().into();
            }
        });
        Ok(Self { child, said })
    }

    fn said<T>(&self, look: impl FnOnce(&Said) -> T) -> T {
        look(&self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A command to the seeder, from the seeder's machine.
fn client(stage: &Stage, command: &str) -> Command {
    let mut client = stage.racks.command(Place::Seeder, shoal());
    client.arg(command).arg("--token-file").arg(cluster(stage).join("admin.token"));
    client
}

fn cluster(stage: &Stage) -> PathBuf {
    stage.dir.path().join("cluster")
}

/// Where a host has its versions.
fn names(stage: &Stage, host: Place) -> PathBuf {
    stage.dir.path().join(host.to_string()).join("content").join(NAME)
}

/// What is pushed, as orders name it.
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

/// Makes a machine's key and credential; gives its role and settings.
fn settings(stage: &Stage, place: Place) -> anyhow::Result<(&'static str, Vec<String>)> {
    let folder = stage.processes.folder(place)?;
    let (role, locality) = match place {
        Place::Seeder => ("seeder", "lab/core/core/seeder".into()),
        Place::Tracker => ("tracker", "lab/core/core/tracker".into()),
        Place::Hub => ("hub", "lab/core/core/hub".into()),
        Place::Host { rack, host } => ("peer", format!("lab/site/rack{}/host{}", rack + 1, host + 1)),
    };
    if !folder.join("node.key").exists() {
        let mut issue = Command::new(shoal());
        issue.args(["cluster", "issue", "--dir"]).arg(cluster(stage));
        run(issue.args(["--role", role, "--locality", &locality, "--out"]).arg(&folder))?;
    }
    let files = |prefix: &str| {
        [("trust", "trust"), ("key", "node.key"), ("credential", "node.cred")]
            .map(|(key, file)| format!("{prefix}{key}={}", text(&folder.join(file))))
    };
    let mut set = vec![format!("dir={}", text(&folder.join("state")))];
    match place {
        Place::Hub => set.extend([files("")[0].clone(), format!("http={}:7731", place.addr())]),
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
    let mut command = stage.racks.command(place, shoal());
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
    anyhow::ensure!(up, "{place} ended at once:\n{}", stage.processes.log_tail(place));
    Ok(())
}

impl System for Shoal {
    fn prepare(&mut self, stage: &mut Stage, hosts: &[Place]) -> anyhow::Result<()> {
        run(Command::new(shoal()).args(["cluster", "init", "--dir"]).arg(cluster(stage)))?;
        for place in [Place::Hub, Place::Tracker] {
            start(stage, place)?;
            wait_ready(stage, place)?;
        }
        start(stage, Place::Seeder)?;
        wait_ready(stage, Place::Seeder)?;
        // One after the other, so that the roster has the layout's order, and shares are dealt as in the simulator.
        for (former, host) in hosts.iter().enumerate() {
            start(stage, *host)?;
            wait_ready(stage, *host)?;
            until(&format!("{host} is up"), PATIENCE, || {
                let rows: Value = serde_json::from_str(&run(client(stage, "hosts").arg("--json")).ok()?).ok()?;
                let up = rows.as_array()?.iter().filter(|row| row["role"] == "peer" && row["presence"] == "up").count();
                (up == former + 1).then_some(())
            })?;
        }
        Ok(())
    }

    fn begin(&mut self, stage: &mut Stage, _: &[Place]) -> anyhow::Result<Duration> {
        let asked = clock();
        let push = Push::start(stage)?;
        let told = until("the content is taken in", PATIENCE, || {
            let failed = push.said(|said| (!said.error.is_empty()).then(|| said.error.clone()));
            push.said(|said| said.told).map(Ok).or_else(|| failed.map(Err))
        })?;
        let told =
            told.map_err(|error| anyhow::anyhow!("{error}\n{}", tail(&stage.processes.log_tail(Place::Seeder))))?;
        self.take_in = told.saturating_sub(asked);
        self.push = Some(push);
        Ok(told)
    }

    fn start_host(&mut self, stage: &mut Stage, host: Place) -> anyhow::Result<()> {
        start(stage, host)
    }

    fn done(&self, stage: &Stage, host: Place) -> PathBuf {
        names(stage, host).join("current")
    }

    fn copy(&self, stage: &Stage, host: Place) -> PathBuf {
        self.done(stage, host).join(FILE)
    }

    /// The seeder says it sent as much as there is, and its link is silent: what it had to send again is out, too.
    fn all_out(&mut self, stage: &mut Stage) -> anyhow::Result<bool> {
        let Some(push) = &self.push else { return Ok(false) };
        if !push.said(|said| said.size > 0 && said.seeder_sent >= said.size) {
            return Ok(false);
        }
        let now = Instant::now();
        let (at, sent) = match self.quiet {
            Some((at, _)) if now < at + SILENCE => return Ok(false),
            Some(looked) => looked,
            None => (now, 0),
        };
        let out = stage.racks.crossed(&Place::Seeder.to_string(), "eth0")?.out;
        self.quiet = Some((now, out));
        Ok(now > at && out - sent < SILENT_BYTES)
    }

    fn demote(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        // It is still counted as on its way until the last host has reported.
        let push = self.push.as_mut().context("it was pushed")?;
        until("the push is over", PATIENCE, || push.child.try_wait().ok().flatten())?;
        // What hosts run is not demoted: another version takes its place first.
        let next = stage.dir.path().join("next");
        std::fs::write(&next, "next")?;
        let mut push = client(stage, "push");
        run(push.arg(&next).args(["--name", NAME, "--version", "2", "--to", "all", "--wait", "--timeout", "60s"]))?;
        run(client(stage, "demote").args([target().as_str(), "--wait", "--timeout", "60s"]))?;
        until("the demoted version is gone", PATIENCE, || {
            let gone = |host: &Place| !names(stage, *host).join(VERSION).exists();
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

    fn take_in_s(&self) -> f64 {
        self.take_in.as_secs_f64()
    }

    fn pieces(&self) -> u32 {
        self.push.as_ref().map_or(0, |push| push.said(|said| said.pieces))
    }
}
