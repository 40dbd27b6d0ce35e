//! Reports: the state of a host in a job, and the flushes of a tracker to the hub.
//!
//! Invariant: the merge of reports is a maximum over (attempt, state). Order, repetition and resending do not change
//! the result.

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
    /// The content does not fit the quota or the disk.
    #[n(0)]
    NoSpace,
    /// The manifest is malformed, leaves its folder, or exceeds a limit.
    #[n(1)]
    BadManifest,
    /// The signer is not a trusted publisher.
    #[n(2)]
    Untrusted,
    /// The version is older than the active version of that name.
    #[n(3)]
    Stale,
    /// The host's disk failed a write or a switch.
    #[n(4)]
    Disk,
    /// A hook, a probe or a check of the switch failed.
    #[n(5)]
    Activation,
    /// A newer version of the name arrived first.
    #[n(6)]
    Superseded,
    /// The job was cancelled.
    #[n(7)]
    Cancelled,
    /// The job's lifetime ended before the job was complete on the host, by the host's clock.
    #[n(8)]
    Deadline,
    /// The host returned to its former version.
    #[n(9)]
    RolledBack,
    /// The probe failed after the switch.
    #[n(10)]
    Unhealthy,
    /// The content is in use on the host, so the host does not demote it.
    #[n(11)]
    InUse,
    /// The container runtime did not answer.
    #[n(16)]
    RuntimeAway,
    /// The container runtime could not pull or unpack the image.
    #[n(17)]
    PullFailed,
    /// The container runtime received bytes with another digest.
    #[n(18)]
    DigestMismatch,
    /// The container runtime did not finish in time.
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

/// The state of a host in a job. Within one attempt, a later state in this order replaces an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum HostState {
    /// No report yet, or still fetching.
    #[n(0)]
    Unknown,
    /// Every piece is verified and durable.
    #[n(1)]
    Has,
    /// Every piece is there, and the host does nothing more: an image where no container runtime is configured.
    #[n(4)]
    Stored,
    /// The host failed in this attempt.
    #[n(2)]
    Failed(#[n(0)] Reason),
    /// The version is active. An image is prewarmed.
    #[n(3)]
    Active,
}

impl HostState {
    /// Whether every piece is there.
    pub fn has_all(self) -> bool {
        matches!(self, Self::Has | Self::Stored | Self::Active)
    }

    /// Whether the host failed. A host that only returned to its former version did not.
    pub fn has_failed(self) -> bool {
        matches!(self, Self::Failed(_)) && !self.is_rolled_back()
    }

    /// Whether the host returned to its former version.
    pub fn is_rolled_back(self) -> bool {
        self == Self::Failed(Reason::RolledBack)
    }

    /// Whether the state cannot change any more in this attempt.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stored | Self::Failed(_) | Self::Active)
    }
}

impl fmt::Display for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("fetching"),
            Self::Has => f.write_str("has"),
            Self::Stored => f.write_str("stored"),
            // The host did what it was told.
            Self::Failed(Reason::RolledBack) => f.write_str("rolled-back"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
            Self::Active => f.write_str("active"),
        }
    }
}

/// Payload bytes by tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct TierBytes {
    /// Copied from contents that the host had.
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
    /// Returns the bytes that crossed the rack's uplink.
    pub fn imported(&self) -> u64 {
        self.site.saturating_add(self.region).saturating_add(self.seeder)
    }

    /// Returns the sum of all tiers.
    pub fn total(&self) -> u64 {
        self.local.saturating_add(self.rack).saturating_add(self.imported())
    }

    /// Returns the most payload that one host can move in a job of this size, with parity, copies that came twice and
    /// repeated attempts. The least is one shard, because a small content is one.
    pub fn most_of(size: u64) -> u64 {
        size.saturating_add(u64::from(limits::PIECE_BYTES_MAX)).saturating_mul(limits::REPORTED_COPIES_MAX)
    }

    /// Returns the counts with no tier over `most`.
    #[must_use]
    pub fn capped(&self, most: u64) -> Self {
        Self {
            local: self.local.min(most),
            rack: self.rack.min(most),
            site: self.site.min(most),
            region: self.region.min(most),
            seeder: self.seeder.min(most),
        }
    }

    /// Adds another count. A host may claim any number, so the sums saturate.
    pub fn add(&mut self, other: &Self) {
        self.local = self.local.saturating_add(other.local);
        self.rack = self.rack.saturating_add(other.rack);
        self.site = self.site.saturating_add(other.site);
        self.region = self.region.saturating_add(other.region);
        self.seeder = self.seeder.saturating_add(other.seeder);
    }
}

