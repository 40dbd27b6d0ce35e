//! Starting and running the seeder role.
//!
//! Invariant: every task of a seeder is in [`Started::tasks`], so stopping the tasks stops the seeder.

use crate::api::{self, ApiParts, PUSHES_QUEUED};
use crate::config::SeederConfig;
use crate::demotion::Demotions;
use crate::feeds::Feeds;
use crate::fetch_through::FetchThrough;
use crate::images::Images;
use crate::ingest::Ingest;
use crate::jobs::{Jobs, QueuedPush};
use crate::progress::Progress;
use crate::publisher::Publisher;
use crate::publisher_keys::{PublisherKeys, SignError};
use crate::rollout::{RolloutParts, Rollouts};
use crate::tracker::Tracker;
use crate::trust::TrustApi;
use shoal_net::admission::{Admission, system_clock};
use shoal_net::identity::{KeyFileError, load_key};
use shoal_net::trust_file::TrustFile;
use shoal_peer::activation::settings::Activations;
use shoal_peer::driver::setup::{Folders, RunningNode, SetupError, start as start_node};
use shoal_peer::handle::NodeHandle;
use shoal_proto::trust::Role;
use shoal_service::access::{TokenRecords, Tokens};
use shoal_service::audit::{AuditError, AuditLog};
use shoal_service::http_server::{AdminToken, Server, TlsFilesError, TokenError, bind};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::{CancellationToken, STOP_DEADLINE, TaskError, Tasks};
use shoal_store::{KvError, Store};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// The beginning of keys of tokens in the store.
const TOKENS: &str = "token/";

