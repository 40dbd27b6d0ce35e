//! The life of trust: mandates of issuers, the chain of roots, newer documents, and the scopes of publishers.

use crate::samples::{
    NOW, announcement, credential, issuer, next_root, node, publisher, root, succeeded_trust_document, trust_document,
};
use proptest::prelude::*;
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::Document;
use shoal_proto::desired::feed_of;
use shoal_proto::ids::ClusterId;
use shoal_proto::limits;
use shoal_proto::locality::Selector;
use shoal_proto::trust::{
    AddressRange, Credential, Envelope, Issuer, Keypair, Publisher, Role, Succession, Trust, TrustDocument, TrustError,
    cluster_of,
};

fn open(document: &TrustDocument, by: &Keypair) -> Result<Trust, TrustError> {
    Trust::open(&Envelope::seal(document, by).to_bytes(), None)
}

fn key(seed: u8) -> Keypair {
    Keypair::from_seed([seed; 32])
}

/// A document whose root is the last of `roots`, with a chain that starts at the first.
fn chained(roots: &[Keypair], version: u64) -> TrustDocument {
    let cluster = cluster_of(&roots[0].node());
    let links = roots.windows(2);
    let successions = links.map(|pair| Envelope::seal(&Succession { cluster, next: pair[1].node() }, &pair[0]));
    let last = &roots[roots.len() - 1];
    TrustDocument { cluster, successions: successions.collect(), version, ..TrustDocument::first(last.node(), []) }
}

#[test]
fn an_issuer_signs_within_its_mandate_only() {
    let admit = |document: &TrustDocument, change: &dyn Fn(&mut Credential), now: u64| {
        let mut credential = credential();
        change(&mut credential);
        let trust = open(document, &root()).unwrap();
        trust.admit(&Envelope::seal(&credential, &issuer()).to_bytes(), credential.node, now).map(|_| ())
    };
    assert!(admit(&trust_document(), &|_| {}, NOW).is_ok());
    let excess = |change: &dyn Fn(&mut Credential), now: u64| match admit(&trust_document(), change, now) {
        Err(TrustError::OutsideMandate { excess, .. }) => excess,
        other => panic!("{other:?}"),
    };
    for role in [Role::Seeder, Role::Tracker, Role::Hub] {
        assert_eq!(excess(&|c| c.role = role, NOW), "role");
    }
    for place in ["cn-north/idc77/r12/h", "cn-north/idc/r12/h", "cn-south/idc7/r12/h"] {
        assert_eq!(excess(&|c| c.locality = place.parse().unwrap(), NOW), "locality");
    }
    assert_eq!(excess(&|c| c.not_after = c.not_before + 3601, NOW), "length of validity");
    assert_eq!(excess(&|c| c.not_before = 0, NOW), "length of validity");
    assert_eq!(excess(&|_| {}, NOW + 500), "present time");
    let mut dropped = trust_document();
    dropped.issuers.clear();
    assert!(matches!(admit(&dropped, &|_| {}, NOW), Err(TrustError::UntrustedSigner(_))));
    // A document that drops the issuer also ends what was admitted before.
    let bytes = Envelope::seal(&credential(), &issuer()).to_bytes();
    let admitted = open(&trust_document(), &root()).unwrap().admit(&bytes, node().node(), NOW).unwrap();
    let error = open(&dropped, &root()).unwrap().check_again(&admitted, NOW).unwrap_err();
    assert!(matches!(error, TrustError::UntrustedSigner(_)), "{error}");
}

#[test]
fn a_former_root_signs_nothing_more() {
    let trust = open(&succeeded_trust_document(), &next_root()).unwrap();
    assert_eq!(trust.cluster(), cluster_of(&root().node()), "the id of the cluster stays");
    let shown = |by: &Keypair| trust.admit(&Envelope::seal(&credential(), by).to_bytes(), node().node(), NOW);
    assert!(shown(&next_root()).is_ok());
    assert!(matches!(shown(&root()), Err(TrustError::UntrustedSigner(_))));
    assert!(matches!(open(&succeeded_trust_document(), &root()), Err(TrustError::UntrustedSigner(_))));
}

