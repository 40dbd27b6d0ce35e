//! Bytes from a stranger: whatever they are, a decoder answers, at once and without taking memory for what they claim.

use crate::samples;
use minicbor::Decode;
use proptest::prelude::*;
use shoal_proto::announcement::Announcement;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{DecodeError, Document, decode_exact, encode};
use shoal_proto::control::{CurrentVersion, JobStates, Request, Response};
use shoal_proto::desired::{Desired, Hosts};
use shoal_proto::frame::{AnnounceFrame, FrameKind, HEADER_BYTES, Header, SLICE_HEADER_BYTES, SliceHeader};
use shoal_proto::ids::{HostIndex, NodeId};
use shoal_proto::limits;
use shoal_proto::locality::{Locality, Selector, Term};
use shoal_proto::manifest::Manifest;
use shoal_proto::membership::{Member, MembershipUpdate};
use shoal_proto::message::Message;
use shoal_proto::receipt::HubReceipt;
use shoal_proto::report::{HostReport, HubFlush, HubSubmission, JobFlush, StateSet};
use shoal_proto::trust::{Credential, Envelope, TrustDocument};

type Decoder = fn(&[u8]) -> bool;

fn document<D: Document>(bytes: &[u8]) -> bool {
    D::from_bytes(bytes).is_ok()
}

fn bare<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> bool {
    decode_exact::<T>(bytes).is_ok()
}

/// Every decoder, with valid bytes of it.
fn all() -> Vec<(&'static str, Decoder, Vec<Vec<u8>>)> {
    let manifests = [samples::manifest(), samples::file_manifest(), samples::image_manifest()];
    let manifests = manifests.iter().map(Document::to_bytes).collect();
    let requests = samples::requests().iter().map(|(_, request)| request.to_bytes()).collect();
    let responses = samples::responses().iter().map(|(_, response)| response.to_bytes()).collect();
    let messages = samples::messages().iter().map(|(_, message)| encode(message)).collect();
    let frames = samples::announce_frames().iter().map(|(_, frame)| encode(frame)).collect();
    let bitmaps = vec![encode(&samples::bitmap(100, &[1, 2, 3])), encode(&Bitmap::full(9))];
    let envelope = Envelope::seal(&samples::credential(), &samples::root()).to_bytes();
    vec![
        ("manifest", document::<Manifest>, manifests),
        ("announcement", document::<Announcement>, vec![samples::announcement().to_bytes()]),
        ("credential", document::<Credential>, vec![samples::credential().to_bytes()]),
        (
            "trust",
            document::<TrustDocument>,
            vec![samples::trust_document().to_bytes(), samples::succeeded_trust_document().to_bytes()],
        ),
        ("envelope", document::<Envelope>, vec![envelope]),
        ("request", document::<Request>, requests),
        ("response", document::<Response>, responses),
        ("flush", document::<HubFlush>, vec![samples::flush().to_bytes()]),
        ("submission", bare::<HubSubmission>, vec![encode(&samples::submission())]),
        ("receipt", document::<HubReceipt>, vec![samples::receipt().to_bytes()]),
        ("message", bare::<Message>, messages),
        ("announce frame", bare::<AnnounceFrame>, frames),
        ("bitmap", bare::<Bitmap>, bitmaps),
    ]
}

