//! A host's way to its first credential: a join token or a node's certificate, exchanged at a tracker.
//!
//! Invariant: the host believes an answer only from a tracker of the token's cluster. Its key never leaves it, and
//! neither does the token's secret.

use crate::admission::UnixClock;
use crate::control::{ConnectError, ControlHandle, RequestError};
use crate::node_certificate::{CertificateError, NodeCertificate, Proof};
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::{ClusterId, NodeId};
use shoal_proto::trust::{Credential, JoinClaim, JoinToken, Role, TokenSecret, Trust, TrustError};
use std::net::SocketAddr;

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The text is not a valid token.
    #[error("the token cannot be read")]
    Token(#[source] TrustError),
    /// The node's certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
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
    #[error("the tracker sent another answer than expected: install the same release on both machines")]
    Unexpected,
    /// The trust document is of another cluster, or invalid.
    #[error("the answer is not from the expected cluster: check the address of the tracker and the cluster's id")]
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
    /// The other end is not a tracker of the cluster.
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
    let enrolment = read(answer?, document.cluster, node, tracker, clock())?;
    check_token(&document, &enrolment, clock())?;
    Ok(enrolment)
}

/// Exchanges a node's certificate at the tracker at `addr`, which must be of `cluster`. `control` must have the host's
/// key, which is `node`. `trust_version` is the least version of the trust document that the host accepts.
///
/// # Errors
///
/// [`EnrolError`] if the tracker refuses or cannot prove that it is a tracker of the cluster.
pub async fn enrol_node(
    control: &ControlHandle,
    addr: SocketAddr,
    node: NodeId,
    certificate: &NodeCertificate,
    cluster: ClusterId,
    trust_version: u64,
    clock: UnixClock,
) -> Result<Enrolment, EnrolError> {
    let tracker = control.connect(addr, None).await?;
    let Proof { at, chain, scheme, signature } = certificate.prove(&tracker, &node, clock())?;
    let chain = chain.into_iter().map(Into::into).collect();
    let answer = control.request(tracker, Request::EnrolNode { at, chain, scheme, signature }).await;
    control.disconnect(tracker);
    let enrolment = read(answer?, cluster, node, tracker, clock())?;
    check_version(&enrolment.trust, trust_version)?;
    Ok(enrolment)
}

/// Refuses a trust document that is older than one that the host or its operator knows.
fn check_version(trust: &Trust, known: u64) -> Result<(), EnrolError> {
    let found = trust.version();
    if found < known { Err(EnrolError::OldTrust { found, known }) } else { Ok(()) }
}

/// Reads an answer and checks its three documents.
fn read(
    answer: Response,
    cluster: ClusterId,
    node: NodeId,
    tracker: NodeId,
    now: u64,
) -> Result<Enrolment, EnrolError> {
    let (credential_bytes, trust, proof) = match answer {
        Response::Enrolled { credential, trust, tracker } => (credential, trust, tracker),
        Response::Refused { why } => return Err(EnrolError::Refused(why)),
        _ => return Err(EnrolError::Unexpected),
    };
    let trust = Trust::open(&trust, Some(cluster)).map_err(EnrolError::Cluster)?;
    let proof = trust.admit(&proof, tracker, now).map_err(EnrolError::NoTracker)?;
    if proof.role != Role::Tracker {
        return Err(EnrolError::NoTracker(TrustError::WrongRole(proof.role)));
    }
    let credential = (*trust.admit(&credential_bytes, node, now).map_err(EnrolError::Credential)?).clone();
    Ok(Enrolment { credential_bytes, credential, trust })
}

/// Checks that an answer says what the token stands for.
fn check_token(token: &JoinToken, enrolment: &Enrolment, now: u64) -> Result<(), EnrolError> {
    let Enrolment { credential, trust, .. } = enrolment;
    check_version(trust, token.trust_version)?;
    let expected = token.credential(credential.node, credential.locality.clone(), now);
    let times = |credential: &Credential| Credential { not_before: 0, not_after: 0, ..credential.clone() };
    let at = token.locality_of(Some(&credential.locality.host), &credential.node);
    if times(credential) != times(&expected) || at.ok().as_ref() != Some(&credential.locality) {
        return Err(EnrolError::OtherClaims);
    }
    Ok(())
}
