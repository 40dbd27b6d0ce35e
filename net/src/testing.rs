//! A small cluster of keys and credentials for the tests of this crate.
//!
//! Invariant: everything here is derived from small numbers, so tests are repeatable.

use crate::admission::Admission;
use crate::identity::Identity;
use crate::links::{LinkConfig, LinkEndpoint, LinkEvent, LinkEvents};
use shoal_proto::codec::Document;
use shoal_proto::ids::{ContentId, NodeId};
use shoal_proto::limits;
use shoal_proto::locality::Locality;
use shoal_proto::trust::{Credential, Envelope, Keypair, Revocation, Role, Trust, TrustDocument, cluster_of};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The content of which nodes in tests expect shards.
pub(crate) const CONTENT: ContentId = ContentId([7; 32]);

/// The time in tests, Unix seconds.
pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) fn clock() -> u64 {
    NOW
}

/// Returns the key of node `number`. The order of node ids differs from the order of numbers.
pub(crate) fn keys(number: u8) -> Keypair {
    Keypair::from_seed([number; 32])
}

/// Returns the root key of cluster `number`.
pub(crate) fn root(number: u8) -> Keypair {
    Keypair::from_seed([200 + number; 32])
}

pub(crate) fn trust(cluster: u8, version: u64, revoked: Vec<NodeId>) -> Arc<Trust> {
    let root = root(cluster);
    let revoked = revoked.into_iter().map(|node| Revocation { node, until: u64::MAX }).collect();
    let document = TrustDocument { version, revoked, ..TrustDocument::first(root.node(), []) };
    Arc::new(Trust::open(&Envelope::seal(&document, &root).to_bytes(), None).unwrap())
}

pub(crate) fn credential(cluster: u8, node: NodeId, not_after: u64) -> Vec<u8> {
    let root = root(cluster);
    let locality: Locality = "cn/s1/r1/h1".parse().unwrap();
    let cluster = cluster_of(&root.node());
    let credential = Credential {
        cluster,
        node,
        role: Role::Peer,
        locality,
        not_before: NOW - 100,
        not_after,
        labels: Default::default(),
        weight_max: Credential::WEIGHT_DEFAULT,
        addresses: vec!["127.0.0.0/8".parse().unwrap()],
    };
    Envelope::seal(&credential, &root).to_bytes()
}

pub(crate) fn admission(node: NodeId) -> Admission {
    Admission::new(trust(0, 1, vec![]), credential(0, node, NOW + 100), clock)
}

pub(crate) fn config(number: u8) -> LinkConfig {
    let keys = keys(number);
    LinkConfig::new(vec![local()], Identity::new(&keys), admission(keys.node()))
}

pub(crate) fn local() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// An endpoint with its events.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) endpoint: LinkEndpoint,
    pub(crate) events: LinkEvents,
}

impl Node {
    pub(crate) async fn start(config: LinkConfig) -> Self {
        let id = config.identity.node();
        let (endpoint, events) = LinkEndpoint::bind(config).await.unwrap();
        Self { id, endpoint, events }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.endpoint.local_addrs()[0]
    }

    pub(crate) fn dial(&self, other: &Node) {
        self.endpoint.dial(other.id, vec![other.addr()]);
    }

    /// Returns the next event. A test that waits longer than 20 s has failed.
    pub(crate) async fn next(&mut self) -> LinkEvent {
        tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await.expect("an event in time").unwrap()
    }

    pub(crate) async fn expect_up(&mut self, other: NodeId) {
        match self.next().await {
            LinkEvent::LinkUp { node, .. } => {
                assert_eq!(node, other);
                self.endpoint.expect_shards(node, CONTENT, limits::PIECE_BYTES_MAX);
            }
            event => panic!("expected a link, not {event:?}"),
        }
    }
}

/// Returns two nodes without a link. The first has the smaller id.
pub(crate) async fn pair() -> (Node, Node) {
    let (a, b) = (Node::start(config(1)).await, Node::start(config(2)).await);
    if a.id < b.id { (a, b) } else { (b, a) }
}

/// Returns two nodes with a link.
pub(crate) async fn linked() -> (Node, Node) {
    let (mut a, mut b) = pair().await;
    a.dial(&b);
    let (a_id, b_id) = (a.id, b.id);
    tokio::join!(a.expect_up(b_id), b.expect_up(a_id));
    (a, b)
}
