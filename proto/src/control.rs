//! Requests and responses between a host and its tracker, on the libp2p control plane.
//!
//! Invariant: every request on a connection, except `Clock`, is refused until the tracker accepted a `Join` with a
//! valid credential.

use crate::announcement::{is_content_name, is_version};
use crate::bitmap::Bitmap;
use crate::codec::{DecodeError, DocKind, Document};
use crate::ids::{Epoch, HostIndex, JobId};
use crate::image::Reference;
use crate::limits;
use crate::membership::MembershipUpdate;
use crate::report::{HostReport, HostState, TierBytes};
use minicbor::bytes::ByteVec;
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
    /// Addresses for links. An unspecified address stands for the address that the tracker sees.
    #[n(1)]
    pub addrs: Vec<SocketAddr>,
    /// See [`crate::membership::Member::weight`].
    #[n(2)]
    pub weight: u16,
    /// See [`crate::membership::Member::uplink_mbit`].
    #[n(3)]
    pub uplink_mbit: u32,
    /// The membership epoch the host has on disk.
    #[n(4)]
    pub known: Option<Epoch>,
}

/// A request on the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Host to tracker: the first request of a connection.
    #[n(0)]
    Join(#[n(0)] Join),
    /// Host to tracker: every few seconds, and when a report changed.
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
        /// The version of the host's trust document.
        #[n(3)]
        trust: u64,
    },
    /// Seeder to tracker: a new job with its signed announcement.
    #[n(2)]
    OpenJob {
        /// The announcement's envelope.
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        envelope: Vec<u8>,
    },
    /// Seeder to tracker: the question for the progress of a job.
    #[n(3)]
    JobStatus {
        /// The job.
        #[n(0)]
        job: JobId,
    },
    /// Tracker to host: a change of membership.
    #[n(4)]
    Membership(#[n(0)] MembershipUpdate),
    /// Host to tracker: the host stops on purpose.
    #[n(5)]
    Leave,
    /// Seeder to tracker: the question for the states of all hosts in a job, by attempt.
    #[n(8)]
    HostStates {
        /// The job.
        #[n(0)]
        job: JobId,
    },
    /// Seeder to tracker: the question for the current versions of a name on all hosts.
    #[n(9)]
    Versions {
        /// The name.
        #[n(0)]
        name: String,
    },
    /// Both ways: a trust document that is newer than the receiver's.
    #[n(13)]
    Trust {
        /// The signed document.
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        document: Vec<u8>,
    },
    /// Seeder to tracker: the question for the hosts in whose place another host tried to join.
    #[n(20)]
    Duplicates,
    /// Host to tracker, forwarded to a seeder: a client requested an image that the host lacks. `Done` means that the
    /// seeder accepted the request.
    #[n(12)]
    WantImage {
        /// The full name of the image.
        #[n(0)]
        reference: String,
        /// The host that asked first. The tracker sets it.
        #[n(1)]
        host: Option<HostIndex>,
    },
    /// Anybody to tracker, also before a join: the question for the tracker's clock. `shoal doctor` compares clocks,
    /// because a host with a wrong clock cannot join.
    #[n(14)]
    Clock,
    /// Host to tracker, instead of `Join`: the request for a credential, from a host that has a join token.
    #[n(16)]
    Enrol {
        /// The envelope of the [`crate::trust::JoinToken`].
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        token: Vec<u8>,
        /// The envelope of the [`crate::trust::JoinClaim`].
        #[n(1)]
        #[cbor(with = "minicbor::bytes")]
        claim: Vec<u8>,
    },
    /// Host to tracker, after `Join`: the request for a credential with the same claims and a later end.
    #[n(17)]
    Renew,
    /// Host to tracker, instead of `Join`: the request for a credential, from a host that has a certificate of a node.
    #[n(18)]
    EnrolNode {
        /// When the host signed, Unix seconds.
        #[n(0)]
        at: u64,
        /// The certificate and intermediate ones, DER.
        #[n(1)]
        #[cbor(decode_with = "crate::codec::at_most::<{ limits::NODE_CERTIFICATES_MAX }, _, _>")]
        chain: Vec<ByteVec>,
        /// The form of the signature, a number of TLS.
        #[n(2)]
        scheme: u16,
        /// The signature of the certificate's key.
        #[n(3)]
        #[cbor(with = "minicbor::bytes")]
        signature: Vec<u8>,
    },
}

