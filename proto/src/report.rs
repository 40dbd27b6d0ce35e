//! Completion facts: what a host says of a job, and what a region says to the hub.
//!
//! Invariant: merging reports is a maximum over (attempt, state), so order, repetition and loss-then-resend cannot
//! change the outcome.

use crate::announcement::{Kind, is_content_name, is_version};
use crate::bitmap::Bitmap;
use crate::codec::{DecodeError, DocKind, Document};
use crate::ids::{ContentId, Epoch, HostIndex, JobId, NodeId};
use crate::limits;
use crate::locality::{Locality, is_name};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a host failed a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The content would not fit the quota or the disk.
    #[n(0)]
    NoSpace,
    /// The manifest is malformed, escapes, or breaks a limit.
    #[n(1)]
    BadManifest,
    /// Signed by no trusted publisher.
    #[n(2)]
    Untrusted,
    /// Older than what the host has under that name.
    #[n(3)]
    Stale,
    /// Writing or switching failed on the host's disk.
    #[n(4)]
    Disk,
    /// The new version could not be switched in.
    #[n(5)]
    Activation,
    /// A newer version of the name came first.
    #[n(6)]
    Superseded,
    /// The job was cancelled.
    #[n(7)]
    Cancelled,
    /// The job's deadline passed.
    #[n(8)]
    Deadline,
    /// It was switched in and is switched back again.
    #[n(9)]
    RolledBack,
    /// It was switched in, and then its probe failed.
    #[n(10)]
    Unhealthy,
    /// It is in use here, so it is not demoted.
    #[n(11)]
    InUse,
    /// The container runtime did not answer.
    #[n(16)]
    RuntimeAway,
    /// The container runtime could not pull or unpack the image.
    #[n(17)]
    PullFailed,
    /// What the container runtime got is not what the image's digests say.
    #[n(18)]
    DigestMismatch,
    /// The container runtime did not end in time.
    #[n(19)]
    Timeout,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSpace => "no-space",
            Self::BadManifest => "bad-manifest",
            Self::Untrusted => "untrusted",
            Self::Stale => "stale",
            Self::Disk => "disk",
            Self::Activation => "activation",
            Self::Superseded => "superseded",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
            Self::RolledBack => "rolled-back",
            Self::Unhealthy => "unhealthy",
            Self::RuntimeAway => "runtime-away",
            Self::PullFailed => "pull-failed",
            Self::DigestMismatch => "digest-mismatch",
            Self::Timeout => "timeout",
            Self::InUse => "in-use",
        })
    }
}

/// How far a host is with a job. Ordered: within one attempt a later state replaces an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum HostState {
    /// Nothing heard, or still fetching.
    #[n(0)]
    Unknown,
    /// Every piece is verified and durable.
    #[n(1)]
    Has,
    /// Every piece is there, and that is all this host will do: an image where no container runtime is configured.
    #[n(4)]
    Stored,
    /// It cannot be done, for this reason, in this attempt.
    #[n(2)]
    Failed(#[n(0)] Reason),
    /// Switched in (or, for an image, warm).
    #[n(3)]
    Active,
}

impl HostState {
    /// Whether every piece is there.
    pub fn has_all(self) -> bool {
        matches!(self, Self::Has | Self::Stored | Self::Active)
    }

    /// Whether the host will not change its mind in this attempt.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stored | Self::Failed(_) | Self::Active)
    }
}

impl fmt::Display for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("fetching"),
            Self::Has => f.write_str("has"),
            Self::Stored => f.write_str("held"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
            Self::Active => f.write_str("active"),
        }
    }
}

/// Payload bytes by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct TierBytes {
    /// Copied from pieces the host already had.
    #[n(0)]
    pub local: u64,
    /// From rack peers.
    #[n(1)]
    pub rack: u64,
    /// From other racks of the site.
    #[n(2)]
    pub site: u64,
    /// From other sites of the region.
    #[n(3)]
    pub region: u64,
    /// From a seeder.
    #[n(4)]
    pub seeder: u64,
}

impl TierBytes {
    /// Bytes that crossed the rack's uplink.
    pub fn imported(&self) -> u64 {
        self.site.saturating_add(self.region).saturating_add(self.seeder)
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        self.local.saturating_add(self.rack).saturating_add(self.imported())
    }

    /// Adds another count. A host may claim any number, so sums stop at the top instead of overflowing.
    pub fn add(&mut self, other: &Self) {
        self.local = self.local.saturating_add(other.local);
        self.rack = self.rack.saturating_add(other.rack);
        self.site = self.site.saturating_add(other.site);
        self.region = self.region.saturating_add(other.region);
        self.seeder = self.seeder.saturating_add(other.seeder);
    }
}

/// What a host says of one job: its state and its progress.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HostReport {
    /// The job.
    #[n(0)]
    pub job: JobId,
    /// Grows when a failed job is retried.
    #[n(1)]
    pub attempt: u16,
    /// How far.
    #[n(2)]
    pub state: HostState,
    /// Why, in words for a person; empty when all is well.
    #[n(3)]
    pub detail: String,
    /// Pieces verified.
    #[n(4)]
    pub pieces_have: u32,
    /// Pieces in all; 0 while the manifest is not known.
    #[n(5)]
    pub pieces_total: u32,
    /// Payload bytes by source.
    #[n(6)]
    pub tiers: TierBytes,
    /// Payload bytes sent to others for this content.
    #[n(7)]
    pub sent: u64,
}

