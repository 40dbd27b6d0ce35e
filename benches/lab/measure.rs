//! One run of one system through one scenario, from empty hosts to figures.
//!
//! Invariant: a host counts as finished at the time stamp of what its system makes when it is, and only if its copy is right.

use super::cold::{self, ColdFigures};
use super::content::Content;
use super::namespaces::{Counters, Place, Racks};
use super::processes::{LOOK, Processes, made_at};
use super::scenario::Scenario;
use super::systems::{Kind, System};
use super::traffic::{Feed, FeedFigures, Traffic};
use super::troubles::Troubles;
use super::{interrupt, note};
use anyhow::Context;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two looks at memory.
const PEAKS_EVERY: Duration = Duration::from_millis(500);

/// What to run.
pub(super) struct Setting<'a> {
    pub(super) kind: Kind,
    pub(super) scenario: &'a Scenario,
    pub(super) parity: u8,
    pub(super) dir: &'a Path,
    pub(super) keep: bool,
}

/// Figures of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// Hosts that were to finish: not those killed for good, nor those at a hundredth of their speed.
    pub(super) expected: usize,
    /// Those that did, with the right bytes.
    pub(super) finished: usize,
    /// Copies that differ from the source.
    pub(super) wrong: Vec<String>,
    /// From the start to the last expected host, seconds.
    pub(super) makespan_s: f64,
    /// Half of them.
    pub(super) p50_s: f64,
    /// 99 of 100.
    pub(super) p99_s: f64,
    /// Bytes into each rack by the content's size.
    pub(super) rack_import: Vec<f64>,
    /// Bytes out of the seeder by the content's size.
    pub(super) seeder_egress: f64,
    /// Bytes both ways at the hub; at the tracker, beyond what it carries when nothing is distributed.
    pub(super) hub_bytes: i64,
    pub(super) tracker_bytes: i64,
    /// CPU seconds of all processes by GiB that hosts got.
    pub(super) cpu_s_per_gib: f64,
    /// Peak memory of the largest host, and of the seeder, bytes.
    pub(super) host_rss_bytes: u64,
    pub(super) seeder_rss_bytes: u64,
    /// Before the start: reading, cutting, hashing and coding at the seeder, seconds.
    pub(super) take_in_s: f64,
    /// Pieces the content was cut into; 0 when the system does not say.
    pub(super) pieces: u32,
    /// Of what was published meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) feed: Option<FeedFigures>,
    /// Of the demotion and promotion after all else was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cold: Option<ColdFigures>,
}

/// All that one run has.
pub(super) struct Stage {
    // Processes end before what they run in goes.
    pub(super) processes: Processes,
    pub(super) racks: Racks,
    pub(super) content: Content,
    pub(super) parity: u8,
    pub(super) dir: Folder,
}

