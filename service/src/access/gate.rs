//! The check around every route that needs a token, and the audit entry of every change.
//!
//! Invariant: the answer of a request that may change something leaves only after its audit entry is durable.

use super::grant::Caller;
use super::tokens::Tokens;
use crate::audit::{AuditLog, now_ms};
use crate::http_server::{ApiError, RemoteAddr};
use crate::routes::{RouteRule, RouteRules, Routes};
use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use shoal_api::access::{AuditEntry, AuditResult};
use std::net::SocketAddr;
use std::sync::Arc;

/// The longest text in an audit entry, characters.
const TEXT_MAX: usize = 512;

/// The check around some routes.
pub struct Gate {
    tokens: Arc<Tokens>,
    audit: AuditLog,
    rules: RouteRules,
}

/// A request that the gate has not judged yet.
struct Arrival {
    rule: RouteRule,
    from: Option<SocketAddr>,
    id: String,
    path: String,
}

/// Returns an id for a request. It only has to differ from those in the log.
fn new_id() -> String {
    let mut bytes = [0; 8];
    // Without random bytes the id is not unique, which hides no entry.
    let _ = getrandom::fill(&mut bytes);
    format!("{:016x}", u64::from_be_bytes(bytes))
}

/// Returns a text that can do nothing to a terminal: a bounded number of printable ASCII characters.
fn plain(text: &str) -> String {
    let escape = |c: char| match c {
        ' '..='~' => c.to_string(),
        c => c.escape_unicode().to_string(),
    };
    text.chars().take(TEXT_MAX).map(escape).collect()
}

impl Arrival {
    fn new(rules: &RouteRules, request: &Request) -> Self {
        let pattern = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        Self {
            rule: rules.find(request.method(), pattern),
            from: request.extensions().get::<RemoteAddr>().map(|remote| remote.0),
            id: new_id(),
            path: request.uri().path().to_string(),
        }
    }

    fn entry(&self, caller: Option<&Caller>, response: &Response) -> AuditEntry {
        let status = response.status();
        let result = match status {
            status if status.is_success() => AuditResult::Done,
            status if status.is_client_error() => AuditResult::Refused,
            _ => AuditResult::Failed,
        };
        let error = response.extensions().get::<ApiError>().map(ToString::to_string);
        AuditEntry {
            time_ms: now_ms(),
            id: self.id.clone(),
            who: caller.map(|caller| caller.name().to_string()).unwrap_or_default(),
            from: self.from.map(|addr| addr.to_string()).unwrap_or_default(),
            verb: self.rule.verb.to_string(),
            object: plain(&caller.and_then(Caller::noted).unwrap_or_else(|| self.path.clone())),
            result,
            status: status.as_u16(),
            detail: plain(&error.unwrap_or_default()),
            unlogged: 0,
        }
    }
}

impl Gate {
    /// Puts the check around routes.
    pub fn guard(tokens: Arc<Tokens>, audit: AuditLog, routes: Routes) -> Routes {
        let gate = Arc::new(Self { tokens, audit, rules: routes.rules() });
        routes.map(|router| router.layer(axum::middleware::from_fn_with_state(gate, pass)))
    }

    /// Refuses a request before its handler runs.
    fn refuse(&self, arrival: &Arrival, caller: Option<&Caller>, error: ApiError) -> Response {
        let response = error.into_response();
        self.audit.refuse(arrival.from.map(|addr| addr.ip()), arrival.entry(caller, &response));
        response
    }

    /// Runs the handler of a change and records how it ended.
    async fn change(&self, arrival: &Arrival, caller: &Caller, request: Request, next: Next) -> Response {
        if self.audit.is_failed() {
            // The disk may work again. Nothing changes before the log does.
            let mut entry = arrival.entry(Some(caller), &StatusCode::OK.into_response());
            entry.verb = "audit resume".into();
            if let Err(error) = self.audit.record(entry).await {
                return unlogged(&error.to_string(), "nothing was changed");
            }
        }
        let response = next.run(request).await;
        let entry = arrival.entry(Some(caller), &response);
        if entry.result == AuditResult::Refused {
            self.audit.refuse(arrival.from.map(|addr| addr.ip()), entry);
            return response;
        }
        match self.audit.record(entry).await {
            Ok(()) => response,
            Err(error) => unlogged(&error.to_string(), "the change was made"),
        }
    }
}

fn unlogged(why: &str, consequence: &str) -> Response {
    let what = format!("the request cannot be logged, {consequence}");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, what, why, "free the disk of the role's folder `audit`")
        .into_response()
}

/// Middleware: identifies the caller, checks its scope, and records what it changes.
async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let arrival = Arrival::new(&gate.rules, &request);
    let id = HeaderValue::from_str(&arrival.id).ok();
    let caller = gate.tokens.caller(request.method(), request.headers());
    let mut response = match caller {
        None => {
            let mut refused = gate.refuse(&arrival, None, no_token());
            // Makes a browser ask for a password, which is the token.
            refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"shoal\""));
            refused
        }
        Some(caller) if caller.scope() < arrival.rule.scope => {
            let error = small_scope(&caller, arrival.rule);
            gate.refuse(&arrival, Some(&caller), error)
        }
        Some(caller) => {
            request.extensions_mut().insert(caller.clone());
            admitted(gate, arrival, caller, request, next).await
        }
    };
    response.headers_mut().extend(id.map(|id| (axum::http::HeaderName::from_static("x-request-id"), id)));
    response
}

async fn admitted(gate: Arc<Gate>, arrival: Arrival, caller: Caller, request: Request, next: Next) -> Response {
    if arrival.rule.changes {
        // A task of its own: a caller that hangs up cannot stop a change between its effect and its entry.
        let work = tokio::spawn(async move { gate.change(&arrival, &caller, request, next).await });
        return work.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
    let response = next.run(request).await;
    // Streams have no length. They end with the token that opened them.
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(caller.end()))))
}

fn no_token() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "not allowed",
        "the request shows no valid token",
        "pass the file of a valid token with --token-file, or the token as the password of a browser",
    )
}

fn small_scope(caller: &Caller, rule: RouteRule) -> ApiError {
    let why = format!("the token `{}` has scope {}, the route needs {}", caller.name(), caller.scope(), rule.scope);
    ApiError::new(StatusCode::FORBIDDEN, "not allowed", why, "use a token of a larger scope")
}
