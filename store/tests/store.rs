//! The store as its users see it: ingest, fetch, stops at any moment, a full disk.

use bytes::Bytes;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::manifest::Root;
use shoal_store::ingest::{IngestError, IngestOptions, IngestProgress, WalkError};
use shoal_store::{BeginError, ReadError, Store, StoreConfig, StoreEvent, SubmitError};
use shoal_testkit::noise;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

fn open_with(dir: &Path, quota: Option<u64>) -> (Store, Receiver<StoreEvent>) {
    let (sender, receiver) = sync_channel(10_000);
    let config = StoreConfig { quota, ..StoreConfig::new(dir) };
    let store = Store::open(config, Box::new(move |event| sender.send(event).unwrap())).unwrap();
    (store, receiver)
}

fn open(dir: &Path) -> (Store, Receiver<StoreEvent>) {
    open_with(dir, None)
}

fn ingest(store: &Store, path: &Path) -> Result<ContentId, IngestError> {
    let ingested = store.ingest(path, &IngestOptions::default(), &Arc::new(IngestProgress::default()))?;
    Ok(ingested.content)
}

/// Returns a seeder's store with one file of `len` bytes.
fn seeded(dir: &Path, len: usize, seed: u64) -> (Store, ContentId) {
    let (store, _) = open(&dir.join("seeder"));
    let file = dir.join(format!("file-{seed}"));
    fs::write(&file, noise(len, seed)).unwrap();
    let content = ingest(&store, &file).unwrap();
    (store, content)
}

fn fetch(from: &Store, to: &Store, events: &Receiver<StoreEvent>, id: &ContentId, pieces: &Bitmap) {
    let geometry = from.manifest(id).unwrap().geometry(id).unwrap();
    for piece in pieces.iter() {
        let shard = geometry.shard_of(PieceIndex(piece));
        to.submit_shard(id, shard, from.read(id, shard).unwrap(), 7).unwrap();
        assert_eq!(events.recv().unwrap(), StoreEvent::Verified { content: *id, shard, token: 7 });
    }
}

/// All modes with which the owner can read, on files and folders.
#[test]
fn set_id_and_sticky_bits_do_not_enter_a_content() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(&dir.path().join("store"));
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let mut modes = Vec::new();
    for special in 0..8u32 {
        for others in 0..64u32 {
            let mode = special << 9 | 0o700 | others;
            let (file, folder) = (source.join(format!("f{mode:04o}")), source.join(format!("g{mode:04o}")));
            fs::write(&file, "x").unwrap();
            fs::create_dir(&folder).unwrap();
            // Some systems drop bits at once. The test compares with what the source has.
            set(&file, mode);
            set(&folder, mode);
            modes.push(fs::metadata(&file).unwrap().permissions().mode() & 0o7777);
        }
    }
    assert!(modes.iter().any(|mode| mode & 0o4000 != 0), "the source has set-user-id files");
    set(&source, 0o3777);
    let id = ingest(&store, &source).unwrap();
    let manifest = store.manifest(&id).unwrap();
    assert_eq!(manifest.root, Root::Directory { mode: 0o777 });
    assert_eq!(manifest.entries.len(), 2 * modes.len());
    for entry in &manifest.entries {
        let name = std::str::from_utf8(&entry.path).unwrap();
        let mode = u32::from_str_radix(&name[1..], 8).unwrap();
        assert_eq!(entry.mode, mode & 0o777, "{name}");
    }
    let single = ingest(&store, &source.join("f6755")).unwrap();
    assert_eq!(store.manifest(&single).unwrap().entries[0].mode, 0o755);
}

#[test]
fn an_ingested_content_can_be_fetched_and_finished() {
    let dir = tempfile::tempdir().unwrap();
    for len in [1usize, 4096, 100_000, 3_000_000, 6_000_000, 6_000_640] {
        let (seeder, id) = seeded(dir.path(), len, len as u64);
        let (peer, events) = open(&dir.path().join(format!("peer-{len}")));
        let begun = peer.begin(&seeder.read_manifest(&id).unwrap()).unwrap();
        assert_eq!(begun.content, id);
        assert!(begun.have.none());
        assert!(peer.finish(&id).is_err(), "no piece has arrived");
        fetch(&seeder, &peer, &events, &id, &Bitmap::full(begun.geometry.piece_count()));
        peer.finish(&id).unwrap();
        assert_eq!(fs::read(peer.stream_path(&id, 0)).unwrap(), noise(len, len as u64));
    }
}

