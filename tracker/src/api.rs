//! The tracker's HTTP API: the hosts of the region and the states of its jobs.
//!
//! Invariant: every request only reads.

use crate::state::TrackerState;
use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use shoal_proto::control::RackRollup;
use shoal_proto::ids::{HostIndex, JobId, NodeId};
use shoal_proto::locality::Labels;
use shoal_proto::membership::Presence;
use shoal_service::http_server::ApiError;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// One host of the membership.
#[derive(Clone, Debug, Serialize)]
pub struct HostView {
    /// The roster index.
    pub index: HostIndex,
    /// The host's key.
    pub node: NodeId,
    /// The locality, `region/site/rack/host`.
    pub host: String,
    /// `peer` or `seeder`.
    pub role: String,
    #[allow(missing_docs, reason = "the type says it")]
    pub presence: Presence,
    /// The labels of the host's configuration.
    pub labels: Labels,
    /// Addresses on which the host accepts links.
    pub addrs: Vec<SocketAddr>,
    /// Milliseconds since the last beat. Absent if the host is not connected.
    pub silent_ms: Option<u64>,
}

/// One job, by rack.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    #[allow(missing_docs, reason = "the type says it")]
    pub job: JobId,
    /// The announced name. Empty until a seeder opens the job.
    pub name: String,
    /// The announced version. Empty until a seeder opens the job.
    pub version: String,
    /// Racks in the order of their names.
    pub racks: Vec<RackRollup>,
}

type Shared = Arc<Mutex<TrackerState>>;

pub(crate) fn routes(state: Shared) -> Router {
    Router::new()
        .route("/v1/hosts", get(hosts))
        .route("/v1/jobs", get(jobs))
        .route("/v1/jobs/{id}", get(job))
        .with_state(state)
}

async fn hosts(State(state): State<Shared>) -> Json<Vec<HostView>> {
    let state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let view = |member: &shoal_proto::membership::Member| HostView {
        index: member.index,
        node: member.node,
        host: member.locality.to_string(),
        role: member.role.to_string(),
        presence: member.presence,
        labels: member.labels.clone(),
        addrs: member.addrs.clone(),
        silent_ms: state.silence(member.index).map(|span| span.as_millis() as u64),
    };
    Json(state.roster().members().iter().map(view).collect())
}

fn view(state: &TrackerState, id: &JobId) -> Option<JobView> {
    let job = state.jobs().get(id)?;
    let named = job.announcement();
    Some(JobView {
        job: *id,
        name: named.map_or_else(String::new, |announcement| announcement.name.clone()),
        version: named.map_or_else(String::new, |announcement| announcement.version.clone()),
        racks: job.rollup(state.roster().members()).racks,
    })
}

async fn jobs(State(state): State<Shared>) -> Json<Vec<JobView>> {
    let state = state.lock().unwrap_or_else(PoisonError::into_inner);
    Json(state.jobs().iter().filter_map(|(id, _)| view(&state, id)).collect())
}

async fn job(State(state): State<Shared>, Path(id): Path<JobId>) -> Result<Json<JobView>, ApiError> {
    let state = state.lock().unwrap_or_else(PoisonError::into_inner);
    view(&state, &id).map(Json).ok_or_else(|| ApiError::not_found(format!("the tracker does not know job {id}")))
}
