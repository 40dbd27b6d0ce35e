//! Contents that a host does not have or refused: a demotion of them, and their late arrival.

use shoal_proto::announcement::{Announcement, Kind, Order};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Epoch, HostIndex, JobId, NodeId};
use shoal_proto::locality::{Locality, Selector};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::message::{LaneSet, Message};
use shoal_proto::trust::Role;
use shoal_swarm::io::{Input, Output, Via};
use shoal_swarm::membership::Membership;
use shoal_swarm::node::{CachingPlanner, Node, NodeConfig, Tuning};
use shoal_swarm::time::Instant;
use std::sync::Arc;

const CONTENT: ContentId = ContentId([7; 32]);
const HOSTS: u32 = 5;

/// A seeder, and a rack of peers.
fn membership() -> Arc<Membership> {
    let member = |index: u32| Member {
        index: HostIndex(index),
        node: NodeId([index as u8 + 1; 32]),
        role: if index == 0 { Role::Seeder } else { Role::Peer },
        locality: Locality::new("r", "s", if index == 0 { "core" } else { "k" }, &format!("h{index}")).unwrap(),
        labels: Default::default(),
        addrs: Vec::new(),
        weight: 100,
        uplink_mbit: 0,
        presence: Presence::Up,
        credential: Default::default(),
    };
    let upserts = (0..HOSTS).map(member).collect();
    let mut membership = Membership::default();
    membership.apply(MembershipUpdate { epoch: Epoch(1), base: None, upserts, removed: Vec::new() }).unwrap();
    Arc::new(membership)
}

/// A job for the content that host 0 published.
fn announcement(order: Option<Order>) -> Arc<Announcement> {
    Arc::new(Announcement {
        job: JobId([9; 16]),
        content: CONTENT,
        kind: Kind::Blob,
        name: "edge/a".into(),
        version: "1".into(),
        sequence: 2,
        selector: Selector::all(),
        origin: NodeId([1; 32]),
        manifest_bytes: 100,
        size: 1000,
        created_at: 1,
        expires_at: u64::MAX,
        feed: None,
        staged: false,
        order,
    })
}

/// A node among linked hosts.
fn node(me: HostIndex) -> Node {
    let config = NodeConfig { me, lanes: 8, tuning: Tuning::default() };
    let mut node = Node::new(config, Box::new(CachingPlanner::default()));
    tell(&mut node, Input::Membership(membership()));
    for host in (0..HOSTS).map(HostIndex).filter(|host| *host != me) {
        tell(&mut node, Input::LinkUp { host });
    }
    node
}

/// Reports an input and returns the outputs.
fn tell(node: &mut Node, input: Input) -> Vec<Output> {
    node.handle(Instant::ZERO, input);
    node.check_invariants();
    std::iter::from_fn(|| node.poll_output()).collect()
}

#[test]
fn a_host_that_lacks_a_demoted_content_says_so() {
    // The origin may have lost its disk, and hears of its own demotion from others.
    for me in (0..HOSTS).map(HostIndex) {
        for from in (0..HOSTS).map(HostIndex).filter(|from| *from != me).map(Some).chain([None]) {
            let mut node = node(me);
            let announced = Input::Announced {
                from,
                via: Via::Lane(0),
                announcement: announcement(Some(Order::Demote)),
                inline: false,
            };
            let outputs = tell(&mut node, announced);
            let fetches = |output: &Output| match output {
                Output::Send { message, .. } => {
                    matches!(message, Message::Subscribe { .. } | Message::Want { .. } | Message::WantManifest { .. })
                }
                _ => false,
            };
            assert!(!outputs.iter().any(fetches), "{me} fetches a demoted content: {outputs:?}");

            let asks = HostIndex((me.0 + 1) % HOSTS);
            let message = Message::Subscribe { content: CONTENT, lanes: LaneSet::first(8), have: Bitmap::new(4) };
            let outputs = tell(&mut node, Input::Message { from: asks, message });
            let not_served = Output::Send { to: asks, message: Message::NotServed { content: CONTENT } };
            assert!(outputs.contains(&not_served), "{me} answers {outputs:?}");
        }
    }
}

#[test]
fn a_refused_content_that_is_here_in_part_after_all_is_on_the_agenda() {
    for me in (0..HOSTS).map(HostIndex) {
        for order in [None, Some(Order::Demote), Some(Order::Promote)] {
            for refused in [false, true] {
                let mut node = node(me);
                let announcement = announcement(order);
                tell(&mut node, Input::Announced { from: None, via: Via::AntiEntropy, announcement, inline: false });
                if refused {
                    tell(&mut node, Input::ContentRefused { content: CONTENT });
                }
                let geometry = Geometry::new(3, 2, 8, &CONTENT, vec![1000; 20].into()).unwrap();
                let mut have = Bitmap::new(20);
                have.set(3);
                // `tell` checks that a content which lacks pieces is on the agenda.
                tell(&mut node, Input::ContentReady { content: CONTENT, geometry, have });
            }
        }
    }
}

#[test]
fn a_host_that_refused_an_announcement_sends_its_children_elsewhere_at_once() {
    let asks = HostIndex(3);
    let subscribe = || {
        let message = Message::Subscribe { content: CONTENT, lanes: LaneSet::first(8), have: Bitmap::new(4) };
        Input::Message { from: asks, message }
    };
    let not_served = Output::Send { to: asks, message: Message::NotServed { content: CONTENT } };
    for asked_before in [false, true] {
        let mut node = node(HostIndex(2));
        if asked_before {
            assert!(!tell(&mut node, subscribe()).contains(&not_served), "its announcement may be on its way");
        }
        let outputs = tell(&mut node, Input::ContentRefused { content: CONTENT });
        assert_eq!(outputs.contains(&not_served), asked_before);
        assert!(tell(&mut node, subscribe()).contains(&not_served));
        // Another job for the content is accepted.
        let (from, via, announcement) = (Some(HostIndex(0)), Via::Lane(0), announcement(None));
        tell(&mut node, Input::Announced { from, via, announcement, inline: false });
        assert!(!tell(&mut node, subscribe()).contains(&not_served), "the content is on its way");
    }
}
