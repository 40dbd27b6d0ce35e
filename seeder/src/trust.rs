//! The trust document over HTTP: the operator's way to put a new one in force.
//!
//! Invariant: a document counts by its signatures. The token only decides who may try.

use crate::errors::with_sources;
use crate::publisher_keys::PublisherKeys;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use shoal_api::access::Scope;
use shoal_api::trust::{NextPublisher, TrustInForce};
use shoal_net::admission::Admission;
use shoal_proto::limits;
use shoal_service::access::Caller;
use shoal_service::http_server::ApiError;
use shoal_service::routes::Routes;
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct TrustApi {
    pub(crate) admission: Admission,
    pub(crate) keys: Arc<PublisherKeys>,
}

/// Returns the routes.
pub(crate) fn routes(api: TrustApi) -> Routes {
    Routes::new()
        .get_as(Scope::Read, "/v1/trust", document)
        .post_up_to_as(limits::TRUST_BYTES_MAX, Scope::Admin, "trust publish", "/v1/trust", publish)
        .post_as(Scope::Admin, "publisher next", "/v1/publisher/next", next_publisher)
        .with_state(api)
}

async fn document(State(api): State<TrustApi>) -> Bytes {
    Bytes::copy_from_slice(api.admission.trust().bytes())
}

async fn publish(
    State(api): State<TrustApi>,
    Extension(caller): Extension<Caller>,
    document: Bytes,
) -> Result<Json<TrustInForce>, ApiError> {
    api.admission.offer_received(document).await.map_err(|error| {
        let remedy = "publish the newest document that the cluster's root signed";
        ApiError::new(StatusCode::CONFLICT, "trust document refused", with_sources(&error), remedy)
    })?;
    let trust = api.admission.trust();
    caller.note(format!("version {} epoch {}", trust.version(), trust.epoch()));
    Ok(Json(TrustInForce { version: trust.version(), epoch: trust.epoch() }))
}

async fn next_publisher(State(api): State<TrustApi>) -> Result<Json<NextPublisher>, ApiError> {
    let keys = api.keys.clone();
    let next = tokio::task::spawn_blocking(move || keys.next()).await;
    let next = next.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    let key = next.map_err(|error| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(status, "no key", with_sources(&error), "check the seeder's disk and its log")
    })?;
    Ok(Json(NextPublisher { key }))
}
