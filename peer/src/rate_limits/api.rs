//! `/v1/limits`: what the limits are, and other ones while it runs. Setting shows the admin token.

use super::RateLimits;
use super::schedule::check_rates;
use axum::Json;
use axum::extract::State;
use axum::middleware::from_fn_with_state;
use shoal_api::limits::{LimitsView, Rates};
use shoal_service::extract::JsonBody;
use shoal_service::http_server::{AdminToken, ApiError, require_token};
use shoal_service::routes::Routes;

/// The routes. Without a token nothing can be set.
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
        ApiError::bad_request(
            "limits refused",
            error.to_string(),
            "use a higher rate, or `unlimited` to lift the limit",
        )
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