/// The files of a run, removed with it.
pub(super) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn create(base: &Path, keep: bool) -> anyhow::Result<Self> {
        // What an earlier run left is of no use to anybody.
        let path = std::path::absolute(base)?.join(format!("lab-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, keep })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep {
            note(&format!("left in {}", self.path.display()));
        } else {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// The last lines of a text.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// The time of day, as files have it.
pub(super) fn clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Runs it.
pub(super) fn run(setting: &Setting<'_>) -> anyhow::Result<Figures> {
    let scenario = setting.scenario;
    let dir = Folder::create(setting.dir, setting.keep)?;
    let content = Content::create(dir.path(), scenario.bytes)?;
    let racks = Racks::build(&scenario.layout).context("cannot make the namespaces")?;
    let processes = Processes::new(dir.path());
    let mut stage = Stage { processes, racks, content, parity: setting.parity, dir };
    let mut system = setting.kind.make();
    let mut troubles = Troubles::new(scenario);
    let hosts = stage.racks.hosts();
    let at_first: Vec<Place> = hosts.iter().copied().filter(|host| !troubles.late.contains(host)).collect();
    system.prepare(&mut stage, &at_first)?;
    // What former runs wrote must not be written out during this one.
    rustix::fs::sync();
    troubles.advance(Duration::ZERO, &mut stage, &mut *system)?;

    let window = if setting.kind == Kind::Shoal { scenario.window } else { Duration::ZERO };
    // What starting up says is over before silence is measured.
    rest(window)?;
    let start = |feed: Feed| Traffic::start(&stage, feed, &system.feed_token(&stage)?);
    let traffic = scenario.feed.map(start).transpose().context("cannot publish")?;
    let idle = stage.racks.counters()?;
    rest(window)?;
    let before = stage.racks.counters()?;
    let began = system.begin(&mut stage, &at_first)?;
    let cpu_before = stage.processes.look();
    let expected: BTreeSet<Place> = hosts.iter().copied().filter(|host| !troubles.lost.contains(host)).collect();
    let sign = |system: &dyn System, stage: &Stage, host| made_at(&system.done(stage, host));
    let done = watch(&mut stage, &mut *system, &mut troubles, &expected, began, scenario.limit(), sign)?;
    let took = clock().saturating_sub(began);
    let cpu = stage.processes.look() - cpu_before;
    let after = stage.racks.counters()?;
    let feed = traffic.map(|traffic| traffic.finish(&stage)).transpose().context("cannot look at the feed")?;
    rest(window)?;
    let settled = stage.racks.counters()?;

    let control = |of: fn(&Counters) -> u64| {
        let usual = of(&before) - of(&idle);
        let windows = (took + window).as_secs_f64() / window.as_secs_f64().max(0.001);
        (of(&settled) - of(&before)) as i64 - (usual as f64 * windows) as i64
    };
    let size = scenario.bytes as f64;
    let wrong: Vec<Place> =
        done.keys().copied().filter(|host| !stage.content.is_at(&system.copy(&stage, *host))).collect();
    let mut times: Vec<f64> =
        done.iter().filter(|(host, _)| expected.contains(*host) && !wrong.contains(host)).map(|(_, at)| *at).collect();
    times.sort_by(f64::total_cmp);
    let rank = |part: f64| times.get(((times.len() as f64 * part).ceil() as usize).max(1) - 1).copied();
    let delivered = (done.len() as f64 * size / f64::from(1 << 30)).max(1e-9);
    let peaks = stage.processes.peaks();
    let into = after.racks.iter().zip(&before.racks).map(|(after, before)| after.since(*before).into as f64 / size);
    let mut figures = Figures {
        expected: expected.len(),
        finished: times.len(),
        wrong: wrong.iter().map(Place::to_string).collect(),
        makespan_s: if times.len() == expected.len() { rank(1.0).unwrap_or(f64::INFINITY) } else { f64::INFINITY },
        p50_s: rank(0.5).unwrap_or(f64::INFINITY),
        p99_s: rank(0.99).unwrap_or(f64::INFINITY),
        rack_import: into.collect(),
        seeder_egress: after.seeder.since(before.seeder).out as f64 / size,
        // The hub hears nothing while nothing happens.
        hub_bytes: (settled.hub.both() - before.hub.both()) as i64,
        tracker_bytes: control(|counters| counters.tracker.both()),
        cpu_s_per_gib: cpu / delivered,
        host_rss_bytes: peaks.host,
        seeder_rss_bytes: peaks.seeder,
        take_in_s: system.take_in_s(),
        pieces: system.pieces(),
        feed,
        cold: None,
    };
    let complete = figures.finished == figures.expected && figures.wrong.is_empty();
    if setting.kind == Kind::Shoal && complete && troubles.goes_cold() {
        let cold = cold::run(&mut stage, &mut *system, &mut troubles, scenario.limit());
        figures.cold = Some(cold.context("after the push")?);
    }
    Ok(figures)
}

/// Lets time pass.
pub(super) fn rest(span: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        interrupt::check()?;
        std::thread::sleep(LOOK.min(span));
    }
    Ok(())
}

/// Waits until every expected host shows the sign that it is done, or the limit; gives when each did, seconds since the start.
pub(super) fn watch(
    stage: &mut Stage,
    system: &mut dyn System,
    troubles: &mut Troubles,
    expected: &BTreeSet<Place>,
    began: Duration,
    limit: Duration,
    sign: impl Fn(&dyn System, &Stage, Place) -> Option<Duration>,
) -> anyhow::Result<BTreeMap<Place, f64>> {
    let mut done = BTreeMap::new();
    let mut looked = Instant::now();
    loop {
        interrupt::check()?;
        stage.processes.check()?;
        for host in stage.racks.hosts() {
            if !done.contains_key(&host)
                && let Some(at) = sign(system, stage, host)
            {
                done.insert(host, at.saturating_sub(began).as_secs_f64());
            }
        }
        let elapsed = clock().saturating_sub(began);
        if expected.iter().all(|host| done.contains_key(host)) {
            return Ok(done);
        }
        if elapsed > limit {
            let missing: Vec<Place> = expected.iter().copied().filter(|host| !done.contains_key(host)).collect();
            let first = missing.first().copied().unwrap_or(Place::Seeder);
            note(&format!("{} hosts are not done; {first} says:\n{}", missing.len(), stage.processes.log_tail(first)));
            return Ok(done);
        }
        troubles.advance(elapsed, stage, system)?;
        if looked.elapsed() >= PEAKS_EVERY {
            looked = Instant::now();
            stage.processes.look();
        }
        std::thread::sleep(LOOK);
    }
}
