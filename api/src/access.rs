//! Access to the seeder's API: tokens with scopes, and the audit log.
//!
//! Invariant: a secret is only in [`TokenCreated`]. No other type has a field for it.

use crate::units::Span;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a token allows. Each scope includes the scopes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Scope {
    /// To read jobs, contents, hosts, rollouts, feeds and the audit log.
    Read,
    /// To push, roll out, demote and publish below the token's names, to the token's hosts.
    Push,
    /// Everything, with tokens and rate limits.
    Admin,
}

impl Scope {
    /// All scopes, the smallest first.
    pub const ALL: [Self; 3] = [Self::Read, Self::Push, Self::Admin];

    /// Returns the scope's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Push => "push",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that is not a [`Scope`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid scope `{0}`: use read, push or admin")]
pub struct ParseScopeError(String);

impl std::str::FromStr for Scope {
    type Err = ParseScopeError;
    fn from_str(text: &str) -> Result<Self, ParseScopeError> {
        Self::ALL.into_iter().find(|scope| scope.name() == text).ok_or_else(|| ParseScopeError(text.to_string()))
    }
}

/// A token to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenRequest {
    /// Name of the token, which the audit log shows: letters, digits, `.`, `_` and `-`, at most 63.
    pub name: String,
    #[allow(missing_docs, reason = "the type says it")]
    pub scope: Scope,
    /// Only for the scope `push`, and required there: the contents that the token may change. `edge/` means every name
    /// below `edge`, `edge/app` means that name, `*` means every name.
    #[serde(default)]
    pub names: Vec<String>,
    /// Only for the scope `push`, and required there: selectors of the hosts that the token may address.
    #[serde(default)]
    pub to: Vec<String>,
    /// How long the token is valid, such as `90d`. Without it, the token is valid until it is revoked.
    #[serde(default)]
    pub expires: Option<Span>,
}

/// A token as the seeder knows it, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenView {
    /// The token's name.
    pub name: String,
    #[allow(missing_docs, reason = "the type says it")]
    pub scope: Scope,
    /// The names that a token of the scope `push` may change.
    pub names: Vec<String>,
    /// The selectors of the hosts that a token of the scope `push` may address.
    pub to: Vec<String>,
    /// When the token was created, Unix seconds.
    pub created_at: u64,
    /// When the token ends, Unix seconds. Absent for a token that does not expire.
    pub expires_at: Option<u64>,
}

/// The answer to the creation of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenCreated {
    #[allow(missing_docs, reason = "the type says it")]
    pub token: TokenView,
    /// The secret, 64 hexadecimal digits. The seeder stores only its hash, so no one can read it again.
    pub secret: String,
}

/// A token to revoke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RevokeRequest {
    /// The token's name.
    pub name: String,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum AuditResult {
    /// The seeder did what the request asked for.
    Done,
    /// The seeder refused the request and changed nothing.
    Refused,
    /// The seeder failed. A part of the change may have happened.
    Failed,
}

impl AuditResult {
    /// Returns the result's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// One request in the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditEntry {
    /// When the request ended, Unix milliseconds.
    pub time_ms: u64,
    /// Id of the request, which the header `x-request-id` of the answer has too.
    pub id: String,
    /// Name of the token. Empty if the request showed no valid token.
    pub who: String,
    /// Address and port of the caller. Empty if they are not known.
    pub from: String,
    /// What the request asked for, such as `push`.
    pub verb: String,
    /// What the request was about, such as `edge/app@7 to site=lon1`, or its path if the seeder did not read it.
    pub object: String,
    #[allow(missing_docs, reason = "the type says it")]
    pub result: AuditResult,
    /// HTTP status of the answer.
    pub status: u16,
    /// Why the request was refused or failed. Empty otherwise.
    #[serde(default)]
    pub detail: String,
    /// Refused requests before this one that the log left out because there were too many.
    #[serde(default)]
    pub unlogged: u64,
}

/// Query parameters of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditQuery {
    /// Only entries that are not older, such as `1h`.
    pub since: Option<Span>,
    /// Only entries of the token with this name.
    pub who: Option<String>,
    /// Only entries with this verb.
    pub verb: Option<String>,
    /// The newest entries up to this number, at most 10,000. Default 1,000.
    pub limit: Option<usize>,
}
