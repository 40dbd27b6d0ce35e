//! The seeder's HTTP API.
//!
//! Invariant: every route but the limits' GET needs a token, every handler that changes something first checks that the
//! token allows it, and every error says what to do.

use crate::demotion::{Demotions, OrderError};
use crate::errors::{SELECTOR_REMEDY, with_sources};
use crate::feeds::{self, Feeds};
use crate::images::{ImageError, Images, complete, reference_name};
use crate::jobs::{Jobs, PushError, QueuedPush};
use crate::rollout::{self, RolloutError, Rollouts};
use crate::trust::{self, TrustApi};
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::stream;
use shoal_api::access::Scope;
use shoal_api::contents::ContentStatus;
use shoal_api::hosts::Host;
use shoal_api::images::ResolvedImage;
use shoal_api::jobs::{JobAccepted, JobStatus, OrderRequest, PushRequest};
use shoal_peer::handle::NodeHandle;
use shoal_peer::rate_limits::RateLimits;
use shoal_proto::announcement::Order;
use shoal_proto::ids::JobId;
use shoal_service::access::{self, Caller, Gate, Tokens};
use shoal_service::audit::AuditLog;
use shoal_service::extract::{JsonBody, PathParam};
use shoal_service::http_server::ApiError;
use shoal_service::routes::Routes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pushes that may wait to be ingested.
pub(crate) const PUSHES_QUEUED: usize = 64;
/// Longest time between two lines of a stream of progress.
const HEARTBEAT: Duration = Duration::from_secs(5);

const HOSTS_REMEDY: &str = "list the hosts with `shoal hosts`";
const DISK_REMEDY: &str = "check the seeder's disk and its log";
const PATH_REMEDY: &str = "copy it on the seeder's machine below one of the folders in the key `push_roots` of the \
     seeder's configuration, so that the seeder can read it, or name its folder there";
const BUSY_REMEDY: &str = "wait until a job has ended, see `shoal status`";

/// The parts of the seeder that serve requests.
#[derive(Clone)]
pub(crate) struct ApiParts {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) node: NodeHandle,
    pub(crate) images: Arc<Images>,
    pub(crate) demotions: Arc<Demotions>,
    pub(crate) feeds: Arc<Feeds>,
    pub(crate) rollouts: Arc<Rollouts>,
    /// Takes pushes that are accepted.
    pub(crate) queue: mpsc::Sender<QueuedPush>,
}

/// Returns the routes.
pub(crate) fn routes(
    parts: ApiParts,
    trust: TrustApi,
    limits: RateLimits,
    tokens: Arc<Tokens>,
    audit: AuditLog,
) -> Routes {
    let guarded = Routes::new()
        .post_as(Scope::Push, "push", "/v1/push", push)
        .post_as(Scope::Push, "resolve", "/v1/images/resolve", resolve)
        .post_as(Scope::Push, "demote", "/v1/demote", demote)
        .post_as(Scope::Push, "promote", "/v1/promote", promote)
        .get_as(Scope::Read, "/v1/jobs", list)
        .get_as(Scope::Read, "/v1/jobs/{id}", status)
        .get_as(Scope::Read, "/v1/jobs/{id}/events", events)
        .get_as(Scope::Read, "/v1/contents", contents)
        .get_as(Scope::Read, "/v1/hosts", hosts)
        .with_state(parts.clone())
        .merge(feeds::routes(parts.feeds))
        .merge(shoal_peer::feeds::routes(parts.node.feeds).for_readers())
        .merge(rollout::api::routes(parts.rollouts))
        .merge(shoal_peer::rate_limits::api::set_routes(limits.clone()))
        .merge(trust::routes(trust))
        .merge(access::routes(tokens.clone(), audit.clone()));
    Gate::guard(tokens, audit, guarded).merge(shoal_peer::rate_limits::api::show_routes(limits))
}

fn push_refused(error: PushError) -> ApiError {
    let (status, remedy) = match &error {
        PushError::Name(_) => (
            StatusCode::BAD_REQUEST,
            "use parts of letters, digits, `.`, `_`, `-`, joined by `/`, at most 128 bytes; a part begins with a letter or \
             digit and is not `current`, and the first part is not `feeds`",
        ),
        PushError::Version(_) => (
            StatusCode::BAD_REQUEST,
            "use letters, digits, `.`, `_`, `-`, a letter or digit first, at most 63 bytes, and not `current`",
        ),
        PushError::Selector(_) => (StatusCode::BAD_REQUEST, SELECTOR_REMEDY),
        PushError::NoHosts(_) => (StatusCode::BAD_REQUEST, HOSTS_REMEDY),
        PushError::Path(_) => (StatusCode::BAD_REQUEST, PATH_REMEDY),
        PushError::Conflict { .. } => {
            (StatusCode::CONFLICT, "use another name: a name has one kind, and no name lies within another name")
        }
        PushError::Busy => (StatusCode::SERVICE_UNAVAILABLE, BUSY_REMEDY),
        PushError::Store(error) if error.is_refusal() => (StatusCode::CONFLICT, ""),
        PushError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, DISK_REMEDY),
    };
    ApiError::new(status, "push refused", with_sources(&error), remedy)
}

