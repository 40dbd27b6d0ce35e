//! The hub's HTTP API: trackers report, people and programs ask.

use crate::ledger::{Ledger, RegionJob, Taken};
use crate::page;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use shoal_proto::announcement::Kind;
use shoal_proto::codec::{Document, decode_exact};
use shoal_proto::control::RackRollup;
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::limits;
use shoal_proto::report::{HostState, HubFlush, HubSubmission, TierBytes};
use shoal_proto::trust::{Envelope, Role, Trust, TrustError};
use shoal_service::http_server::ApiError;
use shoal_service::metrics::Metrics;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A job in one region, as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobView {
    /// The job.
    pub job: JobId,
    /// The region.
    pub region: String,
    /// Its content.
    pub content: ContentId,
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Payload bytes.
    pub size: u64,
    /// When it was signed, Unix seconds.
    pub created_at: u64,
    /// Hosts targeted.
    pub hosts: u32,
    /// Hosts that hold every piece, active or not.
    pub has: u32,
    /// Hosts that switched it in.
    pub active: u32,
    /// Hosts that failed.
    pub failed: u32,
    /// Payload bytes by source, over all hosts.
    pub tiers: TierBytes,
    /// Racks in order of name; with one job only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub racks: Vec<RackRollup>,
    /// Hosts that failed, or every host when asked for; with one job only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<HostView>,
}

/// A host's state in a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostView {
    /// Its locality, or its index while the roster does not tell.
    pub host: String,
    /// How far it is.
    pub state: String,
}

/// The answer to a report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// The flush that is durable now.
    pub sequence: u64,
    /// It was durable before.
    pub duplicate: bool,
}

pub(crate) struct Shared {
    pub(crate) ledger: Ledger,
    pub(crate) trust: Trust,
    messages: Counter,
    duplicates: Counter,
    refused: Counter,
}

impl Shared {
    pub(crate) fn new(ledger: Ledger, trust: Trust, metrics: &Metrics) -> Self {
        Self {
            ledger,
            trust,
            messages: metrics.counter("shoal_hub_messages", "Reports taken"),
            duplicates: metrics.counter("shoal_hub_duplicates", "Reports that were known"),
            refused: metrics.counter("shoal_hub_refused", "Reports refused"),
        }
    }
}

type Hub = State<Arc<Shared>>;

pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    let report = post(report).layer(DefaultBodyLimit::max(limits::HUB_BODY_BYTES_MAX));
    Router::new()
        .route("/", get(front))
        .route("/v1/reports", report)
        .route("/v1/jobs", get(list))
        .route("/v1/jobs/{id}", get(one))
        .with_state(shared)
}