/// The current version of a name on a host.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CurrentVersion {
    /// The name.
    #[n(0)]
    pub name: String,
    /// The version, empty where the host has none.
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

/// The states of the hosts of a job. Each host is in at most one set. A host without a report is in no set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct JobStates {
    /// The sets, highest attempt first, at most [`limits::STATE_SETS_MAX`].
    #[n(0)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::STATE_SETS_MAX }, _, _>")]
    pub sets: Vec<AttemptSet>,
}

/// Hosts on one version of a name.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VersionSet {
    /// The version, empty where the hosts have none.
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
    /// To `Join`: the host is a member.
    #[n(0)]
    Joined {
        /// The host's place in the roster.
        #[n(0)]
        index: HostIndex,
        /// The changes of membership that the host lacks.
        #[n(1)]
        update: Option<MembershipUpdate>,
        /// The interval between beats, milliseconds.
        #[n(2)]
        beat_ms: u32,
        /// The tracker's own signed credential. The host believes nothing without a valid one.
        #[n(3)]
        #[cbor(with = "minicbor::bytes")]
        tracker: Vec<u8>,
    },
    /// To `Beat`: the reports are stored.
    #[n(1)]
    Heard {
        /// The changes of membership that the host lacks.
        #[n(0)]
        update: Option<MembershipUpdate>,
        /// The version of the tracker's trust document.
        #[n(1)]
        trust: u64,
    },
    /// To `JobStatus`.
    #[n(2)]
    Rollup(#[n(0)] JobRollup),
    /// To `OpenJob`, `Membership`, `Trust` and `Leave`.
    #[n(3)]
    Done,
    /// The tracker refuses the request.
    #[n(4)]
    Refused {
        /// The reason, for a person.
        #[n(0)]
        why: String,
    },
    /// To `HostStates`.
    #[n(8)]
    States(#[n(0)] JobStates),
    /// To `Enrol` and `EnrolNode`: the host may join. The host checks all three.
    #[n(16)]
    Enrolled {
        /// The host's signed credential.
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        credential: Vec<u8>,
        /// The cluster's trust document.
        #[n(1)]
        #[cbor(with = "minicbor::bytes")]
        trust: Vec<u8>,
        /// The tracker's own signed credential.
        #[n(2)]
        #[cbor(with = "minicbor::bytes")]
        tracker: Vec<u8>,
    },
    /// To `Renew`.
    #[n(17)]
    Renewed {
        /// The host's new signed credential.
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        credential: Vec<u8>,
    },
    /// To `Versions`: the versions with the most hosts, at most [`limits::VERSION_SETS_MAX`].
    #[n(9)]
    Versions {
        /// The versions.
        #[n(0)]
        #[cbor(decode_with = "crate::codec::at_most::<{ limits::VERSION_SETS_MAX }, _, _>")]
        sets: Vec<VersionSet>,
    },
    /// To `Duplicates`.
    #[n(20)]
    Duplicates {
        /// The hosts, by roster index.
        #[n(0)]
        #[cbor(decode_with = "crate::bitmap::decode_hosts")]
        hosts: Bitmap,
    },
    /// To `Clock`.
    #[n(10)]
    Clock {
        /// The tracker's clock, milliseconds since the Unix epoch.
        #[n(0)]
        unix_ms: u64,
    },
}

/// The reports of one rack on one job, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct RackRollup {
    /// `region/site/rack`.
    #[n(0)]
    pub rack: String,
    /// Hosts targeted.
    #[n(1)]
    pub hosts: u32,
    /// Hosts with every piece, active or not.
    #[n(2)]
    pub has: u32,
    /// Hosts on which the version is active.
    #[n(3)]
    pub active: u32,
    /// Hosts that failed. Hosts that returned to their former version are in `rolled_back` instead.
    #[n(4)]
    pub failed: u32,
    /// Hosts without a report: away since the job began.
    #[n(5)]
    pub away: u32,
    /// Verified pieces, added over the hosts.
    #[n(6)]
    pub pieces: u64,
    /// Payload bytes by tier, added over the hosts.
    #[n(7)]
    pub tiers: TierBytes,
    /// Hosts of `has` that have every piece and do nothing more: images without a container runtime.
    #[n(8)]
    #[cbor(default, skip_if = "is_zero")]
    #[serde(default)]
    pub stored: u32,
    /// Hosts that returned to their former version.
    #[n(9)]
    #[cbor(default, skip_if = "is_zero")]
    #[serde(default)]
    pub rolled_back: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A host that is failed, away or among the slowest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HostLine {
    /// The locality as text.
    #[n(0)]
    pub host: String,
    /// The state in the job.
    #[n(1)]
    pub state: HostState,
    /// Verified pieces.
    #[n(2)]
    pub pieces_have: u32,
    /// Whether the tracker has lost the host.
    #[n(3)]
    pub away: bool,
    /// The reason, for a person.
    #[n(4)]
    pub detail: String,
}

/// The state of a job at the tracker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct JobRollup {
    /// Racks in order of name.
    #[n(0)]
    pub racks: Vec<RackRollup>,
    /// Pieces of the content, 0 while no host has the manifest.
    #[n(1)]
    pub pieces_total: u32,
    /// Hosts that failed, are away, or are behind, at most [`limits::ROLLUP_LINES_MAX`]. Failed hosts come first.
    #[n(2)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::ROLLUP_LINES_MAX }, _, _>")]
    pub lines: Vec<HostLine>,
    /// Payload bytes that the job's seeder sent.
    #[n(3)]
    pub seeder_sent: u64,
}

