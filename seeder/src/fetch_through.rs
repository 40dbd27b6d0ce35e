//! Fetch-through: pulls of images that hosts' mirrors lack.
//!
//! Hosts that ask for the same image within [`GATHER_TIME`] share one job.
//! Invariant: a host's request never makes the seeder pull from a registry that `fetch_through` does not name, and a
//! repeated request starts nothing.

use crate::errors::with_sources;
use crate::images::{ImageError, complete};
use crate::jobs::{Jobs, PushError, QueuedPush};
use shoal_api::jobs::{ImageRequest, PushRequest};
use shoal_peer::handle::NodeHandle;
use shoal_peer::tracker_client::FetchThroughRequest;
use shoal_proto::announcement::Kind;
use shoal_proto::control::Response;
use shoal_proto::ids::JobId;
use shoal_proto::image::{ParseReferenceError, Reference};
use shoal_proto::limits;
use shoal_proto::locality::Locality;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long an image waits for further hosts that ask for it.
const GATHER_TIME: Duration = Duration::from_millis(200);
/// Images that wait for further hosts.
const PENDING_MAX: usize = 64;
/// Jobs under way that hosts' requests began.
const JOBS_MAX: usize = 32;

/// Why a host's request is refused. The host's mirror logs the text.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    #[error("the seeder's fetch_through does not name {host}/{path}; add it there")]
    NotAllowed { host: String, path: String },
    #[error("the seeder does not know this host yet; ask again later")]
    UnknownHost,
    #[error("too many images are on their way; ask again later")]
    Busy,
}

/// Why a job for hosts does not begin.
#[derive(Debug, thiserror::Error)]
enum BeginError {
    #[error("the seeder is stopping")]
    Stopping,
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Push(#[from] PushError),
}

fn is_allowed(prefixes: &[String], reference: &Reference) -> bool {
    let name = format!("{}/{}", reference.host, reference.path);
    prefixes.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// The hosts that wait for one image.
struct PendingImage {
    hosts: BTreeSet<Locality>,
    due: Instant,
}

/// A job that hosts' requests began.
struct BegunJob {
    job: JobId,
    reference: String,
    hosts: BTreeSet<Locality>,
}

/// Takes hosts' requests for images.
pub(crate) struct FetchThrough {
    jobs: Arc<Jobs>,
    node: NodeHandle,
    prefixes: Vec<String>,
    queue: mpsc::Sender<QueuedPush>,
    pending: BTreeMap<String, PendingImage>,
    begun: Vec<BegunJob>,
}

impl FetchThrough {
    pub(crate) fn new(
        jobs: Arc<Jobs>,
        node: NodeHandle,
        prefixes: Vec<String>,
        queue: mpsc::Sender<QueuedPush>,
    ) -> Self {
        Self { jobs, node, prefixes, queue, pending: BTreeMap::new(), begun: Vec::new() }
    }

    /// Takes requests until the token is cancelled.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<FetchThroughRequest>, token: CancellationToken) {
        loop {
            let due = self.pending.values().map(|image| image.due).min();
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    self.begin_due().await;
                }
                request = requests.recv() => {
                    let Some(request) = request else { return };
                    let answer = match self.accept(&request) {
                        Ok(()) => Response::Done,
                        Err(refusal) => Response::Refused { why: refusal.to_string() },
                    };
                    request.reply.send(answer);
                }
            }
        }
    }

    fn accept(&mut self, request: &FetchThroughRequest) -> Result<(), Refusal> {
        let jobs = &self.jobs;
        self.begun.retain(|begun| jobs.status(&begun.job).is_some_and(|status| !status.is_final()));
        let reference: Reference = request.reference.parse()?;
        if !is_allowed(&self.prefixes, &reference) {
            return Err(Refusal::NotAllowed { host: reference.host, path: reference.path });
        }
        let member = self.node.membership.borrow().get(request.host).cloned().ok_or(Refusal::UnknownHost)?;
        let is_on_its_way = self
            .begun
            .iter()
            .any(|begun| begun.reference == request.reference && begun.hosts.contains(&member.locality));
        if is_on_its_way {
            return Ok(());
        }
        let is_full = self.pending.len() >= PENDING_MAX || self.begun.len() >= JOBS_MAX;
        if !self.pending.contains_key(&request.reference) && is_full {
            return Err(Refusal::Busy);
        }
        let image = self
            .pending
            .entry(request.reference.clone())
            .or_insert_with(|| PendingImage { hosts: BTreeSet::new(), due: Instant::now() + GATHER_TIME });
        image.hosts.insert(member.locality);
        Ok(())
    }

    async fn begin_due(&mut self) {
        let now = Instant::now();
        let due: Vec<String> =
            self.pending.iter().filter(|(_, image)| image.due <= now).map(|(name, _)| name.clone()).collect();
        for reference in due {
            if let Some(image) = self.pending.remove(&reference) {
                self.begin(&reference, image.hosts).await;
            }
        }
    }

    /// Begins the jobs for an image: one for as many hosts as a selector can name.
    async fn begin(&mut self, reference: &str, hosts: BTreeSet<Locality>) {
        let term = |host: &Locality| {
            format!("region={},site={},rack={},host={}", host.region, host.site, host.rack, host.host)
        };
        let hosts: Vec<Locality> = hosts.into_iter().collect();
        for hosts in hosts.chunks(limits::SELECTOR_TERMS_MAX) {
            let image = ImageRequest { reference: Some(reference.to_string()), platform: None, pull: true };
            let request = PushRequest {
                path: PathBuf::new(),
                name: String::new(),
                version: String::new(),
                kind: Kind::Image,
                to: hosts.iter().map(term).collect(),
                // The host's own containerd pulls it from the mirror, so the host need not prewarm it.
                staged: true,
                image: Some(image),
                replace: false,
            };
            match self.create(request).await {
                Ok(job) => {
                    tracing::info!(%reference, %job, hosts = hosts.len(), "fetching an image for hosts that lack it");
                    let (reference, hosts) = (reference.to_string(), hosts.iter().cloned().collect());
                    self.begun.push(BegunJob { job, reference, hosts });
                }
                Err(error) => {
                    tracing::warn!(%reference, error = with_sources(&error), "cannot fetch an image for hosts");
                }
            }
        }
    }

    async fn create(&self, request: PushRequest) -> Result<JobId, BeginError> {
        let permit = self.queue.reserve().await.map_err(|_| BeginError::Stopping)?;
        // The request has a reference, so this reads no files and does not block.
        let request = complete(request, self.jobs.roots())?;
        let job = self.jobs.create(&request)?;
        permit.send(QueuedPush { job, request });
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_operator_named_is_fetched() {
        let prefixes = ["registry.example:5000/lab".to_string(), "ghcr.example".to_string()];
        let allowed = |name: &str| is_allowed(&prefixes, &name.parse().unwrap());
        assert!(allowed("registry.example:5000/lab/app:v1") && allowed("registry.example:5000/lab:v1"));
        assert!(allowed("ghcr.example/anything/at/all"));
        assert!(!allowed("registry.example:5000/labor/app:v1"));
        assert!(!allowed("registry.example:5000/other:v1"));
        assert!(!allowed("registry.example/lab/app:v1"));
        assert!(!allowed("ghcr.example.evil.example/a"));
        assert!(!is_allowed(&[], &"nginx".parse().unwrap()));
    }
}
