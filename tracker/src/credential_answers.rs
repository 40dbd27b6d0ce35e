//! Answers to requests for credentials: first ones, renewals, and the renewals of the tracker's and the hub's own.
//!
//! Invariant: every refusal says why, and the log has at most [`LOGGED`] lines per second about credentials.

use crate::issuing::{Asked, IssueError, Issuing};
use crate::kubeedge::{KubeEdge, NodeError};
use shoal_net::admission::Admission;
use shoal_net::log_limit::LogLimit;
use shoal_net::node_certificate::Proof;
use shoal_proto::codec::Document;
use shoal_proto::control::Response;
use shoal_proto::ids::NodeId;
use shoal_proto::locality::Locality;
use shoal_proto::trust::{Credential, Envelope, Role, TrustError};
use shoal_swarm::membership::Membership;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

/// Log lines per second about credentials. Strangers can cause them.
const LOGGED: u32 = 5;

/// The issuer of the tracker, and who may ask it.
pub(crate) struct CredentialAnswers {
    issuing: Issuing,
    kubeedge: Option<KubeEdge>,
    region: String,
    admission: Admission,
    log: LogLimit,
}

impl CredentialAnswers {
    pub(crate) fn new(issuing: Issuing, kubeedge: Option<KubeEdge>, region: String, admission: Admission) -> Self {
        Self { issuing, kubeedge, region, admission, log: LogLimit::new(LOGGED, Duration::from_secs(1)) }
    }

    /// Answers a host that has a join token. `members` are the hosts of the roster.
    pub(crate) fn enrol(
        &mut self,
        members: &Membership,
        from: NodeId,
        remote: SocketAddr,
        token: &[u8],
        claim: &[u8],
    ) -> Response {
        let trust = self.admission.trust();
        let asked = Asked { trust: &trust, region: &self.region, node: from, now: self.admission.now() };
        let issued = self.issuing.enrol(&asked, token, claim, |locality| occupant(members, locality));
        self.answer(from, remote, "a join token", issued)
    }

    /// Answers a host that has the certificate of a Kubernetes node.
    pub(crate) fn enrol_node(
        &mut self,
        members: &Membership,
        from: NodeId,
        remote: SocketAddr,
        proof: &Proof,
    ) -> Response {
        let (trust, now) = (self.admission.trust(), self.admission.now());
        let asked = Asked { trust: &trust, region: &self.region, node: from, now };
        let proven = self.kubeedge.as_ref().ok_or(NodeError::NotConfigured);
        let proven = proven.and_then(|nodes| nodes.credential(trust.cluster(), from, proof, now));
        let issued = proven.map_err(IssueError::from).and_then(|credential| {
            self.issuing.enrol_listed(&asked, &credential, |locality| occupant(members, locality))
        });
        self.answer(from, remote, "the certificate of a Kubernetes node", issued)
    }

    fn answer(&self, to: NodeId, remote: SocketAddr, shown: &str, issued: Result<Vec<u8>, IssueError>) -> Response {
        match issued {
            Ok(credential) => {
                if let Some(skipped) = self.log.pass() {
                    tracing::info!(node = %to.short(), %remote, shown, skipped, "issued a credential");
                }
                let (trust, tracker) = (self.admission.trust().bytes().to_vec(), self.admission.credential().to_vec());
                Response::Enrolled { credential, trust, tracker }
            }
            Err(error) => self.refuse(to, &error),
        }
    }

    /// Returns the answer to a request that is refused.
    pub(crate) fn refuse(&self, from: NodeId, error: &IssueError) -> Response {
        if let IssueError::Database(error) = error {
            tracing::error!(error = error as &dyn Error, "cannot write who has which credential");
        }
        let why = match error.source() {
            Some(source) if !matches!(error, IssueError::Database(_)) => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        if let Some(skipped) = self.log.pass() {
            tracing::info!(node = %from.short(), %why, skipped, "issued no credential");
        }
        Response::Refused { why }
    }

    /// Whether this tracker has the key of an issuer.
    pub(crate) fn is_issuer(&self) -> bool {
        self.issuing.has_key()
    }

    /// Issues a credential with the claims of a node's former one and a later end.
    pub(crate) fn renew(&self, former: &[u8], node: NodeId) -> Result<Vec<u8>, IssueError> {
        let admitted = self.admission.admit(former, node).map_err(IssueError::NotAdmitted)?;
        self.issuing.renew(&self.admission.trust(), &admitted, self.admission.now())
    }

    /// Issues a new credential for this tracker, whose key is `node`.
    pub(crate) fn renew_own(&self, node: NodeId) -> Result<Vec<u8>, IssueError> {
        self.renew(&self.admission.credential(), node)
    }

    /// Issues a new credential for a hub, from its former one. Returns `None` while more than a third of the former
    /// one's validity is left.
    ///
    /// Who sends the former one does not matter. The new one is of use only with the hub's key.
    pub(crate) fn renew_hub(&self, former: &[u8]) -> Result<Option<Vec<u8>>, IssueError> {
        let claimed = Envelope::from_bytes(former).map_err(TrustError::from);
        let claimed = claimed.and_then(|envelope| envelope.open::<Credential>());
        let node = claimed.map_err(IssueError::NotAdmitted)?.node;
        let hub = self.admission.admit(former, node).map_err(IssueError::NotAdmitted)?;
        if hub.role != Role::Hub {
            return Err(IssueError::NotAdmitted(TrustError::WrongRole(hub.role)));
        }
        let now = self.admission.now();
        if hub.not_after.saturating_sub(now) > hub.not_after.saturating_sub(hub.not_before) / 3 {
            return Ok(None);
        }
        self.issuing.renew(&self.admission.trust(), &hub, now).map(Some)
    }
}

/// Returns the key of the host that the roster has at a locality.
fn occupant(members: &Membership, locality: &Locality) -> Option<NodeId> {
    members.iter().find(|row| row.locality == *locality).map(|row| row.node)
}
