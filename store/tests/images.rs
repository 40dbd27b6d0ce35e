//! Images in the store: blobs are stored once, cut the same in every image, checked, and found by digest and by name.

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::Document;
use shoal_proto::ids::{ContentId, PieceIndex};
use shoal_proto::image::{Digest, ImageBlob, ImageIndex, OCI_MANIFEST};
use shoal_proto::manifest::Manifest;
use shoal_store::ingest::{IngestError, IngestOptions, IngestProgress};
use shoal_store::{BlobSource, Store, StoreConfig, StoreEvent};
use shoal_testkit::noise;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

fn open(dir: &Path, quota: Option<u64>) -> (Store, Receiver<StoreEvent>) {
    let (sender, receiver) = sync_channel(10_000);
    let config = StoreConfig { quota, ..StoreConfig::new(dir) };
    (Store::open(config, Box::new(move |event| sender.send(event).unwrap())).unwrap(), receiver)
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest(digest(&SHA256, bytes).as_ref().try_into().unwrap())
}

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Returns an image of these layers. Its manifest is a text with their digests.
fn image(name: &str, layers: &[Vec<u8>]) -> (ImageIndex, Vec<Vec<u8>>) {
    let named: String = layers.iter().map(|layer| sha256(layer).to_string()).collect();
    let mut bytes = vec![format!("{name} {named}").into_bytes()];
    bytes.extend_from_slice(layers);
    let blob = |(at, bytes): (usize, &Vec<u8>)| ImageBlob {
        digest: sha256(bytes),
        media_type: if at == 0 { OCI_MANIFEST } else { TAR }.into(),
        size: bytes.len() as u64,
    };
    let blobs: Vec<ImageBlob> = bytes.iter().enumerate().map(blob).collect();
    (ImageIndex { reference: format!("r.example/{name}"), root: blobs[0].digest, blobs }, bytes)
}

/// Ingests an image. Returns its content and the digests of the blobs that were read.
fn ingest(store: &Store, index: ImageIndex, bytes: &[Vec<u8>]) -> Result<(ContentId, Vec<Digest>), IngestError> {
    let mut read = Vec::new();
    let source = |blob: &ImageBlob| {
        read.push(blob.digest);
        let bytes = bytes.iter().find(|bytes| sha256(bytes) == blob.digest || bytes.len() as u64 == blob.size);
        Ok(BlobSource::Reader(Box::new(Cursor::new(bytes.unwrap().clone()))))
    };
    let options = IngestOptions::default();
    let ingested = store.ingest_image(index, source, None, &options, &Arc::new(IngestProgress::default()))?;
    Ok((ingested.content, read))
}

/// Fetches the missing pieces of a content. Returns the bytes that moved.
fn fetch(from: &Store, to: &Store, events: &Receiver<StoreEvent>, id: &ContentId) -> u64 {
    let begun = to.begin(&from.read_manifest(id).unwrap()).unwrap();
    let mut missing = Bitmap::full(begun.geometry.piece_count());
    missing.subtract(&begun.have);
    let mut moved = 0;
    for piece in missing.iter().map(PieceIndex) {
        let shard = begun.geometry.shard_of(piece);
        let bytes: Bytes = from.read(id, shard).unwrap();
        moved += bytes.len() as u64;
        to.submit_shard(id, shard, bytes, 0).unwrap();
        assert!(matches!(events.recv().unwrap(), StoreEvent::Verified { .. }));
    }
    to.finish(id).unwrap();
    moved
}

fn inode(store: &Store, digest: &Digest) -> u64 {
    fs::metadata(store.blob(digest).unwrap().path).unwrap().ino()
}

