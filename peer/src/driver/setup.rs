//! From settings to a running node: keys, store, links, the tracker's client, the driver.

use super::{Driver, NodeHandle, NodeMetrics, Parts};
use crate::activation::content_dir::{ContentDir, ContentDirError};
use crate::activation::settings::Activations;
use crate::config::NodeSettings;
use crate::feeds::{FeedFiles, FeedWriter, LatestVersions};
use crate::prewarm::PrewarmRequests;
use crate::rate_limits::RateLimits;
use crate::tracker_client::{FetchThroughRequest, SharedReports, TrackerClient};
use shoal_net::admission::{Admission, system_clock};
use shoal_net::control::{ControlConfig, ControlHandle, ControlPlane, StartError};
use shoal_net::identity::{Identity, KeyFileError, load_key};
use shoal_net::links::{BindError, LinkConfig, LinkEndpoint};
use shoal_proto::control::Join;
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Credential, Role, Trust, TrustError};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::Tasks;
use shoal_store::{OpenError, Store, StoreConfig};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Hosts' wishes for images that wait for the seeder.
const WISHES: usize = 64;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The trust document or the credential cannot be used.
    #[error("{}: {source}", .path.display())]
    Trust {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TrustError,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The content folder cannot be used.
    #[error(transparent)]
    ContentDir(#[from] ContentDirError),
    /// The folders of feeds cannot be used.
    #[error("cannot use the folders of feeds: {0}")]
    Feeds(#[source] std::io::Error),
    /// Bulk links cannot be listened for.
    #[error(transparent)]
    Links(#[from] BindError),
    /// The control plane cannot start.
    #[error(transparent)]
    Control(#[from] StartError),
}

/// Where a role keeps things.
#[derive(Clone, Debug)]
pub struct Folders<'a> {
    /// The store.
    pub store: &'a Path,
    /// The content folder and how many versions to keep; peers only.
    pub content: Option<(&'a Path, usize)>,
    /// What is done around a switch.
    pub activations: Activations,
}

/// A node that runs.
pub struct RunningNode {
    /// How to reach its driver.
    pub handle: NodeHandle,
    /// Its credential.
    pub credential: Credential,
    /// Where it listens for bulk links.
    pub bulk_addrs: Vec<SocketAddr>,
    /// Its control plane.
    pub control: ControlHandle,
    /// The tracker in use.
    pub tracker: watch::Receiver<Option<NodeId>>,
    /// Hosts' wishes for images; seeders only.
    pub wanted: Option<mpsc::Receiver<FetchThroughRequest>>,
    /// What its links keep to.
    pub limits: RateLimits,
}

fn read(path: &Path) -> Result<Vec<u8>, SetupError> {
    std::fs::read(path).map_err(|source| SetupError::Read { path: path.to_path_buf(), source })
}

/// Starts a node's tasks. `warming` takes the wishes for images to be unpacked, where there is a container runtime.
pub async fn start(
    role: Role,
    settings: &NodeSettings,
    folders: Folders<'_>,
    warming: Option<Arc<PrewarmRequests>>,
    metrics: &Metrics,
    tasks: &mut Tasks,
) -> Result<RunningNode, SetupError> {
    let trust_fault = |path: &Path| {
        let path = path.to_path_buf();
        move |source| SetupError::Trust { path, source }
    };
    let keys = load_key(&settings.key)?;
    let trust = Trust::open(&read(&settings.trust)?, None).map_err(trust_fault(&settings.trust))?;
    let trust = Arc::new(trust);
    let credential_bytes = read(&settings.credential)?;
    let credential =
        trust
            .admit(&credential_bytes, keys.node(), system_clock())
            .and_then(|credential| {
                if credential.role == role { Ok(credential) } else { Err(TrustError::WrongRole(credential.role)) }
            })
            .map_err(trust_fault(&settings.credential))?;
    let identity = Identity::new(&keys);

    let (store_sink, store_events) = mpsc::channel(1024);
    let config = StoreConfig {
        dir: folders.store.to_path_buf(),
        quota: settings.quota.map(|quota| quota.0),
        min_free: settings.min_free.0,
        cache_bytes: usize::try_from(settings.hot_cache().0).unwrap_or(usize::MAX),
        unwritten_bytes: usize::try_from(settings.receive_memory.0 / 2).unwrap_or(usize::MAX),
        direct_io: settings.direct_io,
    };
    let store = tokio::task::spawn_blocking(move || {
        Store::open(config, Box::new(move |event| drop(store_sink.blocking_send(event))))
    });
    let store = store.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    let content_dir = folders.content.map(|(dir, keep)| ContentDir::open(dir, keep)).transpose()?;
    let feed_files = FeedFiles::open(folders.store.join("feeds"), folders.content.map(|(dir, _)| dir));
    let feed_files = feed_files.map_err(SetupError::Feeds)?;
    let keeper = FeedWriter::start(feed_files.clone()).map_err(SetupError::Feeds)?;

    let admission = Admission::new(trust.clone(), credential_bytes.clone(), system_clock);
    let mut bulk = LinkConfig::new(settings.listen.clone(), identity.clone(), admission);
    bulk.receive_bytes = usize::try_from(settings.receive_memory.0).unwrap_or(usize::MAX);
    let placing = store.clone();
    bulk.block_offset = Some(Arc::new(move |content, shard| placing.block_offset(content, shard)));
    bulk.locality = Some(credential.locality.clone());
    let (endpoint, link_events) = LinkEndpoint::bind(bulk).await?;
    let limits = RateLimits::new(settings.limits.clone(), endpoint.clone());
    let bulk_addrs = endpoint.local_addrs().to_vec();
    let announcements = endpoint.split_announcements().ok_or(BindError::Config("announcements were split before"))?;

    let (control, control_events) = ControlPlane::start(ControlConfig::new(identity, Vec::new())).await?;
    let shared = Arc::new(SharedReports::default());
    let (tracker_sink, tracker_events) = mpsc::channel(64);
    let (current, tracker) = watch::channel(None);
    let (wanted_in, wanted) = (role == Role::Seeder).then(|| mpsc::channel(WISHES)).unzip();
    let advertise = if settings.advertise.is_empty() { &bulk_addrs } else { &settings.advertise };
    let client = TrackerClient {
        control: control.clone(),
        events: control_events,
        trackers: settings.trackers.clone(),
        join: Join {
            credential: credential_bytes,
            addrs: advertise.clone(),
            labels: settings.labels.clone(),
            weight: settings.weight,
            uplink_mbit: settings.uplink_mbit,
            known: None,
        },
        shared: shared.clone(),
        sink: tracker_sink,
        current,
        wanted: wanted_in,
    };
    let (driver, handle) = Driver::new(Parts {
        node: keys.node(),
        role,
        locality: credential.locality.clone(),
        store_dir: folders.store.to_path_buf(),
        trust,
        metrics: NodeMetrics::new(metrics, &store),
        store,
        store_events,
        endpoint,
        link_events,
        announcements,
        tracker_events,
        shared,
        content_dir,
        activations: folders.activations,
        journal_dir: folders.store.to_path_buf(),
        shelf: LatestVersions::new(metrics),
        feed_files,
        keeper,
        warming,
    });
    let token = tasks.token().clone();
    tasks.spawn("tracker client", client.run(token.clone()));
    tasks.spawn("limits", limits.clone().run(token.clone()));
    tasks.spawn("driver", driver.run(token));
    Ok(RunningNode { handle, credential, bulk_addrs, control, tracker, wanted, limits })
}
