//! Tokens and the audit log over HTTP.
//!
//! Invariant: a secret is in one answer only, the one that created it.

use super::grant::Caller;
use super::tokens::{TokenFault, Tokens};
use crate::audit::AuditLog;
use crate::error_text::with_sources;
use crate::extract::{JsonBody, QueryParams};
use crate::http_server::ApiError;
use crate::routes::Routes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use shoal_api::access::{AuditEntry, AuditQuery, RevokeRequest, Scope, TokenCreated, TokenRequest, TokenView};
use std::sync::Arc;

/// Returns the routes of tokens and of the audit log.
pub fn routes(tokens: Arc<Tokens>, audit: AuditLog) -> Routes {
    let of_tokens = Routes::new()
        .get_as(Scope::Admin, "/v1/tokens", list)
        .post_as(Scope::Admin, "token create", "/v1/tokens", create)
        .post_as(Scope::Admin, "token revoke", "/v1/tokens/revoke", revoke)
        .with_state(tokens);
    of_tokens.merge(Routes::new().get_as(Scope::Read, "/v1/audit", read_audit).with_state(audit))
}

fn refused(error: TokenFault) -> ApiError {
    let (status, remedy) = match &error {
        TokenFault::Name(_) | TokenFault::Pattern(_) => (StatusCode::BAD_REQUEST, ""),
        TokenFault::Unbounded => (StatusCode::BAD_REQUEST, "add --names and --to"),
        TokenFault::Bounded => (StatusCode::BAD_REQUEST, "remove --names and --to, or use --scope push"),
        TokenFault::Patterns => (StatusCode::BAD_REQUEST, "use a folder such as `edge/`"),
        TokenFault::Expired => (StatusCode::BAD_REQUEST, "use a longer --expires"),
        TokenFault::Selector(_) => (StatusCode::BAD_REQUEST, super::SELECTOR_REMEDY),
        TokenFault::Admin => (StatusCode::CONFLICT, "use another name; to replace that token, change its file"),
        TokenFault::Exists(_) => (StatusCode::CONFLICT, "use another name, or revoke it first"),
        TokenFault::TooMany => (StatusCode::CONFLICT, "revoke tokens that are not in use"),
        TokenFault::Unknown(_) => (StatusCode::NOT_FOUND, "list the tokens with `shoal token ls`"),
        TokenFault::Store(_) | TokenFault::Encode(_) | TokenFault::Random(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "check the disk of the role and its log")
        }
    };
    ApiError::new(status, "token refused", with_sources(&error), remedy)
}

/// Runs work that waits for the disk on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TokenFault> + Send + 'static,
) -> Result<Json<T>, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())).map(Json).map_err(refused)
}

async fn list(State(tokens): State<Arc<Tokens>>) -> Json<Vec<TokenView>> {
    Json(tokens.all())
}

async fn create(
    State(tokens): State<Arc<Tokens>>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<TokenRequest>,
) -> Result<Json<TokenCreated>, ApiError> {
    let TokenRequest { name, scope, names, to, .. } = &request;
    let bounds = if names.is_empty() { String::new() } else { format!(" {} to {}", names.join(","), to.join(" or ")) };
    caller.note(format!("{name} {scope}{bounds}"));
    blocking(move || tokens.create(request)).await
}

async fn revoke(
    State(tokens): State<Arc<Tokens>>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<RevokeRequest>,
) -> Result<Json<TokenView>, ApiError> {
    caller.note(request.name.clone());
    blocking(move || tokens.revoke(&request.name)).await
}

async fn read_audit(
    State(audit): State<AuditLog>,
    QueryParams(query): QueryParams<AuditQuery>,
) -> Result<Json<Vec<AuditEntry>>, ApiError> {
    audit.read(query).await.map(Json).map_err(|error| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(
            status,
            "cannot read the audit log",
            with_sources(&error),
            "check the disk of the role and its log",
        )
    })
}