/// Why the role cannot start, or ended.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] shoal_service::config::ConfigError),
    /// The certificate of the HTTP API cannot be used.
    #[error(transparent)]
    HttpTls(#[from] TlsFilesError),
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// Every host would refuse what the key signs.
    #[error("cannot use the publisher key {}", .key.display())]
    Untrusted {
        key: PathBuf,
        #[source]
        source: SignError,
    },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Listen(#[from] std::io::Error),
    /// A task ended that runs until the seeder stops.
    #[error("{0}")]
    Task(#[from] TaskError),
}

/// A running seeder.
pub struct Started {
    /// Addresses at which the seeder accepts links.
    pub bulk: Vec<SocketAddr>,
    /// Address of the HTTP API.
    pub http: SocketAddr,
    /// The node's driver.
    pub node: NodeHandle,
    /// All tasks of the seeder.
    pub tasks: Tasks,
}

/// Starts a seeder.
///
/// # Errors
/// Returns an error if the configuration, a key or a port cannot be used.
pub async fn start(config: &SeederConfig, token: CancellationToken) -> Result<Started, RunError> {
    config.validate()?;
    let admin = AdminToken::load(&config.admin_token)?;
    let metrics = Metrics::with_process();
    let mut tasks = Tasks::new(token);
    let listener = bind(config.http).await?;
    let http = listener.local_addr()?;
    let folders = Folders { store: &config.dir, content: None, activations: Activations::new() };
    let mut node = start_node(Role::Seeder, &config.node, folders, None, &metrics, &mut tasks).await?;
    let keys = open_publisher(config, node.admission.clone())?;
    let audit = AuditLog::open(&config.dir.join("audit"), config.audit.settings())?;
    serve_backups(config, &node, &mut tasks);
    let tracker = node.tracker.clone();
    let trust = TrustApi { admission: node.admission.clone(), keys: keys.clone() };
    let parts = start_parts(config, keys, &mut node, &mut tasks);
    let log = audit.clone();
    let check = Arc::new(move || {
        let no_tracker = tracker.borrow().is_none().then_some("the seeder has no connection to a tracker");
        let no_log = log.is_failed().then_some("the seeder cannot write its audit log");
        [no_tracker, no_log].into_iter().flatten().map(str::to_string).collect()
    });
    let tokens = Tokens::open(Box::new(StoredTokens(node.handle.store.clone())), Some(admin.hash()));
    let routes = api::routes(parts, trust, node.limits.clone(), tokens, audit);
    let server = Server::new("seeder", metrics, check, routes).with_access(&config.http_access)?;
    tasks.spawn("http", server.serve(listener, tasks.token().clone()));
    tracing::info!(host = %node.credential.locality, bulk = ?node.bulk_addrs, %http, "the seeder has started");
    Ok(Started { bulk: node.bulk_addrs, http, node: node.handle, tasks })
}

/// The records of tokens in the store.
struct StoredTokens(Store);

impl TokenRecords for StoredTokens {
    fn all(&self) -> Result<Vec<(String, Vec<u8>)>, KvError> {
        let rows = self.0.scan_state(TOKENS)?.into_iter();
        Ok(rows.map(|(key, bytes)| (key.trim_start_matches(TOKENS).to_string(), bytes)).collect())
    }

    fn put(&self, name: &str, record: Option<Vec<u8>>) -> Result<(), KvError> {
        self.0.put_state(&format!("{TOKENS}{name}"), record)?;
        self.0.sync()
    }
}

fn serve_backups(config: &SeederConfig, node: &RunningNode, tasks: &mut Tasks) {
    let (store, dir) = (node.handle.store.clone(), config.dir.clone());
    let source: shoal_service::backup::Source =
        Arc::new(move |out, contents| crate::backup::write(&store, &dir, contents, out));
    let backups = shoal_service::backup::serve(config.dir.clone(), "seeder", source, tasks.token().clone());
    tasks.spawn("backups", backups);
}

/// Makes the parts of the seeder around its node, and starts their tasks.
fn start_parts(
    config: &SeederConfig,
    keys: Arc<PublisherKeys>,
    running: &mut RunningNode,
    tasks: &mut Tasks,
) -> ApiParts {
    let (node, me) = (running.handle.clone(), running.credential.node);
    let jobs = Jobs::open(node.clone(), running.admission.clone(), config.push_roots());
    let tracker = Tracker::new(running.control.clone(), running.tracker.clone(), jobs.clone());
    let feeds = Feeds::open(config, keys.clone(), running.admission.clone(), me, node.clone());
    let lifetime_s = config.job_lifetime.0.as_secs();
    let publisher = Arc::new(Publisher::new(keys, me, lifetime_s, jobs.clone(), node.clone(), tracker.clone()));
    let images = Arc::new(Images::new(config.clone(), node.store.clone()));
    let (queue, queued) = mpsc::channel::<QueuedPush>(PUSHES_QUEUED);
    let ingest = Ingest::new(config.clone(), jobs.clone(), node.clone(), publisher.clone(), images.clone());
    let rollouts = Rollouts::open(RolloutParts {
        jobs: jobs.clone(),
        node: node.clone(),
        publisher: publisher.clone(),
        tracker: tracker.clone(),
        feeds: feeds.clone(),
        queue: queue.clone(),
    });
    let token = tasks.token().clone();
    let progress = Progress { jobs: jobs.clone(), node: node.clone(), tracker };
    tasks.spawn("job progress", progress.run(token.clone()));
    tasks.spawn("pushes", ingest.run(queued, token.clone()));
    tasks.spawn("rollouts", rollouts.clone().run(token.clone()));
    if let Some(requests) = running.wanted.take() {
        let prefixes = config.fetch_through.clone();
        let fetch_through = FetchThrough::new(jobs.clone(), node.clone(), images.clone(), prefixes, queue.clone());
        tasks.spawn("fetch-through", fetch_through.run(requests, token));
    }
    let (store, ordered) = (node.store.clone(), rollouts.clone());
    let demotions = Arc::new(Demotions { jobs: jobs.clone(), publisher, rollouts: ordered, store });
    ApiParts { jobs, node, images, demotions, feeds, rollouts, queue }
}

/// Reads the publisher keys, as the start of a seeder does.
///
/// # Errors
/// Fails if a file is unusable, or hosts trust none of the keys.
pub fn check_publisher(config: &SeederConfig) -> Result<(), RunError> {
    let trust = TrustFile::new(&config.node.trust, &config.dir).load(None).map_err(SetupError::from)?;
    let admission = Admission::new(Arc::new(trust), Vec::new(), system_clock);
    open_publisher(config, admission).map(drop)
}

fn open_publisher(config: &SeederConfig, admission: Admission) -> Result<Arc<PublisherKeys>, RunError> {
    let keys = PublisherKeys::open(load_key(&config.publisher_key)?, &config.dir, admission)?;
    keys.check().map_err(|source| RunError::Untrusted { key: config.publisher_key.clone(), source })?;
    Ok(Arc::new(keys))
}

/// Runs a seeder until the token is cancelled.
///
/// # Errors
/// Returns an error if the seeder cannot start, or a task ends early.
pub async fn run(config: &SeederConfig, token: CancellationToken) -> Result<(), RunError> {
    let mut started = start(config, token).await?;
    let ended = started.tasks.run().await;
    started.tasks.stop(STOP_DEADLINE).await;
    Ok(ended?)
}
