//! Starting, running and stopping a hub.
//!
//! Invariant: a hub that started can be reached, and every task of it ends with its token.

use crate::api::{Hub, routes};
use crate::backup;
use crate::config::HubConfig;
use crate::expiry;
use crate::ledger::Ledger;
use crate::signer::ReceiptSigner;
use crate::tables::TOKENS;
use shoal_kv::{Change, KvError, Table};
use shoal_net::admission::{Admission, reload_on_hangup, system_clock};
use shoal_net::identity::{KeyFileError, load_key};
use shoal_net::own_credential::{self, OwnCredential};
use shoal_net::trust_file::{TrustFile, TrustFileError};
use shoal_proto::trust::{Admitted, Keypair, Role, TrustError};
use shoal_service::access::{TokenRecords, Tokens};
use shoal_service::audit::{AuditError, AuditLog};
use shoal_service::config::ConfigError;
use shoal_service::folders::{self, FolderError};
use shoal_service::http_server::{AdminToken, KnownAddresses, Server, TlsFilesError, TokenError, bind};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::{CancellationToken, STOP_DEADLINE, TaskError, Tasks};
use shoal_service::trust_metrics;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::Mutex;

/// Why a hub cannot start, or stopped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Trust(#[from] TrustFileError),
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error("the credential {} cannot be used", .path.display())]
    Credential {
        path: PathBuf,
        #[source]
        source: TrustError,
    },
    #[error("the credential {} is for a {role}: a hub needs one of role hub", .path.display())]
    WrongRole { path: PathBuf, role: Role },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("cannot use the hub's folder {}", .dir.display())]
    Ledger {
        dir: PathBuf,
        #[source]
        source: KvError,
    },
    /// The certificate of the HTTP API cannot be used.
    #[error(transparent)]
    HttpTls(#[from] TlsFilesError),
    #[error("cannot start the HTTP server")]
    Http(#[source] io::Error),
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A task ended that runs as long as the hub.
    #[error("{0}")]
    Task(#[from] TaskError),
}

/// A running hub.
#[allow(missing_docs, reason = "the names say it")]
pub struct Started {
    /// Address of the HTTP API, with the port that the kernel chose.
    pub http: SocketAddr,
    pub tasks: Tasks,
}

/// What a hub reads from its files at a start.
struct Files {
    keys: Keypair,
    admission: Admission,
    credential: Admitted,
}

impl Files {
    fn load(config: &HubConfig) -> Result<Self, RunError> {
        let keys = load_key(&config.key)?;
        let file = TrustFile::new(&config.trust, &config.dir);
        let path = || config.credential.clone();
        let trust = file.load(None)?;
        let bytes = own_credential::load(&config.credential, &config.dir, &trust, keys.node(), system_clock())
            .map_err(|source| RunError::Read { path: path(), source })?;
        let admission = Admission::new(Arc::new(trust), bytes.clone(), system_clock).with_file(file);
        let credential =
            admission.admit(&bytes, keys.node()).map_err(|source| RunError::Credential { path: path(), source })?;
        if credential.role != Role::Hub {
            return Err(RunError::WrongRole { path: path(), role: credential.role });
        }
        Ok(Self { keys, admission, credential })
    }
}

/// Checks the trust document, the key and the credential of a hub as its start does. Returns the credential.
///
/// # Errors
/// Fails if the hub could not start with these files.
pub fn check_files(config: &HubConfig) -> Result<Admitted, RunError> {
    Files::load(config).map(|files| files.credential)
}

/// The records of tokens in the hub's database.
struct StoredTokens(Table);

impl TokenRecords for StoredTokens {
    fn all(&self) -> Result<Vec<(String, Vec<u8>)>, KvError> {
        let rows = self.0.scan([])?.into_iter();
        Ok(rows.filter_map(|row| Some((String::from_utf8(row.key).ok()?, row.value))).collect())
    }

    fn put(&self, name: &str, record: Option<Vec<u8>>) -> Result<(), KvError> {
        self.0.apply(&[Change::set(name, record)])?;
        self.0.sync()
    }
}

/// Starts a hub and returns once trackers can reach it. The hub stops when `token` is cancelled.
///
/// # Errors
/// [`RunError`] if a setting, the trust document, the folder or the address cannot be used.
pub async fn start(config: &HubConfig, token: CancellationToken) -> Result<Started, RunError> {
    config.validate()?;
    let Files { keys, admission, credential } = Files::load(config)?;
    let admin = config.admin_token.as_deref().map(AdminToken::load).transpose()?;
    folders::private(&config.dir)?;
    let ledger = Ledger::open(&config.dir, config.jobs_max)
        .map_err(|source| RunError::Ledger { dir: config.dir.clone(), source })?;
    let database = ledger.database();
    let listener = bind(config.http).await.map_err(RunError::Http)?;
    let http = listener.local_addr().map_err(RunError::Http)?;
    let metrics = Metrics::with_process();
    let known = KnownAddresses::default();
    let own = OwnCredential::new(admission.clone(), keys.node(), &config.dir, credential);
    metrics.gauge_of(own_credential::METRIC, own_credential::METRIC_HELP, own.end());
    let own = Arc::new(Mutex::new(own));
    let signer = ReceiptSigner::new(keys, admission.clone());
    let hub = Arc::new(Hub::new(ledger, admission.clone(), signer, own.clone(), known.clone(), &metrics));
    let records = Box::new(StoredTokens(Table::new(&database, TOKENS)));
    let tokens = Tokens::open(records, admin.map(|admin| admin.hash()));
    let audit = AuditLog::open(&config.dir.join("audit"), config.audit.settings())?;
    let log = audit.clone();
    let check = Arc::new(move || {
        let no_log = log.is_failed().then(|| "the hub cannot write its audit log".to_string());
        no_log.into_iter().collect()
    });
    let server = Server::new("hub", metrics.clone(), check, routes(hub, tokens, audit))
        .with_access(&config.http_access)?
        .with_known(known);
    let bytes_in = server.bytes_in();
    let received = metrics.counter("shoal_hub_received_bytes", "Bytes received from clients since the start");
    metrics.refresh(move || received.inner().store(bytes_in.load(Ordering::Relaxed), Ordering::Relaxed));
    let mut tasks = Tasks::new(token);
    let in_force = admission.clone();
    trust_metrics::register(&metrics, move || in_force.trust());
    tasks.spawn("trust document", reload_on_hangup(admission, tasks.token().clone()));
    let source: shoal_service::backup::Source = Arc::new(move |out, _| backup::write(&*database, out));
    tasks.spawn("credential", expiry::run(own, tasks.token().clone()));
    tasks.spawn("backups", shoal_service::backup::serve(config.dir.clone(), "hub", source, tasks.token().clone()));
    tasks.spawn("http", server.serve(listener, tasks.token().clone()));
    tracing::info!(%http, "hub started");
    Ok(Started { http, tasks })
}

/// Runs a hub until the token is cancelled.
///
/// # Errors
/// As [`start`], and [`RunError::Task`] if a task ended before the token was cancelled.
pub async fn run(config: &HubConfig, token: CancellationToken) -> Result<(), RunError> {
    let mut started = start(config, token).await?;
    let ended = started.tasks.run().await;
    started.tasks.stop(STOP_DEADLINE).await;
    Ok(ended?)
}
