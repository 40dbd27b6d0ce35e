//! The hub's jobs and its answer to trackers.
//!
//! Invariant: a receipt is sent only for a flush that is durable.

use serde::{Deserialize, Serialize};
use shoal_proto::announcement::Kind;
use shoal_proto::control::RackRollup;
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::report::TierBytes;

/// A job in one region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HubJob {
    #[allow(missing_docs, reason = "the type says it")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::JobId"))]
    pub job: JobId,
    #[allow(missing_docs, reason = "the name says it")]
    pub region: String,
    #[allow(missing_docs, reason = "the type says it")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::ContentId"))]
    pub content: ContentId,
    /// How hosts treat the content.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::Kind"))]
    pub kind: Kind,
    /// Name of the content.
    pub name: String,
    /// Version of the name.
    pub version: String,
    /// Payload bytes.
    pub size: u64,
    /// When the seeder signed the job, Unix seconds.
    pub created_at: u64,
    /// Hosts that the job targets.
    pub hosts: u32,
    /// Hosts that have every piece.
    pub has: u32,
    /// Hosts that switched to the version.
    pub active: u32,
    /// Hosts that failed.
    pub failed: u32,
    /// Hosts that returned to their former version. They are not in `failed`.
    #[serde(default)]
    pub rolled_back: u32,
    /// Payload bytes received over all hosts, by the tier of their source.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::TierBytes"))]
    pub tiers: TierBytes,
    /// Racks in order of name. Only when one job is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<crate::schemas::RackRollup>"))]
    pub racks: Vec<RackRollup>,
    /// Hosts that failed or returned to their former version, or every host with `hosts=true`. Only when one job is
    /// asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<HubHost>,
}

/// A host's state in a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HubHost {
    /// The host's locality, or its roster index while the hub does not know the roster.
    pub host: String,
    /// The host's state in the job, in words.
    pub state: String,
}

/// The answer to a tracker's flush.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Receipt {
    /// Sequence of the flush, which is durable now.
    pub sequence: u64,
    /// The hub had the flush before.
    pub duplicate: bool,
    /// The hub's credential, in hexadecimal digits.
    pub credential: String,
    /// The signed receipt, in hexadecimal digits. It has the hash of the submission, and the hub's key signs it.
    pub signed: String,
}

/// Query parameters of the list of jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Paging {
    /// Jobs to skip.
    #[serde(default)]
    pub offset: usize,
    /// Jobs to return, at most 1,000. Default 100.
    pub limit: Option<usize>,
}

/// Query parameters of one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Detail {
    /// Return every host, not only the hosts that failed.
    #[serde(default)]
    pub hosts: bool,
}
