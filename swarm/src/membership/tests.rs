//! Updates, the delta log, selection and tiers.

use super::*;
use proptest::prelude::*;
use shoal_proto::ids::Hash;
use shoal_proto::locality::{Labels, Locality};

fn row(index: u32, rack: &str) -> Member {
    Member {
        index: HostIndex(index),
        node: NodeId(*Hash::of(&index.to_be_bytes()).as_bytes()),
        role: Role::Peer,
        locality: Locality::new("r", "s", rack, &format!("h{index}")).unwrap(),
        labels: Labels::new(),
        addrs: Vec::new(),
        weight: 100,
        uplink_mbit: 0,
        presence: Presence::Up,
        credential: Default::default(),
    }
}

fn delta(base: u64, epoch: u64, upserts: Vec<Member>, removed: &[u32]) -> MembershipUpdate {
    MembershipUpdate {
        epoch: Epoch(epoch),
        base: Some(Epoch(base)),
        upserts,
        removed: removed.iter().copied().map(HostIndex).collect(),
    }
}

#[test]
fn updates_apply_where_they_fit() {
    let mut held = Membership::default();
    held.apply(delta(0, 1, vec![row(3, "a"), row(1, "a")], &[])).unwrap();
    assert_eq!((held.len(), held.index_space(), held.epoch()), (2, 4, Epoch(1)));
    assert_eq!(held.by_node(&row(3, "a").node), Some(HostIndex(3)));
    assert_eq!(held.iter().map(|m| m.index.0).collect::<Vec<_>>(), [1, 3]);

    let ahead = held.apply(delta(5, 6, Vec::new(), &[]));
    assert!(matches!(ahead, Err(ApplyError::NeedFull { have: Epoch(1), base: Epoch(5) })));
    held.apply(delta(0, 1, vec![row(9, "a")], &[])).unwrap();
    assert!(held.get(HostIndex(9)).is_none(), "an epoch that has passed is ignored");
    held.apply(delta(0, 4, vec![row(1, "b")], &[3])).unwrap();
    assert_eq!((held.len(), held.index_space(), held.epoch()), (1, 2, Epoch(4)));
    assert!(held.by_node(&row(3, "a").node).is_none());

    // A full update wins even from an earlier epoch, because the tracker started again.
    let full = MembershipUpdate { epoch: Epoch(2), base: None, upserts: vec![row(0, "c")], removed: Vec::new() };
    held.apply(full).unwrap();
    assert_eq!((held.len(), held.epoch()), (1, Epoch(2)));
}

#[test]
fn a_bad_update_changes_nothing() {
    let mut held = Membership::default();
    held.apply(delta(0, 1, vec![row(1, "a"), row(2, "a")], &[])).unwrap();
    let before = held.clone();
    let twin = Member { index: HostIndex(7), ..row(2, "a") };
    let cases = [
        vec![row(3, "a"), twin.clone()],
        vec![row(3, "a"), row(3, "b")],
        vec![row(3, "a"), Member { index: HostIndex(4), ..row(3, "a") }],
    ];
    for upserts in cases {
        assert!(matches!(held.apply(delta(1, 2, upserts, &[1])), Err(ApplyError::Duplicate { .. })));
        assert_eq!(held, before);
    }
    let far = Member { index: HostIndex(shoal_proto::limits::HOSTS_MAX), ..row(5, "a") };
    assert!(matches!(held.apply(delta(1, 2, vec![far], &[])), Err(ApplyError::Invalid(_))));
    assert_eq!(held, before);
    // The same node at another index is fine once its former row goes in the same update.
    held.apply(delta(1, 2, vec![twin], &[2])).unwrap();
    assert_eq!(held.by_node(&row(2, "a").node), Some(HostIndex(7)));
    assert_eq!(held.len(), 2);
}

