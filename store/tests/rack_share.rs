//! Rack shares of demoted contents: made, kept alone, reopened, restored to the whole content.

use bytes::Bytes;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, HostIndex, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::rack_placement::RackPlacement;
use shoal_store::ingest::{IngestOptions, IngestProgress};
use shoal_store::{RackShareError, ReadError, Store, StoreConfig, StoreEvent};
use shoal_testkit::noise;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

const SIZE: usize = 6_000_000;

fn open_with(dir: &Path, quota: Option<u64>) -> (Store, Receiver<StoreEvent>) {
    let (sender, receiver) = sync_channel(10_000);
    let config = StoreConfig { quota, ..StoreConfig::new(dir) };
    let store = Store::open(config, Box::new(move |event| sender.send(event).unwrap())).unwrap();
    (store, receiver)
}

fn open(dir: &Path) -> Store {
    open_with(dir, None).0
}

/// Returns a store with one whole content.
fn whole(dir: &Path, seed: u64) -> (Store, ContentId, Geometry) {
    let store = open(dir);
    let file = dir.join("file");
    fs::write(&file, noise(SIZE, seed)).unwrap();
    let options = IngestOptions { data: 4, parity: 2, ..IngestOptions::default() };
    let id = store.ingest(&file, &options, &Arc::new(IngestProgress::default())).unwrap().content;
    fs::remove_file(file).unwrap();
    let geometry = store.manifest(&id).unwrap().geometry(&id).unwrap();
    (store, id, geometry)
}

fn placement(hosts: u32) -> RackPlacement {
    RackPlacement::new((0..hosts).map(HostIndex))
}

fn shards(geometry: &Geometry) -> impl Iterator<Item = ShardIndex> + '_ {
    (0..geometry.stripe_count()).flat_map(|stripe| geometry.stripe_shards(StripeIndex(stripe)))
}

/// Checks that every shard of the share can be read, and no other shard.
fn assert_share(store: &Store, id: &ContentId, placements: &[RackPlacement], me: HostIndex, right: &Store) {
    let geometry = store.manifest(id).unwrap().geometry(id).unwrap();
    for shard in shards(&geometry) {
        match placements.iter().any(|placement| placement.holds(&geometry, me, shard)) {
            true => assert_eq!(store.read(id, shard).unwrap(), right.read(id, shard).unwrap(), "{shard}"),
            false => assert!(matches!(store.read(id, shard), Err(ReadError::NotHere)), "{shard}"),
        }
    }
}

fn on_disk(dir: &Path, id: &ContentId) -> u64 {
    let files = fs::read_dir(dir.join("contents").join(id.to_string())).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn only_the_share_is_left_on_the_disk_and_it_survives_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (right, id, geometry) = whole(&dir.path().join("right"), 1);
    let path = dir.path().join("peer");
    let (store, same, _) = whole(&path, 1);
    assert_eq!(same, id);
    let (me, placements) = (HostIndex(2), [placement(6)]);
    store.make_share(&id, me, &placements[0]).unwrap();
    assert!(store.is_complete(&id), "the whole content is still there");
    drop(store);
    let store = open(&path);
    assert_eq!(store.contents()[0].share.as_ref().unwrap().share.placements, placements);
    assert!(store.is_complete(&id));
    let left = store.drop_whole(&id).unwrap();
    assert!(!store.is_complete(&id));
    assert_eq!(store.usage().used, left);
    let share = placements[0].share(&geometry, me).filter_map(|shard| geometry.shard_len(shard));
    assert_eq!(left, share.map(u64::from).sum::<u64>());
    assert!(left * 7 < SIZE as u64 * 2, "about a quarter: {left}");
    // Beside the payload: a block at each end of a piece, the manifest, and blocks of the file system itself.
    assert!(on_disk(&path, &id) < left + 10 * 4096 + left / 10, "{} for {left}", on_disk(&path, &id));
    assert_share(&store, &id, &placements, me, &right);
    drop(store);
    let store = open(&path);
    assert_share(&store, &id, &placements, me, &right);
    assert_eq!(store.usage().used, left);
    let found = store.contents().remove(0);
    assert!(found.share.unwrap().share.whole_dropped && !found.complete);
}

#[test]
fn the_shares_of_every_placement_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (right, id, _) = whole(&dir.path().join("right"), 2);
    let path = dir.path().join("peer");
    let (store, _, _) = whole(&path, 2);
    let (me, placements) = (HostIndex(1), [placement(6), placement(5)]);
    placements.iter().for_each(|placement| store.make_share(&id, me, placement).unwrap());
    store.drop_whole(&id).unwrap();
    assert_share(&store, &id, &placements, me, &right);
    drop(store);
    assert_share(&open(&path), &id, &placements, me, &right);
}

