//! `/v1/limits`: what the limits are, and other ones while it runs. Setting shows the admin token.

use super::{RateLimits, RateLimitsView, Rates};
use axum::extract::State;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::{Json, Router};
use shoal_service::http_server::{AdminToken, ApiError, require_token};

/// The routes. Without a token nothing can be set.
pub fn routes(limits: RateLimits, token: Option<AdminToken>) -> Router {
    let show = Router::new().route("/v1/limits", get(show));
    let set = match token {
        Some(token) => Router::new().route("/v1/limits", post(set)).layer(from_fn_with_state(token, require_token)),
        None => Router::new().route("/v1/limits", post(refuse)),
    };
    show.merge(set).with_state(limits)
}

async fn show(State(limits): State<RateLimits>) -> Json<RateLimitsView> {
    Json(limits.view())
}

async fn set(State(limits): State<RateLimits>, Json(rates): Json<Rates>) -> Result<Json<RateLimitsView>, ApiError> {
    rates.validate().map_err(|why| {
        ApiError::bad_request("limits refused", why, "use a higher rate, or `unlimited` to lift the limit")
    })?;
    limits.set(rates);
    Ok(Json(limits.view()))
}

async fn refuse() -> ApiError {
    ApiError::new(
        axum::http::StatusCode::FORBIDDEN,
        "limits refused",
        "this node has no admin token to check",
        "set `admin_token` in its configuration, or change `[node.limits]` and restart it",
    )
}
