//! A feed that is published while the content is distributed, and what readers on every host received.
//!
//! Invariant: publisher and readers run on machines of the lab, so all their traffic crosses its links. A version
//! counts as lost on a host whose reader never received it, also when a newer version replaced it.

use crate::clock::until;
use crate::namespaces::Place;
use crate::stage::Stage;
use crate::systems::{FEED_API, READ_API};
use anyhow::Context;
use serde::Serialize;
use shoal_testkit::feeds::{Publisher, Reader, numbered, quantile};
use shoal_testkit::http::metric;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const FEED: &str = "lab/feed";
const PATIENCE: Duration = Duration::from_secs(30);

/// What is published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feed {
    /// Size of a version.
    pub(crate) bytes: usize,
    /// Least time between two versions.
    pub(crate) every: Duration,
}

/// Figures of a feed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FeedFigures {
    /// Versions that were published.
    pub(crate) versions: usize,
    /// From before the publication to after the reading, over all hosts: the median, milliseconds.
    pub(crate) p50_ms: f64,
    /// The same, 99th percentile.
    pub(crate) p99_ms: f64,
    /// The same, maximum.
    pub(crate) max_ms: f64,
    /// Versions that a reader never received, over all hosts.
    pub(crate) lost: usize,
    /// The hosts where versions were lost.
    pub(crate) losses: Vec<Loss>,
    /// Readings of an older version after a newer one.
    pub(crate) out_of_order: usize,
    /// Bytes of versions into each rack, divided by the bytes that were published.
    pub(crate) rack_copies: Vec<f64>,
}

/// What the reader on one host missed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Loss {
    pub(crate) host: String,
    /// Versions that it missed.
    pub(crate) readings: u64,
    /// The longest run of missed versions.
    pub(crate) in_a_row: u64,
    /// The version before that run.
    pub(crate) after: u64,
}

/// A publisher and its readers.
pub(crate) struct Traffic {
    feed: Feed,
    readers: Vec<(Place, Reader)>,
    stop: Arc<AtomicBool>,
    publisher: Option<JoinHandle<usize>>,
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Traffic {
    /// Starts to publish; returns when every host has read a version.
    pub(crate) fn start(stage: &Stage, feed: Feed, token: &str) -> anyhow::Result<Self> {
        let mut readers = Vec::new();
        for host in stage.racks.hosts() {
            readers.push((host, Reader::start(READ_API, FEED, stage.racks.entrance(host)?)));
        }
        let stop = Arc::<AtomicBool>::default();
        let (stopped, token) = (stop.clone(), token.to_string());
        let enter = stage.racks.entrance(Place::Seeder)?;
        let publisher = std::thread::spawn(move || {
            enter();
            publish(&mut Publisher::new(FEED_API, &token), feed, &stopped)
        });
        let traffic = Self { feed, readers, stop, publisher: Some(publisher) };
        until("every host has read the feed", PATIENCE, || {
            traffic.readers.iter().all(|(_, reader)| reader.last().is_some()).then_some(())
        })?;
        Ok(traffic)
    }

    /// Stops publishing, waits until every host has read the last version, and measures.
    pub(crate) fn finish(mut self, stage: &Stage) -> anyhow::Result<FeedFigures> {
        self.stop.store(true, Ordering::Relaxed);
        let publisher = self.publisher.take().context("the publisher was started")?;
        let versions =
            publisher.join().map_err(|_| anyhow::anyhow!("the publisher panicked; see the message above"))?;
        let last = versions as u64 - 1;
        until("every host has read the last version", PATIENCE, || {
            let read = |(_, reader): &(Place, Reader)| reader.last().is_some_and(|reading| reading.number == last);
            self.readers.iter().all(read).then_some(())
        })?;
        let (mut took, mut losses, mut out_of_order) = (Vec::new(), Vec::new(), 0);
        for (host, reader) in &self.readers {
            let readings = reader.readings();
            let pairs = readings.windows(2);
            out_of_order += pairs.clone().filter(|pair| pair[1].number <= pair[0].number).count();
            // A reader starts with the version that is newest then. From there on it must receive each one.
            let gaps = pairs.map(|pair| (pair[1].number.saturating_sub(pair[0].number + 1), pair[0].number));
            let missed = gaps.clone().map(|(missed, _)| missed).sum();
            if let Some((in_a_row, after)) = gaps.max().filter(|_| missed > 0) {
                losses.push(Loss { host: host.to_string(), readings: missed, in_a_row, after });
            }
            took.extend(readings.iter().skip(1).map(|reading| reading.took_us));
        }
        let lost = losses.iter().map(|loss| loss.readings as usize).sum();
        took.sort_unstable();
        let ms = |fraction: f64| quantile(&took, fraction) as f64 / 1000.0;
        let published = (versions * self.feed.bytes) as f64;
        let mut rack_copies = vec![0.0; stage.racks.layout().racks.len()];
        for (place, _) in &self.readers {
            if let Place::Host { rack, .. } = *place {
                rack_copies[rack] += imported(stage, *place)? as f64 / published;
            }
        }
        let (p50_ms, p99_ms, max_ms) = (ms(0.5), ms(0.99), ms(1.0));
        Ok(FeedFigures { versions, p50_ms, p99_ms, max_ms, lost, losses, out_of_order, rack_copies })
    }
}

/// Publishes until `stop` is set, with at least `feed.every` between two versions. Returns the number of versions.
fn publish(publisher: &mut Publisher, feed: Feed, stop: &AtomicBool) -> usize {
    let mut due = Instant::now();
    let mut versions = 0;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // From now on, not from the last due time: a delayed version must not be followed by a burst.
        due = due.max(Instant::now()) + feed.every;
        if publisher.publish(FEED, &numbered(versions as u64, feed.bytes)).is_some() {
            versions += 1;
        }
    }
    versions
}

/// Bytes of versions that a host received from outside its rack.
fn imported(stage: &Stage, host: Place) -> anyhow::Result<u64> {
    let enter = stage.racks.entrance(host)?;
    let asked = std::thread::spawn(move || {
        enter();
        let tiers = ["site", "region", "seeder"];
        let of = |tier| metric(READ_API, &format!("shoal_feed_received_bytes_total{{tier=\"{tier}\"}}"));
        tiers.into_iter().map(of).sum::<Option<u64>>()
    });
    asked.join().ok().flatten().with_context(|| format!("{host} does not serve its metrics"))
}
