//! Answers that every role gives.
//!
//! Invariant: every error of every role is an [`ErrorAnswer`].

use crate::access::Scope;
use serde::{Deserialize, Serialize};

/// What `/healthz` answers, with status 503 while `ok` is false.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health {
    /// `seeder`, `tracker`, `hub` or `peer`.
    pub role: String,
    /// Version of the program.
    pub version: String,
    /// Seconds since the role started.
    pub uptime_s: u64,
    /// Whether the role can do its work.
    pub ok: bool,
    /// Why it cannot, one sentence each. Empty when `ok`.
    pub problems: Vec<String>,
}

/// One route of a server, as `/v1/routes` lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Route {
    /// `GET` or `POST`.
    pub method: String,
    /// The path, with parameters in braces.
    pub path: String,
    /// The smallest scope whose tokens the route accepts. Absent on a route that needs no token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
}

/// An error: what happened, why, and what to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// What happened, to what.
    pub what: String,
    /// Why. May be empty.
    #[serde(default)]
    pub why: String,
    /// What to do about it. May be empty.
    #[serde(default, rename = "do")]
    pub remedy: String,
}

/// The answer of every status from 400 on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "the type says it")]
pub struct ErrorAnswer {
    pub error: ErrorBody,
}
