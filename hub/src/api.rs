//! The hub's HTTP API: trackers report, people and programs query.
//!
//! Invariant: the hub answers a report only after it is on the disk.

use crate::ledger::{Ledger, Recorded};
use crate::page;
use crate::signer::ReceiptSigner;
use crate::view::with_hosts;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse};
use axum::{Extension, Json};
use prometheus_client::metrics::counter::Counter;
use shoal_api::access::Scope;
use shoal_api::hub::{Detail, HubJob, Paging, Receipt};
use shoal_api::trust::{CredentialInForce, TrustInForce};
use shoal_kv::KvError;
use shoal_net::admission::Admission;
use shoal_net::log_limit::LogLimit;
use shoal_net::own_credential::OwnCredential;
use shoal_proto::codec::{DecodeError, Document, decode_exact};
use shoal_proto::ids::{Hash, JobId};
use shoal_proto::limits;
use shoal_proto::receipt::HubReceipt;
use shoal_proto::report::{HubFlush, HubSubmission};
use shoal_proto::trust::{Envelope, Role, TrustError};
use shoal_service::access::{self, Gate, Tokens};
use shoal_service::audit::AuditLog;
use shoal_service::extract::{PathParam, QueryParams};
use shoal_service::http_server::{ApiError, KnownAddresses, RemoteAddr};
use shoal_service::metrics::Metrics;
use shoal_service::routes::Routes;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};

/// Jobs in one answer, unless the query sets `limit`.
const LIST_DEFAULT: usize = 100;
/// Jobs in one answer, whatever the query says.
const LIST_MAX: usize = 1000;
/// Jobs on the page for people.
const PAGE_JOBS: usize = 200;

/// Lines about refused reports per second. Anybody can send a report.
const REFUSALS_LOGGED: u32 = 5;

/// Questions for the hosts of one job at the same time.
const DETAILED_MAX: usize = 4;

/// Why the hub refuses a report.
#[derive(Debug, thiserror::Error)]
enum RefusedReport {
    #[error("the report is malformed: {0}")]
    Malformed(#[from] DecodeError),
    #[error("{0}")]
    Untrusted(TrustError),
    #[error("the report speaks for another tracker or region")]
    WrongSender,
}

impl From<TrustError> for RefusedReport {
    fn from(error: TrustError) -> Self {
        match error {
            TrustError::Decode(error) => Self::Malformed(error),
            other => Self::Untrusted(other),
        }
    }
}

impl RefusedReport {
    fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Untrusted(_) | Self::WrongSender => StatusCode::FORBIDDEN,
        }
    }
}

/// What every request needs.
pub(crate) struct Hub {
    ledger: Ledger,
    admission: Admission,
    signer: ReceiptSigner,
    own: Arc<Mutex<OwnCredential>>,
    /// Answers about one job read all its hosts, so a few at a time are enough.
    detailed: Semaphore,
    /// The addresses of trackers. Strangers cannot take the places of their connections.
    known: KnownAddresses,
    reports: Counter,
    duplicates: Counter,
    refused: Counter,
    refusals: LogLimit,
}

impl Hub {
    pub(crate) fn new(
        ledger: Ledger,
        admission: Admission,
        signer: ReceiptSigner,
        own: Arc<Mutex<OwnCredential>>,
        known: KnownAddresses,
        metrics: &Metrics,
    ) -> Self {
        Self {
            ledger,
            admission,
            signer,
            own,
            detailed: Semaphore::new(DETAILED_MAX),
            known,
            reports: metrics.counter("shoal_hub_reports", "Reports stored"),
            duplicates: metrics.counter("shoal_hub_duplicate_reports", "Reports that were stored before"),
            refused: metrics.counter("shoal_hub_refused_reports", "Reports refused"),
            refusals: LogLimit::new(REFUSALS_LOGGED, Duration::from_secs(1)),
        }
    }

    /// Opens a submission, which has a tracker's credential and a flush that the same key signed.
    fn open_report(&self, body: &[u8]) -> Result<HubFlush, RefusedReport> {
        let submission: HubSubmission = decode_exact(body)?;
        let envelope = Envelope::from_bytes(&submission.flush)?;
        let credential = self.admission.admit(&submission.credential, envelope.signer())?;
        if credential.role != Role::Tracker {
            return Err(RefusedReport::Untrusted(TrustError::WrongRole(credential.role)));
        }
        let flush: HubFlush = envelope.open()?;
        if flush.tracker != credential.node || flush.region != credential.locality.region {
            return Err(RefusedReport::WrongSender);
        }
        Ok(flush)
    }
}

type SharedHub = State<Arc<Hub>>;

