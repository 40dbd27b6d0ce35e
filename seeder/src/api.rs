//! The seeder's HTTP API. Every request shows the admin token.

use crate::demotion::{OrderError, OrderRequest};
use crate::feeds::{self, Feeds};
use crate::images::{self, Resolved};
use crate::jobs::{JobStatus, Jobs, PushError, PushRequest};
use crate::rollout::{self, RolloutError, Rollouts};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::stream;
use serde::{Deserialize, Serialize};
use shoal_peer::handle::{ContentStatus, NodeHandle};
use shoal_proto::announcement::Order;
use shoal_proto::ids::{HostIndex, JobId};
use shoal_proto::locality::Labels;
use shoal_proto::membership::Presence;
use shoal_service::http_server::{AdminToken, ApiError, require_token};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pushes that wait for their turn.
pub const PUSHES_QUEUED: usize = 64;
/// A stream of progress says something at least this often.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The answer to a push.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pushed {
    /// The job.
    pub job: JobId,
}

/// A host as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostRow {
    /// Its place in the roster.
    pub index: HostIndex,
    /// Its locality.
    pub host: String,
    /// Peer or seeder.
    pub role: String,
    /// Up or away.
    pub presence: Presence,
    /// What its operator calls it.
    pub labels: Labels,
    /// Where it listens for bulk links.
    pub addrs: Vec<std::net::SocketAddr>,
}

#[derive(Clone)]
struct Api {
    jobs: Arc<Jobs>,
    node: NodeHandle,
    pushes: mpsc::Sender<(JobId, PushRequest)>,
    rollouts: Arc<Rollouts>,
}

/// The routes. `pushes` takes the pushes to be worked on.
pub(crate) fn routes(
    jobs: Arc<Jobs>,
    feeds: Arc<Feeds>,
    node: NodeHandle,
    token: AdminToken,
    pushes: mpsc::Sender<(JobId, PushRequest)>,
    rollouts: Arc<Rollouts>,
) -> Router {
    Router::new()
        .route("/v1/push", post(push))
        .route("/v1/images/resolve", post(resolve))
        .route("/v1/demote", post(demote))
        .route("/v1/promote", post(promote))
        .route("/v1/jobs", get(list))
        .route("/v1/jobs/{id}", get(status))
        .route("/v1/jobs/{id}/events", get(events))
        .route("/v1/contents", get(contents))
        .route("/v1/hosts", get(hosts))
        .with_state(Api { jobs, node: node.clone(), pushes, rollouts: rollouts.clone() })
        .merge(feeds::routes(feeds))
        .merge(shoal_peer::feeds::routes(node.feeds))
        .merge(rollout::api::routes(rollouts))
        .layer(from_fn_with_state(token, require_token))
}

fn refused(error: PushError) -> ApiError {
    let status = match &error {
        PushError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        PushError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        PushError::Clash { .. } => StatusCode::CONFLICT,
        _ => StatusCode::BAD_REQUEST,
    };
    ApiError::new(status, "push refused", error.to_string(), remedy(&error))
}

/// A rollout of the name is under way.
fn in_the_way(error: RolloutError) -> ApiError {
    let remedy = "push it with --stage and roll it out, or cancel that rollout";
    ApiError::new(StatusCode::CONFLICT, "push refused", error.to_string(), remedy)
}

async fn push(State(api): State<Api>, Json(request): Json<PushRequest>) -> Result<Json<Pushed>, ApiError> {
    let permit = api.pushes.try_reserve().map_err(|_| refused(PushError::Busy))?;
    // An image's name may have to be read from its files, and the job goes to the disk.
    let (jobs, rollouts) = (api.jobs.clone(), api.rollouts.clone());
    let created = tokio::task::spawn_blocking(move || {
        let request = images::complete(request).map_err(refused)?;
        if !request.staged {
            rollouts.make_way(&request.name).map_err(in_the_way)?;
        }
        let job = jobs.create(&request).map_err(refused)?;
        Ok::<_, ApiError>((job, request))
    });
    let created = created.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let (job, request) = created?;
    permit.send((job, request));
    Ok(Json(Pushed { job }))
}

/// What pulling an image would bring; nothing is pulled but its documents.
async fn resolve(State(api): State<Api>, Json(request): Json<PushRequest>) -> Result<Json<Resolved>, ApiError> {
    api.jobs.resolve(&request).await.map(Json).map_err(refused)
}

async fn demote(State(api): State<Api>, Json(request): Json<OrderRequest>) -> Result<Json<Pushed>, ApiError> {
    order(&api, Order::Demote, &request).await
}

