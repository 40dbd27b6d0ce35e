//! The printed table: one row for each scenario and system, with medians over the runs.

use crate::feed_traffic::Loss;
use crate::measure::Figures;
use crate::output::say;
use crate::scenario::Scenario;
use crate::systems::Kind;
use serde::Serialize;

/// A scenario's runs with one system.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    scenario: &'static str,
    system: Kind,
    /// Parity shards in a stripe; `None` for other systems.
    parity: Option<u8>,
    bytes: u64,
    /// The least possible time with the rates that remain for payload; `None` where nothing is shaped.
    bound_s: Option<f64>,
    /// Median makespan divided by the bound.
    ratio: Option<f64>,
    /// The simulator's makespan.
    sim_makespan_s: Option<f64>,
    /// The simulator's makespan divided by the median, minus 1.
    sim_error: Option<f64>,
    /// The simulator's figures of the demotion and promotion after the push.
    #[serde(skip_serializing_if = "Option::is_none")]
    sim_demotion: Option<shoal_sim::run::DemotionFigures>,
    runs: Vec<Figures>,
}

impl Row {
    pub(crate) fn new(
        scenario: &Scenario,
        system: Kind,
        parity: u8,
        runs: Vec<Figures>,
        sim: Option<shoal_sim::run::Figures>,
    ) -> Self {
        let bound_s = scenario.bound().map(|bound| bound.as_secs_f64());
        let makespan = median(&runs, |run| run.makespan_s);
        let sim_makespan_s = sim.as_ref().map(|figures| figures.makespan_s);
        Self {
            scenario: scenario.name,
            system,
            parity: (system == Kind::Shoal).then_some(parity),
            bytes: scenario.bytes,
            bound_s,
            ratio: bound_s.map(|bound| makespan / bound),
            sim_makespan_s,
            sim_error: sim_makespan_s.map(|sim| sim / makespan - 1.0),
            sim_demotion: sim.and_then(|figures| figures.demotion),
            runs,
        }
    }

    /// The first failure of the runs: wrong bytes, a lost version of a feed, or a host that Shoal left without the
    /// content.
    pub(crate) fn complaint(&self) -> Option<String> {
        let (name, system) = (self.scenario, self.system);
        self.runs.iter().find_map(|run| {
            if !run.wrong.is_empty() {
                return Some(format!("{name}: {system} left wrong copies on {}", run.wrong.join(", ")));
            }
            if let Some(feed) = run.feed.as_ref().filter(|feed| feed.lost + feed.out_of_order > 0) {
                let (lost, late) = (feed.lost, feed.out_of_order);
                let at = |loss: &Loss| {
                    format!(
                        "; {} missed {}, {} of them in a row after {}",
                        loss.host, loss.readings, loss.in_a_row, loss.after
                    )
                };
                let places: String = feed.losses.iter().map(at).collect();
                return Some(format!("{name}: {lost} readings of the feed were lost, {late} out of order{places}"));
            }
            if system == Kind::Shoal && run.finished < run.expected {
                return Some(format!("{name}: {} of {} hosts finished with {system}", run.finished, run.expected));
            }
            let demotion = run.demotion.as_ref()?;
            if !demotion.wrong.is_empty() {
                return Some(format!("{name}: a promotion left wrong copies on {}", demotion.wrong.join(", ")));
            }
            let (finished, expected) = (demotion.finished, demotion.expected);
            (finished < expected).then(|| format!("{name}: {finished} of {expected} hosts restored the content"))
        })
    }

