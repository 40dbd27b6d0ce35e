//! The peer's local HTTP API: what is here and how it goes.

use crate::handle::{ContentStatus, NodeHandle, RolloutStatus};
use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use shoal_proto::ids::ContentId;
use shoal_service::http_server::ApiError;

/// What `/v1/status` says.
#[derive(Debug, Serialize)]
struct Status {
    host: String,
    contents: usize,
    incomplete: usize,
    members: usize,
    used_bytes: u64,
    free_bytes: u64,
}

#[derive(Clone)]
struct Api {
    host: String,
    node: NodeHandle,
}

/// The routes.
pub(crate) fn routes(host: String, node: NodeHandle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/contents", get(contents))
        .route("/v1/contents/{id}", get(content))
        .route("/v1/rollouts", get(rollouts))
        .with_state(Api { host, node })
}

async fn status(State(api): State<Api>) -> Json<Status> {
    let contents = api.node.contents().await;
    let usage = api.node.store.usage();
    let members = api.node.membership.borrow().len();
    Json(Status {
        host: api.host,
        contents: contents.len(),
        incomplete: contents.iter().filter(|content| content.have < content.total || content.total == 0).count(),
        members,
        used_bytes: usage.used,
        free_bytes: usage.free,
    })
}

async fn contents(State(api): State<Api>) -> Json<Vec<ContentStatus>> {
    Json(api.node.contents().await)
}

async fn rollouts(State(api): State<Api>) -> Json<Vec<RolloutStatus>> {
    Json(api.node.rollouts().await)
}

async fn content(State(api): State<Api>, Path(id): Path<ContentId>) -> Result<Json<ContentStatus>, ApiError> {
    let contents = api.node.contents().await;
    let found = contents.into_iter().find(|content| content.content == id);
    found.map(Json).ok_or_else(|| ApiError::not_found(format!("no content {id} here")))
}