#[test]
fn a_content_is_restored_from_other_shares() {
    let dir = tempfile::tempdir().unwrap();
    let (right, id, geometry) = whole(&dir.path().join("right"), 3);
    let path = dir.path().join("peer");
    let (store, _, _) = whole(&path, 3);
    let (me, placement) = (HostIndex(0), placement(6));
    store.make_share(&id, me, &placement).unwrap();
    store.drop_whole(&id).unwrap();
    drop(store);
    let (store, events) = open_with(&path, None);
    assert!(store.reserve_rest(&id).unwrap().is_empty());
    assert!(store.usage().used >= SIZE as u64);
    // Two of the six hosts are lost. The host asks the others for shards until the stripe has enough.
    for stripe in (0..geometry.stripe_count()).map(StripeIndex) {
        let have: Vec<ShardIndex> =
            geometry.stripe_shards(stripe).filter(|shard| placement.holds(&geometry, me, *shard)).collect();
        let others = geometry.stripe_shards(stripe).filter(|shard| {
            placement.holders(&geometry, *shard).any(|holder| (1..4).contains(&holder.0)) && !have.contains(shard)
        });
        let need = geometry.stripe_data(stripe) as usize - have.len();
        for shard in others.take(need) {
            store.submit_shard(&id, shard, right.read(&id, shard).unwrap(), 0).unwrap();
            assert!(matches!(events.recv().unwrap(), StoreEvent::Verified { .. }));
        }
        store.rebuild(&id, stripe);
        assert!(matches!(events.recv().unwrap(), StoreEvent::Rebuilt { .. }));
    }
    store.finish(&id).unwrap();
    assert_eq!(fs::read(store.stream_path(&id, 0)).unwrap(), noise(SIZE, 3));
    assert_eq!(store.usage().used, SIZE as u64);
    assert!(store.rack_share(&id).is_none() && !path.join("contents").join(id.to_string()).join("parity").exists());
}

#[test]
fn hard_links_of_a_stream_keep_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peer");
    let (store, id, _) = whole(&path, 4);
    let link = dir.path().join("linked");
    fs::hard_link(store.stream_path(&id, 0), &link).unwrap();
    store.make_share(&id, HostIndex(0), &placement(6)).unwrap();
    store.drop_whole(&id).unwrap();
    assert_eq!(fs::read(link).unwrap(), noise(SIZE, 4));
}

#[test]
fn an_exchange_that_was_interrupted_is_finished_or_undone() {
    let dir = tempfile::tempdir().unwrap();
    let (right, id, _) = whole(&dir.path().join("right"), 5);
    let path = dir.path().join("peer");
    let (store, _, _) = whole(&path, 5);
    store.make_share(&id, HostIndex(0), &placement(6)).unwrap();
    let stream = store.stream_path(&id, 0);
    let copy = stream.with_extension("share");
    drop(store);
    // A stop while the copy was written leaves the whole content.
    fs::write(&copy, b"half").unwrap();
    let store = open(&path);
    assert!(store.is_complete(&id) && !copy.exists());
    store.drop_whole(&id).unwrap();
    drop(store);
    // After a stop between the database and the exchange, the copy lies beside the stream.
    fs::rename(&stream, &copy).unwrap();
    fs::write(&stream, noise(SIZE, 5)).unwrap();
    let store = open(&path);
    assert!(!store.is_complete(&id) && !copy.exists());
    assert_share(&store, &id, &[placement(6)], HostIndex(0), &right);
}

#[test]
fn damage_is_found_before_pieces_are_dropped_and_at_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peer");
    let (store, id, geometry) = whole(&path, 6);
    let garble = |file: &Path| {
        let file = fs::OpenOptions::new().write(true).open(file).unwrap();
        file.write_all_at(b"garbage", 1000).unwrap();
    };
    let stream = store.stream_path(&id, 0);
    store.make_share(&id, HostIndex(0), &placement(6)).unwrap();
    garble(&stream);
    let owner = placement(6).holders(&geometry, ShardIndex(4)).next().unwrap();
    assert!(matches!(store.make_share(&id, owner, &placement(6)), Err(RackShareError::Damaged(StripeIndex(0)))));
    assert!(store.is_complete(&id));
    drop(store);
    garble(&path.join("contents").join(id.to_string()).join("parity"));
    let store = open(&path);
    let found = store.contents().remove(0).share.unwrap();
    let rows: u32 = found.parity.values().map(|rows| rows.count_ones()).sum();
    let dealt = placement(6).share(&geometry, HostIndex(0)).filter(|shard| geometry.is_parity(*shard)).count() as u32;
    let first = placement(6).holds(&geometry, HostIndex(0), ShardIndex(4));
    assert_eq!(rows, dealt - u32::from(first), "a garbled row does not count");
}

#[test]
fn nothing_is_let_go_for_which_there_is_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peer");
    let (store, id, geometry) = whole(&path, 7);
    drop(store);
    let (store, _events) = open_with(&path, Some(SIZE as u64 + 100_000));
    let refused = store.make_share(&id, HostIndex(0), &placement(6));
    assert!(matches!(refused, Err(RackShareError::NoSpace(_))), "{refused:?}");
    assert!(store.is_complete(&id));
    assert!(matches!(store.drop_whole(&id), Err(RackShareError::NotWhole)), "no share was made");
    let missing = Bitmap::full(geometry.piece_count());
    assert_eq!(store.contents()[0].have, missing);
    let unknown = ContentId([9; 32]);
    assert!(matches!(store.make_share(&unknown, HostIndex(0), &placement(6)), Err(RackShareError::NotWhole)));
    let read: Result<Bytes, ReadError> = store.read(&id, geometry.shard_of(PieceIndex(0)));
    read.unwrap();
}