/// The report of a host on one job: its state and its progress.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HostReport {
    /// The job.
    #[n(0)]
    pub job: JobId,
    /// Grows when a failed job is retried.
    #[n(1)]
    pub attempt: u16,
    /// The state in this attempt.
    #[n(2)]
    pub state: HostState,
    /// The reason, for a person. Empty without a fault.
    #[n(3)]
    pub detail: String,
    /// Verified pieces.
    #[n(4)]
    pub pieces_have: u32,
    /// All pieces, 0 while the host has no manifest.
    #[n(5)]
    pub pieces_total: u32,
    /// Payload bytes by tier.
    #[n(6)]
    pub tiers: TierBytes,
    /// Payload bytes sent to others for this content.
    #[n(7)]
    pub sent: u64,
}

impl HostReport {
    /// Checks the bounds.
    ///
    /// # Errors
    ///
    /// [`DecodeError::TooLong`] for the detail, [`DecodeError::Invalid`] for a number of pieces over the limit.
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
    /// Time of the signature, Unix seconds.
    #[n(6)]
    pub created_at: u64,
    /// The selected hosts, by roster index.
    #[n(7)]
    #[cbor(decode_with = "crate::bitmap::decode_hosts")]
    pub targets: Bitmap,
    /// Hosts by state, each state and each host at most once, at most [`limits::FLUSH_STATES_MAX`] sets. A host in no
    /// set is `Unknown`.
    #[n(8)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::FLUSH_STATES_MAX }, _, _>")]
    pub states: Vec<StateSet>,
    /// Payload bytes by tier, added over all hosts.
    #[n(9)]
    pub tiers: TierBytes,
}

/// A row of the roster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RosterRow {
    /// The index.
    #[n(0)]
    pub index: HostIndex,
    /// The host.
    #[n(1)]
    pub locality: Locality,
}

/// A flush from a tracker to the hub. It travels in a [`crate::trust::Envelope`] signed with the node key of the
/// tracker.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HubFlush {
    /// The tracker.
    #[n(0)]
    pub tracker: NodeId,
    /// Its region.
    #[n(1)]
    pub region: String,
    /// Grows by one with each flush of this tracker. The hub accepts each sequence once.
    #[n(2)]
    pub sequence: u64,
    /// The membership epoch of the indices. Indices are never reused, so older rows stay valid.
    #[n(3)]
    pub epoch: Epoch,
    /// Roster rows that the hub lacks, at most [`limits::FLUSH_ROSTER_MAX`].
    #[n(4)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::FLUSH_ROSTER_MAX }, _, _>")]
    pub roster: Vec<RosterRow>,
    /// Changed jobs, at most [`limits::FLUSH_JOBS_MAX`].
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

/// The body of a request from a tracker to the hub.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_only_went_back_has_not_failed() {
        let (back, failed) = (HostState::Failed(Reason::RolledBack), HostState::Failed(Reason::Activation));
        assert!(back.is_rolled_back() && !back.has_failed() && back.is_final());
        assert!(failed.has_failed() && !failed.is_rolled_back());
        assert_eq!((back.to_string(), failed.to_string()), ("rolled-back".into(), "failed: activation".into()));
        assert!(!HostState::Active.has_failed() && !HostState::Active.is_rolled_back());
    }
}
