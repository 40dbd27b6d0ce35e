//! Builds a running node from its settings: keys, store, links, tracker client and driver.
//!
//! Invariant: a node that is not admitted by its own trust document does not start.

use super::{Driver, NodeMetrics, Parts};
use crate::activation::content_dir::{ContentDir, ContentDirError, ContentSettings};
use crate::activation::settings::Activations;
use crate::arrivals::Arrivals;
use crate::config::NodeSettings;
use crate::feeds::{FeedFiles, FeedWriter, LatestVersions};
use crate::handle::NodeHandle;
use crate::prewarm::PrewarmRequests;
use crate::rate_limits::RateLimits;
use crate::row_check::RowCheck;
use crate::tracker_client::{FetchThroughRequest, SharedReports, TrackerClient};
use shoal_net::admission::{Admission, reload_on_hangup, system_clock};
use shoal_net::control::{ControlConfig, ControlHandle, ControlPlane, StartError};
use shoal_net::identity::{Identity, KeyFileError, load_key};
use shoal_net::links::{BindError, LinkConfig, LinkEndpoint, LinkEvents};
use shoal_net::own_credential::{self, OwnCredential};
use shoal_net::trust_file::{TrustFile, TrustFileError};
use shoal_proto::control::Join;
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Admitted, ClaimError, Credential, Role, TrustError};
use shoal_service::config::ConfigError;
use shoal_service::folders::{self, FolderError};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::Tasks;
use shoal_service::trust_metrics;
use shoal_store::{OpenError, Store, StoreConfig, StoreEvent};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};

