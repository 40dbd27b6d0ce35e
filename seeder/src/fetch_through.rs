//! Fetch-through: pulls of images that hosts' mirrors lack.
//!
//! The seeder looks an image up before it promises it, so that clients hear at once of a tag that does not exist. Hosts
//! that ask for the same image meanwhile and within [`GATHER_TIME`] share one job.
//! Invariant: a host's request never makes the seeder pull from a registry that `fetch_through` does not name, and a
//! repeated request starts nothing.

use crate::errors::with_sources;
use crate::images::{ImageError, Images, complete};
use crate::jobs::{Jobs, PushError, QueuedPush};
use crate::registry::RegistryError;
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
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long an image waits for further hosts that ask for it.
const GATHER_TIME: Duration = Duration::from_millis(200);
/// Images that wait for further hosts.
const PENDING_MAX: usize = 64;
/// Images that are looked up at the same time.
const LOOKUPS_MAX: usize = 16;
/// Hosts' requests that wait for one look-up.
const ASKERS_MAX: usize = 256;
/// Images that a registry lacks and that are remembered.
const LACKED_MAX: usize = 256;
/// How long a registry is not asked again for an image that it lacks. Verifiers ask for signatures at each pull.
const LACKED_VALID_FOR: Duration = Duration::from_secs(10);
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
    #[error("{0}")]
    Lacked(String),
}

/// Whether an image is known to exist.
enum Known {
    Yes,
    /// Its registry has to be asked for this reference.
    No(Reference),
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

/// An image that its registry does not serve, with what hosts are told.
struct LackedImage {
    why: String,
    until: Instant,
}

/// What a registry said of an image.
struct LookedUp {
    reference: String,
    result: Result<(), RegistryError>,
}

/// Takes hosts' requests for images.
pub(crate) struct FetchThrough {
    jobs: Arc<Jobs>,
    node: NodeHandle,
    images: Arc<Images>,
    prefixes: Vec<String>,
    queue: mpsc::Sender<QueuedPush>,
    /// Requests whose images are being looked up.
    askers: BTreeMap<String, Vec<FetchThroughRequest>>,
    lacked: BTreeMap<String, LackedImage>,
    pending: BTreeMap<String, PendingImage>,
    begun: Vec<BegunJob>,
}

impl FetchThrough {
    pub(crate) fn new(
        jobs: Arc<Jobs>,
        node: NodeHandle,
        images: Arc<Images>,
        prefixes: Vec<String>,
        queue: mpsc::Sender<QueuedPush>,
    ) -> Self {
        let (askers, lacked) = (BTreeMap::new(), BTreeMap::new());
        Self { jobs, node, images, prefixes, queue, askers, lacked, pending: BTreeMap::new(), begun: Vec::new() }
    }

    /// Takes requests until the token is cancelled.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<FetchThroughRequest>, token: CancellationToken) {
        let mut lookups: JoinSet<LookedUp> = JoinSet::new();
        loop {
            let due = self.pending.values().map(|image| image.due).min();
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    self.begin_due().await;
                }
                Some(ended) = lookups.join_next(), if !lookups.is_empty() => self.on_looked_up(ended),
                request = requests.recv() => {
                    let Some(request) = request else { return };
                    self.on_request(request, &mut lookups);
                }
            }
        }
    }

    fn on_request(&mut self, request: FetchThroughRequest, lookups: &mut JoinSet<LookedUp>) {
        match self.check(&request) {
            Err(refusal) => request.reply.send(Response::Refused { why: refusal.to_string() }),
            // The image is on its way to this host, or about to be.
            Ok(Known::Yes) => self.promise(request),
            Ok(Known::No(reference)) => {
                let text = request.reference.clone();
                if let Some(askers) = self.askers.get_mut(&text) {
                    return askers.push(request);
                }
                self.askers.insert(text.clone(), vec![request]);
                let images = self.images.clone();
                lookups.spawn(async move {
                    let result = images.look_up(&reference).await;
                    LookedUp { reference: text, result }
                });
            }
        }
    }

    /// Answers the hosts that wait for a look-up. Only a registry that answers nothing useful at present leaves the
    /// question to the job, which asks again for a while.
    fn on_looked_up(&mut self, ended: Result<LookedUp, JoinError>) {
        let LookedUp { reference, result } = match ended {
            Ok(looked_up) => looked_up,
            Err(error) => {
                // Which image it was is lost. The hosts' requests time out, and the next ones begin anew.
                tracing::error!(%error, "a look-up at a registry panicked");
                return self.askers.clear();
            }
        };
        let askers = self.askers.remove(&reference).unwrap_or_default();
        let refusal = result.err().filter(|error| !error.is_temporary());
        let Some(error) = refusal else { return askers.into_iter().for_each(|request| self.promise(request)) };
        let why = with_sources(&error);
        tracing::info!(%reference, error = why, "a registry does not serve an image for which hosts ask");
        for request in askers {
            request.reply.send(Response::Refused { why: why.clone() });
        }
        if self.lacked.len() < LACKED_MAX {
            self.lacked.insert(reference, LackedImage { why, until: Instant::now() + LACKED_VALID_FOR });
        }
    }

    /// Checks a request, and tells whether its image needs no look-up.
    fn check(&mut self, request: &FetchThroughRequest) -> Result<Known, Refusal> {
        let now = Instant::now();
        self.lacked.retain(|_, image| image.until > now);
        let jobs = &self.jobs;
        self.begun.retain(|begun| jobs.status(&begun.job).is_some_and(|status| !status.is_final()));
        let reference: Reference = request.reference.parse()?;
        if !is_allowed(&self.prefixes, &reference) {
            return Err(Refusal::NotAllowed { host: reference.host, path: reference.path });
        }
        if self.node.membership.borrow().get(request.host).is_none() {
            return Err(Refusal::UnknownHost);
        }
        if let Some(image) = self.lacked.get(&request.reference) {
            return Err(Refusal::Lacked(image.why.clone()));
        }
        let is_begun = self.begun.iter().any(|begun| begun.reference == request.reference);
        if is_begun || self.pending.contains_key(&request.reference) {
            return Ok(Known::Yes);
        }
        let is_full = match self.askers.get(&request.reference) {
            Some(askers) => askers.len() >= ASKERS_MAX,
            None => self.askers.len() >= LOOKUPS_MAX,
        };
        if is_full { Err(Refusal::Busy) } else { Ok(Known::No(reference)) }
    }

    /// Adds a host to those that get an image, and tells it so.
    fn promise(&mut self, request: FetchThroughRequest) {
        let answer = match self.accept(&request) {
            Ok(()) => Response::Done,
            Err(refusal) => Response::Refused { why: refusal.to_string() },
        };
        request.reply.send(answer);
    }

    fn accept(&mut self, request: &FetchThroughRequest) -> Result<(), Refusal> {
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
            let image = ImageRequest { reference: Some(reference.to_string()), pull: true, ..ImageRequest::default() };
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