#[test]
fn empty_sources_are_contents_too() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _events) = open(&dir.path().join("store"));
    fs::write(dir.path().join("empty"), b"").unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    for name in ["empty", "folder"] {
        let id = ingest(&store, &dir.path().join(name)).unwrap();
        assert!(store.is_complete(&id));
        assert_eq!(store.manifest(&id).unwrap().piece_count(), 0);
    }
}

#[test]
fn a_stop_at_any_moment_keeps_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, id) = seeded(dir.path(), 2_000_000, 1);
    let manifest = seeder.read_manifest(&id).unwrap();
    let path = dir.path().join("peer");
    let count = seeder.manifest(&id).unwrap().piece_count();
    for done in 0..count {
        let (peer, events) = open(&path);
        let begun = peer.begin(&manifest).unwrap();
        assert_eq!(begun.have.count(), done, "every piece of the earlier rounds is found");
        let next: Bitmap = [begun.have.next_unset(0).unwrap()].into_iter().collect();
        fetch(&seeder, &peer, &events, &id, &next);
    }
    let (peer, _events) = open(&path);
    peer.finish(&id).unwrap();
    drop(peer);
    let (peer, _events) = open(&path);
    assert!(peer.is_complete(&id));
}

#[test]
fn a_long_stream_is_written_in_any_order_and_over_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, id) = seeded(dir.path(), 9_000_001, 11);
    let manifest = seeder.read_manifest(&id).unwrap();
    let count = seeder.manifest(&id).unwrap().piece_count();
    let path = dir.path().join("peer");
    // Neighbouring pieces never arrive in the same round, and most arrive after a stop.
    for round in 0..5 {
        let (peer, events) = open(&path);
        let begun = peer.begin(&manifest).unwrap();
        let wanted: Bitmap = (0..count).filter(|piece| piece * 3 % 5 == round).collect();
        assert!(begun.have.iter().all(|piece| piece * 3 % 5 < round));
        assert_eq!(begun.have.count(), (0..count).filter(|piece| piece * 3 % 5 < round).count() as u32);
        fetch(&seeder, &peer, &events, &id, &wanted);
    }
    let (peer, _events) = open(&path);
    peer.finish(&id).unwrap();
    assert!(fs::read(peer.stream_path(&id, 0)).unwrap() == noise(9_000_001, 11));
}

#[test]
fn garbled_pieces_are_found_at_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, id) = seeded(dir.path(), 1_000_000, 2);
    let (peer, events) = open(&dir.path().join("peer"));
    let begun = peer.begin(&seeder.read_manifest(&id).unwrap()).unwrap();
    let all = Bitmap::full(begun.geometry.piece_count());
    fetch(&seeder, &peer, &events, &id, &all);
    let path = peer.stream_path(&id, 0);
    drop(peer);
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"garbage", 500_000).unwrap();
    let (peer, _events) = open(&dir.path().join("peer"));
    assert_eq!(peer.contents()[0].have.count(), all.count() - 1);
}

#[test]
fn bad_shards_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, id) = seeded(dir.path(), 100_000, 3);
    let (peer, events) = open(&dir.path().join("peer"));
    peer.begin(&seeder.read_manifest(&id).unwrap()).unwrap();
    let mut bytes = seeder.read(&id, ShardIndex(0)).unwrap().to_vec();
    bytes[0] ^= 1;
    for (shard, payload) in [(0, Bytes::from(bytes)), (1, Bytes::new()), (u32::MAX, Bytes::from_static(b"x"))] {
        let shard = ShardIndex(shard);
        peer.submit_shard(&id, shard, payload, 1).unwrap();
        assert_eq!(events.recv().unwrap(), StoreEvent::Corrupt { content: id, shard, token: 1 });
        assert!(matches!(peer.read(&id, shard), Err(ReadError::NotHere)));
    }
    let unknown = ContentId([9; 32]);
    assert!(matches!(peer.submit_shard(&unknown, ShardIndex(0), Bytes::new(), 0), Err(SubmitError::UnknownContent)));
}

