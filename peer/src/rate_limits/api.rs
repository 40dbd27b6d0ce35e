//! `/v1/limits`: shows the rate limits and sets them at run time.
//!
//! Invariant: a request that sets limits has shown a token. On a peer that is the admin token.

use super::current::RateLimits;
use super::schedule::check_rates;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use shoal_api::access::Scope;
use shoal_api::limits::{LimitsView, Rates};
use shoal_service::extract::JsonBody;
use shoal_service::http_server::{AdminToken, ApiError, require_token};
use shoal_service::routes::Routes;

/// Returns the routes of a peer. Without an admin token, limits cannot be set.
pub fn routes(limits: RateLimits, token: Option<AdminToken>) -> Routes {
    let set = match token {
        Some(token) => set_routes(limits.clone()).map(|router| router.layer(from_fn_with_state(token, require_token))),
        None => Routes::new().post("/v1/limits", refuse),
    };
    show_routes(limits).merge(set)
}

/// Returns the route that shows the limits. It needs no token.
pub fn show_routes(limits: RateLimits) -> Routes {
    Routes::new().get("/v1/limits", show).with_state(limits)
}

/// Returns the route that sets the limits. The caller puts the check of the token around it.
pub fn set_routes(limits: RateLimits) -> Routes {
    Routes::new().post_as(Scope::Admin, "limits", "/v1/limits", set).with_state(limits)
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
