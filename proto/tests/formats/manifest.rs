//! What a manifest may not say, trick by trick.

use crate::samples;
use shoal_proto::codec::Document;
use shoal_proto::ids::{PieceIndex, ShardIndex};
use shoal_proto::limits;
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root, is_safe_path, link_stays_inside};

fn refused(manifest: &Manifest) -> String {
    match Manifest::from_bytes(&manifest.to_bytes()) {
        Ok(_) => panic!("accepted: {manifest:?}"),
        Err(error) => error.to_string(),
    }
}

fn entry(path: &[u8], kind: EntryKind) -> Entry {
    Entry { path: path.to_vec(), mode: 0o644, kind }
}

fn link(path: &str, target: &str) -> Entry {
    entry(path.as_bytes(), EntryKind::Link { target: target.into() })
}

fn directory(path: &str) -> Entry {
    entry(path.as_bytes(), EntryKind::Directory)
}

fn empty(path: &str) -> Entry {
    entry(path.as_bytes(), EntryKind::File { size: 0 })
}

/// A content without payload, of these entries.
fn of(entries: Vec<Entry>) -> Manifest {
    Manifest {
        entries,
        streams: vec![],
        piece_lens: vec![],
        piece_hashes: vec![],
        parity_hashes: vec![],
        ..samples::manifest()
    }
}

#[test]
fn good_ones_pass() {
    for manifest in [samples::manifest(), samples::file_manifest(), of(vec![]), of(vec![empty("a")])] {
        assert_eq!(Manifest::from_bytes(&manifest.to_bytes()).unwrap(), manifest);
    }
    // `-` and `.` sort before `/`: a directory's entries need not follow it at once.
    let nested = of(vec![directory("a"), empty("a-b"), empty("a.c"), directory("a/b"), link("a/b/up", "../../a-b")]);
    assert!(Manifest::from_bytes(&nested.to_bytes()).is_ok());
}

#[test]
fn unsafe_paths() {
    let long = "x".repeat(limits::PATH_COMPONENT_BYTES_MAX + 1);
    let deep = "d/".repeat(limits::PATH_BYTES_MAX / 2) + "f";
    let bad = [
        "",
        "/",
        "/etc/passwd",
        ".",
        "..",
        "../x",
        "a/..",
        "a/../b",
        "./a",
        "a/.",
        "a//b",
        "a/",
        "/a",
        "a\0b",
        &long,
        &deep,
    ];
    for path in bad {
        assert!(!is_safe_path(path.as_bytes()), "{path:?}");
        assert!(refused(&of(vec![empty(path)])).contains("unsafe path"), "{path:?}");
    }
    for path in [&b"a"[..], b"...", b"..a", b"a/b", b" ", b"\xff\xfe", b"a\\b", b"-rf", &[b'x'; 255]] {
        assert!(is_safe_path(path), "{path:?}");
    }
}

#[test]
fn entries_that_clash() {
    let table = [
        ("twice", vec![empty("a"), empty("a")]),
        ("out of order", vec![empty("b"), empty("a")]),
        ("child before parent", vec![empty("a/b"), directory("a")]),
        ("no parent", vec![empty("a/b")]),
        ("parent is a file", vec![empty("a"), empty("a/b")]),
        ("parent is a link", vec![link("a", "b"), empty("a/x"), directory("b")]),
        ("parent is a link to the root", vec![link("a", "."), empty("a/x")]),
        ("grandparent is missing", vec![directory("a/b"), empty("a/b/c")]),
    ];
    for (what, entries) in table {
        let why = refused(&of(entries));
        assert!(why.contains("out of order") || why.contains("parent"), "{what}: {why}");
    }
}

#[test]
fn links_that_lead_out() {
    let long = "x".repeat(limits::PATH_BYTES_MAX);
    let bad = [
        ("l", ""),
        ("l", "/"),
        ("l", "/etc/passwd"),
        ("l", ".."),
        ("l", "../x"),
        ("l", "./.."),
        ("d/l", "../.."),
        ("d/l", ".././../x"),
        ("d/l", "..//../x"),
        ("d/e/l", "../../../x"),
        // Through a link, `..` climbs from where the link leads, not from where it stands.
        ("l", "d/.."),
        ("d/l", "e/../../x"),
        ("d/l", "e/.."),
        ("l", "a\0b"),
        ("l", &long),
    ];
    for (path, target) in bad {
        assert!(!link_stays_inside(path.as_bytes(), target.as_bytes()), "{path} -> {target}");
        let entries = vec![directory("d"), directory("d/e"), link(path, target)];
        let mut entries: Vec<Entry> = entries;
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        assert!(refused(&of(entries)).contains("link leads out"), "{path} -> {target}");
    }
    let good =
        [("l", "x"), ("l", "."), ("l", "./x"), ("d/l", ".."), ("d/l", "../x"), ("d/e/l", "../../x/y"), ("l", "..x")];
    for (path, target) in good {
        assert!(link_stays_inside(path.as_bytes(), target.as_bytes()), "{path} -> {target}");
    }
}