fn image_refused(error: ImageError) -> ApiError {
    let remedy = match &error {
        ImageError::Path(_) => PATH_REMEDY,
        _ => "name the image as containerd asks for it, e.g. registry.example:5000/lab/app:v1",
    };
    ApiError::new(StatusCode::BAD_REQUEST, "push refused", with_sources(&error), remedy)
}

/// A plain push is refused while a rollout of its name is under way.
fn rollout_in_the_way(error: RolloutError) -> ApiError {
    if let RolloutError::Denied(denied) = error {
        return denied.into();
    }
    let remedy = "push it with --stage and roll it out, or cancel that rollout";
    ApiError::new(StatusCode::CONFLICT, "push refused", with_sources(&error), remedy)
}

fn order_refused(error: OrderError) -> ApiError {
    if let OrderError::Denied(denied) = error {
        return denied.into();
    }
    let (status, remedy) = match &error {
        OrderError::Unknown(_) => (StatusCode::NOT_FOUND, "list what was pushed with `shoal status`"),
        OrderError::Selector(_) | OrderError::TooManySelectors => (StatusCode::BAD_REQUEST, SELECTOR_REMEDY),
        OrderError::Push(PushError::NoHosts(_)) => (StatusCode::BAD_REQUEST, HOSTS_REMEDY),
        OrderError::Push(PushError::Busy) => (StatusCode::SERVICE_UNAVAILABLE, BUSY_REMEDY),
        OrderError::Newest { .. } => (StatusCode::CONFLICT, "push or promote another version first"),
        OrderError::UnderWay(_) => (StatusCode::CONFLICT, "wait until it has ended, see `shoal status`"),
        OrderError::TooSmall(_) => (StatusCode::CONFLICT, "leave it whole on its hosts"),
        OrderError::Gone { .. } => (StatusCode::CONFLICT, "push its path again"),
        OrderError::Rollout(RolloutError::UnderWay { .. }) => {
            (StatusCode::CONFLICT, "wait for the end of the rollout, or cancel it with `shoal rollout cancel NAME`")
        }
        OrderError::Push(_) | OrderError::Store(_) | OrderError::Denied(_) | OrderError::Rollout(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, DISK_REMEDY)
        }
    };
    ApiError::new(status, "order refused", with_sources(&error), remedy)
}

fn unknown_job(job: &JobId) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("this seeder has no job {job}"),
        "",
        "list the jobs with `shoal status`",
    )
}

async fn push(
    State(api): State<ApiParts>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<PushRequest>,
) -> Result<Json<JobAccepted>, ApiError> {
    let permit = api.queue.try_reserve().map_err(|_| push_refused(PushError::Busy))?;
    // Blocks: an image's name may have to be read from its files, and the job is stored.
    let (jobs, rollouts) = (api.jobs.clone(), api.rollouts.clone());
    let created = tokio::task::spawn_blocking(move || {
        caller.note(format!("{}@{} to {}", request.name, request.version, request.to.join(" or ")));
        let request = complete(request, jobs.roots()).map_err(image_refused)?;
        check_push(&caller, &request)?;
        if !request.staged {
            rollouts.retire(&request.name, &caller).map_err(rollout_in_the_way)?;
        }
        let job = jobs.create(&request).map_err(push_refused)?;
        Ok::<_, ApiError>(QueuedPush { job, request })
    });
    let push = created.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    let job = push.job;
    permit.send(push);
    Ok(Json(JobAccepted { job }))
}

/// Checks that a caller may push. The path is the last part of the object in the audit log.
fn check_push(caller: &Caller, request: &PushRequest) -> Result<(), ApiError> {
    let PushRequest { path, name, version, to, .. } = request;
    let source = if path.as_os_str().is_empty() { String::new() } else { format!(" from {}", path.display()) };
    caller.note(format!("{name}@{version} to {}{source}", to.join(" or ")));
    caller.check(name, to)?;
    // Hosts know an image by its reference, whatever the name of its push.
    let by_reference = reference_name(request).map_err(image_refused)?;
    Ok(by_reference.iter().try_for_each(|name| caller.check_name(name))?)
}

