//! Admitted nodes and strangers on the links of a host: memory, announcements, roles and connections.

use super::SHOAL;
use super::attacker::{
    HonestPushes, Identified, attackers_runtime, bounded, control_addr, issue, issue_for, join, plane, relay, stolen,
};
use super::tracker_strangers::{address, beside_held_connections};
use bytes::Bytes;
use shoal_net::admission::{Admission, system_clock};
use shoal_net::identity::Identity;
use shoal_net::links::{
    DialError, LinkConfig, LinkEndpoint, LinkEvent, LinkEvents, LinkRates, OutFrame, SendError, encode_announce,
};
use shoal_proto::announcement::{Announcement, Class, Kind};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::Document;
use shoal_proto::control::{Request, Response};
use shoal_proto::frame::{AnnounceFrame, CloseReason, Part};
use shoal_proto::ids::{ContentId, Epoch, JobId, NodeId, ShardIndex};
use shoal_proto::locality::Selector;
use shoal_proto::message::Message;
use shoal_proto::trust::{Envelope, Trust};
use shoal_testkit::network::in_own_network;
use shoal_testkit::{PATIENCE, Process, Region, until};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The key and the address of a host's links.
fn target(peer: &Process) -> (NodeId, SocketAddr) {
    (stolen(peer.dir()).keys.node(), peer.addrs["bulk"][0].as_str().unwrap().parse().unwrap())
}

/// An attacker's endpoint.
struct Attacker {
    endpoint: LinkEndpoint,
    events: LinkEvents,
}

impl Attacker {
    async fn start(region: &Region, identified: &Identified) -> Self {
        let trust = std::fs::read(region.peers[0].dir().join("trust")).unwrap();
        let trust = Arc::new(Trust::open(&trust, None).unwrap());
        let admission = Admission::new(trust, identified.credential.clone(), system_clock);
        let config = LinkConfig::new(Vec::new(), Identity::new(&identified.keys), admission);
        let (endpoint, events) = LinkEndpoint::bind(config).await.unwrap();
        Self { endpoint, events }
    }

    async fn next(&mut self) -> LinkEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").unwrap()
    }

    /// Dials until a link is up.
    async fn link(&mut self, (node, addr): (NodeId, SocketAddr)) {
        loop {
            self.endpoint.dial(node, vec![addr]);
            match self.next().await {
                LinkEvent::LinkUp { .. } => return,
                LinkEvent::DialFailed { .. } => tokio::time::sleep(Duration::from_millis(50)).await,
                _ => {}
            }
        }
    }
}

#[test]
fn parts_that_nobody_asked_for_take_no_memory_of_honest_pushes() {
    let region = Region::start(SHOAL, 1, 2);
    let pushes = HonestPushes::before(&region, "parts that nobody asked for");
    let victim = target(&region.peers[0]);
    let runtime = attackers_runtime();
    let attackers: Vec<Attacker> = (0..12)
        .map(|number| {
            let identified = issue_for(&region, &format!("t/evil/rack/host{number}"), 3600);
            runtime.block_on(async {
                let mut attacker = Attacker::start(&region, &identified).await;
                attacker.link(victim).await;
                let slow = LinkRates { uplink_out: Some(1024), bulk_out: Some(1024), ..LinkRates::default() };
                attacker.endpoint.rate_limits().set(slow);
                for class in [Class::Bulk, Class::Normal] {
                    let (content, part) = (ContentId([number as u8; 32]), Part::Shard(ShardIndex(0)));
                    let payload = Bytes::from(vec![7; 8 << 20]);
                    attacker.endpoint.send(victim.0, OutFrame::Part { content, part, class, payload }).unwrap();
                }
                attacker
            })
        })
        .collect();
    until("the attackers' parts have begun", || {
        let begun = attackers.iter().filter(|attacker| attacker.endpoint.stats().payload_out > 0).count();
        (begun == attackers.len()).then_some(())
    });
    bounded(&region.peers[0], || pushes.beside());
}

#[test]
fn messages_of_strangers_take_little_memory() {
    let region = Region::start(SHOAL, 1, 1);
    let victim = target(&region.peers[0]);
    let pushes = HonestPushes::before(&region, "large messages of unknown hosts");
    let runtime = attackers_runtime();
    // Each message has 128 KiB in memory and a few bytes on the wire. The tracker does not know these hosts.
    let message = Message::Received { content: ContentId([1; 32]), pieces: Bitmap::full(1 << 20) };
    bounded(&region.peers[0], || {
        let mut attackers = Vec::new();
        for number in 0..6 {
            let identified = issue_for(&region, &format!("t/evil/rack/host{number}"), 3600);
            attackers.push(runtime.block_on(async {
                let mut attacker = Attacker::start(&region, &identified).await;
                attacker.link(victim).await;
                let mut sent = 0;
                while sent < 200 {
                    match attacker.endpoint.send(victim.0, OutFrame::Message(message.clone())) {
                        Ok(()) => sent += 1,
                        Err(SendError::Full) => tokio::time::sleep(Duration::from_millis(5)).await,
                        Err(error) => panic!("{error}"),
                    }
                }
                attacker
            }));
        }
        pushes.beside();
    });
}