#[test]
fn a_chain_of_roots_has_no_gap_and_no_fork() {
    let roots: Vec<Keypair> = (10..14).map(key).collect();
    let good = chained(&roots, 9);
    assert!(open(&good, &roots[3]).is_ok());
    type Spoil = fn(&mut TrustDocument);
    let table: [(&str, Spoil); 6] = [
        ("a link is missing", |d| drop(d.successions.remove(1))),
        ("the first link is missing", |d| drop(d.successions.remove(0))),
        ("the last link is missing", |d| drop(d.successions.pop())),
        ("two links changed places", |d| d.successions.swap(0, 1)),
        ("another cluster", |d| d.cluster = ClusterId([1; 32])),
        ("a link of a stranger", |d| {
            d.successions[1] = Envelope::seal(&Succession { cluster: d.cluster, next: key(12).node() }, &key(66));
        }),
    ];
    for (what, spoil) in table {
        let mut document = good.clone();
        spoil(&mut document);
        let error = open(&document, &roots[3]).unwrap_err();
        assert!(matches!(error, TrustError::BrokenChain(_)), "{what}: {error}");
    }
    let returned = [key(10), key(11), key(10)];
    assert!(matches!(open(&chained(&returned, 9), &returned[2]), Err(TrustError::BrokenChain(1))), "a root came back");
    let long: Vec<Keypair> = (0..=limits::SUCCESSIONS_MAX as u8 + 1).map(key).collect();
    assert!(matches!(open(&chained(&long, 9), &long[long.len() - 1]), Err(TrustError::Decode(_))), "too long");
}

#[test]
fn a_stolen_former_root_leads_nobody_away() {
    let in_force = open(&chained(&[key(10), key(11)], 5), &key(11)).unwrap();
    let newer = |document: &TrustDocument, by: &Keypair| in_force.open_newer(&Envelope::seal(document, by).to_bytes());
    assert!(newer(&chained(&[key(10), key(11), key(12)], 6), &key(12)).is_ok());
    for (stolen, by) in [(vec![key(10), key(66)], key(66)), (vec![key(10)], key(10))] {
        let error = newer(&chained(&stolen, u64::MAX), &by).unwrap_err();
        assert!(matches!(error, TrustError::NotContinued("chain of roots")), "{error}");
    }
    assert!(matches!(newer(&chained(&[key(20)], 6), &key(20)), Err(TrustError::OtherCluster)));
}

#[test]
fn only_a_newer_document_replaces_the_one_in_force() {
    let in_force = open(&trust_document(), &root()).unwrap();
    let newer = |change: fn(&mut TrustDocument)| {
        let mut document = trust_document();
        change(&mut document);
        in_force.open_newer(&Envelope::seal(&document, &root()).to_bytes())
    };
    assert!(newer(|d| d.version += 1).is_ok());
    assert!(matches!(newer(|_| {}), Err(TrustError::NotNewer { found: 3, in_force: 3 })));
    assert!(matches!(newer(|d| d.publishers.clear()), Err(TrustError::NotNewer { .. })), "the same version");
    assert!(matches!(newer(|d| d.version = 0), Err(TrustError::NotNewer { .. })));
    let fallen = newer(|d| (d.version, d.epoch) = (4, 1));
    assert!(matches!(fallen, Err(TrustError::NotContinued("trust epoch"))));
    assert!(matches!(newer(|d| (d.version, d.epoch) = (4, 1 << 20)), Err(TrustError::Decode(_))));
}

#[test]
fn a_publisher_publishes_within_its_scope_only() {
    let scope = Publisher {
        key: publisher().node(),
        names: vec!["edge/web".into(), "gslb".into()],
        selector: Some(Selector::parse(&["site=idc7", "gpu=yes"]).unwrap()),
    };
    let trust = open(&TrustDocument { publishers: vec![scope], ..trust_document() }, &root()).unwrap();
    let excess = |name: &str, to: &[&str]| {
        let selector = Selector::parse(to).unwrap();
        let document = Announcement { name: name.into(), selector, ..announcement() };
        match trust.open_published::<Announcement>(&Envelope::seal(&document, &publisher())) {
            Ok(_) => "",
            Err(TrustError::OutsideScope { excess, .. }) => excess,
            Err(other) => panic!("{other}"),
        }
    };
    let here = ["site=idc7"];
    for name in ["edge/web", "edge/web/a/b", "gslb", "gslb/main"] {
        assert_eq!(excess(name, &here), "", "{name}");
    }
    for name in ["edge", "edge/webs", "edge/we", "gslbx", "web", "other/edge/web"] {
        assert_eq!(excess(name, &here), "name", "{name}");
    }
    assert_eq!(excess("gslb", &["gpu=yes,rack=r1", "site=idc7,x=y"]), "");
    for wide in [&["all"][..], &["site=idc8"], &["site=idc7", "rack=r1"], &["gpu=no"]] {
        assert_eq!(excess("gslb", wide), "selector", "{wide:?}");
    }
    let publisher = &trust.document().publishers[0];
    assert!(publisher.may_name(&feed_of("edge/web").unwrap()) && !publisher.may_name(&feed_of("edge/db").unwrap()));
    assert!(!publisher.may_name("desired"), "the folder of desired states is no name of its own");
}

