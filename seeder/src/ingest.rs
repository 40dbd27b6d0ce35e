//! Pushes on their way from a path or a registry to a signed announcement.
//!
//! Owns: the ingests under way, of which at most [`INGESTS_MAX`] run at the same time.
//! Invariant: a push that is dropped half-way begins again at the next start, because its job is on disk.

use crate::config::SeederConfig;
use crate::errors::{StateError, with_sources};
use crate::images::{ImageError, Images, LayerDependencies, WantedImage};
use crate::jobs::{Jobs, QueuedPush, VersionError};
use crate::publisher::Publisher;
use crate::push_roots::PushPathError;
use shoal_api::jobs::{JobPhase, PushRequest};
use shoal_peer::handle::NodeHandle;
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::ids::JobId;
use shoal_proto::locality::{ParseLocalityError, Selector};
use shoal_store::ingest::{IngestError, IngestProgress, Ingested};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Ingests that run at the same time.
const INGESTS_MAX: usize = 2;
/// How often the progress of an ingest is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Why a push failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Path(#[from] PushPathError),
    #[error(transparent)]
    Ingest(#[from] IngestError),
    #[error(transparent)]
    Image(Box<ImageError>),
    #[error(transparent)]
    Selector(#[from] ParseLocalityError),
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error("cannot announce the content")]
    State(#[from] StateError),
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Image(Box::new(error))
    }
}

/// Cancels an ingest when its future is dropped. Otherwise the ingest's thread would outlive the seeder's stop.
struct CancelOnDrop(Arc<IngestProgress>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel.store(true, Ordering::Relaxed);
    }
}

/// Ingests and announces pushes.
pub(crate) struct Ingest {
    config: SeederConfig,
    jobs: Arc<Jobs>,
    node: NodeHandle,
    publisher: Arc<Publisher>,
    images: Arc<Images>,
    layers: LayerDependencies,
    turns: Semaphore,
}

impl Ingest {
    pub(crate) fn new(
        config: SeederConfig,
        jobs: Arc<Jobs>,
        node: NodeHandle,
        publisher: Arc<Publisher>,
        images: Arc<Images>,
    ) -> Arc<Self> {
        let layers = LayerDependencies::new(jobs.clone(), node.clone());
        Arc::new(Self { config, jobs, node, publisher, images, layers, turns: Semaphore::new(INGESTS_MAX) })
    }

    /// Works on pushes until the token is cancelled. Begins with the pushes of a former run.
    pub(crate) async fn run(self: Arc<Self>, mut queue: mpsc::Receiver<QueuedPush>, token: CancellationToken) {
        let mut running = JoinSet::new();
        for push in self.jobs.unfinished() {
            running.spawn(self.clone().work_on(push));
        }
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                Some(ended) = running.join_next(), if !running.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a push panicked");
                    }
                }
                next = queue.recv() => match next {
                    Some(push) => drop(running.spawn(self.clone().work_on(push))),
                    None => break,
                },
            }
        }
        running.shutdown().await;
    }

    async fn work_on(self: Arc<Self>, QueuedPush { job, request }: QueuedPush) {
        if let Err(error) = self.ingest_and_announce(job, &request).await {
            let why = with_sources(&error);
            tracing::warn!(%job, error = why, "a push failed");
            self.jobs.fail(job, why);
        }
        self.jobs.notify();
    }

    async fn ingest_and_announce(&self, job: JobId, request: &PushRequest) -> Result<(), Failure> {
        let ingested = match request.kind {
            Kind::Image => self.ingest_image(job, request).await?,
            _ => self.ingest_path(job, request).await?,
        };
        // Held until the image is announced, so that the next image in turn sees its job.
        let _turn = self.layers.wait_for_turn(job, &request.to, &ingested).await;
        self.announce(job, request, &ingested).await
    }

    async fn ingest_path(&self, job: JobId, request: &PushRequest) -> Result<Ingested, Failure> {
        let options = self.config.ingest_options(self.jobs.average_piece_bytes(request.kind, &request.name));
        let (store, path, roots) = (self.node.store.clone(), request.path.clone(), self.jobs.roots().clone());
        // Opened again: the job may be from a former run, with other roots.
        self.run_ingest(job, move |progress| Ok(store.ingest_opened(&roots.open(&path)?, &options, progress)?)).await
    }

    async fn ingest_image(&self, job: JobId, request: &PushRequest) -> Result<Ingested, Failure> {
        let image = request.image.clone().unwrap_or_default();
        let wanted = WantedImage::parse(&image)?;
        let (store, options) = (self.node.store.clone(), self.config.ingest_options(None));
        if image.pull {
            let progress = IngestProgress::default();
            let pull = self.images.pull(job, &wanted, &progress);
            let pulled = self.show_while(job, JobPhase::Pulling, &progress, pull).await?;
            return self.run_ingest(job, move |progress| Ok(pulled.ingest(&store, &options, progress)?)).await;
        }
        let (path, roots) = (request.path.clone(), self.jobs.roots().clone());
        let local = tokio::task::spawn_blocking(move || wanted.open_files(&path, &roots)).await;
        let local = local.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let ingested = self.run_ingest(job, move |progress| {
            Ok(store.ingest_image(local.index.clone(), |blob| local.source(blob), None, &options, progress)?)
        });
        ingested.await
    }

    /// Runs an ingest on a thread of its own once there is a free place, and shows its progress.
    async fn run_ingest(
        &self,
        job: JobId,
        work: impl FnOnce(&Arc<IngestProgress>) -> Result<Ingested, Failure> + Send + 'static,
    ) -> Result<Ingested, Failure> {
        let _place = self.turns.acquire().await;
        let progress = CancelOnDrop(Arc::new(IngestProgress::default()));
        let shared = progress.0.clone();
        let work = tokio::task::spawn_blocking(move || work(&shared));
        let done = self.show_while(job, JobPhase::Ingesting, &progress.0, work).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Awaits work and shows its progress meanwhile.
    async fn show_while<T>(
        &self,
        job: JobId,
        phase: JobPhase,
        progress: &IngestProgress,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        let mut tick = tokio::time::interval(SHOW_EVERY);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = tick.tick() => {
                    let (done, total) = (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
                    self.jobs.set_progress(job, phase, done, total);
                }
            }
        }
    }

    async fn announce(&self, job: JobId, request: &PushRequest, ingested: &Ingested) -> Result<(), Failure> {
        let sequence = match self.jobs.sequence(&job) {
            Some(sequence) => sequence,
            // Only a job that an older program stored has none.
            None => self.jobs.next_sequence(request.kind, &request.name)?,
        };
        let times = self.publisher.times();
        let announcement = Announcement {
            job,
            content: ingested.content,
            kind: request.kind,
            name: request.name.clone(),
            version: request.version.clone(),
            sequence,
            selector: Selector::parse(&request.to)?,
            origin: self.publisher.me(),
            manifest_bytes: ingested.manifest_bytes,
            size: ingested.manifest.size(),
            created_at: times.created_at,
            expires_at: times.expires_at,
            order: None,
            staged: request.staged,
            feed: None,
        };
        let envelope = self.publisher.seal(&announcement).map_err(StateError::from)?;
        self.jobs.note_version(&announcement, request.replace)?;
        self.jobs.set_announced(&announcement, envelope.clone(), ingested.manifest.piece_count())?;
        Ok(self.publisher.publish(announcement, envelope).await?)
    }
}
