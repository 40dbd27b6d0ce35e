//! Jobs at the seeder: pushes, demotions, promotions and their progress.
//!
//! Invariant: a [`JobPhase`] only advances, except that a rollout which is retried is distributing again.

use crate::rollouts::HostFailure;
use serde::{Deserialize, Serialize};
use shoal_proto::announcement::{Kind, Order};
use shoal_proto::control::RackRollup;
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::report::TierBytes;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PushRequest {
    /// Absolute path of a file or directory on the seeder's machine. Empty for an image that the seeder pulls.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub path: PathBuf,
    /// Name of the content. When empty, the seeder makes an image's name from its reference.
    #[serde(default)]
    pub name: String,
    /// Version of the name. When empty, the seeder makes an image's version from its reference.
    #[serde(default)]
    pub version: String,
    /// How hosts treat the content.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::Kind"))]
    pub kind: Kind,
    /// Selectors. A host is selected if one of them matches.
    pub to: Vec<String>,
    /// Hosts only store the content. A rollout switches to it later.
    #[serde(default)]
    pub staged: bool,
    /// Only for the kind `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRequest>,
    /// The version may replace a version of the same name and label that has another content. Without it such a push
    /// fails. The tag of an image may always move.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
}

/// Which image to push, and from where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageRequest {
    /// The reference by which containerd asks for the image. Optional for files that contain only one image.
    pub reference: Option<String>,
    /// `os/arch`, `os/arch/variant` or `all`. Default: Linux on the seeder's processor.
    pub platform: Option<String>,
    /// The seeder pulls the image from its registry. Otherwise the image is in the files at the push's path.
    pub pull: bool,
    /// Signatures, attestations and all else that refers to the image at its registry travel with it. Only for a pull.
    pub with_referrers: bool,
}

/// A demotion or promotion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OrderRequest {
    /// `NAME@VERSION`, or the id of a content.
    pub target: String,
    /// Selectors. When empty, the hosts to which the content was pushed.
    #[serde(default)]
    pub to: Vec<String>,
}

/// The answer to a push, a demotion or a promotion: the job exists and survives a restart of the seeder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "the type says it")]
pub struct JobAccepted {
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::JobId"))]
    pub job: JobId,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum JobPhase {
    /// The seeder pulls the image from a registry.
    Pulling,
    /// The seeder reads, cuts, hashes and codes the content.
    Ingesting,
    /// The image waits until another image that shares layers with it has reached the hosts.
    Waiting,
    /// Hosts fetch the content.
    Distributing,
    /// Every host that is up has the content or has failed.
    Done,
    /// The job ended before every host was done.
    Failed,
}

/// A host that failed, is away or is behind the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostLine {
    /// The host's locality.
    pub host: String,
    /// The host's state in the job, in words.
    pub state: String,
    /// Pieces that the host has verified.
    pub pieces: u32,
    /// The tracker does not see the host.
    pub away: bool,
    /// Why the host is in this state. May be empty.
    pub detail: String,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JobStatus {
    #[allow(missing_docs, reason = "the type says it")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::JobId"))]
    pub job: JobId,
    /// Name of the content.
    pub name: String,
    /// Version of the name.
    pub version: String,
    /// How hosts treat the content.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::Kind"))]
    pub kind: Kind,
    /// The selectors in one text.
    pub to: String,
    #[allow(missing_docs, reason = "the type says it")]
    pub phase: JobPhase,
    /// Why the job failed, or why the tracker refuses it for now. Empty otherwise.
    pub error: String,
    /// Absent until the content is ingested.
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::schemas::ContentId>"))]
    pub content: Option<ContentId>,
    /// Payload bytes that the seeder has pulled or read.
    pub ingested: u64,
    /// Payload bytes of the content.
    pub size: u64,
    /// Pieces of the content.
    pub pieces: u32,
    /// Payload bytes that this seeder has sent.
    pub seeder_sent: u64,
    /// Payload bytes received over all hosts, by the tier of their source.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::TierBytes"))]
    pub tiers: TierBytes,
    /// Racks in order of name.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<crate::schemas::RackRollup>"))]
    pub racks: Vec<RackRollup>,
    /// Hosts that failed, returned to their former version, are away or are behind.
    pub lines: Vec<HostLine>,
    /// Of a rollout: the first hosts that failed, at most 32, also after a rollback.
    #[serde(default)]
    pub failures: Vec<HostFailure>,
    /// Seconds since the seeder announced the job, until the job ends.
    pub elapsed_s: f64,
    /// Estimated seconds to the end. Absent while there is no estimate.
    pub eta_s: Option<f64>,
    /// When the job was created, Unix seconds.
    pub created_at: u64,
    /// The order about a content that was pushed before. Absent for a push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::schemas::Order>"))]
    pub order: Option<Order>,
    /// The newest order about this content is a demotion.
    #[serde(default)]
    pub demoted: bool,
    /// Hosts only store the content.
    #[serde(default)]
    pub staged: bool,
    /// The job is a rollout. Hosts report on rollouts as on jobs.
    #[serde(default)]
    pub rollout: bool,
}

/// Sums over a job's racks, in hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTotals {
    /// Hosts that the job targets.
    pub hosts: u32,
    /// Hosts that have every piece.
    pub has: u32,
    /// Hosts that have every piece and keep it without switching to it. Counted in `has` too.
    pub stored: u32,
    /// Hosts that switched to the version.
    pub active: u32,
    /// Hosts that failed.
    pub failed: u32,
    /// Hosts that returned to their former version.
    pub rolled_back: u32,
    /// Hosts that the tracker does not see.
    pub away: u32,
}

impl JobStatus {
    /// Returns the sums over all racks.
    pub fn totals(&self) -> HostTotals {
        self.racks.iter().fold(HostTotals::default(), |sum, rack| HostTotals {
            hosts: sum.hosts + rack.hosts,
            has: sum.has + rack.has,
            stored: sum.stored + rack.stored,
            active: sum.active + rack.active,
            failed: sum.failed + rack.failed,
            rolled_back: sum.rolled_back + rack.rolled_back,
            away: sum.away + rack.away,
        })
    }

    /// Returns how many hosts failed. After a rollback these are the hosts that failed before it.
    pub fn failed_hosts(&self) -> u32 {
        let HostTotals { failed, rolled_back, .. } = self.totals();
        let hosts: BTreeSet<&str> = self.failures.iter().map(|failure| failure.host.as_str()).collect();
        if rolled_back > 0 { failed.max(hosts.len() as u32) } else { failed }
    }

    /// Whether the job has ended.
    pub fn is_final(&self) -> bool {
        matches!(self.phase, JobPhase::Done | JobPhase::Failed)
    }
}
