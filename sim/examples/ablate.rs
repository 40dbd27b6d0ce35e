//! `cargo run --release -p shoal-sim --example ablate`: prints what each tuning rule of the core is worth.
//!
//! Options: `--seeds N` (default 40), `--rule NAME`, `--scenario NAME`, `--threads N`, `--json`.

use serde::Serialize;
use shoal_sim::ablation::{Baseline, CASES, Case, Change, Comparison};
use shoal_swarm::node::{Rule, Tuning};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Changes below this are noise or worth nothing, percent.
const WORTH_PERCENT: f64 = 0.5;

/// A rule and its comparisons.
#[derive(Serialize)]
struct Row {
    rule: &'static str,
    comparisons: Vec<Comparison>,
}

impl Row {
    /// The change with the greatest mean, and its scenario.
    fn greatest(&self) -> Option<(&'static str, &Change)> {
        let all = self.comparisons.iter().flat_map(|row| row.changes.iter().map(|change| (row.case, change)));
        all.max_by(|(_, a), (_, b)| a.mean_percent.abs().total_cmp(&b.mean_percent.abs()))
    }

    fn newly_incomplete(&self) -> u64 {
        self.comparisons.iter().map(|row| row.newly_incomplete).sum()
    }

    /// Whether the rule moves any scenario.
    fn is_worth_something(&self) -> bool {
        let moves = self.greatest().is_some_and(|(_, change)| change.mean_percent.abs() > WORTH_PERCENT);
        moves || self.newly_incomplete() > 0
    }
}

#[allow(clippy::disallowed_methods, reason = "the arguments are those of a developer")]
fn options() -> Vec<String> {
    std::env::args().skip(1).collect()
}

fn value<'a>(options: &'a [String], name: &str) -> Option<&'a str> {
    options.iter().skip_while(|option| *option != name).nth(1).map(String::as_str)
}

/// Does `work` for all numbers below `count` on `threads` threads; returns the results in order.
#[allow(clippy::disallowed_methods, reason = "the runs share nothing")]
fn in_parallel<T: Send>(count: usize, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let result = work(number);
                    results.lock().expect("no run panics").push((number, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no run panics");
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

fn main() {
    let options = options();
    let number = |name: &str| value(&options, name).map(|text| text.parse().expect("the option needs a number"));
    let seeds: u64 = number("--seeds").unwrap_or(40);
    let threads = number("--threads").unwrap_or(2) as usize;
    let is_chosen = |name: &str, option: &str| value(&options, option).is_none_or(|chosen| chosen == name);
    let rules: Vec<Rule> = Tuning::rules().iter().copied().filter(|rule| is_chosen(rule.name, "--rule")).collect();
    let cases: Vec<Case> = CASES.into_iter().filter(|case| is_chosen(case.name, "--scenario")).collect();

    let baselines = in_parallel(cases.len(), threads, |number| Baseline::new(cases[number], seeds));
    let comparisons = in_parallel(rules.len() * cases.len(), threads, |number| {
        let tuning = Tuning::without(rules[number / cases.len()]);
        baselines[number % cases.len()].compare(&tuning)
    });
    let mut comparisons = comparisons.into_iter();
    let rows: Vec<Row> = rules
        .iter()
        .map(|rule| Row { rule: rule.name, comparisons: comparisons.by_ref().take(cases.len()).collect() })
        .collect();
    let text = if options.iter().any(|option| option == "--json") {
        serde_json::to_string_pretty(&rows).expect("figures are plain data")
    } else {
        table(&rows)
    };
    let _ = writeln!(std::io::stdout().lock(), "{text}"); // It fails when the reader has closed the pipe.
}

/// A Markdown table of all rules, and one line for each scenario that a rule moves.
fn table(rows: &[Row]) -> String {
    let mut lines = vec![
        "| rule | greatest mean change | median | worst seed | measure | scenario | newly incomplete |".to_string(),
        "|---|---:|---:|---:|---|---|---:|".to_string(),
    ];
    for row in rows {
        let Some((case, change)) = row.greatest() else { continue };
        let incomplete = row.newly_incomplete();
        lines.push(if row.is_worth_something() {
            let Change { mean_percent, median_percent, worst_percent, measure } = change;
            let measure = measure.name();
            format!(
                "| `{}` | {mean_percent:+.1} % | {median_percent:+.1} % | {worst_percent:+.1} % | {measure} | {case} | {incomplete} |",
                row.rule
            )
        } else {
            format!("| `{}` | below {WORTH_PERCENT} % | | | | | 0 |", row.rule)
        });
    }
    lines.push(String::new());
    for row in rows {
        for comparison in &row.comparisons {
            let moved: Vec<String> = comparison
                .changes
                .iter()
                .filter(|change| change.mean_percent.abs() > WORTH_PERCENT)
                .map(|change| {
                    let Change { mean_percent, median_percent, worst_percent, measure } = change;
                    let measure = measure.name();
                    format!("{measure} {mean_percent:+.2} % (median {median_percent:+.2}, worst {worst_percent:+.1})")
                })
                .collect();
            let Comparison { case, seeds, affected, newly_incomplete, .. } = comparison;
            if !moved.is_empty() || *newly_incomplete > 0 {
                let incomplete = format!("{affected} of {seeds} seeds affected, {newly_incomplete} newly incomplete");
                lines.push(format!("- `{}` in {case}: {} ({incomplete})", row.rule, moved.join(", ")));
            }
        }
    }
    lines.join("\n")
}
