//! Feeds in a region of cores: what one core sends, another one hears at once, unless the test loses it.

use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::feed::{FeedMark, feed_id};
use shoal_proto::ids::{ContentId, Epoch, HostIndex, NodeId};
use shoal_proto::locality::{Locality, Selector};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::Role;
use shoal_swarm::io::{Input, Output, Via};
use shoal_swarm::membership::Membership;
use shoal_swarm::node::{CachingPlanner, Node, NodeConfig, Tuning};
use shoal_swarm::time::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const SEEDER: HostIndex = HostIndex(0);

/// A host: its core, and what its driver would know of the feed.
struct Host {
    core: Node,
    newest: Option<Arc<Announcement>>,
    /// The newest version whose data is here.
    stored: Option<Arc<Announcement>>,
    /// Sequences that readers got.
    shown: Vec<u64>,
    /// Copies of data that arrived.
    copies: usize,
}

struct Region {
    now: Instant,
    hosts: BTreeMap<HostIndex, Host>,
    /// Hosts that receive nothing.
    deaf: BTreeSet<HostIndex>,
    /// Hosts that lane 0 does not reach.
    askers: BTreeSet<HostIndex>,
    /// What lane 0 brings to this rack is delayed.
    late_rack: Option<u32>,
    late: Vec<(HostIndex, HostIndex, Arc<Announcement>)>,
    /// Copies that crossed into each rack.
    imports: BTreeMap<u32, usize>,
    racks: u32,
    rack: u32,
}

