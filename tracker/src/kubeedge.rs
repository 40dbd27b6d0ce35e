//! Hosts that show the certificate of a KubeEdge node, and the operator's list of their places.
//!
//! Invariant: the tracker checks one certificate per request, and reads the list only for a node that has proven its
//! name.

use serde::{Deserialize, Serialize};
use shoal_net::node_certificate::{CertificateError, NodeAuthority, Proof};
use shoal_proto::host_list::{LIST_BYTES_MAX, ListError, ListedHost, parse_hosts};
use shoal_proto::ids::{ClusterId, NodeId};
use shoal_proto::limits::CLOCK_SKEW_MAX_S;
use shoal_proto::trust::{Credential, Role};
use shoal_service::units::Span;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

/// How hosts of KubeEdge join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubeEdgeConfig {
    /// PEM file with the authority that signs nodes' client certificates, CloudCore's `rootCA.crt`.
    pub ca: PathBuf,
    /// CSV file `name,locality,labels,addresses`. `name` is the name of the node in Kubernetes. The tracker reads the
    /// file for each host, so a change needs no restart.
    pub nodes: PathBuf,
    /// Validity of the credentials. Default `30d`.
    #[serde(default = "a_month")]
    pub valid: Span,
}

fn a_month() -> Span {
    Span::seconds(30 * 86_400)
}

/// Why a node gets no credential.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("this tracker takes no node certificates: set `kubeedge` in its configuration, or name another tracker")]
    NotConfigured,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("cannot read the tracker's list of nodes {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the tracker's list of nodes {} cannot be parsed: correct the line", .path.display())]
    List { path: PathBuf, source: ListError },
    #[error("node {0} is not in the tracker's list of nodes: add a line with its locality there")]
    Unlisted(String),
}

/// The authority of the nodes, and the list of their places.
pub(crate) struct KubeEdge {
    config: KubeEdgeConfig,
    authority: NodeAuthority,
}

impl KubeEdge {
    /// Reads the authority's certificate.
    pub(crate) fn load(config: KubeEdgeConfig, tracker: NodeId) -> Result<Self, CertificateError> {
        let authority = NodeAuthority::load(&config.ca, tracker)?;
        Ok(Self { config, authority })
    }

    /// Returns what the credential of a host says that shows the certificate of a listed node.
    pub(crate) fn credential(
        &self,
        cluster: ClusterId,
        node: NodeId,
        proof: &Proof,
        now: u64,
    ) -> Result<Credential, NodeError> {
        let name = self.authority.check(proof, &node, now)?;
        let host = self.listed(&name)?;
        Ok(Credential {
            cluster,
            node,
            role: Role::Peer,
            locality: host.locality,
            not_before: now.saturating_sub(CLOCK_SKEW_MAX_S),
            not_after: now.saturating_add(self.config.valid.0.as_secs()),
            labels: host.labels,
            weight_max: Credential::WEIGHT_DEFAULT,
            addresses: host.addresses,
        })
    }

    fn listed(&self, name: &str) -> Result<ListedHost, NodeError> {
        let path = || self.config.nodes.clone();
        let mut text = String::new();
        let read = File::open(&self.config.nodes).and_then(|file| file.take(LIST_BYTES_MAX).read_to_string(&mut text));
        read.map_err(|source| NodeError::Read { path: path(), source })?;
        let hosts = parse_hosts(&text).map_err(|source| NodeError::List { path: path(), source })?;
        let listed = hosts.into_iter().find(|host| host.name == name);
        listed.ok_or_else(|| NodeError::Unlisted(name.to_string()))
    }
}
