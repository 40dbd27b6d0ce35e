//! The hub's HTTP API: trackers report, people and programs query.
//!
//! Invariant: the hub answers a report only after it is on the disk.

use crate::ledger::{Ledger, Recorded};
use crate::page;
use crate::view::{counts, with_hosts};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Html;
use axum::{Extension, Json};
use prometheus_client::metrics::counter::Counter;
use shoal_api::hub::{Detail, HubJob, Paging, Receipt};
use shoal_kv::KvError;
use shoal_proto::codec::{DecodeError, Document, decode_exact};
use shoal_proto::ids::JobId;
use shoal_proto::limits;
use shoal_proto::report::{HubFlush, HubSubmission};
use shoal_proto::trust::{Envelope, Role, Trust, TrustError};
use shoal_service::extract::{PathParam, QueryParams};
use shoal_service::http_server::{ApiError, KnownAddresses, RemoteAddr};
use shoal_service::metrics::Metrics;
use shoal_service::routes::Routes;
use std::error::Error;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Jobs in one answer, unless the query sets `limit`.
const LIST_DEFAULT: usize = 100;
/// Jobs in one answer, whatever the query says.
const LIST_MAX: usize = 1000;
/// Jobs on the page for people.
const PAGE_JOBS: usize = 200;

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
    trust: Trust,
    /// The addresses of trackers. Strangers cannot take the places of their connections.
    known: KnownAddresses,
    reports: Counter,
    duplicates: Counter,
    refused: Counter,
}

impl Hub {
    pub(crate) fn new(ledger: Ledger, trust: Trust, known: KnownAddresses, metrics: &Metrics) -> Self {
        Self {
            ledger,
            trust,
            known,
            reports: metrics.counter("shoal_hub_reports", "Reports stored"),
            duplicates: metrics.counter("shoal_hub_duplicate_reports", "Reports that were stored before"),
            refused: metrics.counter("shoal_hub_refused_reports", "Reports refused"),
        }
    }

    /// Opens a submission, which has a tracker's credential and a flush that the same key signed.
    fn open_report(&self, body: &[u8]) -> Result<HubFlush, RefusedReport> {
        let submission: HubSubmission = decode_exact(body)?;
        let envelope = Envelope::from_bytes(&submission.flush)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let credential = self.trust.admit(&submission.credential, envelope.signer(), now)?;
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

pub(crate) fn routes(hub: Arc<Hub>) -> Routes {
    Routes::new()
        .get("/", front_page)
        .post_up_to(limits::HUB_BODY_BYTES_MAX, "/v1/reports", report)
        .get("/v1/jobs", list_jobs)
        .get("/v1/jobs/{id}", show_job)
        .with_state(hub)
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
        tracing::warn!(%status, %error, "refused a report");
        ApiError::new(status, "report refused", error.to_string(), "send reports as a tracker of this cluster")
    };
    let flush = hub.open_report(&body).map_err(refuse)?;
    hub.known.add(remote.ip());
    let sequence = flush.sequence;
    let writer = hub.clone();
    // On a thread of its own, because the ledger waits for the disk.
    let recorded = tokio::task::spawn_blocking(move || writer.ledger.record(&flush)).await;
    let failed = |error: &(dyn Error + 'static)| database_failed(error, "the report was not stored");
    let recorded = recorded.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    match recorded {
        Recorded::New => hub.reports.inc(),
        Recorded::Duplicate => hub.duplicates.inc(),
    };
    Ok(Json(Receipt { sequence, duplicate: recorded == Recorded::Duplicate }))
}

fn unreadable(error: KvError) -> ApiError {
    database_failed(&error, "cannot read the reports")
}

async fn list_jobs(
    State(hub): SharedHub,
    QueryParams(paging): QueryParams<Paging>,
) -> Result<Json<Vec<HubJob>>, ApiError> {
    let limit = paging.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
    let jobs = hub.ledger.jobs().map_err(unreadable)?;
    Ok(Json(jobs.iter().skip(paging.offset).take(limit).map(counts).collect()))
}

async fn show_job(
    State(hub): SharedHub,
    PathParam(job): PathParam<JobId>,
    QueryParams(query): QueryParams<Detail>,
) -> Result<Json<Vec<HubJob>>, ApiError> {
    let regions = hub.ledger.job(&job).map_err(unreadable)?;
    if regions.is_empty() {
        return Err(ApiError::not_found(format!("no tracker has reported job {job}")));
    }
    let views = regions.iter().map(|row| with_hosts(&hub.ledger, row, query.hosts));
    Ok(Json(views.collect::<Result<_, _>>().map_err(unreadable)?))
}

async fn front_page(State(hub): SharedHub) -> Result<Html<String>, ApiError> {
    let jobs = hub.ledger.jobs().map_err(unreadable)?;
    Ok(Html(page::render(&jobs.iter().take(PAGE_JOBS).map(counts).collect::<Vec<_>>())))
}
