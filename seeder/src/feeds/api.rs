//! Publications over HTTP.
//!
//! Invariant: the caller puts the check of tokens around these routes, and a publication checks the names and hosts of
//! the token.

use super::{FeedError, Feeds};
use crate::errors::{SELECTOR_REMEDY, with_sources};
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use bytes::Bytes;
use shoal_api::access::Scope;
use shoal_api::feeds::{PublishQuery, VersionPublished};
use shoal_proto::announcement::Kind;
use shoal_proto::desired::name_of;
use shoal_proto::limits;
use shoal_proto::locality::Selector;
use shoal_service::access::Caller;
use shoal_service::extract::{PathParam, QueryParams};
use shoal_service::http_server::ApiError;
use shoal_service::routes::Routes;
use std::sync::Arc;

/// Returns the routes.
pub(crate) fn routes(feeds: Arc<Feeds>) -> Routes {
    let bytes_max = limits::FEED_BYTES_MAX as usize;
    Routes::new().post_up_to_as(bytes_max, Scope::Push, "publish", "/v1/feeds/{*name}", publish).with_state(feeds)
}

fn refused(status: StatusCode, why: String, remedy: &str) -> ApiError {
    ApiError::new(status, "version refused", why, remedy)
}

fn refusal(error: FeedError) -> ApiError {
    let (status, remedy) = match &error {
        FeedError::Name(_) => (
            StatusCode::BAD_REQUEST,
            "use parts of letters, digits, `.`, `_`, `-`, joined by `/`, at most 128 bytes; no part is `current`, only the \
             first may be `version`, the last is not `events`, and `desired` is reserved",
        ),
        FeedError::NoHosts(_) => (StatusCode::BAD_REQUEST, "list the hosts with `shoal hosts`"),
        FeedError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "push it as a content"),
        FeedError::Store(error) if error.is_refusal() => (StatusCode::CONFLICT, ""),
        FeedError::Ingest(_) | FeedError::Store(_) | FeedError::Driver(_) | FeedError::Task(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "check the seeder's disk and its log")
        }
    };
    refused(status, with_sources(&error), remedy)
}

async fn publish(
    State(feeds): State<Arc<Feeds>>,
    Extension(caller): Extension<Caller>,
    PathParam(name): PathParam<String>,
    QueryParams(query): QueryParams<PublishQuery>,
    data: Bytes,
) -> Result<Json<VersionPublished>, ApiError> {
    let to: Vec<&str> = query.to.as_deref().map_or_else(|| vec!["all"], |to| to.split(';').collect());
    caller.note(format!("{name} to {}", to.join(" or ")));
    caller.check_name(&name)?;
    if name_of(&name).is_some() {
        let why = format!("`{name}` carries the desired states of rollouts");
        return Err(refused(StatusCode::BAD_REQUEST, why, "use `shoal rollout`"));
    }
    let selector =
        Selector::parse(&to).map_err(|error| refused(StatusCode::BAD_REQUEST, error.to_string(), SELECTOR_REMEDY))?;
    caller.check_hosts(&selector)?;
    let published = feeds.publish(&name, query.kind.unwrap_or(Kind::Gslb), data, &selector).await;
    Ok(Json(VersionPublished { sequence: published.map_err(refusal)?, feed: name }))
}