/// Opens a submission: a tracker's credential, and a flush signed with the same key.
fn open(shared: &Shared, body: &[u8]) -> Result<HubFlush, (StatusCode, String)> {
    let malformed = |why: String| (StatusCode::BAD_REQUEST, why);
    let untrusted = |error: TrustError| match error {
        TrustError::Decode(error) => (StatusCode::BAD_REQUEST, error.to_string()),
        other => (StatusCode::FORBIDDEN, other.to_string()),
    };
    let submission: HubSubmission = decode_exact(body).map_err(|error| malformed(error.to_string()))?;
    let envelope = Envelope::from_bytes(&submission.flush).map_err(|error| malformed(error.to_string()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let credential = shared.trust.admit(&submission.credential, envelope.signer(), now).map_err(untrusted)?;
    if credential.role != Role::Tracker {
        return Err(untrusted(TrustError::WrongRole(credential.role)));
    }
    let flush: HubFlush = envelope.open().map_err(untrusted)?;
    if flush.tracker != credential.node || flush.region != credential.locality.region {
        return Err((StatusCode::FORBIDDEN, "the report speaks for another tracker or region".into()));
    }
    Ok(flush)
}

async fn report(State(shared): Hub, body: Bytes) -> Result<Json<Receipt>, ApiError> {
    let refuse = |(status, why): (StatusCode, String)| {
        shared.refused.inc();
        tracing::warn!(%status, why, "refused a report");
        ApiError::new(status, "report refused", why, "send reports as a tracker of this cluster")
    };
    let flush = open(&shared, &body).map_err(refuse)?;
    let sequence = flush.sequence;
    let writer = shared.clone();
    let taken = tokio::task::spawn_blocking(move || writer.ledger.take(&flush)).await;
    let taken = taken.map_err(|error| error.to_string()).and_then(|taken| taken.map_err(|error| error.to_string()));
    match taken {
        Ok(Taken::New) => shared.messages.inc(),
        Ok(Taken::Known) => shared.duplicates.inc(),
        Err(why) => {
            tracing::error!(%why, "cannot keep a report");
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Err(ApiError::new(status, "the report was not kept", why, "send it again later"));
        }
    };
    Ok(Json(Receipt { sequence, duplicate: taken == Ok(Taken::Known) }))
}

/// How a list is asked for.
#[derive(Debug, Deserialize)]
struct Paging {
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
}

async fn list(State(shared): Hub, Query(paging): Query<Paging>) -> Json<Vec<JobView>> {
    let limit = paging.limit.unwrap_or(100).min(1000);
    let jobs = shared.ledger.jobs();
    Json(jobs.iter().skip(paging.offset).take(limit).map(view).collect())
}

/// What of a job is asked for.
#[derive(Debug, Deserialize)]
struct Detail {
    /// Every host, not only those that failed.
    #[serde(default)]
    hosts: bool,
}

async fn one(
    State(shared): Hub,
    Path(job): Path<JobId>,
    Query(detail): Query<Detail>,
) -> Result<Json<Vec<JobView>>, ApiError> {
    let regions = shared.ledger.job(&job);
    if regions.is_empty() {
        return Err(ApiError::not_found(format!("no report of job {job}")));
    }
    Ok(Json(regions.iter().map(|row| detailed(&shared.ledger, row, detail.hosts)).collect()))
}

async fn front(State(shared): Hub) -> Html<String> {
    let jobs = shared.ledger.jobs();
    Html(page::render(&jobs.iter().take(200).map(view).collect::<Vec<_>>()))
}

pub(crate) fn view(row: &RegionJob) -> JobView {
    let count = |test: fn(HostState) -> bool| row.hosts.values().filter(|state| test(**state)).count() as u32;
    let job = &row.job;
    JobView {
        job: job.job,
        region: row.region.clone(),
        content: job.content,
        kind: job.kind,
        name: job.name.clone(),
        version: job.version.clone(),
        size: job.size,
        created_at: job.created_at,
        hosts: row.hosts.len() as u32,
        has: count(HostState::has_all),
        active: count(|state| state == HostState::Active),
        failed: count(|state| matches!(state, HostState::Failed(_))),
        tiers: job.tiers,
        racks: Vec::new(),
        lines: Vec::new(),
    }
}

fn detailed(ledger: &Ledger, row: &RegionJob, every_host: bool) -> JobView {
    let mut racks: BTreeMap<String, RackRollup> = BTreeMap::new();
    let mut lines = Vec::new();
    for (index, state) in &row.hosts {
        let locality = ledger.locality(&row.region, *index);
        let rack = locality.as_ref().map_or_else(|| "unknown".to_string(), |locality| locality.rack_path());
        let rollup = racks.entry(rack.clone()).or_insert_with(|| RackRollup { rack, ..RackRollup::default() });
        rollup.hosts += 1;
        rollup.has += u32::from(state.has_all());
        rollup.held += u32::from(*state == HostState::Stored);
        rollup.active += u32::from(*state == HostState::Active);
        rollup.failed += u32::from(matches!(state, HostState::Failed(_)));
        if every_host || matches!(state, HostState::Failed(_)) {
            let host = locality.map_or_else(|| format!("host {index}"), |locality| locality.to_string());
            let warm = *state == HostState::Active && row.job.kind == Kind::Image;
            lines.push(HostView { host, state: if warm { "warm".into() } else { state.to_string() } });
        }
    }
    JobView { racks: racks.into_values().collect(), lines, ..view(row) }
}
