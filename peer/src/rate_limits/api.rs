//! `/v1/limits`: shows the rate limits and sets them at run time.
//!
//! Invariant: a request that sets limits has shown the admin token.

use super::current::RateLimits;
use super::schedule::check_rates;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use shoal_api::limits::{LimitsView, Rates};
use shoal_service::extract::JsonBody;
use shoal_service::http_server::{AdminToken, ApiError, require_token};
use shoal_service::routes::Routes;

/// Returns the routes. Without an admin token, limits cannot be set.
pub fn routes(limits: RateLimits, token: Option<AdminToken>) -> Routes {
    let show = Routes::new().get("/v1/limits", show);
    let set = match token {
        Some(token) => {
            Routes::new().post("/v1/limits", set).map(|router| router.layer(from_fn_with_state(token, require_token)))
        }
        None => Routes::new().post("/v1/limits", refuse),
    };
    show.merge(set).with_state(limits)
}

async fn show(State(limits): State<RateLimits>) -> Json<LimitsView> {
    Json(limits.view())
}

async fn set(State(limits): State<RateLimits>, JsonBody(rates): JsonBody<Rates>) -> Result<Json<LimitsView>, ApiError> {
    check_rates(&rates).map_err(|error| {
        let remedy = "use a higher rate, or `unlimited` to lift the limit";
        ApiError::bad_request("cannot set the limits", error.to_string(), remedy)
    })?;
    limits.set(rates);
    Ok(Json(limits.view()))
}

async fn refuse() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "cannot set the limits",
        "this node has no admin token",
        "set `admin_token` in its configuration, or change `[node.limits]` and restart the node",
    )
}
