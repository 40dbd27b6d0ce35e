//! The bytes of every format, checked in. A difference is a change of format: it needs a new version number.
//! `SHOAL_BLESS=1` writes the files anew.

use crate::samples;
use minicbor::{Decode, Encode};
use shoal_proto::announcement::{Announcement, Class};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::frame::{CloseReason, FrameKind, Header, Part, SliceHeader};
use shoal_proto::ids::{ContentId, ShardIndex};
use shoal_proto::manifest::Manifest;
use shoal_proto::trust::{Credential, Envelope, TrustDocument};
use std::fmt::Debug;
use std::path::PathBuf;

fn hex(bytes: &[u8]) -> String {
    // 32 bytes a line, so that a difference can be found.
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    bytes.chunks(32).map(line).collect()
}

#[expect(clippy::disallowed_methods, reason = "a test reads its files")]
fn check(name: &str, bytes: &[u8]) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/testdata", &format!("{name}.hex")].iter().collect();
    if std::env::var_os("SHOAL_BLESS").is_some() {
        std::fs::write(&path, hex(bytes)).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(hex(bytes), golden, "the bytes of `{name}` changed: that is a new format version");
}

fn document<D: Document + PartialEq + Debug>(name: &str, value: &D) {
    let bytes = value.to_bytes();
    check(name, &bytes);
    assert_eq!(D::from_bytes(&bytes).unwrap(), *value, "{name}");
}

fn bare<T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug>(name: &str, value: &T) {
    let bytes = encode(value);
    check(name, &bytes);
    assert_eq!(decode_exact::<T>(&bytes).unwrap(), *value, "{name}");
}

#[test]
fn documents() {
    document("manifest", &samples::manifest());
    document("manifest_file", &samples::file_manifest());
    document("manifest_image", &samples::image_manifest());
    document("announcement", &samples::announcement());
    document("announcement_staged", &Announcement { staged: true, ..samples::announcement() });
    document("desired", &samples::desired());
    document("feed_announcement", &samples::feed_announcement());
    document("credential", &samples::credential());
    document("join_token", &samples::join_token());
    document("join_claim", &samples::join_claim());
    document("trust", &samples::trust_document());
    document("trust_succeeded", &samples::succeeded_trust_document());
    document("hub_flush", &samples::flush());
    bare("hub_submission", &samples::submission());
    document("hub_receipt", &samples::receipt());
}

/// Before set-id bits were refused, a manifest could carry them. These are the bytes of such a manifest.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test reads its files")]
fn an_old_manifest_with_a_set_group_id_bit_is_refused() {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/testdata/refused/manifest_setgid.hex"].iter().collect();
    let text: String = std::fs::read_to_string(path).unwrap().split_whitespace().collect();
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    let bytes: Vec<u8> = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    let error = Manifest::from_bytes(&bytes).unwrap_err().to_string();
    assert!(error.contains("mode") && error.contains("bin"), "{error}");
    let mut odd = samples::manifest();
    odd.entries[0].mode = 0o2755;
    assert_eq!(odd.to_bytes(), bytes, "only the mode differs from today's sample");
}

#[test]
fn envelopes() {
    let announcement = Envelope::seal(&samples::announcement(), &samples::publisher());
    document("announcement_envelope", &announcement);
    assert_eq!(announcement.open::<Announcement>().unwrap(), samples::announcement());
    let credential = Envelope::seal(&samples::credential(), &samples::root());
    document("credential_envelope", &credential);
    assert_eq!(credential.open::<Credential>().unwrap(), samples::credential());
    let trust = Envelope::seal(&samples::trust_document(), &samples::root());
    document("trust_envelope", &trust);
    assert_eq!(trust.open::<TrustDocument>().unwrap(), samples::trust_document());
}

#[test]
fn messages_between_hosts() {
    for (name, message) in samples::messages() {
        message.validate().unwrap();
        bare(&format!("message_{name}"), &message);
    }
    for (name, frame) in samples::announce_frames() {
        bare(&format!("announce_frame_{name}"), &frame);
    }
}

#[test]
fn control_plane() {
    for (name, request) in samples::requests() {
        document(&format!("request_{name}"), &request);
    }
    for (name, response) in samples::responses() {
        document(&format!("response_{name}"), &response);
    }
}

#[test]
fn bitmaps() {
    let odd: Vec<u32> = (0..100).filter(|bit| bit % 2 == 1).collect();
    bare("bitmap_raw", &samples::bitmap(100, &odd));
    bare("bitmap_runs", &samples::bitmap(100_000, &[0, 1, 2, 500, 99_999]));
    bare("bitmap_full", &Bitmap::full(100_000));
    bare("bitmap_empty", &Bitmap::new(0));
}

#[test]
fn frame_and_slice_headers() {
    let header = Header { kind: FrameKind::Slice, class: Class::Bulk, body_len: 0x0001_0203, stamp: 0 };
    check("frame_header", &header.to_bytes());
    assert_eq!(Header::from_bytes(&header.to_bytes()).unwrap(), header);
    let shard = SliceHeader {
        content: ContentId([8; 32]),
        part: Part::Shard(ShardIndex(0x0a0b_0c0d)),
        offset: 0x0001_0000,
        total: 0x0002_0000,
    };
    check("slice_header", &shard.to_bytes());
    assert_eq!(SliceHeader::from_bytes(&shard.to_bytes(), 0x1_0000).unwrap(), shard);
    let manifest = SliceHeader { part: Part::Manifest, ..shard };
    check("slice_header_manifest", &manifest.to_bytes());
    assert_eq!(SliceHeader::from_bytes(&manifest.to_bytes(), 1).unwrap(), manifest);
}

#[test]
fn numbers_on_the_wire() {
    let kinds = [
        (FrameKind::Hello, 1),
        (FrameKind::Control, 2),
        (FrameKind::Announce, 3),
        (FrameKind::Slice, 4),
        (FrameKind::Ping, 5),
        (FrameKind::Pong, 6),
        (FrameKind::Bye, 7),
    ];
    for (kind, number) in kinds {
        assert_eq!(Header { kind, class: Class::Control, body_len: 0, stamp: 0 }.to_bytes()[0], number);
    }
    let ping = Header { kind: FrameKind::Ping, class: Class::Control, body_len: 0, stamp: 0x0102 };
    assert_eq!(ping.to_bytes()[8..], [2, 1, 0, 0, 0, 0, 0, 0]);
    for number in 0..=u8::MAX {
        assert_eq!(CloseReason::from_wire(number).is_some(), (1..=7).contains(&number));
        assert_eq!(Class::from_wire(number).is_some(), number < 4);
        assert!(CloseReason::from_wire(number).is_none_or(|reason| reason as u8 == number));
    }
}
