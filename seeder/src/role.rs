//! Starting and running the seeder role.

use crate::api::{self, PUSHES_QUEUED};
use crate::config::SeederConfig;
use crate::feeds::Feeds;
use crate::fetch_through::FetchThrough;
use crate::jobs::Jobs;
use crate::rollout::Rollouts;
use shoal_net::identity::{KeyFileError, load_key};
use shoal_peer::activation::settings::Activations;
use shoal_peer::driver::setup::{Folders, SetupError, start as start_node};
use shoal_peer::handle::NodeHandle;
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Role, Trust};
use shoal_service::http_server::{AdminToken, Server, TokenError, bind};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::{CancellationToken, STOP_DEADLINE, Tasks};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Why the role ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] shoal_service::config::ConfigError),
    /// The publisher key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// What the publisher key signs would be refused by every host.
    #[error("the trust document {} does not name the publisher key {} ({})", .trust.display(), .key.display(), .node)]
    Untrusted {
        /// The trust document.
        trust: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The public key.
        node: NodeId,
    },
    /// The admin token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The node cannot start.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A port cannot be listened on.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
    /// A task ended that should not have.
    #[error("{0}")]
    Task(String),
}

/// A seeder that runs.
pub struct Started {
    /// Where it listens for bulk links.
    pub bulk: Vec<SocketAddr>,
    /// Where it serves HTTP.
    pub http: SocketAddr,
    /// How to reach its driver.
    pub node: NodeHandle,
    /// Its tasks.
    pub tasks: Tasks,
}

/// Starts a seeder.
pub async fn start(config: &SeederConfig, token: CancellationToken) -> Result<Started, RunError> {
    config.validate()?;
    let publisher = load_key(&config.publisher_key)?;
    check_publisher(config, publisher.node())?;
    let admin = AdminToken::load(&config.admin_token)?;
    let metrics = Metrics::with_process();
    let mut tasks = Tasks::new(token);
    let listener = bind(config.http).await?;
    let http = listener.local_addr()?;
    let folders = Folders { store: &config.dir, content: None, activations: Activations::new() };
    let node = start_node(Role::Seeder, &config.node, folders, None, &metrics, &mut tasks).await?;
    let feeds = Feeds::open(config, publisher.clone(), &node);
    let (store, dir) = (node.handle.store.clone(), config.dir.clone());
    let source: shoal_service::backup::Source =
        Arc::new(move |out, contents| crate::backup::write(&store, &dir, contents, out));
    let backups = shoal_service::backup::serve(config.dir.clone(), "seeder", source, tasks.token().clone());
    tasks.spawn("backups", backups);
    let jobs = Jobs::open(config.clone(), publisher, &node);
    let token = tasks.token().clone();
    tasks.spawn("job progress", jobs.clone().poll(token.clone()));
    let (pushes, queue) = mpsc::channel(PUSHES_QUEUED);
    tasks.spawn("pushes", work_on_pushes(jobs.clone(), queue, token.clone()));
    let rollouts = Rollouts::open(jobs.clone(), feeds.clone(), pushes.clone());
    tasks.spawn("rollouts", rollouts.clone().run(token.clone()));
    let tracker = node.tracker.clone();
    let check = Arc::new(move || match *tracker.borrow() {
        Some(_) => Vec::new(),
        None => vec!["no tracker can be reached".to_string()],
    });
    if let Some(wishes) = node.wanted {
        let (prefixes, node) = (config.fetch_through.clone(), node.handle.clone());
        let wanted = FetchThrough { jobs: jobs.clone(), node, prefixes, pushes: pushes.clone() };
        tasks.spawn("wanted images", wanted.run(wishes, token.clone()));
    }
    let limits = shoal_peer::rate_limits::api::routes(node.limits.clone(), Some(admin.clone()));
    let routes = api::routes(jobs, feeds, node.handle.clone(), admin, pushes, rollouts).merge(limits);
    let server = Server::new("seeder", metrics, check, routes);
    tasks.spawn("http", server.serve(listener, token));
    tracing::info!(host = %node.credential.locality, bulk = ?node.bulk_addrs, %http, "seeder started");
    Ok(Started { bulk: node.bulk_addrs, http, node: node.handle, tasks })
}

/// Finds out now, rather than when every host refuses the first push, that nobody trusts our key.
fn check_publisher(config: &SeederConfig, node: NodeId) -> Result<(), RunError> {
    let trust = &config.node.trust;
    // A file that cannot be read is told of by the node's own start.
    let Ok(document) = std::fs::read(trust) else { return Ok(()) };
    let Ok(known) = Trust::open(&document, None) else { return Ok(()) };
    if known.document().publishers.contains(&node) {
        return Ok(());
    }
    Err(RunError::Untrusted { trust: trust.clone(), key: config.publisher_key.clone(), node })
}

async fn work_on_pushes(
    jobs: Arc<Jobs>,
    mut queue: mpsc::Receiver<(shoal_proto::ids::JobId, crate::jobs::PushRequest)>,
    token: CancellationToken,
) {
    let mut running = JoinSet::new();
    for (job, request) in jobs.unfinished() {
        running.spawn(jobs.clone().work_on_push(job, request));
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
                Some((job, request)) => {
                    running.spawn(jobs.clone().work_on_push(job, request));
                }
                None => break,
            },
        }
    }
    running.shutdown().await;
}

/// Runs a seeder until the token is cancelled.
pub async fn run(config: &SeederConfig, token: CancellationToken) -> Result<(), RunError> {
    let mut started = start(config, token).await?;
    let ended = started.tasks.run().await;
    started.tasks.stop(STOP_DEADLINE).await;
    ended.map_err(RunError::Task)
}