    /// One line for the demotion and promotion of each run and of the simulated run.
    fn demotion_lines(&self) -> Vec<String> {
        let most = |copies: &[f64]| copies.iter().copied().fold(0.0, f64::max);
        let line = |source: &str, copies: f64, restore_s: f64, imported: f64, sent: f64| {
            let parity = self.parity.unwrap_or(0);
            format!(
                "{}, m={parity}{source}: {copies:.2} copies per rack after the demotion; restored in {restore_s:.2} s with \
                 {imported:.3} copies over an uplink and {sent:.3} out of the seeder",
                self.scenario
            )
        };
        let measured = self.runs.iter().filter_map(|run| run.demotion.as_ref());
        let measured =
            measured.map(|run| line("", run.copies, run.restore_s, most(&run.rack_import), run.seeder_egress));
        let simulated = self.sim_demotion.iter();
        let simulated =
            simulated.map(|run| line(", simulated", run.copies, run.restore_s, run.rack_import_max, run.seeder_egress));
        measured.chain(simulated).collect()
    }

    fn cells(&self) -> Vec<String> {
        let of = |value: fn(&Figures) -> f64| median(&self.runs, value);
        let worst = |value: fn(&Figures) -> f64| self.runs.iter().map(value).fold(0.0, f64::max);
        let parity = self.parity.map_or_else(String::new, |parity| format!(" m={parity}"));
        let finished = |run: &Figures| format!("{}/{}", run.finished, run.expected);
        let control = |value: fn(&Figures) -> f64| match self.system {
            Kind::Shoal => format!("{:.1}", of(value) / 1024.0),
            _ => "-".into(),
        };
        let or_dash = |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
        vec![
            self.scenario.into(),
            format!("{}{parity}", self.system),
            self.runs.iter().min_by_key(|run| run.finished).map_or_else(String::new, finished),
            format!("{:.2}", of(|run| run.makespan_s)),
            or_dash(self.bound_s, 2),
            or_dash(self.ratio, 2),
            format!("{:.2}", of(|run| run.p50_s)),
            format!("{:.2}", of(|run| run.p99_s)),
            format!("{:.3}", worst(|run| run.rack_import.iter().copied().fold(0.0, f64::max))),
            format!("{:.3}", worst(|run| run.seeder_egress)),
            control(|run| run.hub_bytes as f64),
            control(|run| run.tracker_bytes as f64),
            format!("{:.2}", of(|run| run.cpu_s_per_gib)),
            format!("{:.0}", worst(|run| run.host_rss_bytes as f64) / f64::from(1 << 20)),
            format!("{:.2}", of(|run| run.ingest_s)),
            or_dash(self.sim_makespan_s, 2),
            self.sim_error.map_or("-".into(), |error| format!("{:+.1}%", error * 100.0)),
        ]
    }
}

const HEAD: [&str; 17] = [
    "scenario",
    "system",
    "done",
    "makespan s",
    "bound s",
    "ratio",
    "p50 s",
    "p99 s",
    "import",
    "egress",
    "hub KiB",
    "tracker KiB",
    "CPU-s/GiB",
    "RSS MiB",
    "ingest s",
    "sim s",
    "sim error",
];

/// Prints all rows as a Markdown table. Times are medians. Bytes and memory are those of the worst run.
pub(crate) fn print(rows: &[Row]) {
    let mut lines: Vec<Vec<String>> = vec![HEAD.map(String::from).to_vec()];
    lines.extend(rows.iter().map(Row::cells));
    let widths: Vec<usize> =
        (0..HEAD.len()).map(|column| lines.iter().map(|cells| cells[column].len()).max().unwrap_or(0)).collect();
    for (number, cells) in lines.iter().enumerate() {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        say(&format!("| {} |", padded.join(" | ")));
        if number == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            say(&format!("| {} |", rules.join(" | ")));
        }
    }
    for row in rows {
        for feed in row.runs.iter().filter_map(|run| run.feed.as_ref()) {
            let copies = feed.rack_copies.iter().copied().fold(0.0, f64::max);
            say(&format!(
                "{}: {} versions of a feed, read after p50 {:.1}, p99 {:.1}, max {:.1} ms; {} lost, {} out of order; \
                 {copies:.3} copies into a rack",
                row.scenario, feed.versions, feed.p50_ms, feed.p99_ms, feed.max_ms, feed.lost, feed.out_of_order
            ));
        }
        row.demotion_lines().iter().for_each(|line| say(line));
    }
}

fn median(runs: &[Figures], value: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
