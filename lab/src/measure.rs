//! One run of one system through one scenario, from empty hosts to figures.
//!
//! Invariant: a host counts as finished only if its copy is right. Its time is the time stamp of what its system makes
//! when it is done.

use crate::clock::{made_at, pause, time_of_day};
use crate::completion::{self, Awaited};
use crate::content::Content;
use crate::demotion::{self, DemotionFigures};
use crate::faults::Faults;
use crate::feed_traffic::{Feed, FeedFigures, Traffic};
use crate::namespaces::{Counters, Place, Racks};
use crate::processes::Processes;
use crate::scenario::Scenario;
use crate::stage::{Folder, Stage};
use crate::systems::{Kind, System};
use anyhow::Context;
use serde::Serialize;
use shoal_testkit::Program;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// What to run.
pub(crate) struct Setting<'a> {
    pub(crate) kind: Kind,
    pub(crate) scenario: &'a Scenario,
    pub(crate) parity: u8,
    pub(crate) program: Program,
    pub(crate) dir: &'a Path,
    pub(crate) keep: bool,
}

/// Figures of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    /// Hosts that must finish: all but those that are killed for good or slow to the end.
    pub(crate) expected: usize,
    /// Expected hosts that finished with the right bytes.
    pub(crate) finished: usize,
    /// Hosts whose copy differs from the source.
    pub(crate) wrong: Vec<String>,
    /// From the start to the last expected host, seconds.
    pub(crate) makespan_s: f64,
    /// From the start to the median of the expected hosts, seconds.
    pub(crate) p50_s: f64,
    /// From the start to the 99th percentile of the expected hosts, seconds.
    pub(crate) p99_s: f64,
    /// Bytes into each rack, divided by the content's size.
    pub(crate) rack_import: Vec<f64>,
    /// Bytes out of the seeder, divided by the content's size.
    pub(crate) seeder_egress: f64,
    /// Bytes both ways at the hub.
    pub(crate) hub_bytes: i64,
    /// Bytes both ways at the tracker, less what it carries while nothing is distributed.
    pub(crate) tracker_bytes: i64,
    /// CPU seconds of all processes per GiB that hosts received.
    pub(crate) cpu_s_per_gib: f64,
    /// Peak memory of the largest host, bytes.
    pub(crate) host_rss_bytes: u64,
    /// Peak memory of the seeder, bytes.
    pub(crate) seeder_rss_bytes: u64,
    /// How long the seeder read, cut, hashed and coded the content before the start, seconds.
    pub(crate) ingest_s: f64,
    /// Pieces of the content; 0 when the system does not report them.
    pub(crate) pieces: u32,
    /// Figures of the feed that was published meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) feed: Option<FeedFigures>,
    /// Figures of the demotion and promotion after all else was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) demotion: Option<DemotionFigures>,
}

/// Runs a system through a scenario.
pub(crate) fn run(setting: &Setting<'_>) -> anyhow::Result<Figures> {
    let scenario = setting.scenario;
    let mut stage = build(setting)?;
    let mut system = setting.kind.make();
    let mut faults = Faults::new(scenario);
    let hosts = stage.racks.hosts();
    let at_first: Vec<Place> = hosts.iter().copied().filter(|host| !faults.late.contains(host)).collect();
    system.prepare(&mut stage, &at_first)?;
    // The kernel must not write out the pages of earlier runs during this one.
    rustix::fs::sync();
    faults.advance(Duration::ZERO, &mut stage, &mut *system)?;

    let mut control = ControlWindow::new(setting);
    // The control traffic of the start must be over before the idle traffic is measured.
    pause(control.span)?;
    let start = |feed: Feed| Traffic::start(&stage, feed, &system.feed_token(&stage)?);
    let traffic = scenario.feed.map(start).transpose().context("cannot publish the feed")?;
    control.idle = Some(stage.racks.counters()?);
    pause(control.span)?;
    let before = stage.racks.counters()?;
    let began = system.begin(&mut stage, &at_first)?;
    let cpu_before = stage.processes.look();
    let expected: BTreeSet<Place> = hosts.iter().copied().filter(|host| !faults.lost.contains(host)).collect();
    let sign = |system: &dyn System, stage: &Stage, host| made_at(&system.done(stage, host));
    let awaited = Awaited { expected: &expected, began, limit: scenario.limit(), sign };
    let done = completion::wait(&mut stage, &mut *system, &mut faults, &awaited)?;
    let took = time_of_day().saturating_sub(began);
    let cpu_s = stage.processes.look() - cpu_before;
    let after = stage.racks.counters()?;
    let feed = traffic.map(|traffic| traffic.finish(&stage)).transpose().context("cannot measure the feed")?;
    pause(control.span)?;
    let settled = stage.racks.counters()?;

    let tracker_bytes = control.beyond_idle(&before, &settled, took, |counters| counters.tracker.both());
    let traffic = Carried { before, after, settled, tracker_bytes, cpu_s };
    let mut figures = figures(&stage, &*system, &expected, &done, &traffic);
    figures.feed = feed;
    let complete = figures.finished == figures.expected && figures.wrong.is_empty();
    if setting.kind == Kind::Shoal && complete && faults.has_demotion() {
        let measured = demotion::run(&mut stage, &mut *system, &mut faults, scenario.limit());
        figures.demotion = Some(measured.context("after the push")?);
    }
    Ok(figures)
}