#[test]
fn parity_replaces_missing_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, id) = seeded(dir.path(), 1_500_000, 4);
    let (peer, events) = open(&dir.path().join("peer"));
    let geometry = peer.begin(&seeder.read_manifest(&id).unwrap()).unwrap().geometry;
    let stripe = StripeIndex(0);
    let (data, parity) = (geometry.stripe_data(stripe), u32::from(geometry.parity()));
    assert!(data > parity);
    for place in parity..u32::from(geometry.data()) + parity {
        let shard = geometry.shard_at(stripe, place);
        if geometry.split(shard).is_some() {
            peer.submit_shard(&id, shard, seeder.read(&id, shard).unwrap(), 0).unwrap();
            assert!(matches!(events.recv().unwrap(), StoreEvent::Verified { .. }));
        }
    }
    peer.rebuild(&id, stripe);
    let made: Vec<ShardIndex> = (0..parity).map(|place| geometry.shard_at(stripe, place)).collect();
    assert_eq!(events.recv().unwrap(), StoreEvent::Rebuilt { content: id, stripe, shards: made.clone() });
    for shard in made {
        assert_eq!(peer.read(&id, shard).unwrap(), seeder.read(&id, shard).unwrap());
    }
}

#[test]
fn a_new_version_copies_the_pieces_that_did_not_change() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, _events) = open(&dir.path().join("seeder"));
    let file = dir.path().join("file");
    let mut bytes = noise(4_000_000, 5);
    fs::write(&file, &bytes).unwrap();
    let first = ingest(&seeder, &file).unwrap();
    bytes[2_000_000..2_010_000].copy_from_slice(&noise(10_000, 6));
    fs::write(&file, &bytes).unwrap();
    let second = ingest(&seeder, &file).unwrap();
    let (peer, events) = open(&dir.path().join("peer"));
    let begun = peer.begin(&seeder.read_manifest(&first).unwrap()).unwrap();
    fetch(&seeder, &peer, &events, &first, &Bitmap::full(begun.geometry.piece_count()));
    peer.finish(&first).unwrap();
    let begun = peer.begin(&seeder.read_manifest(&second).unwrap()).unwrap();
    assert!(begun.reused > 3_700_000, "{} bytes reused", begun.reused);
    let mut missing = Bitmap::full(begun.geometry.piece_count());
    missing.subtract(&begun.have);
    fetch(&seeder, &peer, &events, &second, &missing);
    peer.finish(&second).unwrap();
    assert_eq!(fs::read(peer.stream_path(&second, 0)).unwrap(), bytes);
}

#[test]
fn the_least_recently_used_content_is_evicted_first_and_pins_protect() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, _events) = open(&dir.path().join("seeder"));
    let contents: Vec<ContentId> = (0..4)
        .map(|seed| {
            let file = dir.path().join("file");
            fs::write(&file, noise(100_000, seed)).unwrap();
            ingest(&seeder, &file).unwrap()
        })
        .collect();
    let (peer, events) = open_with(&dir.path().join("peer"), Some(250_000));
    for id in &contents[..2] {
        let begun = peer.begin(&seeder.read_manifest(id).unwrap()).unwrap();
        fetch(&seeder, &peer, &events, id, &Bitmap::full(begun.geometry.piece_count()));
        peer.finish(id).unwrap();
    }
    peer.pin(&contents[0], true).unwrap();
    let begun = peer.begin(&seeder.read_manifest(&contents[2]).unwrap()).unwrap();
    assert_eq!(begun.evicted, [contents[1]]);
    let refused = peer.begin(&seeder.read_manifest(&contents[3]).unwrap());
    assert!(matches!(refused, Err(BeginError::WouldNotFit { .. })), "one is pinned, one unfinished");
}