async fn resolve(
    State(api): State<ApiParts>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<PushRequest>,
) -> Result<Json<ResolvedImage>, ApiError> {
    if let Some(name) = reference_name(&request).map_err(image_refused)? {
        caller.note(name.clone());
        caller.check_name(&name)?;
    }
    let hosts = api.jobs.select(&request.to).map_err(push_refused)?.count();
    api.images.resolve(&request, hosts).await.map(Json).map_err(image_refused)
}

async fn demote(
    State(api): State<ApiParts>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<OrderRequest>,
) -> Result<Json<JobAccepted>, ApiError> {
    order(&api, Order::Demote, &request, &caller).await
}

async fn promote(
    State(api): State<ApiParts>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<OrderRequest>,
) -> Result<Json<JobAccepted>, ApiError> {
    order(&api, Order::Promote, &request, &caller).await
}

async fn order(
    api: &ApiParts,
    order: Order,
    request: &OrderRequest,
    caller: &Caller,
) -> Result<Json<JobAccepted>, ApiError> {
    let to = if request.to.is_empty() { String::new() } else { format!(" to {}", request.to.join(" or ")) };
    caller.note(format!("{}{to}", request.target));
    let job = api.demotions.order(order, request, caller).await.map_err(order_refused)?;
    Ok(Json(JobAccepted { job }))
}

async fn list(State(api): State<ApiParts>) -> Json<Vec<JobStatus>> {
    Json(api.jobs.all())
}

async fn status(State(api): State<ApiParts>, PathParam(job): PathParam<JobId>) -> Result<Json<JobStatus>, ApiError> {
    api.jobs.status(&job).map(Json).ok_or_else(|| unknown_job(&job))
}

/// What a stream of progress needs for its next line.
struct Following {
    jobs: Arc<Jobs>,
    /// The status in the last line.
    last: Option<JobStatus>,
}

/// Streams a job's status as JSON lines: at each change and at least every [`HEARTBEAT`], until the job ends.
async fn events(State(api): State<ApiParts>, PathParam(job): PathParam<JobId>) -> Result<Response, ApiError> {
    api.jobs.status(&job).ok_or_else(|| unknown_job(&job))?;
    let first = Following { jobs: api.jobs, last: None };
    let lines = stream::unfold(Some(first), move |following| async move {
        let Following { jobs, last } = following?;
        let next = next_status(&jobs, &job, last.as_ref()).await?;
        let line = serde_json::to_vec(&next).map(|mut line| {
            line.push(b'\n');
            line
        });
        let rest = if next.is_final() { None } else { Some(Following { jobs, last: Some(next) }) };
        Some((line, rest))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Waits until the status differs from the last one, or for the heartbeat.
async fn next_status(jobs: &Jobs, job: &JobId, last: Option<&JobStatus>) -> Option<JobStatus> {
    let until = tokio::time::Instant::now() + HEARTBEAT;
    loop {
        // Created before the look, so that no change is missed between the two.
        let changed = jobs.changed();
        let status = jobs.status(job)?;
        if Some(&status) != last || tokio::time::Instant::now() >= until {
            return Some(status);
        }
        let _ = tokio::time::timeout_at(until, changed).await; // the time limit is checked above
    }
}

async fn contents(State(api): State<ApiParts>) -> Json<Vec<ContentStatus>> {
    Json(api.node.contents().await)
}

async fn hosts(State(api): State<ApiParts>) -> Json<Vec<Host>> {
    let duplicates = api.rollouts.duplicates().await;
    let membership = api.node.membership.borrow().clone();
    let hosts = membership.iter().map(|member| Host {
        index: member.index,
        node: member.node,
        host: member.locality.to_string(),
        role: member.role.to_string(),
        presence: member.presence,
        duplicate: duplicates.get(member.index.0),
        labels: member.labels.clone(),
        addrs: each_once(&member.addrs),
    });
    Json(hosts.collect())
}

/// Returns each address once. Two listeners of one port announce the same address, of IPv4 perhaps in the form of IPv6.
fn each_once(addrs: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::with_capacity(addrs.len());
    for addr in addrs {
        let is_same =
            |other: &SocketAddr| (other.ip().to_canonical(), other.port()) == (addr.ip().to_canonical(), addr.port());
        if !found.iter().any(is_same) {
            found.push(*addr);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_once() {
        let addrs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let announced =
            addrs(&["10.0.0.1:7700", "10.0.0.1:7700", "[::ffff:10.0.0.1]:7700", "10.0.0.1:7701", "[::1]:7700"]);
        assert_eq!(each_once(&announced), addrs(&["10.0.0.1:7700", "10.0.0.1:7701", "[::1]:7700"]));
        assert!(each_once(&[]).is_empty());
    }
}