/// Fetch-through requests that wait for the seeder.
const FETCH_THROUGH_QUEUE_MAX: usize = 64;
/// Store events that wait for the driver. The store's threads wait when the queue is full.
const STORE_EVENTS_MAX: usize = 1024;
/// Tracker events that wait for the driver.
const TRACKER_EVENTS_MAX: usize = 64;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the variants' docs say what their fields are for")]
pub enum SetupError {
    /// A size is more than the machine has.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The trust document or the credential cannot be read.
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The key file is unusable.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The trust document does not admit the credential.
    #[error("cannot use {}", .path.display())]
    Trust { path: PathBuf, source: TrustError },
    /// The node's settings claim what its credential does not cover.
    #[error("the credential {} does not cover the settings of this node", .path.display())]
    Claim { path: PathBuf, source: ClaimError },
    /// No trust document can be put in force.
    #[error(transparent)]
    TrustFile(#[from] TrustFileError),
    /// The state folder is unusable.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The content folder is unusable.
    #[error(transparent)]
    ContentDir(#[from] ContentDirError),
    /// The folders of feeds are unusable.
    #[error("cannot use the folders of feeds")]
    Feeds(#[source] std::io::Error),
    /// The node cannot listen for links.
    #[error(transparent)]
    Links(#[from] BindError),
    /// The control plane cannot start.
    #[error(transparent)]
    Control(#[from] StartError),
}

/// Where a role keeps its state.
#[derive(Clone, Debug)]
pub struct Folders<'a> {
    /// The store's folder.
    pub store: &'a Path,
    /// The content folder. Only peers have one.
    pub content: Option<ContentSettings>,
    /// Hooks and probes around a switch.
    pub activations: Activations,
}

/// A running node.
pub struct RunningNode {
    /// The way to its driver.
    pub handle: NodeHandle,
    /// The node's own credential.
    pub credential: Admitted,
    /// The trust document in force.
    pub admission: Admission,
    /// Addresses where the node listens for links.
    pub bulk_addrs: Vec<SocketAddr>,
    /// Requests to the tracker go here.
    pub control: ControlHandle,
    /// The tracker that the node is joined to.
    pub tracker: watch::Receiver<Option<NodeId>>,
    /// Fetch-through requests of hosts. Only seeders receive some.
    pub wanted: Option<mpsc::Receiver<FetchThroughRequest>>,
    /// The rate limits of the links.
    pub limits: RateLimits,
}

/// Who this node is, checked against the cluster's trust document.
struct CheckedIdentity {
    node: NodeId,
    identity: Identity,
    admission: Admission,
    credential: Admitted,
}

impl CheckedIdentity {
    /// `dir` has the copy of the trust document in force.
    fn load(role: Role, settings: &NodeSettings, dir: &Path) -> Result<Self, SetupError> {
        let trust_fault = |path: &Path| {
            let path = path.to_path_buf();
            move |source| SetupError::Trust { path, source }
        };
        let keys = load_key(&settings.key)?;
        let file = TrustFile::new(&settings.trust, dir);
        let trust = file.load(None)?;
        let unreadable = |source| SetupError::Read { path: settings.credential.clone(), source };
        let credential_bytes = own_credential::load(&settings.credential, dir, &trust, keys.node(), system_clock());
        let credential_bytes = credential_bytes.map_err(unreadable)?;
        let admitted = trust.admit(&credential_bytes, keys.node(), system_clock());
        let credential = admitted.map_err(trust_fault(&settings.credential))?;
        if credential.role != role {
            return Err(trust_fault(&settings.credential)(TrustError::WrongRole(credential.role)));
        }
        let (node, identity) = (keys.node(), Identity::new(&keys));
        let admission = Admission::new(Arc::new(trust), credential_bytes, system_clock).with_file(file);
        Ok(Self { node, identity, admission, credential })
    }
}

/// Checks the trust document, the key and the credential of a node as its start does. Returns the credential.
///
/// # Errors
/// Fails if the node could not start with these files.
pub fn check_files(role: Role, settings: &NodeSettings, dir: &Path) -> Result<Admitted, SetupError> {
    CheckedIdentity::load(role, settings, dir).map(|checked| checked.credential)
}

async fn open_store(
    settings: &NodeSettings,
    dir: &Path,
    arrivals: Arrivals,
) -> Result<(Store, mpsc::Receiver<StoreEvent>), SetupError> {
    let (sink, events) = mpsc::channel(STORE_EVENTS_MAX);
    let config = StoreConfig {
        dir: dir.to_path_buf(),
        quota: settings.quota.map(|quota| quota.0),
        min_free: settings.min_free.0,
        cache_bytes: usize::try_from(settings.shard_cache().0).unwrap_or(usize::MAX),
        unwritten_bytes: usize::try_from(settings.receive_memory.0 / 2).unwrap_or(usize::MAX),
        direct_io: settings.direct_io,
    };
    let sink = move |event: StoreEvent| {
        arrivals.on_store_event(&event);
        drop(sink.blocking_send(event)); // fails only after the driver's end
    };
    let store = tokio::task::spawn_blocking(move || Store::open(config, Box::new(sink)));
    let store = store.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    Ok((store, events))
}

async fn bind_links(
    settings: &NodeSettings,
    checked: &CheckedIdentity,
    store: &Store,
) -> Result<(LinkEndpoint, LinkEvents), SetupError> {
    let mut config = LinkConfig::new(settings.listen.clone(), checked.identity.clone(), checked.admission.clone());
    config.receive_bytes = usize::try_from(settings.receive_memory.0).unwrap_or(usize::MAX);
    config.records = settings.net.records.into();
    // Received payload begins at the same offset in its block as on disk, so direct IO needs no copy.
    let store = store.clone();
    config.block_offset = Some(Arc::new(move |content, shard| store.block_offset(content, shard)));
    config.locality = Some(checked.credential.locality.clone());
    Ok(LinkEndpoint::bind(config).await?)
}

fn open_feeds(folders: &Folders<'_>) -> std::io::Result<(FeedFiles, FeedWriter)> {
    let files =
        FeedFiles::open(folders.store.join("feeds"), folders.content.as_ref().map(|content| content.dir.as_path()))?;
    let writer = FeedWriter::start(files.clone())?;
    Ok((files, writer))
}

/// Returns the request to join, after a check of what it claims. The tracker checks the same.
fn join_request(
    settings: &NodeSettings,
    credential: &Credential,
    credential_bytes: Vec<u8>,
    listening: &[SocketAddr],
) -> Result<Join, SetupError> {
    let addrs = if settings.advertise.is_empty() { listening.to_vec() } else { settings.advertise.clone() };
    // Only the tracker knows what stands for an unspecified address.
    let known: Vec<SocketAddr> = addrs.iter().filter(|addr| !addr.ip().is_unspecified()).copied().collect();
    credential
        .check_claims(settings.weight, &known)
        .map_err(|source| SetupError::Claim { path: settings.credential.clone(), source })?;
    Ok(Join {
        credential: credential_bytes,
        addrs,
        weight: settings.weight,
        uplink_mbit: settings.uplink_mbit,
        known: None,
    })
}

fn own_credential(dir: &Path, admission: &Admission, credential: &Admitted, metrics: &Metrics) -> OwnCredential {
    let own = OwnCredential::new(admission.clone(), credential.node, dir, credential.clone());
    metrics.gauge_of(own_credential::METRIC, own_credential::METRIC_HELP, own.end());
    own
}

fn spawn_all(tasks: &mut Tasks, client: TrackerClient, limits: RateLimits, driver: Driver) {
    let token = tasks.token().clone();
    tasks.spawn("tracker client", client.run(token.clone()));
    tasks.spawn("rate limits", limits.run(token.clone()));
    tasks.spawn("driver", driver.run(token));
}

/// Starts a node's tasks. `prewarm` takes the prewarm task's requests, where there is a containerd.
///
/// # Errors
/// Fails if a file, folder, key or port of the settings is unusable. The error names it.
pub async fn start(
    role: Role,
    settings: &NodeSettings,
    storage: Folders<'_>,
    prewarm: Option<Arc<PrewarmRequests>>,
    metrics: &Metrics,
    tasks: &mut Tasks,
) -> Result<RunningNode, SetupError> {
    settings.check_machine(storage.store)?;
    folders::private(storage.store)?;
    let checked = CheckedIdentity::load(role, settings, storage.store)?;
    let arrivals = Arrivals::default();
    let (store, store_events) = open_store(settings, storage.store, arrivals.clone()).await?;
    let content_dir = storage.content.clone().map(ContentDir::open).transpose()?;
    let (feed_files, feed_writer) = open_feeds(&storage).map_err(SetupError::Feeds)?;
    let (endpoint, link_events) = bind_links(settings, &checked, &store).await?;
    let limits = RateLimits::new(settings.limits.clone(), endpoint.clone());
    let bulk_addrs = endpoint.local_addrs().to_vec();
    let announcements = endpoint.split_announcements().ok_or(BindError::Config("announcements were split before"))?;
    let CheckedIdentity { node, identity, admission, credential } = checked;
    let (control, control_events) = ControlPlane::start(ControlConfig::new(identity, Vec::new())).await?;
    let shared = Arc::new(SharedReports::default());
    let (tracker_sink, tracker_events) = mpsc::channel(TRACKER_EVENTS_MAX);
    let (current, tracker) = watch::channel(None);
    let (wanted_in, wanted) = (role == Role::Seeder).then(|| mpsc::channel(FETCH_THROUGH_QUEUE_MAX)).unzip();
    let latest_feeds = LatestVersions::new(metrics);
    let in_force = admission.clone();
    trust_metrics::register(metrics, move || in_force.trust());
    let node_metrics = NodeMetrics::new(metrics, &store);
    let rows = Arc::new(Mutex::new(RowCheck::new(admission.clone(), node_metrics.rows_refused.clone())));
    let client = TrackerClient {
        own: own_credential(storage.store, &admission, &credential, metrics),
        control: control.clone(),
        events: control_events,
        trackers: settings.trackers.clone(),
        join: join_request(settings, &credential, admission.credential().to_vec(), &bulk_addrs)?,
        admission: admission.clone(),
        shared: shared.clone(),
        sink: tracker_sink,
        current,
        rows: rows.clone(),
        wanted: wanted_in,
    };
    let (driver, handle) = Driver::new(Parts {
        node,
        role,
        locality: credential.locality.clone(),
        store_dir: storage.store.to_path_buf(),
        admission: admission.clone(),
        metrics: node_metrics,
        rows,
        store,
        store_events,
        arrivals,
        endpoint,
        link_events,
        announcements,
        tracker_events,
        shared,
        content_dir,
        activations: storage.activations,
        journal_dir: storage.store.to_path_buf(),
        latest_feeds,
        feed_files,
        feed_writer,
        prewarm,
    });
    tasks.spawn("trust document", reload_on_hangup(admission.clone(), tasks.token().clone()));
    spawn_all(tasks, client, limits.clone(), driver);
    Ok(RunningNode { handle, credential, admission, bulk_addrs, control, tracker, wanted, limits })
}
