//! Starting, running and stopping a tracker.
//!
//! Invariant: a tracker that started can be reached, and every task of it ends with its token.

use crate::config::TrackerConfig;
use crate::kubeedge::KubeEdge;
use crate::state::{StateError, TrackerState};
use crate::{api, backup, hub_sender, hub_trust, metrics, own_renewal, requests, tables, upkeep};
use shoal_kv::Database;
use shoal_net::admission::{Admission, reload_on_hangup, system_clock};
use shoal_net::control::{ControlConfig, ControlPlane, StartError};
use shoal_net::identity::{Identity, KeyFileError, load_key};
use shoal_net::node_certificate::CertificateError;
use shoal_net::own_credential::{self, OwnCredential};
use shoal_net::trust_file::{TrustFile, TrustFileError};
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Admitted, Keypair, Role, TrustError};
use shoal_service::config::ConfigError;
use shoal_service::descriptors::{self, DescriptorError};
use shoal_service::folders::{self, FolderError};
use shoal_service::http_client::{Client, ClientError};
use shoal_service::http_server::{Server, TlsFilesError, bind};
use shoal_service::shutdown::{CancellationToken, STOP_DEADLINE, TaskError, Tasks};
use shoal_service::trust_metrics;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Longest request read from an admitted host.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Connections of admitted hosts where the limit of open files allows them.
const CONNECTIONS_MAX: u32 = 65_536;

