//! Which hosts are admitted, and what refused hosts learn.

use super::*;
use crate::admission::Admission;
use crate::testing::{NOW, clock, credential, keys, trust};

/// Dials between a node with the given admission and a good one, in both directions. Neither may get a link.
async fn refused_both_ways(bad: impl Fn(u8) -> Admission, why: &str) {
    // In both orders of ids, because the greater id sends its `Hello` first.
    for (bad_number, good_number) in [(1, 2), (2, 1)] {
        for bad_dials in [true, false] {
            let mut bad_config = config(bad_number);
            bad_config.admission = bad(bad_number);
            let (mut bad_node, mut good_node) = (Node::start(bad_config).await, Node::start(config(good_number)).await);
            let (dialler, other) =
                if bad_dials { (&mut bad_node, &mut good_node) } else { (&mut good_node, &mut bad_node) };
            dialler.dial(other);
            match dialler.next().await {
                LinkEvent::DialFailed { node, error } => {
                    assert_eq!(node, other.id);
                    let text = error.to_string();
                    assert!(text.contains(why) || text.contains("not-admitted"), "{text}");
                }
                event => panic!("{event:?}"),
            }
            // The other end gets no event of a link.
            other.endpoint.shutdown(Duration::from_secs(5)).await;
            assert!(other.events.try_recv().is_err());
            assert_eq!(good_node.endpoint.stats().bytes_in, 0);
        }
    }
}

#[tokio::test]
async fn a_credential_of_another_cluster() {
    let bad = |number: u8| {
        let node = keys(number).node();
        Admission::new(trust(0, 1, vec![]), credential(1, node, NOW + 100), clock)
    };
    refused_both_ways(bad, "not trusted for this").await;
}

#[tokio::test]
async fn an_expired_credential() {
    let bad = |number: u8| Admission::new(trust(0, 1, vec![]), credential(0, keys(number).node(), NOW - 1), clock);
    refused_both_ways(bad, "valid from").await;
}

#[tokio::test]
async fn a_credential_of_another_node() {
    let bad = |_| Admission::new(trust(0, 1, vec![]), credential(0, keys(9).node(), NOW + 100), clock);
    refused_both_ways(bad, "shown by").await;
}

#[tokio::test]
async fn an_empty_credential() {
    refused_both_ways(|_| Admission::new(trust(0, 1, vec![]), vec![], clock), "not a").await;
}

#[tokio::test]
async fn a_revoked_node_is_refused_and_its_link_closed() {
    let (mut a, mut b) = linked().await;
    a.endpoint.context.config().admission.offer(trust(0, 2, vec![b.id]).bytes()).unwrap();
    match b.next().await {
        LinkEvent::LinkDown { reason: Some(CloseReason::NotAdmitted), .. } => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(a.next().await, LinkEvent::LinkDown { .. }));
    b.dial(&a);
    match b.next().await {
        LinkEvent::DialFailed { error, .. } => assert!(error.to_string().contains("not-admitted"), "{error}"),
        other => panic!("{other:?}"),
    }
    a.dial(&b);
    match a.next().await {
        LinkEvent::DialFailed { error, .. } => assert!(error.to_string().contains("revoked"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(a.endpoint.stats().refused_connections, 2);
}

#[tokio::test]
async fn the_wrong_key_at_an_address() {
    let (mut a, b) = pair().await;
    a.endpoint.dial(keys(7).node(), vec![b.addr()]);
    match a.next().await {
        LinkEvent::DialFailed { node, error } => {
            assert_eq!(node, keys(7).node());
            assert!(error.to_string().contains(&format!("is {}", b.id.short())), "{error}");
        }
        other => panic!("{other:?}"),
    }
    a.endpoint.dial(a.id, vec![a.addr()]);
    match a.next().await {
        LinkEvent::DialFailed { error, .. } => assert!(error.to_string().contains("own key"), "{error}"),
        other => panic!("{other:?}"),
    }
    a.endpoint.dial(b.id, vec![]);
    match a.next().await {
        LinkEvent::DialFailed { error, .. } => assert_eq!(error.to_string(), "no address"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn too_many_links_are_refused_as_busy() {
    let mut small = config(1);
    small.links_max = 1;
    let mut hub = Node::start(small).await;
    let (mut first, mut second) = (Node::start(config(2)).await, Node::start(config(3)).await);
    let hub_id = hub.id;
    first.dial(&hub);
    tokio::join!(hub.expect_up(first.id), first.expect_up(hub_id));
    second.dial(&hub);
    match second.next().await {
        LinkEvent::DialFailed { error, .. } => assert!(error.to_string().contains("busy"), "{error}"),
        other => panic!("{other:?}"),
    }
    hub.dial(&second);
    match hub.next().await {
        LinkEvent::DialFailed { error, .. } => assert!(error.to_string().contains("too many links"), "{error}"),
        other => panic!("{other:?}"),
    }
    // The permit of a link that has ended serves another link.
    hub.endpoint.close(first.id, CloseReason::Idle);
    assert!(matches!(hub.next().await, LinkEvent::LinkDown { .. }));
    assert!(matches!(first.next().await, LinkEvent::LinkDown { reason: Some(CloseReason::Idle), .. }));
    second.dial(&hub);
    tokio::join!(hub.expect_up(second.id), second.expect_up(hub_id));
}