/// Returns the routes. Reports, trust documents and credentials need no token, because they are signed.
pub(crate) fn routes(hub: Arc<Hub>, tokens: Arc<Tokens>, audit: AuditLog) -> Routes {
    let queries = Routes::new()
        .get_as(Scope::Read, "/", front_page)
        .get_as(Scope::Read, "/v1/jobs", list_jobs)
        .get_as(Scope::Read, "/v1/jobs/{id}", show_job)
        .with_state(hub.clone())
        .merge(access::routes(tokens.clone(), audit.clone()));
    let of_trackers = Routes::new()
        .post_up_to(limits::HUB_BODY_BYTES_MAX, "/v1/reports", report)
        .get("/v1/trust", trust_document)
        .post_up_to(limits::TRUST_BYTES_MAX, "/v1/trust", take_trust)
        .get("/v1/credential", credential)
        .post_up_to(limits::CREDENTIAL_BYTES_MAX, "/v1/credential", take_credential)
        .with_state(hub);
    Gate::guard(tokens, audit, queries).merge(of_trackers)
}

/// Returns the answer to a request that the database failed.
fn database_failed(error: &(dyn Error + 'static), what: &str) -> ApiError {
    tracing::error!(error, "{what}");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, what, error.to_string(), "see the hub's log, then try again")
}

async fn report(
    State(hub): SharedHub,
    Extension(RemoteAddr(remote)): Extension<RemoteAddr>,
    body: Bytes,
) -> Result<Json<Receipt>, ApiError> {
    let refuse = |error: RefusedReport| {
        hub.refused.inc();
        let status = error.status();
        if let Some(skipped) = hub.refusals.pass() {
            tracing::warn!(%status, %error, skipped, "refused a report");
        }
        ApiError::new(status, "report refused", error.to_string(), "send reports as a tracker of this cluster")
    };
    let flush = hub.open_report(&body).map_err(refuse)?;
    hub.known.add(remote.ip());
    let receipt = HubReceipt { tracker: flush.tracker, sequence: flush.sequence, submission: Hash::of(&body) };
    let writer = hub.clone();
    // On a thread of its own, because the ledger waits for the disk.
    let recorded = tokio::task::spawn_blocking(move || writer.ledger.record(&flush)).await;
    let failed = |error: &(dyn Error + 'static)| database_failed(error, "the report was not stored");
    let recorded = recorded.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    match recorded {
        Recorded::New => hub.reports.inc(),
        Recorded::Duplicate => hub.duplicates.inc(),
    };
    Ok(Json(hub.signer.sign(&receipt, recorded == Recorded::Duplicate)))
}

fn unreadable(error: KvError) -> ApiError {
    database_failed(&error, "cannot read the reports")
}

async fn list_jobs(State(hub): SharedHub, QueryParams(paging): QueryParams<Paging>) -> Json<Vec<HubJob>> {
    let limit = paging.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
    Json(hub.ledger.list(paging.offset, limit))
}

async fn show_job(
    State(hub): SharedHub,
    PathParam(job): PathParam<JobId>,
    QueryParams(query): QueryParams<Detail>,
) -> Result<Json<Vec<HubJob>>, ApiError> {
    let _place = hub.detailed.try_acquire().map_err(|_| {
        let (what, why) = ("too many questions for hosts", "the hub works on as many as it can");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, what, why, "ask again")
    })?;
    let reader = hub.clone();
    // On a thread of its own, because it reads a row for each host.
    let read = tokio::task::spawn_blocking(move || {
        let regions = reader.ledger.job(&job)?;
        regions.iter().map(|row| with_hosts(&reader.ledger, row, query.hosts)).collect::<Result<Vec<_>, _>>()
    });
    let views = read.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())).map_err(unreadable)?;
    if views.is_empty() {
        return Err(ApiError::not_found(format!("no tracker has reported job {job}")));
    }
    Ok(Json(views))
}

async fn front_page(State(hub): SharedHub) -> impl IntoResponse {
    (page::HEADERS, Html(page::render(&hub.ledger.list(0, PAGE_JOBS))))
}

async fn trust_document(State(hub): SharedHub) -> Bytes {
    Bytes::copy_from_slice(hub.admission.trust().bytes())
}

/// Takes a tracker's trust document. It counts by its signatures, so the sender needs no token.
async fn take_trust(State(hub): SharedHub, document: Bytes) -> Result<Json<TrustInForce>, ApiError> {
    hub.admission.offer_received(document).await.map_err(|error| {
        let remedy = "send the newest document that the cluster's root signed";
        ApiError::new(StatusCode::CONFLICT, "trust document refused", error.to_string(), remedy)
    })?;
    let trust = hub.admission.trust();
    Ok(Json(TrustInForce { version: trust.version(), epoch: trust.epoch() }))
}

async fn credential(State(hub): SharedHub) -> Bytes {
    Bytes::copy_from_slice(&hub.admission.credential())
}

/// Takes a renewed credential from a tracker. It counts by its signature, so the sender needs no token.
async fn take_credential(State(hub): SharedHub, fresh: Bytes) -> Result<Json<CredentialInForce>, ApiError> {
    let mut own = hub.own.lock().await;
    own.replace(fresh.to_vec()).await.map_err(|error| {
        let remedy = "send a later credential with the same claims for the hub's key";
        ApiError::new(StatusCode::CONFLICT, "credential refused", error.to_string(), remedy)
    })?;
    tracing::info!(left_s = own.seconds_left(), "renewed the hub's credential");
    Ok(Json(CredentialInForce { not_after: own.end().load(Ordering::Relaxed) }))
}