async fn promote(State(api): State<Api>, Json(request): Json<OrderRequest>) -> Result<Json<Pushed>, ApiError> {
    order(&api, Order::Promote, &request).await
}

async fn order(api: &Api, order: Order, request: &OrderRequest) -> Result<Json<Pushed>, ApiError> {
    let job = api.jobs.order(order, request).await.map_err(|error| {
        let (status, remedy) = match &error {
            OrderError::Unknown(_) => (StatusCode::NOT_FOUND, "see `shoal status` for what was pushed"),
            OrderError::Selector(_) => {
                (StatusCode::BAD_REQUEST, "use all, region=R, site=S, rack=R, host=H or label=value, joined by `,`")
            }
            OrderError::NoHosts(_) => (StatusCode::BAD_REQUEST, "see `shoal hosts` for the hosts there are"),
            OrderError::Latest { .. } => (StatusCode::CONFLICT, "push or promote another version first"),
            OrderError::UnderWay(_) => (StatusCode::CONFLICT, "wait for it, see `shoal status`"),
            OrderError::Small(_) => (StatusCode::CONFLICT, "leave it as it is"),
            OrderError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "look at the seeder's disk and its log"),
        };
        ApiError::new(status, "order refused", error.to_string(), remedy)
    })?;
    Ok(Json(Pushed { job }))
}

fn remedy(error: &PushError) -> &'static str {
    match error {
        PushError::Name(_) => {
            "use letters, digits, `.`, `_`, `-`, joined by `/`, at most 128 bytes, not beginning with `feeds/`"
        }
        PushError::Version(_) => "use letters, digits, `.`, `_`, `-`, at most 63 bytes; `current` is taken",
        PushError::Selector(_) => "use all, region=R, site=S, rack=R, host=H or label=value, joined by `,`",
        PushError::NoHosts(_) => "see `shoal hosts` for the hosts there are",
        PushError::Path(_) => "give the absolute path of a file or directory on the seeder's machine that it may read",
        PushError::Image(_) => "name the image as containerd will ask for it, e.g. registry.example:5000/lab/app:v1",
        PushError::Clash { .. } => "use another name: a name is one kind's, and no name lies within another",
        PushError::Busy => "wait for one to end",
        PushError::Store(_) => "look at the seeder's disk and its log",
    }
}

fn unknown(job: &JobId) -> ApiError {
    ApiError::not_found(format!("no job {job} here"))
}

async fn list(State(api): State<Api>) -> Json<Vec<JobStatus>> {
    Json(api.jobs.all())
}

async fn status(State(api): State<Api>, Path(job): Path<JobId>) -> Result<Json<JobStatus>, ApiError> {
    api.jobs.status(&job).map(Json).ok_or_else(|| unknown(&job))
}

/// A job's status, a JSON line at each change, until it is final.
async fn events(State(api): State<Api>, Path(job): Path<JobId>) -> Result<Response, ApiError> {
    api.jobs.status(&job).ok_or_else(|| unknown(&job))?;
    let lines = stream::unfold(Some((api.jobs, None::<JobStatus>)), move |state| async move {
        let (jobs, former) = state?;
        let next = next_status(&jobs, &job, former.as_ref()).await?;
        let line = serde_json::to_vec(&next).map(|mut line| {
            line.push(b'\n');
            line
        });
        let rest = if next.is_final() { None } else { Some((jobs, Some(next))) };
        Some((line, rest))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Waits until the status differs from the former one, or for the heartbeat.
async fn next_status(jobs: &Jobs, job: &JobId, former: Option<&JobStatus>) -> Option<JobStatus> {
    let until = tokio::time::Instant::now() + HEARTBEAT;
    loop {
        // Listening begins before the look, so that no change is missed between the two.
        let changed = jobs.changed.notified();
        let status = jobs.status(job)?;
        if Some(&status) != former || tokio::time::Instant::now() >= until {
            return Some(status);
        }
        let _ = tokio::time::timeout_at(until, changed).await;
    }
}

async fn contents(State(api): State<Api>) -> Json<Vec<ContentStatus>> {
    Json(api.node.contents().await)
}

async fn hosts(State(api): State<Api>) -> Json<Vec<HostRow>> {
    let membership = api.node.membership.borrow().clone();
    let rows = membership.iter().map(|member| HostRow {
        index: member.index,
        host: member.locality.to_string(),
        role: member.role.to_string(),
        presence: member.presence,
        labels: member.labels.clone(),
        addrs: member.addrs.clone(),
    });
    Json(rows.collect())
}
