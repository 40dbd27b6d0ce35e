//! What a host and its tracker tell each other, over the libp2p control plane.
//!
//! Invariant: until a `Join` with a valid credential was accepted on a connection, every other request on it is refused.

use crate::announcement::{is_content_name, is_version};
use crate::bitmap::Bitmap;
use crate::codec::{DecodeError, DocKind, Document};
use crate::ids::{Epoch, HostIndex, JobId};
use crate::image::Reference;
use crate::limits;
use crate::locality::{Labels, validate_labels};
use crate::membership::MembershipUpdate;
use crate::report::{HostReport, HostState, TierBytes};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A host's first request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Join {
    /// The host's signed credential.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub credential: Vec<u8>,
    /// Where it listens for bulk links. An unspecified address means "the address you see me from".
    #[n(1)]
    pub addrs: Vec<SocketAddr>,
    /// What its operator calls it.
    #[n(2)]
    pub labels: Labels,
    /// See [`crate::membership::Member::weight`].
    #[n(3)]
    pub weight: u16,
    /// See [`crate::membership::Member::uplink_mbit`].
    #[n(4)]
    pub uplink_mbit: u32,
    /// The membership epoch the host has on disk.
    #[n(5)]
    pub known: Option<Epoch>,
}

/// A request on the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Host to tracker: let me in.
    #[n(0)]
    Join(#[n(0)] Join),
    /// Host to tracker, every few seconds and when there is something to say.
    #[n(1)]
    Beat {
        /// The membership epoch the host has.
        #[n(0)]
        known: Epoch,
        /// Jobs whose state or progress changed; at most [`limits::BEAT_ROWS_MAX`].
        #[n(1)]
        #[cbor(decode_with = "crate::codec::at_most::<{ limits::BEAT_ROWS_MAX }, _, _>")]
        reports: Vec<HostReport>,
        /// Names whose current version changed; at most [`limits::BEAT_ROWS_MAX`].
        #[n(2)]
        #[cbor(default, skip_if = "Vec::is_empty")]
        #[cbor(decode_with = "crate::codec::at_most::<{ limits::BEAT_ROWS_MAX }, _, _>")]
        versions: Vec<CurrentVersion>,
    },
    /// Seeder to tracker: this job is open; here is its signed announcement.
    #[n(2)]
    OpenJob {
        /// The announcement's envelope.
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        envelope: Vec<u8>,
    },
    /// Seeder to tracker: how far is this job?
    #[n(3)]
    JobStatus {
        /// The job.
        #[n(0)]
        job: JobId,
    },
    /// Tracker to host: membership changed.
    #[n(4)]
    Membership(#[n(0)] MembershipUpdate),
    /// Host to tracker: I am going down on purpose.
    #[n(5)]
    Leave,
    /// Seeder to tracker: which hosts are in which state of this job, by attempt?
    #[n(8)]
    HostStates {
        /// The job.
        #[n(0)]
        job: JobId,
    },
    /// Seeder to tracker: which hosts are on which version of this name?
    #[n(9)]
    Versions {
        /// The name.
        #[n(0)]
        name: String,
    },
    /// Host to tracker, and from there to a seeder: an image was asked for here and is not here. `Done` means that it may come.
    #[n(12)]
    WantImage {
        /// Its name, written out in full.
        #[n(0)]
        reference: String,
        /// Who asked first; the tracker fills it in.
        #[n(1)]
        host: Option<HostIndex>,
    },
}

/// The version of a name that is switched in on a host.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CurrentVersion {
    /// The name.
    #[n(0)]
    pub name: String,
    /// The version; empty when none is.
    #[n(1)]
    pub version: String,
}

impl CurrentVersion {
    fn validate(&self) -> Result<(), DecodeError> {
        if !is_content_name(&self.name) {
            return Err(DecodeError::invalid("name", format!("`{}`", self.name)));
        }
        if !self.version.is_empty() && !is_version(&self.version) {
            return Err(DecodeError::invalid("version", format!("`{}`", self.version)));
        }
        Ok(())
    }
}

/// Hosts of a job in one state of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AttemptSet {
    /// The attempt.
    #[n(0)]
    pub attempt: u16,
    /// The state.
    #[n(1)]
    pub state: HostState,
    /// The hosts, by roster index.
    #[n(2)]
    #[cbor(decode_with = "crate::bitmap::decode_hosts")]
    pub hosts: Bitmap,
}

/// Which hosts of a job are in which state. Each host is in one set at most; those of which nothing was heard are in none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct JobStates {
    /// The sets, highest attempt first; at most [`limits::STATE_SETS_MAX`].
    #[n(0)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::STATE_SETS_MAX }, _, _>")]
    pub sets: Vec<AttemptSet>,
}

