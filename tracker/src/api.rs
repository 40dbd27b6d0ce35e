//! The tracker's HTTP API: who is in the region and how its jobs are.

use crate::sessions::State as TrackerState;
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

/// A host as the API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct HostView {
    /// Its place in the roster.
    pub index: HostIndex,
    /// Its key.
    pub node: NodeId,
    /// Its locality.
    pub host: String,
    /// Peer or seeder.
    pub role: String,
    /// Up or away.
    pub presence: Presence,
    /// What its operator calls it.
    pub labels: Labels,
    /// Where it listens for bulk links.
    pub addrs: Vec<SocketAddr>,
    /// Milliseconds since its last beat; absent when it is not connected.
    pub silent_ms: Option<u64>,
}

/// A job as the API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    /// The job.
    pub job: JobId,
    /// Its name and version; empty while only reports of it were heard.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Racks in order of name.
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
    Json(state.roster.members().iter().map(view).collect())
}

fn view(state: &TrackerState, id: &JobId) -> Option<JobView> {
    let job = state.jobs.get(id)?;
    let named = job.announcement.as_ref();
    Some(JobView {
        job: *id,
        name: named.map_or_else(String::new, |announcement| announcement.name.clone()),
        version: named.map_or_else(String::new, |announcement| announcement.version.clone()),
        racks: job.rollup(state.roster.members()).racks,
    })
}

async fn jobs(State(state): State<Shared>) -> Json<Vec<JobView>> {
    let state = state.lock().unwrap_or_else(PoisonError::into_inner);
    Json(state.jobs.iter().filter_map(|(id, _)| view(&state, id)).collect())
}

async fn job(State(state): State<Shared>, Path(id): Path<JobId>) -> Result<Json<JobView>, ApiError> {
    let state = state.lock().unwrap_or_else(PoisonError::into_inner);
    view(&state, &id).map(Json).ok_or_else(|| ApiError::not_found(format!("no job {id} here")))
}
