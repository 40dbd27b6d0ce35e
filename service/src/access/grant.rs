//! What a token allows: a scope, and for pushes names and hosts.
//!
//! Invariant: a [`Grant`] with a selector allows only hosts that the selector matches, today and after any change of
//! the membership.

use crate::audit::now_ms;
use crate::http_server::ApiError;
use axum::http::StatusCode;
use shoal_api::access::Scope;
use shoal_proto::locality::{ParseLocalityError, Selector};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// Names that a token may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// Every name.
    Any,
    /// The names below a folder. The text ends in `/`.
    Below(String),
    Exactly(String),
}

impl NamePattern {
    /// Parses `*`, `edge/` or `edge/app`.
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.strip_suffix('/').unwrap_or(text);
        match text {
            "*" => Some(Self::Any),
            _ if !shoal_proto::announcement::is_content_name(name) => None,
            _ if name.len() < text.len() => Some(Self::Below(text.to_string())),
            _ => Some(Self::Exactly(text.to_string())),
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Below(folder) => name.starts_with(folder),
            Self::Exactly(own) => name == own,
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "*",
            Self::Below(text) | Self::Exactly(text) => text,
        })
    }
}

/// The names and hosts that a token may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub names: Vec<NamePattern>,
    pub to: Option<Selector>,
}

impl Grant {
    /// Returns the grant of an admin.
    pub fn everything() -> Self {
        Self { names: vec![NamePattern::Any], to: Some(Selector::all()) }
    }

    /// Returns the grant of a reader.
    pub fn nothing() -> Self {
        Self { names: Vec::new(), to: None }
    }
}

/// Why a token does not allow a request that its scope allows.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Denied {
    #[error("the token `{token}` may not change `{name}`; its names are {allowed}")]
    Name { token: String, name: String, allowed: String },
    #[error("the token `{token}` may not address `{to}`; its hosts are `{allowed}`")]
    Hosts { token: String, to: String, allowed: String },
    #[error(transparent)]
    Selector(#[from] ParseLocalityError),
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        let (status, remedy) = match &denied {
            Denied::Name { .. } => (StatusCode::FORBIDDEN, "use one of its names, or a token for this name"),
            Denied::Hosts { .. } => {
                (StatusCode::FORBIDDEN, "repeat the terms of the token's selector in each --to, or use another token")
            }
            Denied::Selector(_) => (StatusCode::BAD_REQUEST, super::SELECTOR_REMEDY),
        };
        Self::new(status, "not allowed", denied.to_string(), remedy)
    }
}

/// Who sent a request, and what it is about.
#[derive(Clone, Debug)]
pub struct Caller {
    token: String,
    scope: Scope,
    grant: Arc<Grant>,
    /// Cancelled when the token is revoked.
    revoked: CancellationToken,
    /// Unix seconds.
    expires_at: Option<u64>,
    /// For the audit log. The handler sets it once it has read the request.
    object: Arc<Mutex<Option<String>>>,
}

impl Caller {
    pub(crate) fn new(
        token: &str,
        scope: Scope,
        grant: Arc<Grant>,
        revoked: CancellationToken,
        expires_at: Option<u64>,
    ) -> Self {
        Self { token: token.to_string(), scope, grant, revoked, expires_at, object: Arc::default() }
    }

    /// Returns the token's name.
    pub fn name(&self) -> &str {
        &self.token
    }

    pub(crate) fn scope(&self) -> Scope {
        self.scope
    }

    /// Says in the audit log what the request is about.
    pub fn note(&self, object: impl Into<String>) {
        *self.object.lock().unwrap_or_else(PoisonError::into_inner) = Some(object.into());
    }

    pub(crate) fn noted(&self) -> Option<String> {
        self.object.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Checks that the caller may change a name.
    ///
    /// # Errors
    /// Returns [`Denied`] if the name is not one of the token's.
    pub fn check_name(&self, name: &str) -> Result<(), Denied> {
        if self.grant.names.iter().any(|pattern| pattern.matches(name)) {
            return Ok(());
        }
        let allowed: Vec<String> = self.grant.names.iter().map(|pattern| format!("`{pattern}`")).collect();
        let (token, name) = (self.token.clone(), name.to_string());
        Err(Denied::Name { token, name, allowed: allowed.join(", ") })
    }

    /// Checks that the caller may address hosts.
    ///
    /// # Errors
    /// Returns [`Denied`] if the selector may match a host that the token's selector does not match.
    pub fn check_hosts(&self, to: &Selector) -> Result<(), Denied> {
        if self.grant.to.as_ref().is_some_and(|allowed| allowed.includes(to)) {
            return Ok(());
        }
        let allowed = self.grant.to.as_ref().map(Selector::to_string).unwrap_or_default();
        Err(Denied::Hosts { token: self.token.clone(), to: to.to_string(), allowed })
    }

    /// Checks that the caller may change a name on hosts.
    ///
    /// # Errors
    /// Returns [`Denied`] if the name or the hosts are not the token's, or a selector is invalid.
    pub fn check(&self, name: &str, to: &[String]) -> Result<(), Denied> {
        self.check_name(name)?;
        self.check_hosts(&Selector::parse(to)?)
    }

    /// Completes when the token is revoked or expires.
    pub async fn end(self) {
        let now = now_ms() / 1000;
        match self.expires_at {
            Some(at) => {
                let left = std::time::Duration::from_secs(at.saturating_sub(now));
                let _ = tokio::time::timeout(left, self.revoked.cancelled()).await; // either is the end
            }
            None => self.revoked.cancelled().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(names: &[&str], to: &[&str]) -> Caller {
        let names = names.iter().map(|name| NamePattern::parse(name).unwrap()).collect();
        let grant = Grant { names, to: Some(Selector::parse(to).unwrap()) };
        Caller::new("ci", Scope::Push, Arc::new(grant), CancellationToken::new(), None)
    }

    #[test]
    fn names_are_compared_by_whole_parts() {
        let ci = caller(&["edge/", "gslb/main"], &["all"]);
        for name in ["edge/x", "edge/x/y", "gslb/main"] {
            assert!(ci.check_name(name).is_ok(), "{name}");
        }
        for name in ["edge", "edgex", "other/x", "gslb/main/x", "gslb/mainz", "x/edge/x", "", "Edge/x"] {
            assert!(ci.check_name(name).is_err(), "{name}");
        }
        assert!(caller(&["*"], &["all"]).check_name("anything").is_ok());
        for bad in ["", "/", "../x", "a//", "**", "edge/*"] {
            assert!(NamePattern::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn selectors_may_only_narrow() {
        let ci = caller(&["*"], &["site=a,service=cache", "rack=r9"]);
        let check = |to: &[&str]| ci.check("x", &to.iter().map(ToString::to_string).collect::<Vec<_>>());
        for to in [&["site=a,service=cache"][..], &["service=cache,host=h,site=a"], &["rack=r9", "rack=r9,gpu=yes"]] {
            assert!(check(to).is_ok(), "{to:?}");
        }
        for to in [&["all"][..], &["site=a"], &["host=h"], &["rack=r9", "all"], &["rack=r9 or site=a"], &["rack=r8"]] {
            assert!(matches!(check(to), Err(Denied::Hosts { .. })), "{to:?}");
        }
        for to in [&[][..], &["no term"]] {
            assert!(matches!(check(to), Err(Denied::Selector(_))), "{to:?}");
        }
    }
}