#[test]
fn hostile_lists_are_refused() {
    let refused = |change: fn(&mut TrustDocument)| {
        let mut document = trust_document();
        change(&mut document);
        assert!(matches!(open(&document, &root()), Err(TrustError::Decode(_))));
    };
    refused(|d| d.revoked = vec![d.revoked[0]; limits::REVOKED_MAX + 1]);
    refused(|d| d.issuers = vec![d.issuers[0].clone(); limits::ISSUERS_MAX + 1]);
    refused(|d| d.issuers[0].roles = vec![Role::Peer; 5]);
    refused(|d| d.issuers[0].localities = vec!["a".into(); limits::ISSUER_LOCALITIES_MAX + 1]);
    refused(|d| d.issuers[0].localities = vec!["../x".into()]);
    refused(|d| d.issuers[0].localities = vec!["a/b/c/d/e".into()]);
    refused(|d| d.publishers[0].names = vec!["edge/../x".into()]);
    refused(|d| d.publishers[0].names = vec![String::new()]);
    refused(|d| d.publishers[0].names = vec!["a".into(); limits::PUBLISHER_NAMES_MAX + 1]);
    refused(|d| d.publishers[0].selector = Some(Selector { any: vec![] }));
    let refused = |change: fn(&mut Credential)| {
        let mut credential = credential();
        change(&mut credential);
        assert!(Credential::from_bytes(&credential.to_bytes()).is_err());
    };
    refused(|c| c.addresses = vec![c.addresses[0]; limits::ADDRESS_RANGES_MAX + 1]);
    refused(|c| c.addresses[0].prefix = 33);
    refused(|c| c.addresses[1].prefix = 129);
    refused(|c| drop(c.labels.insert("rack".into(), "r1".into())));
    refused(|c| c.labels = (0..=limits::LABELS_MAX).map(|at| (format!("l{at}"), "x".into())).collect());
    let full =
        Issuer { localities: vec!["a".into(); limits::ISSUER_LOCALITIES_MAX], ..trust_document().issuers.remove(0) };
    assert!(open(&TrustDocument { issuers: vec![full; limits::ISSUERS_MAX], ..trust_document() }, &root()).is_ok());
}

#[test]
fn ranges_contain_their_addresses() {
    let table = [
        ("10.1.0.0/16", "10.1.255.255", true),
        ("10.1.0.0/16", "10.2.0.0", false),
        ("0.0.0.0/0", "203.0.113.1", true),
        ("0.0.0.0/0", "2001:db8::1", false),
        ("192.0.2.1/32", "192.0.2.1", true),
        ("192.0.2.1/32", "192.0.2.2", false),
        ("2001:db8::/32", "2001:db8:ffff::1", true),
        ("2001:db8::/32", "2001:db9::", false),
        ("10.0.0.0/8", "::ffff:10.9.9.9", true),
        ("::/0", "::1", true),
    ];
    for (range, addr, inside) in table {
        let range: AddressRange = range.parse().unwrap();
        assert_eq!(range.contains(addr.parse().unwrap()), inside, "{addr} in {range}");
        assert_eq!(range.to_string().parse::<AddressRange>().unwrap(), range);
    }
    for bad in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/", "10.0.0.0/-1", "::ffff:10.0.0.0/104"] {
        assert!(bad.parse::<AddressRange>().is_err(), "{bad}");
    }
}

proptest! {
    /// Whatever documents arrive in whatever order, the version in force only grows and the chain only gets longer.
    #[test]
    fn trust_only_moves_forward(steps in proptest::collection::vec((1usize..5, 1u64..20, any::<bool>()), 1..30)) {
        let honest: Vec<Keypair> = (10..15).map(key).collect();
        let mut in_force = open(&chained(&honest[..1], 1), &honest[0]).unwrap();
        let mut longest = 1;
        for (length, version, is_fork) in steps {
            let mut roots = honest[..length].to_vec();
            if is_fork {
                roots.push(key(66));
            }
            let document = chained(&roots, version);
            let bytes = Envelope::seal(&document, &roots[roots.len() - 1]).to_bytes();
            let before = in_force.version();
            if let Ok(newer) = in_force.open_newer(&bytes) {
                prop_assert!(newer.version() > before);
                prop_assert!(newer.document().successions.starts_with(&in_force.document().successions));
                if is_fork {
                    // A root that is still the last one may name any successor.
                    prop_assert!(length >= longest);
                    continue;
                }
                longest = length;
                in_force = newer;
            } else if !is_fork {
                prop_assert!(version <= before || length < longest);
            }
        }
    }
}