#[test]
fn a_directory_keeps_its_odd_names_and_refuses_links_that_leave_it() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let (store, _events) = open(&dir.path().join("store"));
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("a/deep")).unwrap();
    for name in [&b"a-b"[..], b"a/c", b"with space", b"not\xffutf8", b"a/deep/empty"] {
        fs::write(source.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    symlink("../a-b", source.join("a/up")).unwrap();
    let id = ingest(&store, &source).unwrap();
    let manifest = store.manifest(&id).unwrap();
    let paths: Vec<&[u8]> = manifest.entries.iter().map(|entry| entry.path.as_slice()).collect();
    let expected: [&[u8]; 8] =
        [b"a", b"a-b", b"a/c", b"a/deep", b"a/deep/empty", b"a/up", b"not\xffutf8", b"with space"];
    assert_eq!(paths, expected);
    symlink("../../outside", source.join("a/bad")).unwrap();
    let refused = ingest(&store, &source);
    assert!(matches!(refused, Err(IngestError::Source(WalkError::Escapes { .. }))), "{refused:?}");
    let left = fs::read_dir(dir.path().join("store/contents")).unwrap().count();
    assert_eq!(left, 1, "the attempt leaves nothing");
}

#[test]
fn a_cancelled_ingest_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _events) = open(&dir.path().join("store"));
    let file = dir.path().join("file");
    fs::write(&file, noise(1_000_000, 9)).unwrap();
    let progress = Arc::new(IngestProgress::default());
    progress.cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    let cancelled = store.ingest(&file, &IngestOptions::default(), &progress);
    assert!(matches!(cancelled, Err(IngestError::Source(WalkError::Cancelled))));
    assert_eq!(fs::read_dir(dir.path().join("store/contents")).unwrap().count(), 0);
}

#[test]
fn a_version_shares_pieces_with_the_former_and_is_found_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let options = IngestOptions { average: None, data: 16, parity: 4, lanes: 8 };
    let (seeder, _) = open(&dir.path().join("seeder"));
    let (peer, events) = open(&dir.path().join("peer"));
    let mut data = noise(1 << 20, 50);
    let mut former: Option<ContentId> = None;
    for round in 0..4u64 {
        data[200_000..210_000].copy_from_slice(&noise(10_000, 51 + round));
        let taken = seeder.ingest_version(&Bytes::copy_from_slice(&data), &options, former.as_ref()).unwrap();
        let id = taken.content;
        assert!(seeder.is_whole(&id));
        let begun = peer.begin_version(&seeder.read_manifest(&id).unwrap(), former).unwrap();
        let missing = begun.geometry.piece_count() - begun.have.count();
        assert!(round == 0 || (1..5).contains(&missing), "{missing} pieces moved");
        let mut wanted = Bitmap::full(begun.geometry.piece_count());
        wanted.subtract(&begun.have);
        assert_eq!(peer.finish_version(&id).is_err(), missing > 0);
        fetch(&seeder, &peer, &events, &id, &wanted);
        peer.finish_version(&id).unwrap();
        assert_eq!(fs::read(peer.stream_path(&id, 0)).unwrap(), data);
        if let Some(former) = former.replace(id) {
            peer.remove(&former).unwrap();
        }
    }
    assert_eq!(peer.count(), 1, "earlier versions leave nothing");
    drop(peer);
    let (peer, _) = open(&dir.path().join("peer"));
    assert!(peer.is_whole(&former.unwrap()), "found by hashing");
    // The same bytes make the same content.
    let again = seeder.ingest_version(&Bytes::copy_from_slice(&data), &options, former.as_ref()).unwrap();
    assert_eq!(Some(again.content), former);
    // An insertion shifts the rest, so the former cuts no longer help.
    data.splice(5000..5000, noise(100, 60));
    data.truncate(1 << 20);
    let shifted = seeder.ingest_version(&Bytes::from(data), &options, former.as_ref()).unwrap().content;
    let begun = peer.begin_version(&seeder.read_manifest(&shifted).unwrap(), former).unwrap();
    let missing = begun.geometry.piece_count() - begun.have.count();
    assert!(missing < 10, "{missing} pieces moved");
}
