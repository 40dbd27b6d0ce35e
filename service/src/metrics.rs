//! Counters and gauges in Prometheus' text format.
//!
//! Invariant: values that are measured rather than counted are refreshed right before each scrape, never by a timer.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex, PoisonError};

type Refresh = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Inner {
    registry: Registry,
    refresh: Vec<Refresh>,
}

/// A role's metrics.
#[derive(Clone, Default)]
pub struct Metrics {
    inner: Arc<Mutex<Inner>>,
}

impl Metrics {
    /// With the process' own: resident memory, processor time, open files.
    pub fn with_process() -> Self {
        let metrics = Self::default();
        let rss = metrics.gauge("process_resident_memory_bytes", "Resident memory");
        let cpu = metrics.gauge("process_cpu_milliseconds", "Processor time, user and system");
        let fds = metrics.gauge("process_open_fds", "Open file descriptors");
        metrics.refresh(move || {
            let sample = ProcessSample::take();
            rss.set(sample.resident_bytes as i64);
            cpu.set(sample.cpu_ms as i64);
            fds.set(sample.open_fds as i64);
        });
        metrics
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A counter named `NAME_total`.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.lock().registry.register(name, help, counter.clone());
        counter
    }

    /// A gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.lock().registry.register(name, help, gauge.clone());
        gauge
    }

    /// Counters with labels, named `NAME_total`.
    pub fn counters<L>(&self, name: &str, help: &str) -> Family<L, Counter>
    where
        L: EncodeLabelSet + Clone + std::fmt::Debug + std::hash::Hash + Eq + Send + Sync + 'static,
    {
        let family = Family::<L, Counter>::default();
        self.lock().registry.register(name, help, family.clone());
        family
    }

    /// Gauges with labels.
    pub fn gauges<L>(&self, name: &str, help: &str) -> Family<L, Gauge>
    where
        L: EncodeLabelSet + Clone + std::fmt::Debug + std::hash::Hash + Eq + Send + Sync + 'static,
    {
        let family = Family::<L, Gauge>::default();
        self.lock().registry.register(name, help, family.clone());
        family
    }

    /// Runs `measure` before each scrape.
    pub fn refresh(&self, measure: impl Fn() + Send + Sync + 'static) {
        self.lock().refresh.push(Box::new(measure));
    }

    /// All metrics as text.
    pub fn render(&self) -> String {
        let inner = self.lock();
        for measure in &inner.refresh {
            measure();
        }
        let mut text = String::new();
        encode(&mut text, &inner.registry).unwrap_or_else(|_| unreachable!("a string takes all writes"));
        text
    }
}

/// What the kernel says of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessSample {
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// Processor time, milliseconds.
    pub cpu_ms: u64,
    /// Open file descriptors.
    pub open_fds: u64,
}

/// Most memory a process had resident at any time so far, bytes; 0 where that cannot be read. `process` is its number, or
/// `self`.
pub fn peak_rss(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(0, |kib| kib * 1024)
}

impl ProcessSample {
    /// Reads `/proc/self`; zeros where it cannot be read.
    pub fn take() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let page = rustix::param::page_size() as u64;
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let pages: u64 = read("/proc/self/statm").split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
        let stat = read("/proc/self/stat");
        // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let cpu: u64 = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        let open_fds = std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count() as u64);
        Self { resident_bytes: pages * page, cpu_ms: cpu * 1000 / ticks, open_fds }
    }
}
