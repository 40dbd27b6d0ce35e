//! How trust documents travel between endpoints.

use super::*;
use crate::testing::{Node, config, keys, trust};
use shoal_proto::ids::NodeId;

/// Links each node to the next one.
async fn chain(count: u8) -> Vec<Node> {
    let mut nodes = Vec::new();
    for number in 1..=count {
        nodes.push(Node::start(config(number)).await);
    }
    for at in 1..nodes.len() {
        let (before, from) = nodes.split_at_mut(at);
        let (left, right) = (&mut before[at - 1], &mut from[0]);
        left.dial(right);
        let (left_id, right_id) = (left.id, right.id);
        tokio::join!(left.expect_up(right_id), right.expect_up(left_id));
    }
    nodes
}

/// Waits until the node has the trust document of this version.
async fn until_version(node: &Node, version: u64) {
    let mut changes = node.endpoint.context.config().admission.changes();
    let reached = changes.wait_for(|trust| trust.version() >= version);
    let reached = tokio::time::timeout(Duration::from_secs(20), reached).await.expect("the document in time");
    assert_eq!(reached.unwrap().version(), version);
}

fn offer(node: &Node, version: u64, revoked: Vec<NodeId>) {
    node.endpoint.context.config().admission.offer(trust(0, version, revoked).bytes()).unwrap();
}

#[tokio::test]
async fn a_document_reaches_every_host_and_ends_the_links_of_a_revoked_one() {
    let mut nodes = chain(4).await;
    let revoked = nodes[3].id;
    offer(&nodes[0], 7, vec![revoked]);
    for node in &nodes[..3] {
        until_version(node, 7).await;
    }
    match nodes[3].next().await {
        LinkEvent::LinkDown { reason: Some(CloseReason::NotAdmitted), .. } => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_host_that_was_away_gets_the_document_with_its_first_link() {
    let nodes = chain(2).await;
    offer(&nodes[0], 3, vec![]);
    until_version(&nodes[1], 3).await;
    let mut late = Node::start(config(9)).await;
    late.dial(&nodes[1]);
    late.expect_up(nodes[1].id).await;
    until_version(&late, 3).await;
    // The other direction: the one that dials has the newer document.
    let mut newest = Node::start(config(8)).await;
    offer(&newest, 5, vec![]);
    newest.dial(&late);
    newest.expect_up(late.id).await;
    for node in [&late, &nodes[1], &nodes[0]] {
        until_version(node, 5).await;
    }
}

#[tokio::test]
async fn invalid_and_useless_documents_end_the_link() {
    for (document, count) in [(trust(1, 9, vec![]), 1), (trust(0, 1, vec![keys(5).node()]), 40)] {
        let (a, mut b) = linked().await;
        let link = a.endpoint.context.registry().link(&b.id).unwrap();
        for _ in 0..count {
            link.queue().push_trust(Bytes::copy_from_slice(document.bytes())).unwrap();
        }
        match b.next().await {
            LinkEvent::LinkDown { error: Some(error), .. } => assert!(error.to_string().contains("trust document")),
            other => panic!("{other:?}"),
        }
        assert_eq!(b.endpoint.context.config().admission.trust().version(), 1);
    }
}