fn build(setting: &Setting<'_>) -> anyhow::Result<Stage> {
    let dir = Folder::create(setting.dir, setting.keep)?;
    let content = Content::create(dir.path(), setting.scenario.bytes)?;
    let racks = Racks::build(&setting.scenario.layout).context("cannot make the namespaces")?;
    let processes = Processes::new(dir.path());
    Ok(Stage { processes, racks, content, parity: setting.parity, program: setting.program, dir })
}

/// Separates the control traffic of a push from the traffic of an idle region.
struct ControlWindow {
    /// How long idle traffic is measured; zero for systems without a tracker of ours.
    span: Duration,
    idle: Option<Counters>,
}

impl ControlWindow {
    fn new(setting: &Setting<'_>) -> Self {
        let span = if setting.kind == Kind::Shoal { setting.scenario.window } else { Duration::ZERO };
        Self { span, idle: None }
    }

    /// Bytes between two measurements, less what an idle region carries in that time.
    fn beyond_idle(&self, before: &Counters, settled: &Counters, took: Duration, of: fn(&Counters) -> u64) -> i64 {
        let idle = self.idle.as_ref().map_or(0, |idle| of(before) - of(idle));
        let windows = (took + self.span).as_secs_f64() / self.span.as_secs_f64().max(0.001);
        (of(settled) - of(before)) as i64 - (idle as f64 * windows) as i64
    }
}

/// What was carried and spent during the distribution.
struct Carried {
    before: Counters,
    after: Counters,
    /// Counters once the reports have reached the hub.
    settled: Counters,
    tracker_bytes: i64,
    cpu_s: f64,
}

fn figures(
    stage: &Stage,
    system: &dyn System,
    expected: &BTreeSet<Place>,
    done: &BTreeMap<Place, f64>,
    carried: &Carried,
) -> Figures {
    let Carried { before, after, settled, .. } = carried;
    let size = stage.content.bytes as f64;
    let wrong: Vec<Place> =
        done.keys().copied().filter(|host| !stage.content.is_at(&system.copy(stage, *host))).collect();
    let mut times: Vec<f64> =
        done.iter().filter(|(host, _)| expected.contains(*host) && !wrong.contains(host)).map(|(_, at)| *at).collect();
    times.sort_by(f64::total_cmp);
    let rank = |part: f64| times.get(((times.len() as f64 * part).ceil() as usize).max(1) - 1).copied();
    let received_gib = (done.len() as f64 * size / f64::from(1 << 30)).max(1e-9);
    let peaks = stage.processes.peaks();
    let into = after.racks.iter().zip(&before.racks).map(|(after, before)| after.since(*before).into as f64 / size);
    Figures {
        expected: expected.len(),
        finished: times.len(),
        wrong: wrong.iter().map(Place::to_string).collect(),
        makespan_s: if times.len() == expected.len() { rank(1.0).unwrap_or(f64::INFINITY) } else { f64::INFINITY },
        p50_s: rank(0.5).unwrap_or(f64::INFINITY),
        p99_s: rank(0.99).unwrap_or(f64::INFINITY),
        rack_import: into.collect(),
        seeder_egress: after.seeder.since(before.seeder).out as f64 / size,
        // An idle region sends nothing to the hub.
        hub_bytes: (settled.hub.both() - before.hub.both()) as i64,
        tracker_bytes: carried.tracker_bytes,
        cpu_s_per_gib: carried.cpu_s / received_gib,
        host_rss_bytes: peaks.host,
        seeder_rss_bytes: peaks.seeder,
        ingest_s: system.ingest_s(),
        pieces: system.pieces(),
        feed: None,
        demotion: None,
    }
}
