//! Counters and gauges in Prometheus' text format.
//!
//! Invariant: values that are measured and not counted are read right before each scrape, never by a timer.

use crate::logs;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

type Refresh = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Inner {
    registry: Registry,
    refresh: Vec<Refresh>,
}

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A counter of seconds, or of other amounts with a fraction.
pub type FloatCounter = Counter<f64, AtomicU64>;

/// A role's metrics.
#[derive(Clone, Default)]
pub struct Metrics {
    inner: Arc<Mutex<Inner>>,
}

impl Metrics {
    /// Returns the metrics of the process: resident memory, processor time, open files, dropped log lines.
    pub fn with_process() -> Self {
        let metrics = Self::default();
        let rss = metrics.gauge("process_resident_memory_bytes", "Resident memory of the process");
        let cpu = FloatCounter::default();
        metrics.lock().registry.register(
            "process_cpu_seconds",
            "Processor time of the process, user and system",
            cpu.clone(),
        );
        let fds = metrics.gauge("process_open_fds", "Open file descriptors of the process");
        let max_fds = metrics.gauge("process_max_fds", "File descriptors that the process may open");
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        max_fds.set(limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(i64::MAX));
        let dropped =
            metrics.counter("shoal_log_lines_dropped", "Log lines dropped, because standard error was not read");
        metrics.refresh(move || {
            dropped.inner().store(logs::dropped_lines(), Ordering::Relaxed);
            let sample = ProcessSample::take();
            rss.set(sample.resident_bytes as i64);
            cpu.inner().store((sample.cpu_ms as f64 / 1000.0).to_bits(), Ordering::Relaxed);
            fds.set(sample.open_fds as i64);
        });
        metrics
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a counter named `NAME_total`.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.lock().registry.register(name, help, counter.clone());
        counter
    }

    /// Registers a gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.lock().registry.register(name, help, gauge.clone());
        gauge
    }

    /// Registers a gauge that each scrape reads from `value`.
    pub fn gauge_of(&self, name: &str, help: &str, value: Arc<AtomicU64>) {
        let gauge = self.gauge(name, help);
        self.refresh(move || {
            gauge.set(i64::try_from(value.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        });
    }

    /// Registers counters with labels, named `NAME_total`.
    pub fn counters<L>(&self, name: &str, help: &str) -> Family<L, Counter>
    where
        L: EncodeLabelSet + Clone + std::fmt::Debug + std::hash::Hash + Eq + Send + Sync + 'static,
    {
        let family = Family::<L, Counter>::default();
        self.lock().registry.register(name, help, family.clone());
        family
    }

    /// Registers gauges with labels, of whole numbers or of `f64`.
    pub fn gauges<L, G>(&self, name: &str, help: &str) -> Family<L, G>
    where
        L: EncodeLabelSet + Clone + std::fmt::Debug + std::hash::Hash + Eq + Send + Sync + 'static,
        G: EncodeMetric + TypedMetric + Default + std::fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::<L, G>::default();
        self.lock().registry.register(name, help, family.clone());
        family
    }

    /// Runs `measure` before each scrape.
    pub fn refresh(&self, measure: impl Fn() + Send + Sync + 'static) {
        self.lock().refresh.push(Box::new(measure));
    }

    /// Returns all metrics in the text format 0.0.4, which every version of Prometheus reads. The encoder writes
    /// OpenMetrics text, where the header of a counter lacks the suffix `_total` of its samples.
    pub fn render(&self) -> String {
        let inner = self.lock();
        for measure in &inner.refresh {
            measure();
        }
        let mut text = String::new();
        encode(&mut text, &inner.registry).unwrap_or_else(|_| unreachable!("a string takes all writes"));
        classic_format(&text)
    }
}

/// Turns OpenMetrics text into the text format 0.0.4.
fn classic_format(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // The help comes before the type, which alone tells that a metric is a counter.
    let mut help: Option<(&str, &str)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, text)) = help.take() {
                out.push_str(&format!("# HELP {name}{suffix} {text}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// What the kernel measures of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessSample {
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// Processor time, milliseconds.
    pub cpu_ms: u64,
    /// Open file descriptors.
    pub open_fds: u64,
}

/// Returns the most memory that a process had resident so far, bytes. `process` is a number or `self`. Returns 0 if
/// `/proc` does not tell.
pub fn peak_rss(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(0, |kib| kib * 1024)
}

impl ProcessSample {
    /// Reads `/proc/self`. Values that cannot be read are 0.
    pub fn take() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let page = rustix::param::page_size() as u64;
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let pages: u64 = read("/proc/self/statm").split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
        let stat = read("/proc/self/stat");
        // The name in parentheses may contain spaces. User and system time are the 12th and 13th field after it.
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let cpu: u64 = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        let open_fds = std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count() as u64);
        Self { resident_bytes: pages * page, cpu_ms: cpu * 1000 / ticks, open_fds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_counters_have_the_suffix_of_their_samples() {
        let metrics = Metrics::default();
        metrics.counter("shoal_reports", "Reports stored").inc();
        metrics.gauge("shoal_jobs", "Jobs kept").set(2);
        assert_eq!(
            metrics.render(),
            "# HELP shoal_reports_total Reports stored.\n# TYPE shoal_reports_total counter\nshoal_reports_total 1\n\
             # HELP shoal_jobs Jobs kept.\n# TYPE shoal_jobs gauge\nshoal_jobs 2\n"
        );
    }

    #[test]
    fn the_time_of_the_processor_is_in_seconds() {
        let text = Metrics::with_process().render();
        let line = text.lines().find_map(|line| line.strip_prefix("process_cpu_seconds_total ")).unwrap();
        assert!((0.0..100_000.0).contains(&line.parse::<f64>().unwrap()), "{line}");
    }
}