/// An announcement that names a publisher who did not sign it.
fn forged(region: &Region, number: u32) -> Bytes {
    let publisher = shoal_net::identity::load_key(&region.folder.path().join("cluster/publisher.key")).unwrap();
    let mut job = [0xee; 16];
    job[..4].copy_from_slice(&number.to_be_bytes());
    let now = system_clock();
    let announcement = Announcement {
        job: JobId(job),
        content: ContentId([3; 32]),
        kind: Kind::Config,
        name: "edge/forged".into(),
        version: number.to_string(),
        sequence: now * 1000,
        selector: Selector::all(),
        origin: publisher.node(),
        manifest_bytes: 10,
        size: 10,
        created_at: now,
        expires_at: now + 3600,
        feed: None,
        staged: false,
        order: None,
    };
    let mut envelope = Envelope::seal(&announcement, &publisher).to_bytes();
    *envelope.last_mut().unwrap() ^= 1;
    encode_announce(&AnnounceFrame { envelope, lane: 0, manifest: None, data: None })
}

#[test]
fn announcements_that_nobody_signed_end_in_a_ban() {
    let region = Region::start(SHOAL, 1, 1);
    let victim = target(&region.peers[0]);
    let evil = issue(&region, "evil", "peer", "t/site/rack1/evil");
    let runtime = attackers_runtime();
    let (control, tracker) = runtime.block_on(async {
        let (control, mut events) = plane(&evil.keys).await;
        let tracker = control.connect(control_addr(&region), None).await.unwrap();
        let joined = control.request(tracker, join(evil.credential.clone())).await.unwrap();
        assert!(matches!(joined, Response::Joined { .. }), "{joined:?}");
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        (control, tracker)
    });
    runtime.spawn(async move {
        loop {
            let beat = Request::Beat { known: Epoch(u64::MAX), reports: Vec::new(), versions: Vec::new(), trust: 0 };
            let _ = control.request(tracker, beat).await; // a missed beat is repeated
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    until("the host knows the attacker", || (region.peers[0].metric("shoal_members") == 3).then_some(()));
    // A plan has the attacker as a host that brings nothing, with or without the flood.
    let pushes = HonestPushes::before(&region, "forged announcements");
    let forged: Vec<Bytes> = (0..64).map(|number| forged(&region, number)).collect();
    bounded(&region.peers[0], || {
        let attacker = runtime.block_on(async {
            let mut attacker = Attacker::start(&region, &evil).await;
            attacker.link(victim).await;
            attacker
        });
        let flood = runtime.spawn(flood_announcements(attacker, victim, forged));
        until("the host bans the attacker", || region.peers[0].log().contains("banned a host").then_some(()));
        pushes.beside();
        flood.abort();
        let refused = region.peers[0].metric("shoal_announcements_refused_total");
        assert!((3..500).contains(&refused), "the host checked {refused} forged announcements");
    });
}

/// Floods for ever, and dials again when the link ends.
async fn flood_announcements(mut attacker: Attacker, (node, addr): (NodeId, SocketAddr), forged: Vec<Bytes>) {
    loop {
        for frame in &forged {
            let _ = attacker.endpoint.send(node, OutFrame::Announce(frame.clone())); // the link may be gone
        }
        while let Ok(event) = attacker.events.try_recv() {
            if matches!(event, LinkEvent::LinkDown { .. } | LinkEvent::DialFailed { .. }) {
                attacker.endpoint.dial(node, vec![addr]);
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn keys_of_trackers_and_hubs_get_no_link() {
    let region = Region::start(SHOAL, 1, 1);
    let victim = target(&region.peers[0]);
    let tracker = stolen(region.tracker.dir());
    let hub = stolen(&region.folder.path().join("hub"));
    attackers_runtime().block_on(async {
        for identified in [tracker, hub] {
            let mut attacker = Attacker::start(&region, &identified).await;
            attacker.endpoint.dial(victim.0, vec![victim.1]);
            match attacker.next().await {
                LinkEvent::DialFailed { error: DialError::RefusedByPeer(CloseReason::NotAdmitted), .. } => {}
                event => panic!("{event:?}"),
            }
        }
    });
}

#[test]
fn silent_connections_to_the_port_of_links_keep_no_host_out() {
    in_own_network(|| {
        let region = Region::start(SHOAL, 1, 1);
        let (node, addr) = target(&region.peers[0]);
        let pushes = HonestPushes::before(&region, "silent connections to a host");
        let runtime = attackers_runtime();
        beside_held_connections(addr, || {
            pushes.beside();
            bounded(&region.peers[0], || {
                for number in 0..5 {
                    let identified = issue_for(&region, &format!("t/site/new/host{number}"), 3600);
                    runtime.block_on(async {
                        let near = relay(address(200 + number), addr).await;
                        let mut attacker = Attacker::start(&region, &identified).await;
                        let linked = timeout(Duration::from_secs(10), attacker.link((node, near))).await;
                        linked.expect("another host has a link in time");
                    });
                }
            });
        });
    });
}
