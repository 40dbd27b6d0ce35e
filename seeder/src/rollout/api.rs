//! Rollouts over HTTP.
//!
//! Invariant: the caller puts the check of tokens around these routes, and each change checks the names and hosts of
//! the token.

use super::{RolloutError, Rollouts};
use crate::errors::with_sources;
use crate::jobs::PushError;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use shoal_api::access::Scope;
use shoal_api::rollouts::{CommandRequest, DryRun, HostVersion, RolloutAccepted, RolloutSpec, RolloutView};
use shoal_service::access::Caller;
use shoal_service::extract::{JsonBody, QueryParams};
use shoal_service::http_server::ApiError;
use shoal_service::routes::Routes;
use std::sync::Arc;

/// Query parameters that say which rollout or which name.
#[derive(Clone, Debug, Default, Deserialize)]
struct RolloutQuery {
    of: Option<String>,
    name: Option<String>,
}

type Api = State<Arc<Rollouts>>;
type Query = QueryParams<RolloutQuery>;

/// Returns the routes.
pub(crate) fn routes(rollouts: Arc<Rollouts>) -> Routes {
    Routes::new()
        .get_as(Scope::Read, "/v1/rollouts", list)
        .post_as(Scope::Push, "rollout", "/v1/rollouts", begin)
        .post_as(Scope::Read, "dry-run", "/v1/rollouts/dry-run", dry_run)
        .post_as(Scope::Push, "rollout command", "/v1/rollouts/command", command)
        .get_as(Scope::Read, "/v1/rollout", one)
        .get_as(Scope::Read, "/v1/versions", versions)
        .with_state(rollouts)
}

fn refused(error: RolloutError) -> ApiError {
    if let RolloutError::Denied(denied) = error {
        return denied.into();
    }
    let (status, remedy) = match &error {
        RolloutError::Spec(_) => (StatusCode::BAD_REQUEST, "see `shoal rollout --help`"),
        RolloutError::NoHosts(_) => (StatusCode::BAD_REQUEST, "list the hosts with `shoal hosts`"),
        RolloutError::NotPushed { .. } => {
            (StatusCode::NOT_FOUND, "name its path, or push it first with `shoal push --stage`")
        }
        RolloutError::NotSent { .. } => (StatusCode::CONFLICT, "push it to them first with `shoal push --stage`"),
        RolloutError::UnderWay { .. } => {
            (StatusCode::CONFLICT, "wait for its end, or cancel it with `shoal rollout cancel NAME`")
        }
        RolloutError::JobUnderWay { .. } => {
            (StatusCode::CONFLICT, "wait for its end, see `shoal status`, or name a path, so that the rollout is newer")
        }
        RolloutError::Push(PushError::Busy) => (StatusCode::SERVICE_UNAVAILABLE, "wait until a push has ended"),
        RolloutError::Push(_) => (StatusCode::BAD_REQUEST, "correct the name, the version or the path"),
        RolloutError::Unknown(_) => (StatusCode::NOT_FOUND, "list the rollouts with `shoal rollout history`"),
        RolloutError::Refused { .. } | RolloutError::Superseded { .. } => {
            (StatusCode::CONFLICT, "see its phase with `shoal rollout status NAME`")
        }
        RolloutError::Store(_) | RolloutError::Denied(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "check the seeder's disk and its log")
        }
    };
    ApiError::new(status, "rollout refused", with_sources(&error), remedy)
}

/// Runs work that waits for the disk on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RolloutError> + Send + 'static,
) -> Result<Json<T>, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())).map(Json).map_err(refused)
}

async fn begin(
    State(api): Api,
    Extension(caller): Extension<Caller>,
    JsonBody(spec): JsonBody<RolloutSpec>,
) -> Result<Json<RolloutAccepted>, ApiError> {
    let source = spec.path.as_ref().map(|path| format!(" from {}", path.display())).unwrap_or_default();
    caller.note(format!("{}@{} to {}{source}", spec.name, spec.version, spec.to.join(" or ")));
    blocking(move || api.create(spec, &caller).map(|rollout| RolloutAccepted { rollout })).await
}

async fn dry_run(State(api): Api, JsonBody(spec): JsonBody<RolloutSpec>) -> Result<Json<DryRun>, ApiError> {
    api.dry_run(&spec).map(Json).map_err(refused)
}

async fn command(
    State(api): Api,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<CommandRequest>,
) -> Result<Json<RolloutView>, ApiError> {
    caller.note(format!("{} {}", request.command.name(), request.of));
    blocking(move || api.command(&request.of, request.command, &caller)).await
}

async fn list(State(api): Api, QueryParams(query): Query) -> Json<Vec<RolloutView>> {
    Json(api.all(query.name.as_deref()))
}

async fn one(State(api): Api, QueryParams(query): Query) -> Result<Json<RolloutView>, ApiError> {
    let of = query.of.unwrap_or_default();
    let found = api.find(&of).map_err(refused)?;
    api.view(&found).map(Json).ok_or_else(|| refused(RolloutError::Unknown(of)))
}

async fn versions(State(api): Api, QueryParams(query): Query) -> Result<Json<Vec<HostVersion>>, ApiError> {
    let name = query.name.unwrap_or_default();
    api.versions(&name).await.map(Json).map_err(|error| {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        ApiError::new(status, "the versions are not known", with_sources(&error), "try again in a few seconds")
    })
}
