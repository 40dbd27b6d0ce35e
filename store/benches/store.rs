//! What payload costs in the store: cut and hash, encode, repair of one shard, ingest, fetch.
//!
//! `cargo bench -p shoal-store --bench store`

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shoal_proto::ids::{ContentId, Hash, PieceIndex, ShardIndex};
use shoal_store::cdc::Cutter;
use shoal_store::erasure::{ErasureCode, ParityRow, ReedSolomonCode};
use shoal_store::ingest::{IngestOptions, IngestProgress};
use shoal_store::{Store, StoreConfig, StoreEvent};
use shoal_testkit::noise;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// Payload of one round, bytes.
const SIZE: usize = 256 << 20;
/// Average piece, bytes.
const AVERAGE: u32 = 256 << 10;
/// Shape of a full stripe.
const DATA: usize = 16;
const PARITY: usize = 4;
const PIECE: usize = 256 << 10;

fn cutting(c: &mut Criterion) {
    let payload = noise(SIZE, 1);
    let mut group = c.benchmark_group("cut");
    group.sample_size(10).throughput(Throughput::Bytes(SIZE as u64));
    group.bench_function("cut", |b| b.iter(|| pieces(&payload, |_| {})));
    group.bench_function("cut_and_hash", |b| {
        b.iter(|| {
            pieces(&payload, |piece| {
                black_box(Hash::of(&piece));
            })
        });
    });
    group.bench_function("hash", |b| {
        b.iter(|| payload.chunks(AVERAGE as usize).map(Hash::of).fold(0u8, |sum, hash| sum ^ hash.as_bytes()[0]));
    });
    group.finish();
}

fn pieces(payload: &[u8], mut each: impl FnMut(Bytes)) {
    let mut cutter = Cutter::new(payload, AVERAGE);
    while let Some(piece) = cutter.next_piece().expect("memory can be read") {
        each(piece);
    }
}

fn coding(c: &mut Criterion) {
    let payload = noise(DATA * PIECE, 1);
    let stripe: Vec<&[u8]> = payload.chunks(PIECE).collect();
    let code = ReedSolomonCode::new(DATA, PARITY).expect("a sensible code");
    let mut group = c.benchmark_group("code");
    group.throughput(Throughput::Bytes((DATA * PIECE) as u64));
    group.bench_function("encode_16_4", |b| {
        b.iter(|| (0..PARITY).map(|row| code.parity(row, &stripe)).collect::<Vec<_>>());
    });
    let parity = code.parity(0, &stripe);
    let held: Vec<Option<&[u8]>> = stripe.iter().enumerate().map(|(at, piece)| (at != 5).then_some(*piece)).collect();
    group.bench_function("repair_one_of_16", |b| {
        b.iter(|| {
            code.rebuild(&[PIECE; DATA], &held, &[ParityRow { row: 0, bytes: &parity }])
                .expect("one parity shard is enough")
        });
    });
    group.finish();
}

fn open(dir: &Path) -> (Store, Receiver<StoreEvent>) {
    let (sender, receiver) = sync_channel(1024);
    let config = StoreConfig { cache_bytes: 12 << 20, unwritten_bytes: 32 << 20, ..StoreConfig::new(dir) };
    // The benchmark may end before the last event.
    let sink = move |event| drop(sender.send(event));
    (Store::open(config, Box::new(sink)).expect("the store can be opened"), receiver)
}

fn disk(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = dir.path().join("source");
    std::fs::write(&source, noise(SIZE, 1)).expect("room for the source");
    let mut group = c.benchmark_group("disk");
    group.sample_size(10).throughput(Throughput::Bytes(SIZE as u64));
    let options = IngestOptions { average: Some(AVERAGE), ..IngestOptions::default() };
    let (seeder, _events) = open(&dir.path().join("seeder"));
    let ingest = || {
        let ingested = seeder.ingest(&source, &options, &Arc::new(IngestProgress::default()));
        ingested.expect("the source is ingested").content
    };
    group.bench_function("ingest", |b| {
        b.iter_batched(|| drop(seeder.remove(&ingest())), |()| ingest(), BatchSize::PerIteration);
    });
    let content = ingest();
    let shards = shards(&seeder, &content);
    let manifest = seeder.read_manifest(&content).expect("the manifest is there");
    let (peer, events) = open(&dir.path().join("peer"));
    let begin = || {
        drop(peer.remove(&content));
        peer.begin(&manifest).expect("there is room");
    };
    group.bench_function("submit_verify_write", |b| {
        b.iter_batched(begin, |()| submit_all(&peer, &events, &content, &shards), BatchSize::PerIteration);
    });
    group.bench_function("read", |b| {
        b.iter(|| {
            shards.iter().map(|(shard, _)| seeder.read(&content, *shard).map_or(0, |read| read.len())).sum::<usize>()
        });
    });
    group.finish();
}

/// Returns all data shards of a content, in memory.
fn shards(store: &Store, content: &ContentId) -> Vec<(ShardIndex, Bytes)> {
    let geometry = store.manifest(content).and_then(|manifest| manifest.geometry(content).ok()).expect("it is there");
    let all = (0..geometry.piece_count()).map(|piece| geometry.shard_of(PieceIndex(piece)));
    all.map(|shard| (shard, store.read(content, shard).expect("it can be read"))).collect()
}

/// Submits every shard, at most 64 at a time, and waits until all are written.
fn submit_all(store: &Store, events: &Receiver<StoreEvent>, content: &ContentId, shards: &[(ShardIndex, Bytes)]) {
    const WINDOW: usize = 64;
    for (at, (shard, payload)) in shards.iter().enumerate() {
        if at >= WINDOW {
            events.recv().expect("an event for each shard");
        }
        store.submit_shard(content, *shard, payload.clone(), 0).expect("the store takes it");
    }
    (0..shards.len().min(WINDOW)).for_each(|_| drop(events.recv().expect("an event for each shard")));
    assert!(shards.iter().all(|(shard, _)| store.read(content, *shard).is_ok()));
}

criterion_group!(benches, cutting, coding, disk);
criterion_main!(benches);
