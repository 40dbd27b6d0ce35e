//! Rollouts over HTTP. Every request shows the admin token.

use super::machine::Command;
use super::spec::RolloutSpec;
use super::versions::HostVersion;
use super::view::{DryRun, RolloutView};
use super::{RolloutError, Rollouts};
use crate::jobs::PushError;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use shoal_proto::ids::JobId;
use shoal_service::http_server::ApiError;
use std::sync::Arc;

/// The answer to a rollout asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begun {
    /// The rollout.
    pub rollout: JobId,
}

/// A word to a rollout.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// Its id, or the name of which it is the newest.
    pub of: String,
    /// The word.
    pub command: Command,
}

/// Which rollouts, or which name.
#[derive(Clone, Debug, Default, Deserialize)]
struct Which {
    of: Option<String>,
    name: Option<String>,
}

type Api = State<Arc<Rollouts>>;

/// The routes; who asks was let in before.
pub(crate) fn routes(rollouts: Arc<Rollouts>) -> Router {
    Router::new()
        .route("/v1/rollouts", get(list).post(begin))
        .route("/v1/rollouts/dry", post(dry))
        .route("/v1/rollouts/command", post(command))
        .route("/v1/rollout", get(one))
        .route("/v1/versions", get(versions))
        .with_state(rollouts)
}

fn refused(error: RolloutError) -> ApiError {
    let (status, remedy) = match &error {
        RolloutError::Spec(_) => (StatusCode::BAD_REQUEST, "see `shoal rollout --help`"),
        RolloutError::NoHosts(_) => (StatusCode::BAD_REQUEST, "see `shoal hosts` for the hosts there are"),
        RolloutError::NotPushed { .. } => {
            (StatusCode::NOT_FOUND, "name its path, or push it first with `shoal push --stage`")
        }
        RolloutError::NotSent { .. } => (StatusCode::CONFLICT, "push it to them first with `shoal push --stage`"),
        RolloutError::Busy { .. } => {
            (StatusCode::CONFLICT, "wait for its end, or cancel it with `shoal rollout cancel NAME`")
        }
        RolloutError::Push(PushError::Busy) => (StatusCode::SERVICE_UNAVAILABLE, "wait for a push to end"),
        RolloutError::Push(_) => (StatusCode::BAD_REQUEST, ""),
        RolloutError::Unknown(_) => (StatusCode::NOT_FOUND, "see `shoal rollout history`"),
        RolloutError::Refused { .. } => (StatusCode::CONFLICT, "see `shoal rollout status NAME`"),
        RolloutError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "look at the seeder's disk and its log"),
    };
    ApiError::new(status, "rollout refused", error.to_string(), remedy)
}

async fn begin(State(api): Api, Json(spec): Json<RolloutSpec>) -> Result<Json<Begun>, ApiError> {
    let begun = tokio::task::spawn_blocking(move || api.create(spec)).await;
    let rollout = begun.map_err(|error| refused(RolloutError::Store(error.to_string())))?.map_err(refused)?;
    Ok(Json(Begun { rollout }))
}

async fn dry(State(api): Api, Json(spec): Json<RolloutSpec>) -> Result<Json<DryRun>, ApiError> {
    api.dry_run(&spec).map(Json).map_err(refused)
}

async fn command(State(api): Api, Json(told): Json<Told>) -> Result<Json<RolloutView>, ApiError> {
    let done = tokio::task::spawn_blocking(move || api.command(&told.of, told.command)).await;
    done.map_err(|error| refused(RolloutError::Store(error.to_string())))?.map(Json).map_err(refused)
}

async fn list(State(api): Api, Query(which): Query<Which>) -> Json<Vec<RolloutView>> {
    Json(api.all(which.name.as_deref()))
}

async fn one(State(api): Api, Query(which): Query<Which>) -> Result<Json<RolloutView>, ApiError> {
    let of = which.of.unwrap_or_default();
    let found = api.find(&of).map_err(refused)?;
    api.view(&found).map(Json).ok_or_else(|| refused(RolloutError::Unknown(of)))
}

async fn versions(State(api): Api, Query(which): Query<Which>) -> Result<Json<Vec<HostVersion>>, ApiError> {
    let name = which.name.unwrap_or_default();
    let unknown = |why| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "versions are not known", why, "try again");
    api.versions(&name).await.map(Json).map_err(unknown)
}
