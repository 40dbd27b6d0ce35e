//! Who is let in and whose word counts: one row for every way to be wrong.

use crate::samples::{NOW, announcement, credential, node, publisher, root, trust_document};
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::{DecodeError, Document};
use shoal_proto::ids::{ClusterId, NodeId};
use shoal_proto::trust::{Credential, Envelope, Keypair, Publisher, Trust, TrustDocument, TrustError, cluster_of};

fn stranger() -> Keypair {
    Keypair::from_seed([66; 32])
}

fn trust() -> Trust {
    Trust::open(&Envelope::seal(&trust_document(), &root()).to_bytes(), None).unwrap()
}

fn sealed(change: impl FnOnce(&mut Credential), by: &Keypair) -> Vec<u8> {
    let mut credential = credential();
    change(&mut credential);
    Envelope::seal(&credential, by).to_bytes()
}

#[test]
fn a_good_credential_is_admitted() {
    let admitted = trust().admit(&sealed(|_| {}, &root()), node().node(), NOW).unwrap();
    assert_eq!(*admitted, credential());
}

#[test]
fn bad_credentials_are_not() {
    let (good, me) = (sealed(|_| {}, &root()), node().node());
    type Check = fn(&TrustError) -> bool;
    let table: Vec<(&str, Vec<u8>, NodeId, u64, Check)> = vec![
        ("not yet valid", good.clone(), me, NOW - 1001, |e| matches!(e, TrustError::Expired { .. })),
        ("expired", good.clone(), me, NOW + 1000, |e| matches!(e, TrustError::Expired { .. })),
        ("another node's", good.clone(), stranger().node(), NOW, |e| matches!(e, TrustError::NotYours { .. })),
        ("of another cluster", sealed(|c| c.cluster = cluster_of(&stranger().node()), &root()), me, NOW, |e| {
            matches!(e, TrustError::OtherCluster)
        }),
        ("signed by a stranger", sealed(|_| {}, &stranger()), me, NOW, |e| matches!(e, TrustError::UntrustedSigner(_))),
        ("signed by itself", sealed(|_| {}, &node()), me, NOW, |e| matches!(e, TrustError::UntrustedSigner(_))),
        ("signed by a publisher", sealed(|_| {}, &publisher()), me, NOW, |e| {
            matches!(e, TrustError::UntrustedSigner(_))
        }),
        ("revoked", sealed(|c| c.node = NodeId([0xee; 32]), &root()), NodeId([0xee; 32]), NOW, |e| {
            matches!(e, TrustError::Revoked(_))
        }),
        ("another document", Envelope::seal(&trust_document(), &root()).to_bytes(), me, NOW, |e| {
            matches!(e, TrustError::BadSignature(_))
        }),
        ("ends before it begins", sealed(|c| c.not_after = c.not_before, &root()), me, NOW, |e| {
            matches!(e, TrustError::Decode(DecodeError::Invalid { .. }))
        }),
        ("a locality that escapes", sealed(|c| c.locality.site = "../x".into(), &root()), me, NOW, |e| {
            matches!(e, TrustError::Decode(DecodeError::Invalid { .. }))
        }),
        ("too long", [good.clone(), vec![0; 4096]].concat(), me, NOW, |e| {
            matches!(e, TrustError::Decode(DecodeError::TooLong { .. }))
        }),
        ("cut short", good[..good.len() - 1].to_vec(), me, NOW, |e| matches!(e, TrustError::Decode(_))),
        ("with something behind", [good.clone(), vec![0]].concat(), me, NOW, |e| {
            matches!(e, TrustError::Decode(DecodeError::Trailing(1)))
        }),
        ("nothing", vec![], me, NOW, |e| matches!(e, TrustError::Decode(DecodeError::WrongKind { .. }))),
    ];
    for (what, bytes, shown_by, now, expected) in table {
        let error = trust().admit(&bytes, shown_by, now).unwrap_err();
        assert!(expected(&error), "{what}: {error}");
    }
}

#[test]
fn no_bit_of_a_credential_can_be_changed() {
    let good = sealed(|_| {}, &root());
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(trust().admit(&bytes, node().node(), NOW).is_err(), "bit {bit}");
    }
}

#[test]
fn only_publishers_publish() {
    let open = |by: &Keypair| trust().open_published::<Announcement>(&Envelope::seal(&announcement(), by));
    assert_eq!(open(&publisher()).unwrap(), announcement());
    for by in [root(), node(), stranger()] {
        assert!(matches!(open(&by), Err(TrustError::UntrustedSigner(_))));
    }
    // A publisher's signature under another kind of document does not count.
    let other = Envelope::seal(&credential(), &publisher());
    assert!(matches!(trust().open_published::<Announcement>(&other), Err(TrustError::BadSignature(_))));
}

#[test]
fn trust_documents_stand_for_themselves() {
    let open =
        |document: &TrustDocument, by: &Keypair, pinned| Trust::open(&Envelope::seal(document, by).to_bytes(), pinned);
    let document = trust_document();
    assert!(open(&document, &root(), Some(cluster_of(&root().node()))).is_ok());
    assert!(matches!(open(&document, &root(), Some(ClusterId([0; 32]))), Err(TrustError::OtherCluster)));
    assert!(matches!(open(&document, &stranger(), None), Err(TrustError::UntrustedSigner(_))));
    let usurped =
        TrustDocument { cluster: cluster_of(&stranger().node()), root: stranger().node(), ..document.clone() };
    assert!(open(&usurped, &stranger(), None).is_ok(), "another cluster's is in order, unless one is pinned");
    assert!(open(&usurped, &stranger(), Some(cluster_of(&root().node()))).is_err());
    let crowded = TrustDocument { publishers: vec![Publisher::unscoped(publisher().node()); 65], ..document };
    assert!(matches!(open(&crowded, &root(), None), Err(TrustError::Decode(DecodeError::Malformed(_)))));
}

#[test]
fn announcements_are_checked() {
    type Spoil = fn(&mut Announcement);
    let table: [(&str, Spoil); 17] = [
        ("no name", |a| a.name.clear()),
        ("a name that climbs", |a| a.name = "..".into()),
        ("a name that climbs inside", |a| a.name = "a/../b".into()),
        ("an absolute name", |a| a.name = "/a".into()),
        ("a name with an empty part", |a| a.name = "a//b".into()),
        ("a hidden name", |a| a.name = "a/.b".into()),
        ("the link's own name", |a| a.name = "a/current".into()),
        ("a long name", |a| a.name = ["x"; 65].join("/")),
        ("a name with a space", |a| a.name = "a b".into()),
        ("no version", |a| a.version.clear()),
        ("a version that climbs", |a| a.version = "..".into()),
        ("a version of two parts", |a| a.version = "a/b".into()),
        ("the version `current`", |a| a.version = "current".into()),
        ("no alternative", |a| a.selector.any.clear()),
        ("a bad term", |a| a.selector.any[0][0].value = "a=b".into()),
        ("a giant", |a| a.size = u64::MAX),
        ("ends before it begins", |a| a.expires_at = a.created_at - 1),
    ];
    for (what, spoil) in table {
        let mut announcement = announcement();
        spoil(&mut announcement);
        assert!(Announcement::from_bytes(&announcement.to_bytes()).is_err(), "{what}");
    }
}

#[test]
fn keys_do_not_print_their_secret() {
    let printed = format!("{:?}", node());
    assert!(printed.contains(&node().node().short()) && !printed.contains("0303"));
}
