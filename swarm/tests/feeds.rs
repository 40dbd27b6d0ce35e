//! Feeds in a region of brains: what one wishes, another hears at once, unless the test loses it.

use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::feed::{FeedMark, feed_id};
use shoal_proto::ids::{ContentId, Epoch, HostIndex, NodeId};
use shoal_proto::locality::{Locality, Selector};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::Role;
use shoal_swarm::io::{Input, Output};
use shoal_swarm::membership::Membership;
use shoal_swarm::node::{CachingPlanner, Node, NodeConfig};
use shoal_swarm::time::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const SEEDER: HostIndex = HostIndex(0);

/// A host: its brain, and what its shell would know of the feed.
struct Host {
    brain: Node,
    newest: Option<Arc<Announcement>>,
    /// The newest version's data is here.
    held: bool,
    /// Sequences shown to readers.
    shown: Vec<u64>,
    /// Copies of data that came.
    copies: usize,
}

struct Region {
    now: Instant,
    hosts: BTreeMap<HostIndex, Host>,
    /// Hosts that hear nothing.
    deaf: BTreeSet<HostIndex>,
}

fn membership(racks: u32, hosts: u32) -> Arc<Membership> {
    let member = |index: u32, role, rack: String| Member {
        index: HostIndex(index),
        node: NodeId([index as u8 + 1; 32]),
        role,
        locality: Locality::new("r", "s", &rack, &format!("h{index}")).unwrap(),
        labels: Default::default(),
        addrs: Vec::new(),
        weight: 100,
        uplink_mbit: 0,
        presence: Presence::Up,
    };
    let mut upserts = vec![member(0, Role::Seeder, "core".into())];
    upserts.extend((0..racks * hosts).map(|number| member(number + 1, Role::Peer, format!("k{}", number / hosts))));
    let mut membership = Membership::default();
    membership.apply(MembershipUpdate { epoch: Epoch(1), base: None, upserts, removed: Vec::new() }).unwrap();
    Arc::new(membership)
}

fn version(sequence: u64, size: u64) -> Arc<Announcement> {
    Arc::new(Announcement {
        job: feed_id("gslb/main"),
        content: ContentId([sequence as u8; 32]),
        kind: Kind::Gslb,
        name: "gslb/main".into(),
        version: sequence.to_string(),
        sequence,
        selector: Selector::all(),
        origin: NodeId([1; 32]),
        manifest_bytes: 100,
        size,
        created_at: sequence,
        expires_at: u64::MAX,
        feed: Some(FeedMark { published_at_ms: sequence }),
        staged: false,
        order: None,
    })
}

impl Region {
    fn new(racks: u32, hosts: u32) -> Self {
        let membership = membership(racks, hosts);
        let mut region = Self { now: Instant::ZERO, hosts: BTreeMap::new(), deaf: BTreeSet::new() };
        for member in membership.iter() {
            let config = NodeConfig { me: member.index, lanes: 64 };
            let brain = Node::new(config, Box::new(CachingPlanner::default()));
            let host = Host { brain, newest: None, held: false, shown: Vec::new(), copies: 0 };
            region.hosts.insert(member.index, host);
        }
        let all: Vec<HostIndex> = region.hosts.keys().copied().collect();
        for host in &all {
            region.tell(*host, Input::Membership(membership.clone()));
        }
        for host in &all {
            for other in all.iter().filter(|other| *other != host) {
                region.tell(*host, Input::LinkUp { host: *other });
            }
        }
        region.settle();
        region
    }

    fn tell(&mut self, host: HostIndex, input: Input) {
        self.hosts.get_mut(&host).unwrap().brain.handle(self.now, input);
    }

    /// Carries wishes out until nobody has any.
    fn settle(&mut self) {
        let all: Vec<HostIndex> = self.hosts.keys().copied().collect();
        loop {
            let mut idle = true;
            for from in &all {
                while let Some(output) = self.hosts.get_mut(from).unwrap().brain.poll_output() {
                    idle = false;
                    self.carry_out(*from, output);
                }
            }
            if idle {
                break;
            }
        }
        self.hosts.values().for_each(|host| host.brain.check_invariants());
    }

    fn carry_out(&mut self, from: HostIndex, output: Output) {
        match output {
            Output::Send { to, message } if !self.deaf.contains(&to) => self.tell(to, Input::Message { from, message }),
            Output::SendAnnounce { to, lane, inline, .. } if !self.deaf.contains(&to) => {
                let sender = &self.hosts[&from];
                let announcement = sender.newest.clone().unwrap();
                let data = inline && sender.held;
                self.hear(to, Some(from), lane, announcement, data);
            }
            _ => {}
        }
    }

    /// What a shell does with a version that came.
    fn hear(&mut self, to: HostIndex, from: Option<HostIndex>, lane: u8, announcement: Arc<Announcement>, data: bool) {
        let host = self.hosts.get_mut(&to).unwrap();
        let known = host.newest.as_ref().map_or(0, |newest| newest.sequence);
        host.copies += usize::from(data);
        if announcement.sequence < known {
            return;
        }
        if announcement.sequence > known {
            host.newest = Some(announcement.clone());
            host.held = false;
        }
        if data && !host.held {
            host.held = true;
            host.shown.push(announcement.sequence);
        }
        self.tell(to, Input::Announced { from, lane, announcement, inline: data });
    }

    fn publish(&mut self, announcement: &Arc<Announcement>) {
        self.hear(SEEDER, None, 0, announcement.clone(), true);
    }

    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            self.now = self.now + Duration::from_millis(100);
            let all: Vec<HostIndex> = self.hosts.keys().copied().collect();
            all.into_iter().for_each(|host| self.tell(host, Input::Tick));
            self.settle();
        }
    }

    fn last_shown(&self) -> BTreeSet<Option<u64>> {
        self.hosts.values().map(|host| host.shown.last().copied()).collect()
    }
}

#[test]
fn a_version_reaches_all_and_costs_a_copy_a_lane() {
    for (size, copies) in [(2048, 3), (60_000, 1)] {
        let mut region = Region::new(4, 4);
        region.publish(&version(1, size));
        region.settle();
        assert_eq!(region.last_shown(), BTreeSet::from([Some(1)]), "without any timer");
        let most = region.hosts.values().map(|host| host.copies).max().unwrap();
        assert!(most <= copies, "{most} copies of {size} bytes");
    }
}

#[test]
fn versions_in_flight_together_end_in_the_newest_and_never_go_back() {
    let mut region = Region::new(3, 5);
    for sequence in 1..40 {
        region.publish(&version(sequence, 2048));
        if sequence % 7 == 0 {
            region.settle();
        }
    }
    region.publish(&version(20, 2048));
    region.settle();
    assert_eq!(region.last_shown(), BTreeSet::from([Some(39)]));
    for host in region.hosts.values() {
        assert!(host.shown.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", host.shown);
    }
}

#[test]
fn what_was_missed_is_had_from_neighbours() {
    for size in [2048, 60_000] {
        let mut region = Region::new(2, 4);
        region.publish(&version(1, size));
        region.settle();
        // A rack's hosts hear nothing of a version, among them those that would pass it on.
        region.deaf = (1..=4).map(HostIndex).collect();
        region.publish(&version(2, size));
        region.settle();
        let had = |region: &Region| region.hosts.values().filter(|host| host.shown.last() == Some(&2)).count();
        assert!(had(&region) < 9);
        region.deaf.clear();
        region.pass(Duration::from_secs(60));
        assert_eq!(region.last_shown(), BTreeSet::from([Some(2)]), "{size} bytes");
    }
}