#[test]
fn a_shared_layer_is_stored_and_moved_once() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, _seeder_events) = open(&dir.path().join("seeder"), None);
    let (peer, events) = open(&dir.path().join("peer"), None);
    let (base, one, two) = (noise(3_000_000, 1), noise(500_000, 2), noise(600_000, 3));
    let (first, first_bytes) = image("app:1", &[base.clone(), one]);
    // The base is the second layer here, so its pieces have other numbers and stripes.
    let (second, second_bytes) = image("other:2", &[two.clone(), base.clone()]);
    let (first_id, read) = ingest(&seeder, first, &first_bytes).unwrap();
    assert_eq!(read.len(), 3);
    let (second_id, read) = ingest(&seeder, second.clone(), &second_bytes).unwrap();
    assert_eq!(read, [second.root, sha256(&two)], "the base is not read from its source");
    fetch(&seeder, &peer, &events, &first_id);
    let moved = fetch(&seeder, &peer, &events, &second_id);
    assert_eq!(moved, (second_bytes[0].len() + two.len()) as u64);
    for store in [&seeder, &peer] {
        let own: usize = first_bytes.iter().chain(&second_bytes[..2]).map(Vec::len).sum();
        assert_eq!(store.usage().used, own as u64, "the base counts once");
        let base_inode = inode(store, &sha256(&base));
        store.remove(&first_id).unwrap();
        assert_eq!(inode(store, &sha256(&base)), base_inode);
        assert_eq!(fs::read(store.blob(&sha256(&base)).unwrap().path).unwrap(), base);
        assert_eq!(store.usage().used, second_bytes.iter().map(Vec::len).sum::<usize>() as u64);
        assert!(store.scrub(&second_id).is_empty());
    }
}

#[test]
fn a_blob_of_an_evicted_image_is_still_a_source_of_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, _seeder_events) = open(&dir.path().join("seeder"), None);
    let (peer, events) = open(&dir.path().join("peer"), None);
    let base = noise(4_000_000, 1);
    let mut changed = base.clone();
    changed[1_000_000..1_050_000].copy_from_slice(&noise(50_000, 9));
    let images = [("app:1", &base), ("app:2", &base), ("app:3", &changed)];
    let ids = images.map(|(name, layer)| {
        let (index, bytes) = image(name, std::slice::from_ref(layer));
        ingest(&seeder, index, &bytes).unwrap().0
    });
    fetch(&seeder, &peer, &events, &ids[0]);
    fetch(&seeder, &peer, &events, &ids[1]);
    // The table of pieces has the places in this content, because it was completed last.
    peer.remove(&ids[1]).unwrap();
    let moved = fetch(&seeder, &peer, &events, &ids[2]);
    assert!(moved < 400_000, "{moved} bytes moved");
}

#[test]
fn blobs_and_names_are_found_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (store, events) = open(&path, None);
    let (old, old_bytes) = image("app:1", &[noise(100_000, 1)]);
    let (new, new_bytes) = image("app:1", &[noise(100_000, 2)]);
    let (old_id, _) = ingest(&store, old.clone(), &old_bytes).unwrap();
    let (new_id, _) = ingest(&store, new.clone(), &new_bytes).unwrap();
    store.set_sequence(&old_id, 5).unwrap();
    store.set_sequence(&new_id, 6).unwrap();
    assert_eq!(store.image("r.example/app:1").unwrap().content, new_id);
    store.set_sequence(&old_id, 7).unwrap();
    drop((store, events));
    let (store, _events) = open(&path, None);
    assert_eq!(store.images()["r.example/app:1"].content, old_id, "named last");
    assert_eq!(store.image("r.example/app:1").unwrap().content, old_id);
    for (index, bytes) in [(&old, &old_bytes), (&new, &new_bytes)] {
        for (blob, bytes) in index.blobs.iter().zip(bytes) {
            let file = store.blob(&blob.digest).unwrap();
            assert_eq!((file.size, &file.media_type), (blob.size, &blob.media_type));
            assert_eq!(std::io::read_to_string(file.open().unwrap()).ok(), String::from_utf8(bytes.clone()).ok());
        }
    }
    store.remove(&old_id).unwrap();
    assert!(store.blob(&old.root).is_none());
    assert_eq!(store.image("r.example/app:1").unwrap().content, new_id);
}