/// Why a tracker cannot start, or stopped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificate of the HTTP API cannot be used.
    #[error(transparent)]
    HttpTls(#[from] TlsFilesError),
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Trust(#[from] TrustFileError),
    #[error("the credential {} cannot be used", .path.display())]
    Credential {
        path: PathBuf,
        #[source]
        source: TrustError,
    },
    #[error("the credential {} is for a {role}: a tracker needs one of role tracker", .path.display())]
    WrongRole { path: PathBuf, role: Role },
    #[error("cannot use the tracker's folder {}", .dir.display())]
    State {
        dir: PathBuf,
        #[source]
        source: StateError,
    },
    #[error("the authority of node certificates cannot be used")]
    NodeAuthority(#[from] CertificateError),
    #[error("cannot start the control plane")]
    Control(#[from] StartError),
    #[error("cannot start the HTTP server")]
    Http(#[source] io::Error),
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("the address of the hub cannot be used")]
    Hub(#[from] ClientError),
    /// A task ended that runs as long as the tracker.
    #[error("{0}")]
    Task(#[from] TaskError),
}

/// A running tracker.
#[derive(Debug)]
pub struct Started {
    /// Addresses of the control plane, with the ports that the kernel chose.
    pub control_addrs: Vec<SocketAddr>,
    /// Address of the HTTP API, with the port that the kernel chose.
    pub http_addr: SocketAddr,
    /// The tracker's key.
    pub node: NodeId,
    tasks: Tasks,
}

/// What a tracker reads from its files at a start.
struct Files {
    keys: Keypair,
    issuer: Option<Keypair>,
    kubeedge: Option<KubeEdge>,
    admission: Admission,
    credential: Admitted,
}

impl Files {
    fn load(config: &TrackerConfig) -> Result<Self, RunError> {
        let keys = load_key(&config.key)?;
        let issuer = config.issuer_key.as_deref().map(load_key).transpose()?;
        let file = TrustFile::new(&config.trust, &config.dir);
        let trust = file.load(config.cluster)?;
        let credential_bytes =
            own_credential::load(&config.credential, &config.dir, &trust, keys.node(), system_clock())
                .map_err(|source| RunError::Read { path: config.credential.clone(), source })?;
        let path = || config.credential.clone();
        let credential = trust
            .admit(&credential_bytes, keys.node(), system_clock())
            .map_err(|source| RunError::Credential { path: path(), source })?;
        if credential.role != Role::Tracker {
            return Err(RunError::WrongRole { path: path(), role: credential.role });
        }
        let admission = Admission::new(Arc::new(trust), credential_bytes, system_clock).with_file(file);
        let kubeedge = config.kubeedge.clone().map(|nodes| KubeEdge::load(nodes, keys.node())).transpose()?;
        Ok(Self { keys, issuer, kubeedge, admission, credential })
    }
}

/// Checks the trust document, the key and the credential of a tracker as its start does. Returns the credential.
///
/// # Errors
/// Fails if the tracker could not start with these files.
pub fn check_files(config: &TrackerConfig) -> Result<Admitted, RunError> {
    Files::load(config).map(|files| files.credential)
}

/// Opens the state folder.
fn open_state(
    config: &TrackerConfig,
    admission: Admission,
    files: Files,
) -> Result<(TrackerState, Arc<dyn Database>), StateError> {
    let database = tables::open(&config.dir)?;
    let region = files.credential.locality.region.clone();
    let Files { keys, issuer, kubeedge, .. } = files;
    let state = TrackerState::open(config.clone(), admission, keys, issuer, kubeedge, region, &database)?;
    Ok((state, database))
}

fn control_config(
    config: &TrackerConfig,
    identity: Identity,
    known: Vec<IpAddr>,
) -> Result<ControlConfig, DescriptorError> {
    let mut control = ControlConfig::new(identity, config.listen.clone());
    let (wanted, others) = (config.bounds.connections, control.unadmitted_descriptors());
    control.connections_max = descriptors::connections("bounds.connections", wanted, CONNECTIONS_MAX, others)?;
    control.request_bytes_max = REQUEST_BYTES_MAX;
    control.known = known;
    Ok(control)
}

/// Starts a tracker and returns once hosts can reach it. The tracker stops when `shutdown` is cancelled.
///
/// # Errors
/// [`RunError`] if a setting, a file, the state folder or an address cannot be used.
pub async fn start(config: TrackerConfig, shutdown: CancellationToken) -> Result<Started, RunError> {
    config.validate()?;
    folders::private(&config.dir)?;
    let files = Files::load(&config)?;
    let (node, identity, admission) = (files.keys.node(), Identity::new(&files.keys), files.admission.clone());
    let state_error = |source| RunError::State { dir: config.dir.clone(), source };
    let own = OwnCredential::new(admission.clone(), node, &config.dir, files.credential.clone());
    let (state, database) = open_state(&config, admission.clone(), files).map_err(state_error)?;
    let known = state.roster().members().iter().flat_map(|member| &member.addrs).map(SocketAddr::ip).collect();
    let state = Arc::new(Mutex::new(state));

    let control_config = control_config(&config, identity, known)?;
    let (control, events) = ControlPlane::start(control_config).await?;
    let listener = bind(config.http).await.map_err(RunError::Http)?;
    let http_addr = listener.local_addr().map_err(RunError::Http)?;

    let mut tasks = Tasks::new(shutdown.child_token());
    let token = tasks.token().clone();
    let source: shoal_service::backup::Source = Arc::new(move |out, _| backup::write(&*database, out));
    tasks.spawn("backups", shoal_service::backup::serve(config.dir.clone(), "tracker", source, token.clone()));
    let metrics = metrics::register(&state, &control);
    let trust = admission.clone();
    trust_metrics::register(&metrics, move || trust.trust());
    tasks.spawn("trust document", reload_on_hangup(admission.clone(), token.clone()));
    metrics.gauge_of(own_credential::METRIC, own_credential::METRIC_HELP, own.end());
    tasks.spawn("credential", own_renewal::run(state.clone(), own, token.clone()));
    let server = Server::new("tracker", metrics, Arc::new(Vec::new), api::routes(state.clone()))
        .with_access(&config.http_access)?;
    tasks.spawn("http", server.serve(listener, token.clone()));
    let flush_written = Arc::new(Notify::new());
    if let Some(url) = &config.hub {
        let hub = Client::trusting(url, None, config.hub_ca.as_deref())?;
        tasks.spawn("hub", hub_sender::run(state.clone(), hub.clone(), flush_written.clone(), token.clone()));
        tasks.spawn("trust of the hub", hub_trust::run(state.clone(), admission, hub, token.clone()));
    }
    let control_addrs = control.local_addrs().to_vec();
    tasks.spawn("requests", requests::serve(state.clone(), control.clone(), events, token.clone()));
    let updates_max = config.bounds.membership_updates;
    tasks.spawn("upkeep", upkeep::run(state, control, flush_written, updates_max, token));
    tracing::info!(control = ?control_addrs, http = %http_addr, "tracker started");
    Ok(Started { control_addrs, http_addr, node, tasks })
}

impl Started {
    /// Waits until the tracker has stopped.
    ///
    /// # Errors
    /// [`RunError::Task`] if a task ended before the token was cancelled.
    pub async fn wait(mut self) -> Result<(), RunError> {
        let ended = self.tasks.run().await;
        self.tasks.stop(STOP_DEADLINE).await;
        Ok(ended?)
    }
}

/// Runs a tracker until `shutdown` is cancelled.
///
/// # Errors
/// As [`start`] and [`Started::wait`].
pub async fn run(config: TrackerConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    start(config, shutdown).await?.wait().await
}