#[test]
fn select_takes_peers_up_or_away() {
    let mut held = Membership::default();
    let away = Member { presence: Presence::Away, ..row(2, "a") };
    let seeder = Member { role: Role::Seeder, ..row(3, "a") };
    held.apply(delta(0, 1, vec![row(1, "a"), away, seeder, row(4, "b")], &[])).unwrap();
    let picked = |flags: &[&str]| held.select(&Selector::parse(flags).unwrap()).iter().collect::<Vec<_>>();
    assert_eq!(picked(&["all"]), [1, 2, 4]);
    assert_eq!(picked(&["rack=a"]), [1, 2]);
    assert_eq!(picked(&["host=h4", "host=h1"]), [1, 4]);
    assert_eq!(held.select(&Selector::all()).len(), 5);
    assert!(held.is_up(HostIndex(1)) && !held.is_up(HostIndex(2)) && !held.is_up(HostIndex(8)));
}

#[test]
fn tiers_and_mates() {
    let elsewhere = Member { locality: Locality::new("r", "t", "a", "h4").unwrap(), ..row(4, "a") };
    let seeder = Member { role: Role::Seeder, ..row(5, "a") };
    let mut held = Membership::default();
    held.apply(delta(0, 1, vec![row(1, "a"), row(2, "a"), row(3, "b"), elsewhere, seeder], &[])).unwrap();
    let tiers: Vec<Tier> = (2..=6).map(|other| held.tier(HostIndex(1), HostIndex(other))).collect();
    assert_eq!(tiers, [Tier::Rack, Tier::Site, Tier::Region, Tier::Seeder, Tier::Region]);
    assert_eq!(held.tier(HostIndex(9), HostIndex(5)), Tier::Seeder);
    assert_eq!(held.rack_peers(HostIndex(1)), [HostIndex(2)]);
    assert_eq!(held.rack_peers(HostIndex(5)), [], "a seeder has no rack peers");
    assert_eq!((held.topology().rack_count(), held.topology().site_count()), (3, 2));
    assert_eq!(held.topology().host_count(), 4);
    // The grouping follows the rows.
    held.apply(delta(1, 2, Vec::new(), &[2])).unwrap();
    assert_eq!(held.rack_peers(HostIndex(1)), []);
}

#[test]
fn the_log_coalesces_and_knows_its_reach() {
    let mut log = MembershipLog::starting_at(Epoch(1000));
    assert_eq!(log.change(vec![row(1, "a")], Vec::new()).unwrap(), Epoch(1001));
    assert_eq!(log.change(vec![row(1, "a")], vec![HostIndex(9)]).unwrap(), Epoch(1001), "nothing changed");
    log.change(vec![row(1, "b"), row(2, "b")], Vec::new()).unwrap();
    log.change(vec![row(1, "c")], vec![HostIndex(2)]).unwrap();
    assert_eq!(log.update_since(Some(Epoch(1003))), None);
    let update = log.update_since(Some(Epoch(1001))).unwrap();
    assert_eq!(update, delta(1001, 1003, vec![row(1, "c")], &[2]));
    for known in [None, Some(Epoch(999)), Some(Epoch(1004))] {
        assert_eq!(log.update_since(known).unwrap().base, None, "{known:?}");
    }
    let twin = Member { index: HostIndex(7), ..row(1, "c") };
    assert!(log.change(vec![twin], Vec::new()).is_err());
    assert_eq!(log.current().epoch(), Epoch(1003));
    assert_eq!(log.update_since(Some(Epoch(1003))), None);

    let resumed = MembershipLog::new(Membership::clone(log.current()));
    assert_eq!(resumed.update_since(Some(Epoch(1003))), None);
    assert_eq!(resumed.update_since(Some(Epoch(1002))).unwrap().base, None);
}