/// Hosts on one version of a name.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VersionSet {
    /// The version; empty when the host has none switched in.
    #[n(0)]
    pub version: String,
    /// The hosts, by roster index.
    #[n(1)]
    #[cbor(decode_with = "crate::bitmap::decode_hosts")]
    pub hosts: Bitmap,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Response {
    /// To `Join`: welcome.
    #[n(0)]
    Joined {
        /// The host's place in the roster.
        #[n(0)]
        index: HostIndex,
        /// What the host does not know yet of the membership.
        #[n(1)]
        update: Option<MembershipUpdate>,
        /// How often to beat, milliseconds.
        #[n(2)]
        beat_ms: u32,
    },
    /// To `Beat`: heard, and here is what you missed.
    #[n(1)]
    Heard {
        /// What the host does not know yet of the membership.
        #[n(0)]
        update: Option<MembershipUpdate>,
    },
    /// To `JobStatus`.
    #[n(2)]
    Rollup(#[n(0)] JobRollup),
    /// To `OpenJob`, `Membership` and `Leave`.
    #[n(3)]
    Done,
    /// No, and why, in words for a person.
    #[n(4)]
    Refused {
        /// What is wrong.
        #[n(0)]
        why: String,
    },
    /// To `HostStates`.
    #[n(8)]
    States(#[n(0)] JobStates),
    /// To `Versions`: the versions most hosts are on; at most [`limits::VERSION_SETS_MAX`].
    #[n(9)]
    Versions {
        /// The versions.
        #[n(0)]
        #[cbor(decode_with = "crate::codec::at_most::<{ limits::VERSION_SETS_MAX }, _, _>")]
        sets: Vec<VersionSet>,
    },
}

/// A job folded per rack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct RackRollup {
    /// `region/site/rack`.
    #[n(0)]
    pub rack: String,
    /// Hosts targeted.
    #[n(1)]
    pub hosts: u32,
    /// Hosts that hold every piece, active or not.
    #[n(2)]
    pub has: u32,
    /// Hosts that switched it in.
    #[n(3)]
    pub active: u32,
    /// Hosts that failed.
    #[n(4)]
    pub failed: u32,
    /// Hosts not heard of: away since the job began.
    #[n(5)]
    pub away: u32,
    /// Pieces verified, over its hosts.
    #[n(6)]
    pub pieces: u64,
    /// Payload bytes by source, over its hosts.
    #[n(7)]
    pub tiers: TierBytes,
    /// Hosts that hold every piece and will do no more, of those in `has`.
    #[n(8)]
    #[cbor(default, skip_if = "is_zero")]
    #[serde(default)]
    pub stored: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A host worth a line of its own: failed, away or slowest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HostLine {
    /// Its locality, printed.
    #[n(0)]
    pub host: String,
    /// How far it is.
    #[n(1)]
    pub state: HostState,
    /// Pieces verified.
    #[n(2)]
    pub pieces_have: u32,
    /// Whether the tracker sees it.
    #[n(3)]
    pub away: bool,
    /// Why, in words.
    #[n(4)]
    pub detail: String,
}

/// A job as the tracker sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct JobRollup {
    /// Racks in order of name.
    #[n(0)]
    pub racks: Vec<RackRollup>,
    /// Pieces of the content; 0 while no host knows the manifest.
    #[n(1)]
    pub pieces_total: u32,
    /// Hosts that failed, are away, or are behind; at most [`limits::ROLLUP_LINES_MAX`], failed first.
    #[n(2)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::ROLLUP_LINES_MAX }, _, _>")]
    pub lines: Vec<HostLine>,
    /// Payload bytes that the job's seeder sent.
    #[n(3)]
    pub seeder_sent: u64,
}

impl Document for Request {
    const KIND: DocKind = DocKind::Control;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::CONTROL_PLANE_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        match self {
            Self::Join(join) => {
                if join.addrs.len() > limits::ADDRS_MAX {
                    return Err(DecodeError::invalid("addrs", "too many"));
                }
                validate_labels(&join.labels)
            }
            Self::Beat { reports, versions, .. } => {
                let len = reports.len().max(versions.len());
                if len > limits::BEAT_ROWS_MAX {
                    return Err(DecodeError::TooLong { len, max: limits::BEAT_ROWS_MAX });
                }
                versions.iter().try_for_each(CurrentVersion::validate)?;
                reports.iter().try_for_each(HostReport::validate)
            }
            Self::Versions { name } if !is_content_name(name) => Err(DecodeError::invalid("name", format!("`{name}`"))),
            Self::Membership(update) => update.validate(),
            Self::OpenJob { envelope } if envelope.len() > limits::ANNOUNCEMENT_BYTES_MAX => {
                Err(DecodeError::TooLong { len: envelope.len(), max: limits::ANNOUNCEMENT_BYTES_MAX })
            }
            Self::WantImage { reference, .. } => match reference.parse::<Reference>() {
                Ok(name) if name.to_string() == *reference => Ok(()),
                _ => Err(DecodeError::invalid("reference", "no image's full name")),
            },
            Self::OpenJob { .. }
            | Self::JobStatus { .. }
            | Self::HostStates { .. }
            | Self::Versions { .. }
            | Self::Leave => Ok(()),
        }
    }
}

impl Document for Response {
    const KIND: DocKind = DocKind::Control;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::CONTROL_PLANE_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        match self {
            Self::Joined { update: Some(update), .. } | Self::Heard { update: Some(update) } => update.validate(),
            _ => Ok(()),
        }
    }
}
