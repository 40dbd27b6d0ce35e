//! A push on its way from a path to a signed announcement.

use crate::jobs::Jobs;
use crate::status::{Phase, PushRequest};
use shoal_net::admission::system_clock;
use shoal_peer::handle::DriverCommand;
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::locality::Selector;
use shoal_proto::trust::Envelope;
use shoal_store::ingest::{IngestError, IngestOptions, IngestProgress, Ingested};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the progress of an ingest is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Stops an ingest when nobody waits for it any more: its thread would outlive the seeder's stop.
struct StopOnDrop(Arc<IngestProgress>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.cancel.store(true, Ordering::Relaxed);
    }
}

impl Jobs {
    /// Takes a push's content in, signs it and hands it to the driver. Dropped half-way, it begins anew at the next
    /// start.
    pub async fn work_on_push(self: Arc<Self>, job: JobId, request: PushRequest) {
        let ingested = match request.kind {
            Kind::Image => self.ingest_image(job, &request).await,
            _ => self.ingest(job, &request).await.map_err(|error| error.to_string()),
        };
        let announced = match ingested {
            Ok(ingested) => {
                let _turn = self.turn_among_images(job, &request.to, &ingested).await;
                self.announce(job, &request, &ingested).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = announced {
            tracing::warn!(%job, %error, "push failed");
            if let Some(row) = self.rows().get_mut(&job) {
                row.status.fail(error);
            }
            self.keep(&job);
        }
        self.changed.notify_waiters();
    }

    pub(crate) fn ingest_options(&self, average: Option<u32>) -> IngestOptions {
        IngestOptions {
            average,
            data: self.config.data_shards,
            parity: self.config.parity_shards,
            lanes: self.config.lanes,
        }
    }

    async fn ingest(&self, job: JobId, request: &PushRequest) -> Result<Ingested, IngestError> {
        let options = self.ingest_options(self.average_of(request));
        let (store, path) = (self.node().store.clone(), request.path.clone());
        self.run_ingest(job, move |progress| store.ingest(&path, &options, progress)).await
    }

    /// Runs an ingest on a thread of its own when it is its turn, and shows how far it is.
    pub(crate) async fn run_ingest(
        &self,
        job: JobId,
        work: impl FnOnce(&Arc<IngestProgress>) -> Result<Ingested, IngestError> + Send + 'static,
    ) -> Result<Ingested, IngestError> {
        let _turn = self.ingests.acquire().await;
        let progress = StopOnDrop(Arc::new(IngestProgress::default()));
        let shown = progress.0.clone();
        let work = tokio::task::spawn_blocking(move || work(&shown));
        let done = self.show_while(job, Phase::Ingesting, &progress.0, work).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Awaits work, and shows how far it is meanwhile.
    pub(crate) async fn show_while<T>(
        &self,
        job: JobId,
        phase: Phase,
        progress: &IngestProgress,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        let mut tick = tokio::time::interval(SHOW_EVERY);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = tick.tick() => {
                    if let Some(row) = self.rows().get_mut(&job) {
                        row.status.phase = phase;
                        row.status.ingested = progress.done.load(Ordering::Relaxed);
                        row.status.size = progress.total.load(Ordering::Relaxed);
                    }
                    self.changed.notify_waiters();
                }
            }
        }
    }

    /// Versions of a name are cut alike, so that they share pieces.
    fn average_of(&self, request: &PushRequest) -> Option<u32> {
        let content = self.latest().remove(&(request.kind, request.name.clone()))?;
        Some(self.node().store.manifest(&content)?.piece_bytes_avg)
    }

    /// The newest content of each name.
    pub(crate) fn latest(&self) -> BTreeMap<(Kind, String), ContentId> {
        let mut newest: BTreeMap<(Kind, String), (u64, ContentId)> = BTreeMap::new();
        for row in self.rows().values() {
            let Some(envelope) = &row.envelope else { continue };
            let Ok(announcement) = envelope.open::<Announcement>() else { continue };
            if announcement.demotes() {
                continue;
            }
            let found = (announcement.sequence, announcement.content);
            let name = match announcement.kind {
                // Each tag is a name: of a repository the latest push counts, or a seeder would keep every tag for ever.
                Kind::Image => announcement.name.rsplit_once('/').map_or(&*announcement.name, |(name, _)| name).into(),
                _ => announcement.name,
            };
            let slot = newest.entry((announcement.kind, name)).or_insert(found);
            *slot = found.max(*slot);
        }
        newest.into_iter().map(|(name, (_, content))| (name, content)).collect()
    }

    async fn announce(&self, job: JobId, request: &PushRequest, ingested: &Ingested) -> Result<(), String> {
        let selector = Selector::parse(&request.to).map_err(|error| error.to_string())?;
        let now = system_clock();
        let drawn = self.rows().get(&job).and_then(|row| row.sequence);
        let sequence = match drawn {
            Some(sequence) => sequence,
            None => self.next_sequence(request)?,
        };
        let announcement = Announcement {
            job,
            content: ingested.content,
            kind: request.kind,
            name: request.name.clone(),
            version: request.version.clone(),
            sequence,
            selector,
            origin: self.me,
            manifest_bytes: ingested.manifest_bytes,
            size: ingested.manifest.size(),
            created_at: now,
            expires_at: now + self.config.job_lifetime.0.as_secs(),
            order: None,
            staged: request.staged,
            feed: None,
        };
        let envelope = Envelope::seal(&announcement, &self.publisher);
        if let Some(row) = self.rows().get_mut(&job) {
            row.status.announced(&announcement, ingested.manifest.piece_count());
            row.envelope = Some(envelope.clone());
            row.announced = Instant::now();
            row.expires_at = announcement.expires_at;
        }
        self.try_keep(&job)?;
        let named = self.node().store.set_sequence(&announcement.content, announcement.sequence);
        named.map_err(|error| error.to_string())?;
        self.pin_needed()?;
        self.node().store.sync().map_err(|error| error.to_string())?;
        // The tracker first, so that it knows what hosts report on. Without one, it is told later.
        if let Some(tracker) = self.tracker() {
            self.open_at(tracker, job).await;
        }
        tracing::info!(%job, name = request.name, version = request.version, size = announcement.size, "announced");
        let command = DriverCommand::Publish { envelope, announcement: Arc::new(announcement) };
        self.node().commands.send(command).await.map_err(|_| "the node is stopping".to_string())
    }

    /// The latest content of a name, and those on their way to hosts, are kept; others may be evicted for new ones.
    pub(crate) fn pin_needed(&self) -> Result<(), String> {
        let mut needed: BTreeSet<ContentId> = self.latest().into_values().collect();
        let mut known = needed.clone();
        for row in self.rows().values() {
            known.extend(row.status.content);
            if row.status.phase == Phase::Distributing {
                needed.extend(row.status.content);
            }
        }
        for content in known {
            let pinned = needed.contains(&content);
            self.node().store.pin(&content, pinned).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Grows with every push of a name, across restarts and seeders whose clocks agree. Called under the lock of the rows.
    pub(crate) fn next_sequence(&self, request: &PushRequest) -> Result<u64, String> {
        self.next_sequence_of(request.kind, &request.name)
    }

    pub(crate) fn next_sequence_of(&self, kind: Kind, name: &str) -> Result<u64, String> {
        let key = format!("sequence/{kind}/{name}");
        let store = &self.node().store;
        let last = store.get_state(&key).map_err(|error| error.to_string())?;
        let last = last.and_then(|bytes| decode_exact::<u64>(&bytes).ok()).unwrap_or(0);
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let next = clock.map_or(0, |since| since.as_millis() as u64).max(last + 1);
        store.put_state(&key, Some(encode(&next))).map_err(|error| error.to_string())?;
        Ok(next)
    }
}
