//! The peer's local HTTP API: the state of the host, its contents and its rollouts.
//!
//! Invariant: every route only reads.

use crate::handle::NodeHandle;
use axum::Json;
use axum::extract::State;
use shoal_api::contents::{ContentStatus, PeerStatus};
use shoal_api::rollouts::PeerRollout;
use shoal_proto::ids::ContentId;
use shoal_service::extract::PathParam;
use shoal_service::http_server::ApiError;
use shoal_service::routes::Routes;

#[derive(Clone)]
struct Api {
    host: String,
    node: NodeHandle,
}

/// Returns the routes.
pub(crate) fn routes(host: String, node: NodeHandle) -> Routes {
    Routes::new()
        .get("/v1/status", status)
        .get("/v1/contents", contents)
        .get("/v1/contents/{id}", content)
        .get("/v1/rollouts", rollouts)
        .with_state(Api { host, node })
}

async fn status(State(api): State<Api>) -> Json<PeerStatus> {
    let contents = api.node.contents().await;
    let usage = api.node.store.usage();
    let members = api.node.membership.borrow().len();
    Json(PeerStatus {
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

async fn rollouts(State(api): State<Api>) -> Json<Vec<PeerRollout>> {
    Json(api.node.rollouts().await)
}

async fn content(State(api): State<Api>, PathParam(id): PathParam<ContentId>) -> Result<Json<ContentStatus>, ApiError> {
    let contents = api.node.contents().await;
    let found = contents.into_iter().find(|content| content.content == id);
    found.map(Json).ok_or_else(|| ApiError::not_found(format!("this host has no content {id}")))
}
