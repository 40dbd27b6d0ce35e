//! A host's way to its first credential: a join token, exchanged at a tracker.
//!
//! Invariant: the host believes an answer only from a tracker of the token's cluster. Its key never leaves it, and
//! neither does the token's secret.

use crate::admission::UnixClock;
use crate::control::{ConnectError, ControlHandle, RequestError};
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Credential, JoinClaim, JoinToken, Role, TokenSecret, Trust, TrustError};
use std::net::SocketAddr;

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The text is not a valid token.
    #[error("the token cannot be read")]
    Token(#[source] TrustError),
    /// No connection to the tracker.
    #[error("cannot connect to the tracker")]
    Connect(#[from] ConnectError),
    /// The tracker did not answer.
    #[error("the request to the tracker failed")]
    Request(#[from] RequestError),
    /// The tracker refuses.
    #[error("the tracker refuses: {0}")]
    Refused(String),
    /// The tracker speaks another version of the protocol.
    #[error("the tracker sent another answer than expected: is it of the same release?")]
    Unexpected,
    /// The trust document is of another cluster, or invalid.
    #[error("the answer is not from the token's cluster: check the address of the tracker")]
    Cluster(#[source] TrustError),
    /// The trust document is older than the token.
    #[error(
        "the tracker has trust document version {found}, the token was made with version {known}: update the tracker's"
    )]
    OldTrust {
        /// The version that the tracker sent.
        found: u64,
        /// The version when the token was made.
        known: u64,
    },
    /// The other end is no tracker of the cluster.
    #[error("the other end is no tracker of the cluster: check the address of the tracker")]
    NoTracker(#[source] TrustError),
    /// The credential is not the one that the token stands for.
    #[error("the tracker sent an unusable credential")]
    Credential(#[source] TrustError),
    /// The credential says something else than the token.
    #[error("the tracker sent a credential that says something else than the token")]
    OtherClaims,
}

/// What a host gets for a token.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// The credential, as it stands in `node.cred`.
    pub credential_bytes: Vec<u8>,
    /// What the credential says.
    pub credential: Credential,
    /// The trust document.
    pub trust: Trust,
}

/// Exchanges a token at the tracker at `addr`. `control` must have the host's key, which is `node`.
///
/// # Errors
///
/// [`EnrolError`] if the tracker refuses, cannot prove that it is a tracker of the token's cluster, or sends something
/// else than the token says.
pub async fn enrol(
    control: &ControlHandle,
    addr: SocketAddr,
    node: NodeId,
    token: &TokenSecret,
    name: Option<String>,
    clock: UnixClock,
) -> Result<Enrolment, EnrolError> {
    let document = token.document().map_err(EnrolError::Token)?;
    let tracker = control.connect(addr, None).await?;
    let claim = token.claim(&JoinClaim { cluster: document.cluster, node, name });
    let request = Request::Enrol { token: shoal_proto::codec::Document::to_bytes(token.envelope()), claim };
    let answer = control.request(tracker, request).await;
    control.disconnect(tracker);
    match answer? {
        Response::Enrolled { credential, trust, tracker: proof } => {
            let enrolment = check(&document, node, tracker, credential, &trust, &proof, clock())?;
            Ok(enrolment)
        }
        Response::Refused { why } => Err(EnrolError::Refused(why)),
        _ => Err(EnrolError::Unexpected),
    }
}

/// Checks the three documents of an answer.
fn check(
    token: &JoinToken,
    node: NodeId,
    tracker: NodeId,
    credential_bytes: Vec<u8>,
    trust: &[u8],
    proof: &[u8],
    now: u64,
) -> Result<Enrolment, EnrolError> {
    let trust = Trust::open(trust, Some(token.cluster)).map_err(EnrolError::Cluster)?;
    if trust.version() < token.trust_version {
        return Err(EnrolError::OldTrust { found: trust.version(), known: token.trust_version });
    }
    let proof = trust.admit(proof, tracker, now).map_err(EnrolError::NoTracker)?;
    if proof.role != Role::Tracker {
        return Err(EnrolError::NoTracker(TrustError::WrongRole(proof.role)));
    }
    let credential = (*trust.admit(&credential_bytes, node, now).map_err(EnrolError::Credential)?).clone();
    let expected = token.credential(node, credential.locality.clone(), now);
    let times = |credential: &Credential| Credential { not_before: 0, not_after: 0, ..credential.clone() };
    let at = token.locality_of(Some(&credential.locality.host), &node);
    if times(&credential) != times(&expected) || at.ok().as_ref() != Some(&credential.locality) {
        return Err(EnrolError::OtherClaims);
    }
    Ok(Enrolment { credential_bytes, credential, trust })
}