impl HostReport {
    /// Checks the bounds.
    pub fn validate(&self) -> Result<(), DecodeError> {
        if self.detail.len() > limits::DETAIL_BYTES_MAX {
            return Err(DecodeError::TooLong { len: self.detail.len(), max: limits::DETAIL_BYTES_MAX });
        }
        if self.pieces_have.max(self.pieces_total) > limits::PIECES_MAX {
            return Err(DecodeError::invalid("pieces", "more than a content can have"));
        }
        Ok(())
    }

    /// The lattice's order.
    pub fn rank(&self) -> (u16, HostState) {
        (self.attempt, self.state)
    }
}

/// Hosts of a job in one state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StateSet {
    /// The state.
    #[n(0)]
    pub state: HostState,
    /// The hosts, by roster index.
    #[n(1)]
    #[cbor(decode_with = "crate::bitmap::decode_hosts")]
    pub hosts: Bitmap,
}

/// One job, as a region reports it. Every flush carries the whole state, so a lost one costs nothing.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct JobFlush {
    /// The job.
    #[n(0)]
    pub job: JobId,
    /// Its content.
    #[n(1)]
    pub content: ContentId,
    /// Its kind.
    #[n(2)]
    pub kind: Kind,
    /// Its name.
    #[n(3)]
    pub name: String,
    /// Its version.
    #[n(4)]
    pub version: String,
    /// Payload bytes.
    #[n(5)]
    pub size: u64,
    /// When it was signed, Unix seconds.
    #[n(6)]
    pub created_at: u64,
    /// The hosts it is for, by roster index.
    #[n(7)]
    #[cbor(decode_with = "crate::bitmap::decode_hosts")]
    pub targets: Bitmap,
    /// Who is in which state, each state and each host at most once; hosts in none are `Unknown`. At most
    /// [`limits::FLUSH_STATES_MAX`].
    #[n(8)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::FLUSH_STATES_MAX }, _, _>")]
    pub states: Vec<StateSet>,
    /// Payload bytes by source, over all hosts.
    #[n(9)]
    pub tiers: TierBytes,
}

/// A row of the roster: which host an index means.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RosterRow {
    /// The index.
    #[n(0)]
    pub index: HostIndex,
    /// The host.
    #[n(1)]
    pub locality: Locality,
}

/// What a tracker sends the hub, in an [`crate::trust::Envelope`] signed with its node key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HubFlush {
    /// The tracker.
    #[n(0)]
    pub tracker: NodeId,
    /// Its region.
    #[n(1)]
    pub region: String,
    /// Grows by one with each flush of this tracker; the hub takes each once.
    #[n(2)]
    pub sequence: u64,
    /// Membership epoch the indices belong to. Indices are never reused, so older rows stay right.
    #[n(3)]
    pub epoch: Epoch,
    /// Roster rows the hub was not told yet; at most [`limits::FLUSH_ROSTER_MAX`].
    #[n(4)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::FLUSH_ROSTER_MAX }, _, _>")]
    pub roster: Vec<RosterRow>,
    /// Jobs that changed; at most [`limits::FLUSH_JOBS_MAX`].
    #[n(5)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::FLUSH_JOBS_MAX }, _, _>")]
    pub jobs: Vec<JobFlush>,
}

impl Document for HubFlush {
    const KIND: DocKind = DocKind::HubFlush;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::HUB_BODY_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        if !is_name(&self.region) {
            return Err(DecodeError::invalid("region", format!("`{}`", self.region)));
        }
        for row in &self.roster {
            if row.index.0 >= limits::HOSTS_MAX {
                return Err(DecodeError::invalid("index", row.index.to_string()));
            }
            if !row.locality.is_valid() {
                return Err(DecodeError::invalid("locality", row.locality.to_string()));
            }
        }
        self.jobs.iter().try_for_each(JobFlush::validate)
    }
}

impl JobFlush {
    fn validate(&self) -> Result<(), DecodeError> {
        if !is_content_name(&self.name) {
            return Err(DecodeError::invalid("name", format!("`{}`", self.name)));
        }
        if !is_version(&self.version) {
            return Err(DecodeError::invalid("version", format!("`{}`", self.version)));
        }
        let mut seen = Bitmap::default();
        for (at, set) in self.states.iter().enumerate() {
            if self.states[..at].iter().any(|other| other.state == set.state) {
                return Err(DecodeError::invalid("states", format!("`{}` twice", set.state)));
            }
            let before = seen.count();
            seen.grow(set.hosts.len());
            seen.union(&set.hosts);
            if seen.count() != before + set.hosts.count() {
                return Err(DecodeError::invalid("states", "a host in two states"));
            }
        }
        Ok(())
    }
}

/// The body of a tracker's request to the hub.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HubSubmission {
    /// The tracker's signed credential.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub credential: Vec<u8>,
    /// The signed [`HubFlush`]'s envelope.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub flush: Vec<u8>,
}
