//! The tracker's HTTP API: the hosts of the region and the states of its jobs.
//!
//! Invariant: every request only reads.

use crate::state::TrackerState;
use axum::Json;
use axum::extract::State;
use shoal_api::tracker::{TrackerHost, TrackerJob};
use shoal_proto::ids::JobId;
use shoal_service::extract::PathParam;
use shoal_service::http_server::ApiError;
use shoal_service::routes::Routes;
use std::sync::{Arc, Mutex, PoisonError};

type Shared = Arc<Mutex<TrackerState>>;

pub(crate) fn routes(state: Shared) -> Routes {
    Routes::new().get("/v1/hosts", hosts).get("/v1/jobs", jobs).get("/v1/jobs/{id}", job).with_state(state)
}

async fn hosts(State(state): State<Shared>) -> Json<Vec<TrackerHost>> {
    let state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let view = |member: &shoal_proto::membership::Member| TrackerHost {
        index: member.index,
        node: member.node,
        host: member.locality.to_string(),
        role: member.role.to_string(),
        presence: member.presence,
        labels: member.labels.clone(),
        addrs: member.addrs.clone(),
        duplicate: state.sessions().has_duplicate(member.index),
        silent_ms: state.silence(member.index).map(|span| span.as_millis() as u64),
    };
    Json(state.roster().members().iter().map(view).collect())
}

fn view(state: &TrackerState, id: &JobId) -> Option<TrackerJob> {
    let job = state.jobs().get(id)?;
    let announcement = job.announcement();
    Some(TrackerJob {
        job: *id,
        name: announcement.name.clone(),
        version: announcement.version.clone(),
        racks: job.rollup(state.roster().members()).racks,
    })
}

async fn jobs(State(state): State<Shared>) -> Json<Vec<TrackerJob>> {
    let state = state.lock().unwrap_or_else(PoisonError::into_inner);
    Json(state.jobs().iter().filter_map(|(id, _)| view(&state, id)).collect())
}

async fn job(State(state): State<Shared>, PathParam(id): PathParam<JobId>) -> Result<Json<TrackerJob>, ApiError> {
    let state = state.lock().unwrap_or_else(PoisonError::into_inner);
    view(&state, &id).map(Json).ok_or_else(|| ApiError::not_found(format!("the tracker does not know job {id}")))
}