/// A region whose tracker lost `away`.
fn membership(racks: u32, hosts: u32, epoch: u64, away: Option<HostIndex>) -> Arc<Membership> {
    let member = |index: u32, role, rack: String| Member {
        index: HostIndex(index),
        node: NodeId([index as u8 + 1; 32]),
        role,
        locality: Locality::new("r", "s", &rack, &format!("h{index}")).unwrap(),
        labels: Default::default(),
        addrs: Vec::new(),
        weight: 100,
        uplink_mbit: 0,
        presence: if Some(HostIndex(index)) == away { Presence::Away } else { Presence::Up },
        credential: Default::default(),
    };
    let mut upserts = vec![member(0, Role::Seeder, "core".into())];
    upserts.extend((0..racks * hosts).map(|number| member(number + 1, Role::Peer, format!("k{}", number / hosts))));
    let mut membership = Membership::default();
    membership.apply(MembershipUpdate { epoch: Epoch(epoch), base: None, upserts, removed: Vec::new() }).unwrap();
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
        let membership = membership(racks, hosts, 1, None);
        let mut region = Self {
            now: Instant::ZERO,
            hosts: BTreeMap::new(),
            deaf: BTreeSet::new(),
            askers: BTreeSet::new(),
            late_rack: None,
            late: Vec::new(),
            imports: BTreeMap::new(),
            racks,
            rack: hosts,
        };
        for member in membership.iter() {
            let config = NodeConfig { me: member.index, lanes: 64, tuning: Tuning::default() };
            let core = Node::new(config, Box::new(CachingPlanner::default()));
            let host = Host { core, newest: None, stored: None, shown: Vec::new(), copies: 0 };
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
        self.hosts.get_mut(&host).unwrap().core.handle(self.now, input);
    }

    /// Carries outputs out until no core has any.
    fn settle(&mut self) {
        let all: Vec<HostIndex> = self.hosts.keys().copied().collect();
        loop {
            let mut idle = true;
            for from in &all {
                while let Some(output) = self.hosts.get_mut(from).unwrap().core.poll_output() {
                    idle = false;
                    self.carry_out(*from, output);
                }
            }
            if idle {
                break;
            }
        }
        self.hosts.values().for_each(|host| host.core.check_invariants());
    }

    fn carry_out(&mut self, from: HostIndex, output: Output) {
        match output {
            Output::Send { to, message } if !self.deaf.contains(&to) => self.tell(to, Input::Message { from, message }),
            Output::SendAnnounce { to, via, inline, .. } if !self.deaf.contains(&to) => {
                let Host { newest, stored, .. } = &self.hosts[&from];
                let data = inline && stored.is_some();
                let announcement = if data { stored } else { newest }.clone().unwrap();
                if via == Via::Lane(0) && self.askers.contains(&to) {
                    return;
                }
                let crosses = to != SEEDER && self.rack_of(from) != self.rack_of(to);
                if data && crosses {
                    *self.imports.entry(self.rack_of(to)).or_default() += 1;
                }
                if via == Via::Lane(0) && crosses && self.late_rack == Some(self.rack_of(to)) {
                    self.late.push((from, to, announcement));
                    return;
                }
                self.hear(to, Some(from), via, announcement, data);
            }
            _ => {}
        }
    }

    /// What a driver does with a version that arrived.
    fn hear(&mut self, to: HostIndex, from: Option<HostIndex>, via: Via, announcement: Arc<Announcement>, data: bool) {
        let host = self.hosts.get_mut(&to).unwrap();
        host.copies += usize::from(data);
        let sequence = announcement.sequence;
        let news = host.newest.as_ref().is_none_or(|newest| newest.sequence < sequence);
        if news {
            host.newest = Some(announcement.clone());
        }
        if data && host.stored.as_ref().is_none_or(|stored| stored.sequence < sequence) {
            host.stored = Some(announcement.clone());
            host.shown.push(sequence);
        } else if !news && host.newest.as_ref().is_some_and(|newest| newest.sequence > sequence) {
            return;
        }
        self.tell(to, Input::Announced { from, via, announcement, inline: data });
    }

    /// The seeder is in no rack of theirs.
    fn rack_of(&self, host: HostIndex) -> u32 {
        host.0.checked_sub(1).map_or(u32::MAX, |place| place / self.rack)
    }

    /// From now on `host` is lost in the membership of the believers.
    fn lose(&mut self, host: HostIndex, believers: impl IntoIterator<Item = HostIndex>) {
        let membership = membership(self.racks, self.rack, 2, Some(host));
        believers.into_iter().for_each(|believer| self.tell(believer, Input::Membership(membership.clone())));
        self.settle();
    }

    fn publish(&mut self, announcement: &Arc<Announcement>) {
        self.hear(SEEDER, None, Via::Lane(0), announcement.clone(), true);
    }

    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            let due = self.hosts.values().filter_map(|host| host.core.poll_timeout()).min();
            self.now = due.map_or(until, |due| due.clamp(self.now + Duration::from_millis(1), until));
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
fn a_missed_version_comes_from_neighbours() {
    for size in [2048, 60_000] {
        let mut region = Region::new(2, 4);
        region.publish(&version(1, size));
        region.settle();
        // The hosts of a rack miss a version, and some of them should have passed it on.
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

/// Sequences up to the newest that a host's readers never saw.
fn missed(host: &Host) -> Vec<u64> {
    let last = host.shown.last().copied().unwrap_or(0);
    (1..=last).filter(|sequence| !host.shown.contains(sequence)).collect()
}

#[test]
fn a_host_that_others_believe_lost_gets_every_version_at_once() {
    for lost in (1..=16).map(HostIndex) {
        for believers in [vec![SEEDER], (0..=16).map(HostIndex).filter(|host| *host != lost).collect(), vec![lost]] {
            let mut region = Region::new(4, 4);
            region.lose(lost, believers.iter().copied());
            for sequence in 1..=3 {
                region.publish(&version(sequence, 16_000));
                region.settle();
                assert_eq!(region.last_shown(), BTreeSet::from([Some(sequence)]), "{lost} lost to {believers:?}");
            }
            assert!(region.imports.values().all(|copies| *copies == 3), "{lost}, {believers:?}: {:?}", region.imports);
        }
    }
    // Only one rack peer believes the host lost.
    for (lost, believer) in (1..=4).flat_map(|lost| (1..=4).map(move |believer| (HostIndex(lost), HostIndex(believer))))
    {
        let mut region = Region::new(4, 4);
        region.lose(lost, [believer]);
        region.publish(&version(1, 16_000));
        region.settle();
        assert_eq!(region.last_shown(), BTreeSet::from([Some(1)]), "{lost} lost to {believer}");
        assert!(region.imports.values().all(|copies| *copies == 1), "{lost}, {believer}: {:?}", region.imports);
    }
}

#[test]
fn data_that_lane_0_does_not_bring_is_requested_before_the_next_version() {
    for every in [10, 30, 100, 300] {
        let mut region = Region::new(4, 4);
        region.publish(&version(1, 16_000));
        region.settle();
        region.askers = (1..=3).map(HostIndex).collect();
        for sequence in 2..=60 {
            region.publish(&version(sequence, 16_000));
            region.settle();
            region.pass(Duration::from_millis(every));
        }
        assert_eq!(region.last_shown(), BTreeSet::from([Some(60)]), "a version each {every} ms");
        for (index, host) in &region.hosts {
            let missed = missed(host);
            assert!(
                missed.iter().all(|sequence| sequence * every <= 150),
                "{index} missed {missed:?}, one each {every} ms"
            );
        }
    }
}

#[test]
fn data_that_newer_announcements_overtook_is_passed_on_in_order() {
    let mut region = Region::new(4, 4);
    region.publish(&version(1, 16_000));
    region.settle();
    for rack in 0..4 {
        let first = u64::from(rack) * 4 + 2;
        region.late_rack = Some(rack);
        for sequence in first..first + 4 {
            region.publish(&version(sequence, 16_000));
            region.settle();
        }
        region.late_rack = None;
        for (from, to, announcement) in std::mem::take(&mut region.late) {
            region.hear(to, Some(from), Via::Lane(0), announcement, true);
            region.settle();
        }
        for (index, host) in &region.hosts {
            assert_eq!(host.shown, (1..first + 4).collect::<Vec<u64>>(), "{index}");
        }
    }
    assert!(region.imports.values().all(|copies| *copies == 17), "{:?}", region.imports);
}

#[test]
fn a_repaired_lane_is_trusted_again() {
    let mut region = Region::new(4, 4);
    region.askers = (1..=4).map(HostIndex).collect();
    for sequence in 1..=4 {
        region.publish(&version(sequence, 16_000));
        region.settle();
        region.pass(Duration::from_millis(100));
    }
    region.askers.clear();
    region.publish(&version(5, 16_000));
    region.settle();
    region.imports.clear();
    for sequence in 6..=20 {
        region.publish(&version(sequence, 16_000));
        region.settle();
        region.pass(Duration::from_millis(100));
    }
    assert_eq!(region.last_shown(), BTreeSet::from([Some(20)]));
    assert!(region.imports.values().all(|copies| *copies == 15), "{:?}", region.imports);
}