#[test]
fn the_log_forgets_beyond_its_bound() {
    let rows = HISTORY_ROWS_MAX as u32 + 10;
    let mut log = MembershipLog::default();
    log.change((0..10).map(|index| row(index, "a")).collect(), Vec::new()).unwrap();
    log.change((10..rows).map(|index| row(index, "a")).collect(), Vec::new()).unwrap();
    assert_eq!(log.update_since(Some(Epoch(0))).unwrap().base, None);
    assert_eq!(log.update_since(Some(Epoch(1))).unwrap().upserts.len(), rows as usize - 10);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every host gets to the log's rows, however far behind it is and in whatever order late answers arrive.
    #[test]
    fn all_hosts_at_one_epoch_have_the_same_rows(
        changes in prop::collection::vec(
            (prop::collection::vec((0u32..12, 0u8..3), 0..4), prop::collection::vec(0u32..12, 0..3)),
            1..20,
        ),
        asks in prop::collection::vec((0usize..20, 0usize..20), 1..10),
    ) {
        let mut log = MembershipLog::default();
        let mut versions = vec![Membership::clone(log.current())];
        let mut answers = Vec::new();
        for (upserts, removed) in changes {
            let upserts: BTreeMap<u32, u8> = upserts.into_iter().collect();
            let removed = removed.into_iter().filter(|host| !upserts.contains_key(host)).map(HostIndex).collect();
            let upserts = upserts.into_iter().map(|(index, rack)| row(index, &format!("k{rack}"))).collect();
            log.change(upserts, removed).unwrap();
            versions.push(Membership::clone(log.current()));
            answers.push(log.clone());
        }
        for (from, at) in asks {
            let mut held = versions[from % versions.len()].clone();
            let log = &answers[at % answers.len()];
            // A late answer changes nothing, or leads to the rows of its own epoch.
            if let Some(update) = log.update_since(Some(held.epoch())) {
                let epoch = update.epoch;
                held.apply(update).unwrap();
                prop_assert_eq!(held.epoch(), epoch);
                prop_assert_eq!(&held, &**log.current());
            }
            for base in 0..held.epoch().0 {
                if let Some(late) = answers[answers.len() - 1].update_since(Some(Epoch(base))) {
                    let mut held = held.clone();
                    held.apply(late).unwrap();
                    prop_assert_eq!(&held, &**answers[answers.len() - 1].current());
                }
            }
        }
    }
}

#[test]
fn a_delta_has_a_credential_only_if_it_is_new_to_the_host() {
    let with = |row: Member, credential: &[u8]| Member { credential: credential.into(), ..row };
    let sent = |log: &MembershipLog, known: u64| -> Vec<Vec<u8>> {
        let update = log.update_since(Some(Epoch(known))).unwrap();
        update.upserts.iter().map(|row| row.credential.to_vec()).collect()
    };
    let mut log = MembershipLog::starting_at(Epoch(100));
    log.change(vec![with(row(1, "a"), b"first"), with(row(2, "a"), b"other")], Vec::new()).unwrap();
    let away = Member { presence: Presence::Away, ..row(1, "a") };
    log.change(vec![with(away.clone(), b"first")], Vec::new()).unwrap();
    assert_eq!(sent(&log, 100), [b"first", b"other"]);
    assert_eq!(sent(&log, 101), [b""], "only the presence changed");
    log.change(vec![with(away, b"second")], Vec::new()).unwrap();
    assert_eq!(sent(&log, 101), [b"second"]);
    assert_eq!(sent(&log, 102), [b"second"]);
    // A host that left and came back is new to those who removed it.
    log.change(Vec::new(), vec![HostIndex(2)]).unwrap();
    log.change(vec![with(row(2, "a"), b"other")], Vec::new()).unwrap();
    assert_eq!(sent(&log, 104), [b"other"]);
    // A whole membership has all of them, also after a restart of the tracker.
    let log = MembershipLog::new((**log.current()).clone());
    let whole = log.update_since(None).unwrap();
    assert!(whole.upserts.iter().all(|row| !row.credential.is_empty()));
}