fn within(bytes: &[u8], max: usize) -> Result<(), DecodeError> {
    if bytes.len() > max { Err(DecodeError::TooLong { len: bytes.len(), max }) } else { Ok(()) }
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
                Ok(())
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
            Self::Trust { document } if document.len() > limits::TRUST_BYTES_MAX => {
                Err(DecodeError::TooLong { len: document.len(), max: limits::TRUST_BYTES_MAX })
            }
            Self::OpenJob { envelope } if envelope.len() > limits::ANNOUNCEMENT_BYTES_MAX => {
                Err(DecodeError::TooLong { len: envelope.len(), max: limits::ANNOUNCEMENT_BYTES_MAX })
            }
            Self::WantImage { reference, .. } => match reference.parse::<Reference>() {
                Ok(name) if name.to_string() == *reference => Ok(()),
                _ => Err(DecodeError::invalid("reference", "not the full name of an image")),
            },
            Self::Enrol { token, claim } => {
                within(token, limits::JOIN_TOKEN_BYTES_MAX + limits::ENVELOPE_HEAD_BYTES_MAX)?;
                within(claim, limits::JOIN_CLAIM_BYTES_MAX + limits::ENVELOPE_HEAD_BYTES_MAX)
            }
            Self::EnrolNode { chain, signature, .. } => {
                within(signature, limits::NODE_SIGNATURE_BYTES_MAX)?;
                if chain.len() > limits::NODE_CERTIFICATES_MAX {
                    return Err(DecodeError::invalid("certificates", "too many"));
                }
                chain.iter().try_for_each(|one| within(one, limits::NODE_CERTIFICATE_BYTES_MAX))
            }
            Self::OpenJob { .. }
            | Self::Trust { .. }
            | Self::Renew
            | Self::JobStatus { .. }
            | Self::HostStates { .. }
            | Self::Versions { .. }
            | Self::Duplicates
            | Self::Clock
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
            Self::Joined { update, tracker, .. } => {
                within(tracker, limits::CREDENTIAL_BYTES_MAX)?;
                update.as_ref().map_or(Ok(()), MembershipUpdate::validate)
            }
            Self::Heard { update: Some(update), .. } => update.validate(),
            Self::Enrolled { credential, trust, tracker } => {
                within(credential, limits::CREDENTIAL_BYTES_MAX)?;
                within(trust, limits::TRUST_BYTES_MAX)?;
                within(tracker, limits::CREDENTIAL_BYTES_MAX)
            }
            Self::Renewed { credential } => within(credential, limits::CREDENTIAL_BYTES_MAX),
            _ => Ok(()),
        }
    }
}