/// Every mode bit of Linux, on an entry of each type and on the root.
#[test]
fn only_read_write_and_execute_bits_pass() {
    for mode in 0..=0o17_7777u32 {
        let at = |kind| Manifest::from_bytes(&of(vec![Entry { path: b"a".to_vec(), mode, kind }]).to_bytes());
        let root = Manifest::from_bytes(&Manifest { root: Root::Directory { mode }, ..of(vec![]) }.to_bytes());
        let passes = mode <= 0o777;
        assert_eq!(at(EntryKind::Directory).is_ok(), passes, "{mode:o}");
        assert_eq!(at(EntryKind::File { size: 0 }).is_ok(), passes, "{mode:o}");
        assert_eq!(at(EntryKind::Link { target: b"b".to_vec() }).is_ok(), passes, "{mode:o}");
        assert_eq!(root.is_ok(), passes, "{mode:o}");
    }
}

#[test]
fn roots_and_modes() {
    let file = samples::file_manifest();
    let as_file = |entries: Vec<Entry>| Manifest { root: Root::File, ..of(entries) };
    assert!(Manifest::from_bytes(&as_file(vec![empty("a")]).to_bytes()).is_ok());
    for entries in [vec![], vec![empty("a"), empty("b")], vec![directory("a")], vec![link("a", "b")]] {
        assert!(refused(&as_file(entries)).contains("exactly one file"));
    }
    let mut odd = file.clone();
    odd.entries[0].mode = 0o10644;
    assert!(refused(&odd).contains("mode"));
    assert!(refused(&Manifest { root: Root::Directory { mode: 0o40755 }, ..file }).contains("mode"));
}

#[test]
fn numbers_that_do_not_add_up() {
    type Spoil = fn(&mut Manifest);
    let table: [(&str, Spoil); 18] = [
        ("a length cut", |m| m.piece_lens.truncate(19)),
        ("a piece too few", |m| m.piece_lens.truncate(16)),
        ("a hash too few", |m| m.piece_hashes.truncate(128)),
        ("a hash cut", |m| m.piece_hashes.truncate(159)),
        ("a parity hash too few", |m| m.parity_hashes.truncate(96)),
        ("a parity hash too many", |m| m.parity_hashes.extend([0; 32])),
        ("an empty piece", |m| m.piece_lens[0..4].copy_from_slice(&[0; 4])),
        ("a giant piece", |m| m.piece_lens[0..4].copy_from_slice(&[0xff; 4])),
        ("no stream", |m| m.streams.clear()),
        ("an empty stream", |m| m.streams.push(0)),
        ("a stream without pieces", |m| m.streams.push(1)),
        ("a stream that ends within a piece", |m| m.streams = vec![301, 949]),
        ("an endless stream", |m| m.streams = vec![u64::MAX, u64::MAX, 1252]),
        ("files longer than the stream", |m| m.entries[1].kind = EntryKind::File { size: 901 }),
        ("files whose lengths overflow", |m| {
            m.entries[1].kind = EntryKind::File { size: u64::MAX };
            m.entries[3].kind = EntryKind::File { size: 901 };
        }),
        ("no data shards", |m| m.data = 0),
        ("no lanes", |m| m.lanes = 0),
        ("a giant average", |m| m.piece_bytes_avg = u32::MAX),
    ];
    for (what, spoil) in table {
        let mut manifest = samples::manifest();
        spoil(&mut manifest);
        assert!(Manifest::from_bytes(&manifest.to_bytes()).is_err(), "{what}");
    }
    let two = Manifest { streams: vec![300, 950], ..samples::manifest() };
    assert!(Manifest::from_bytes(&two.to_bytes()).is_ok(), "two streams that end where pieces end");
}

#[test]
fn hashes_are_found_by_shard() {
    let manifest = samples::manifest();
    let geometry = manifest.geometry(&Manifest::id(&manifest.to_bytes())).unwrap();
    let first_byte = |shard| manifest.shard_hash(&geometry, ShardIndex(shard)).map(|hash| hash.0[0]);
    // k = 3, m = 2; the second stripe has two pieces, so place 2 of it is a gap.
    let want = [Some(0x10), Some(0x11), Some(0x12), Some(0x80), Some(0x81)];
    assert_eq!([0, 1, 2, 3, 4].map(first_byte), want);
    assert_eq!([5, 6, 7, 8, 9].map(first_byte), [Some(0x13), Some(0x14), None, Some(0x82), Some(0x83)]);
    assert_eq!([10, u32::MAX].map(first_byte), [None, None]);
    assert_eq!(manifest.piece_hash(PieceIndex(4)).0[0], 0x14);
}
