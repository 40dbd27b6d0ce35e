//! Small versions of a feed, published while the content is distributed, and what readers on every host saw of them.
//!
//! Invariant: publisher and readers are on the machines of the lab, so whatever they are told crosses its links; a version
//! counts as lost on a host whose reader never saw it, also when a newer one took its place.

use super::feeds::{Publisher, Reader, numbered, quantile};
use super::http::metric;
use super::measure::Stage;
use super::namespaces::Place;
use super::processes::until;
use super::systems::{FEED_API, READ_API};
use anyhow::Context;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const FEED: &str = "lab/feed";
const PATIENCE: Duration = Duration::from_secs(30);

/// What is published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feed {
    /// Size of a version.
    pub(super) bytes: usize,
    /// Between two versions.
    pub(super) every: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FeedFigures {
    pub(super) versions: usize,
    /// From before the publication to after the reading, over all hosts, milliseconds.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
    /// Readings that never were.
    pub(super) lost: usize,
    /// Where: hosts whose reader missed any.
    pub(super) losses: Vec<Loss>,
    /// Readings of an older version after a newer one.
    pub(super) out_of_order: usize,
    /// Bytes of versions into each rack by the bytes published.
    pub(super) rack_copies: Vec<f64>,
}

/// What the reader on one host missed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Loss {
    pub(super) host: String,
    pub(super) readings: u64,
    /// Most of them in a row.
    pub(super) in_a_row: u64,
    /// After which version.
    pub(super) after: u64,
}

/// A publisher and its readers.
pub(super) struct Traffic {
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
    /// Starts publishing once every host has read a first version.
    pub(super) fn start(stage: &Stage, feed: Feed, token: &str) -> anyhow::Result<Self> {
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
        until("every host has read of the feed", PATIENCE, || {
            traffic.readers.iter().all(|(_, reader)| reader.last().is_some()).then_some(())
        })?;
        Ok(traffic)
    }

    /// Ends it when all has been read.
    pub(super) fn finish(mut self, stage: &Stage) -> anyhow::Result<FeedFigures> {
        self.stop.store(true, Ordering::Relaxed);
        let publisher = self.publisher.take().context("it was started")?;
        let versions = publisher.join().map_err(|_| anyhow::anyhow!("the publisher failed; see above"))?;
        let last = versions as u64 - 1;
        until("every host has read the last version", PATIENCE, || {
            let read = |(_, reader): &(Place, Reader)| reader.last().is_some_and(|seen| seen.number == last);
            self.readers.iter().all(read).then_some(())
        })?;
        let (mut took, mut losses, mut out_of_order) = (Vec::new(), Vec::new(), 0);
        for (host, reader) in &self.readers {
            let seen = reader.seen();
            out_of_order += seen.windows(2).filter(|pair| pair[1].number <= pair[0].number).count();
            // Readers begin with what is newest then; from there on each is theirs to see.
            let gaps = seen.windows(2).map(|pair| (pair[1].number.saturating_sub(pair[0].number + 1), pair[0].number));
            let readings = gaps.clone().map(|(missed, _)| missed).sum();
            if let Some((in_a_row, after)) = gaps.max().filter(|_| readings > 0) {
                losses.push(Loss { host: host.to_string(), readings, in_a_row, after });
            }
            took.extend(seen.iter().skip(1).map(|seen| seen.took_us));
        }
        let lost = losses.iter().map(|loss| loss.readings as usize).sum();
        took.sort_unstable();
        let ms = |share: f64| quantile(&took, share) as f64 / 1000.0;
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

/// Publishes until told to stop, never sooner after a version than it should; gives how many versions there were.
fn publish(publisher: &mut Publisher, feed: Feed, stop: &AtomicBool) -> usize {
    let mut due = Instant::now();
    let mut versions = 0;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due = due.max(Instant::now()) + feed.every;
        if publisher.publish(FEED, &numbered(versions as u64, feed.bytes)).is_some() {
            versions += 1;
        }
    }
    versions
}

/// Bytes of versions a host got from outside of its rack.
fn imported(stage: &Stage, host: Place) -> anyhow::Result<u64> {
    let enter = stage.racks.entrance(host)?;
    let asked = std::thread::spawn(move || {
        enter();
        let tiers = ["site", "region", "seeder"];
        let of = |tier| metric(READ_API, &format!("shoal_feed_received_bytes_total{{tier=\"{tier}\"}}"));
        tiers.into_iter().map(of).sum::<Option<u64>>()
    });
    asked.join().ok().flatten().with_context(|| format!("{host} could not be asked"))
}