proptest! {
    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        for (_, decode, valid) in all() {
            decode(&noise);
            // With a right head, so that it gets further.
            let mut headed = valid[0][..2].to_vec();
            headed.extend_from_slice(&noise);
            decode(&headed);
        }
    }

    #[test]
    fn changed_bytes_never_panic(
        pick in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in any::<prop::sample::Index>(),
    ) {
        for (_, decode, valid) in all() {
            let mut bytes = valid[pick.index(valid.len())].clone();
            for (at, byte) in &edits {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            decode(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            decode(&bytes);
        }
    }

    #[test]
    fn headers_never_panic(header in any::<[u8; HEADER_BYTES]>(), a in any::<[u8; 32]>(), b in any::<[u8; 12]>(), len in any::<usize>()) {
        if let Ok(header) = Header::from_bytes(&header) {
            prop_assert!(header.body_len as usize <= header.kind.body_max());
        }
        let mut slice = [0; SLICE_HEADER_BYTES];
        slice[..32].copy_from_slice(&a);
        slice[32..].copy_from_slice(&b);
        if let Ok(slice) = SliceHeader::from_bytes(&slice, len.min(limits::SLICE_BYTES_MAX)) {
            prop_assert!(slice.offset < slice.total && slice.total <= limits::MANIFEST_BYTES_MAX as u32);
        }
    }
}

#[test]
fn valid_bytes_cut_anywhere_or_followed_by_anything_are_refused() {
    for (name, decode, valid) in all() {
        for bytes in valid {
            assert!(decode(&bytes), "{name}");
            for cut in 0..bytes.len() {
                assert!(!decode(&bytes[..cut]), "{name} cut at {cut}");
            }
            for more in [0x00, 0x80, 0xf6, 0xff] {
                assert!(!decode(&[&bytes[..], &[more]].concat()), "{name} and {more:#x}");
            }
        }
    }
}

/// Lengths no memory could hold, put in place of each byte of valid documents in turn: as byte string, text, array and
/// map. A decoder that set memory aside for one of them would end the process.
#[test]
fn claims_of_length_are_not_believed() {
    for (_, decode, valid) in all() {
        for bytes in valid {
            for at in 0..bytes.len() {
                for major in [0x5b, 0x7b, 0x9b, 0xbb] {
                    for claim in [u64::MAX, i64::MAX as u64, 1 << 50, 1 << 40] {
                        let claim = claim.to_be_bytes();
                        decode(&[&bytes[..at], &[major], &claim, &bytes[at..]].concat());
                        decode(&[&bytes[..at], &[major], &claim, &bytes[at + 1..]].concat());
                    }
                }
            }
        }
    }
}

#[test]
fn other_kinds_and_versions_are_refused() {
    let bytes = samples::announcement().to_bytes();
    for kind in (0..=255).filter(|kind| *kind != bytes[0]) {
        let error = Announcement::from_bytes(&[&[kind], &bytes[1..]].concat()).unwrap_err();
        assert!(matches!(error, DecodeError::WrongKind { .. }));
    }
    for version in (0..=255).filter(|version| *version != bytes[1]) {
        let error = Announcement::from_bytes(&[&[bytes[0], version], &bytes[2..]].concat()).unwrap_err();
        assert!(matches!(error, DecodeError::UnsupportedVersion { found, supported: 1, .. } if found == version));
    }
    let long = vec![2; limits::ANNOUNCEMENT_BYTES_MAX + 1];
    assert!(matches!(Announcement::from_bytes(&long), Err(DecodeError::TooLong { .. })));
}

#[test]
fn an_envelope_over_its_documents_limit_is_not_even_hashed() {
    let long = Announcement { name: "x".repeat(limits::ANNOUNCEMENT_BYTES_MAX), ..samples::announcement() };
    let error = Envelope::seal(&long, &samples::publisher()).open::<Announcement>().unwrap_err();
    assert!(error.to_string().contains("the limit is"), "{error}");
}

fn too_many<D: Document>(value: &D) {
    let error = D::from_bytes(&value.to_bytes()).map(|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("more than") || text.contains("the limit is") || text.contains("too many"), "{text}");
}

#[test]
fn more_than_the_limit_is_refused() {
    let member = samples::member(1);
    let with = |member: Member| {
        Request::Membership(MembershipUpdate { upserts: vec![member], removed: vec![], ..samples::update() })
    };
    too_many(&with(Member { addrs: vec![member.addrs[0]; limits::ADDRS_MAX + 1], ..member.clone() }));
    let labels = (0..=limits::LABELS_MAX).map(|at| (format!("l{at}"), "x".to_string())).collect();
    too_many(&with(Member { labels, ..member.clone() }));
    too_many(&with(Member { credential: vec![0; limits::CREDENTIAL_BYTES_MAX + 1].into(), ..member.clone() }));
    too_many(&Request::Enrol { token: vec![0; limits::JOIN_TOKEN_BYTES_MAX + 129], claim: Vec::new() });
    too_many(&Request::Enrol { token: Vec::new(), claim: vec![0; limits::JOIN_CLAIM_BYTES_MAX + 129] });
    let node = |certificates, len, signature| Request::EnrolNode {
        at: u64::MAX,
        chain: vec![vec![0; len].into(); certificates],
        scheme: 1,
        signature: vec![0; signature],
    };
    let (count, len) = (limits::NODE_CERTIFICATES_MAX, limits::NODE_CERTIFICATE_BYTES_MAX);
    assert!(Request::from_bytes(&node(count, len, 9).to_bytes()).is_ok());
    too_many(&node(count + 1, 1, 1));
    too_many(&node(count, len + 1, 1));
    too_many(&node(1, 1, limits::NODE_SIGNATURE_BYTES_MAX + 1));
    too_many(&Response::Renewed { credential: vec![0; limits::CREDENTIAL_BYTES_MAX + 1] });
    let removed = vec![HostIndex(1); limits::HOSTS_MAX as usize + 1];
    too_many(&Request::Membership(MembershipUpdate { removed, ..samples::update() }));
    let reports = vec![samples::report(); limits::BEAT_ROWS_MAX + 1];
    too_many(&Request::Beat { known: samples::update().epoch, reports, versions: Vec::new(), trust: 1 });
    let report = HostReport { detail: "x".repeat(limits::DETAIL_BYTES_MAX + 1), ..samples::report() };
    too_many(&Request::Beat { known: samples::update().epoch, reports: vec![report], versions: Vec::new(), trust: 1 });
    too_many(&Request::OpenJob { envelope: vec![0; limits::ANNOUNCEMENT_BYTES_MAX + 1] });
    let versions = vec![samples::versions()[0].clone(); limits::BEAT_ROWS_MAX + 1];
    too_many(&Request::Beat { known: samples::update().epoch, reports: vec![], versions, trust: 1 });
    let sets = vec![samples::states().sets[0].clone(); limits::STATE_SETS_MAX + 1];
    too_many(&Response::States(JobStates { sets }));
    let desired = samples::desired();
    too_many(&Desired { rules: vec![desired.rules[2].clone(); limits::DESIRED_RULES_MAX + 1], ..desired });
    let mut rollup = samples::rollup();
    rollup.lines = vec![rollup.lines[0].clone(); limits::ROLLUP_LINES_MAX + 1];
    too_many(&Response::Rollup(rollup));
    let flush = samples::flush();
    too_many(&HubFlush { jobs: vec![flush.jobs[0].clone(); limits::FLUSH_JOBS_MAX + 1], ..flush.clone() });
    too_many(&HubFlush { roster: vec![flush.roster[0].clone(); limits::FLUSH_ROSTER_MAX + 1], ..flush.clone() });
    let job = JobFlush {
        states: vec![flush.jobs[0].states[0].clone(); limits::FLUSH_STATES_MAX + 1],
        ..flush.jobs[0].clone()
    };
    too_many(&HubFlush { jobs: vec![job], ..flush.clone() });
    let targets = Bitmap::new(limits::HOSTS_MAX + 1);
    too_many(&HubFlush { jobs: vec![JobFlush { targets, ..flush.jobs[0].clone() }], ..flush });
}

#[test]
fn values_out_of_range_are_refused() {
    let refused = |document: &Request| assert!(Request::from_bytes(&document.to_bytes()).is_err(), "{document:?}");
    let member = samples::member(1);
    let with = |member: Member| Request::Membership(MembershipUpdate { upserts: vec![member], ..samples::update() });
    refused(&with(Member { index: HostIndex(limits::HOSTS_MAX), ..member.clone() }));
    refused(&with(Member { locality: Locality { rack: String::new(), ..samples::locality() }, ..member.clone() }));
    for (key, value) in [("rack", "x"), ("", "x"), ("a b", "x"), ("a", ""), ("a", "../x"), (".a", "x")] {
        refused(&with(Member { labels: [(key.to_string(), value.to_string())].into(), ..member.clone() }));
    }
    refused(&Request::Membership(MembershipUpdate { base: Some(samples::update().epoch), ..samples::update() }));
    let report = HostReport { pieces_have: limits::PIECES_MAX + 1, ..samples::report() };
    refused(&Request::Beat { known: samples::update().epoch, reports: vec![report], versions: Vec::new(), trust: 1 });

    for (name, version) in [("../x", "1"), ("a", "b/c"), ("a", "current")] {
        let row = CurrentVersion { name: name.into(), version: version.into() };
        refused(&Request::Beat { known: samples::update().epoch, reports: vec![], versions: vec![row], trust: 1 });
    }
    refused(&Request::Versions { name: "/".into() });
    let refused = |desired: Desired| assert!(Desired::from_bytes(&desired.to_bytes()).is_err(), "{desired:?}");
    let desired = samples::desired();
    refused(Desired { name: "../x".into(), ..desired.clone() });
    refused(Desired { name: "x".repeat(limits::NAME_BYTES_MAX), ..desired.clone() });
    refused(Desired { attempt: 2, ..desired.clone() });
    refused(Desired { open: Hosts::HashRange { from: 2, to: 1 }, ..desired.clone() });
    refused(Desired { open: Hosts::HashRange { from: 0, to: 2_000_000 }, ..desired.clone() });
    let mut bad = desired.clone();
    bad.rules[1].target.version = "../../etc".into();
    refused(bad);
    let open = Hosts::Indices(Bitmap::new(limits::HOSTS_MAX + 1));
    refused(Desired { open, ..desired });

    let flush = samples::flush();
    let refused = |flush: HubFlush| assert!(HubFlush::from_bytes(&flush.to_bytes()).is_err(), "{flush:?}");
    refused(HubFlush { region: "../x".into(), ..flush.clone() });
    let mut bad = flush.clone();
    bad.roster[0].index = HostIndex(limits::HOSTS_MAX);
    refused(bad);
    let mut bad = flush.clone();
    bad.roster[0].locality.host = "a/b".into();
    refused(bad);
    let with = |change: fn(&mut JobFlush)| {
        let mut flush = flush.clone();
        change(&mut flush.jobs[0]);
        flush
    };
    refused(with(|job| job.name = "/".into()));
    refused(with(|job| job.version = "current".into()));
    refused(with(|job| job.states[1].state = job.states[0].state));
    refused(with(|job| job.states[1].hosts = job.states[0].hosts.clone()));
}

#[test]
fn messages_over_their_bounds_do_not_validate() {
    let (content, jobs) = (shoal_proto::ids::ContentId([0; 32]), vec![shoal_proto::ids::JobId([0; 16]); 1025]);
    let shards = vec![shoal_proto::ids::ShardIndex(0); 65];
    let rows = vec![shoal_proto::feed::FeedRow { feed: jobs[0], sequence: 1 }; limits::FEEDS_MAX + 1];
    for message in [
        Message::Want { content, shards: shards.clone() },
        Message::Unavailable { content, shards },
        Message::Digest { hash: 0, jobs: Some(jobs.clone()) },
        Message::WantAnnounce { jobs },
        Message::RackPeers { rows: (0..1025).map(crate::samples::member).collect() },
        Message::Demotion {
            content,
            job: shoal_proto::ids::JobId([0; 16]),
            stage: shoal_proto::message::DemotionStage::ShareReady,
            placement: crate::samples::placement(1025),
            ask: false,
        },
        Message::Feeds { rows },
    ] {
        assert!(matches!(message.validate(), Err(DecodeError::TooLong { .. })), "{message:?}");
    }
}

/// What a message holds is at most this many times its length in memory. Bounds how far a stranger's bytes can be blown
/// up.
#[test]
fn a_few_bytes_never_become_many() {
    let selector = Selector { any: vec![vec![]; limits::ANNOUNCEMENT_BYTES_MAX / 2] };
    let bytes = encode(&selector);
    let decoded: Selector = decode_exact(&bytes).unwrap();
    assert!(decoded.any.capacity() * size_of::<Vec<Term>>() <= 64 * bytes.len());
    // A set costs what its universe costs, so it is the universe that is bounded.
    let set = StateSet { state: shoal_proto::report::HostState::Has, hosts: Bitmap::full(limits::HOSTS_MAX) };
    assert!(encode(&set).len() < 16 && limits::HOSTS_MAX / 8 * 17 * limits::FLUSH_JOBS_MAX as u32 <= 28 << 20);
    assert!(decode_exact::<StateSet>(&encode(&set)).is_ok());
    let over = encode(&StateSet { hosts: Bitmap::full(limits::HOSTS_MAX + 1), ..set });
    assert!(decode_exact::<StateSet>(&over).is_err());
}

#[test]
fn frames_are_measured_before_they_are_read() {
    for kind in [
        FrameKind::Hello,
        FrameKind::Control,
        FrameKind::Announce,
        FrameKind::Slice,
        FrameKind::Ping,
        FrameKind::Pong,
        FrameKind::Bye,
        FrameKind::TrustVersion,
        FrameKind::Trust,
    ] {
        let header =
            |body_len| Header { kind, class: shoal_proto::announcement::Class::Bulk, body_len, stamp: 0 }.to_bytes();
        assert!(Header::from_bytes(&header(kind.body_max() as u32)).is_ok());
        let over = Header::from_bytes(&header(kind.body_max() as u32 + 1));
        assert!(matches!(over, Err(DecodeError::TooLong { .. })), "{kind:?}");
        let stamped = matches!(kind, FrameKind::Ping | FrameKind::Pong);
        for (reserved, used) in [(2, false), (3, false), (8, stamped), (15, stamped)] {
            let mut bytes = header(0);
            bytes[reserved] = 1;
            assert_eq!(Header::from_bytes(&bytes).is_ok(), used);
        }
    }
    for (kind, class) in [(0, 0), (10, 0), (255, 0), (1, 4), (1, 255)] {
        let mut bytes = [0; HEADER_BYTES];
        (bytes[0], bytes[1]) = (kind, class);
        assert!(Header::from_bytes(&bytes).is_err());
    }
}

#[test]
fn slices_lie_within_their_part() {
    let make = |index: u32, offset: u32, total: u32, payload: usize| {
        let mut bytes = [0; SLICE_HEADER_BYTES];
        bytes[32..36].copy_from_slice(&index.to_le_bytes());
        bytes[36..40].copy_from_slice(&offset.to_le_bytes());
        bytes[40..].copy_from_slice(&total.to_le_bytes());
        SliceHeader::from_bytes(&bytes, payload).is_ok()
    };
    let (piece, manifest) = (limits::PIECE_BYTES_MAX, limits::MANIFEST_BYTES_MAX as u32);
    assert!(make(0, 0, 1, 1) && make(0, piece - 1, piece, 1) && make(u32::MAX, manifest - 1, manifest, 1));
    for (index, offset, total, payload) in [
        (0, 0, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
        (0, 1, 1, 1),
        (0, 0, 1, 2),
        (0, u32::MAX, 1, 1),
        (0, u32::MAX, u32::MAX, 1),
        (0, 0, piece + 1, 1),
        (u32::MAX, 0, manifest + 1, 1),
        (0, 0, piece, usize::MAX / 2),
    ] {
        assert!(!make(index, offset, total, payload), "{index} {offset} {total} {payload}");
    }
}

#[test]
fn text_ids_are_exact() {
    let text = NodeId([0xab; 32]).to_string();
    assert_eq!(text.parse(), Ok(NodeId([0xab; 32])));
    for bad in ["", "ab", &text[1..], &format!("{text}0"), &text.replace('a', "g"), &text.replace("ab", "é")] {
        assert!(bad.parse::<NodeId>().is_err(), "{bad}");
    }
}

#[test]
fn a_feed_is_what_its_name_says() {
    let good = samples::feed_announcement();
    assert!(Announcement::from_bytes(&good.to_bytes()).is_ok());
    let bad = |change: fn(&mut Announcement)| {
        let mut announcement = samples::feed_announcement();
        change(&mut announcement);
        matches!(Announcement::from_bytes(&announcement.to_bytes()), Err(DecodeError::Invalid { .. }))
    };
    assert!(bad(|row| row.job = shoal_proto::ids::JobId([1; 16])), "another feed's id");
    assert!(bad(|row| row.name = "gslb/other".into()), "another feed's name");
    assert!(bad(|row| row.size = limits::FEED_BYTES_MAX + 1), "oversized");
}