#[test]
fn wrong_bytes_make_no_content() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _events) = open(&dir.path().join("store"), None);
    let (index, bytes) = image("app:1", &[noise(300_000, 1)]);
    let with = |layer: Vec<u8>| vec![bytes[0].clone(), layer];
    let refused = |layer: Vec<u8>| {
        let layer_digest = index.blobs[1].digest;
        let (layer, root) = (with(layer), index.root);
        let source = |blob: &ImageBlob| {
            let bytes = layer[usize::from(blob.digest != root)].clone();
            Ok(BlobSource::Reader(Box::new(Cursor::new(bytes))))
        };
        let (options, progress) = (IngestOptions::default(), Arc::new(IngestProgress::default()));
        match store.ingest_image(index.clone(), source, None, &options, &progress) {
            Err(IngestError::Blob { digest, why }) if digest == layer_digest => why,
            other => panic!("{other:?}"),
        }
    };
    let mut flipped = bytes[1].clone();
    flipped[150_000] ^= 1;
    assert!(refused(flipped).contains("its bytes are those of sha256:"));
    assert!(refused(bytes[1][..299_999].to_vec()).contains("ends 1 bytes before"));
    assert!(refused([&bytes[1][..], b"x"].concat()).contains("longer"));
    assert_eq!(store.count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("store/contents")).unwrap().count(), 0);
    ingest(&store, index.clone(), &bytes).unwrap();
}

#[test]
fn a_file_source_becomes_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _events) = open(&dir.path().join("store"), None);
    let (index, bytes) = image("app:1", &[noise(300_000, 1)]);
    for (blob, bytes) in index.blobs.iter().zip(&bytes) {
        fs::write(dir.path().join(blob.digest.hex()), bytes).unwrap();
    }
    let source = |blob: &ImageBlob| Ok(BlobSource::File(dir.path().join(blob.digest.hex())));
    let room = store.reserve_space(300_000).unwrap();
    let (options, progress) = (IngestOptions::default(), Arc::new(IngestProgress::default()));
    store.ingest_image(index.clone(), source, Some(room), &options, &progress).unwrap();
    let layer = index.blobs[1].digest;
    assert_eq!(fs::metadata(dir.path().join(layer.hex())).unwrap().ino(), inode(&store, &layer));
}

#[test]
fn a_damaged_or_lying_source_is_not_shared() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, _seeder_events) = open(&dir.path().join("seeder"), None);
    let (peer, events) = open(&dir.path().join("peer"), None);
    let base = noise(1_000_000, 1);
    let (first, first_bytes) = image("app:1", std::slice::from_ref(&base));
    let (second, second_bytes) = image("app:2", std::slice::from_ref(&base));
    let (first_id, _) = ingest(&seeder, first, &first_bytes).unwrap();
    let (second_id, _) = ingest(&seeder, second, &second_bytes).unwrap();
    fetch(&seeder, &peer, &events, &first_id);
    let path = peer.blob(&sha256(&base)).unwrap().path;
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"garbage", 500_000).unwrap();
    let moved = fetch(&seeder, &peer, &events, &second_id);
    assert!(moved > second_bytes[0].len() as u64, "at least the damaged piece");
    assert_eq!(fs::read(peer.stream_path(&second_id, 1)).unwrap(), base);
    // This manifest has the digest of one blob beside the pieces of another.
    let (third, third_bytes) = image("app:3", &[noise(1_000_000, 2)]);
    let (third_id, _) = ingest(&seeder, third, &third_bytes).unwrap();
    let mut lie = Manifest::clone(&seeder.manifest(&third_id).unwrap());
    lie.image.as_mut().unwrap().blobs[1].digest = sha256(&base);
    let begun = peer.begin(&lie.to_bytes()).unwrap();
    assert_eq!(begun.reused, 0);
}

#[test]
fn eviction_frees_only_the_files_that_no_other_image_has() {
    let dir = tempfile::tempdir().unwrap();
    let (seeder, _seeder_events) = open(&dir.path().join("seeder"), None);
    let (peer, events) = open(&dir.path().join("peer"), Some(2_700_000));
    let base = noise(1_000_000, 1);
    let ids = [1u64, 2, 3].map(|number| {
        let (index, bytes) = image(&format!("app:{number}"), &[base.clone(), noise(800_000, number + 10)]);
        ingest(&seeder, index, &bytes).unwrap().0
    });
    fetch(&seeder, &peer, &events, &ids[0]);
    fetch(&seeder, &peer, &events, &ids[1]);
    assert!(peer.is_complete(&ids[0]) && peer.is_complete(&ids[1]), "2.6 MB, the base once");
    fetch(&seeder, &peer, &events, &ids[2]);
    assert!(peer.usage().used <= 2_700_000);
    assert_eq!(peer.count(), 2, "one image was evicted, and the shared base stayed");
    assert_eq!(fs::read(peer.blob(&sha256(&base)).unwrap().path).unwrap(), base);
}
