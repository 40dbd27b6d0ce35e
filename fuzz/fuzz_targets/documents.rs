//! Every document of the protocol, by its kind byte: read, checked, written, read again.

#![no_main]

use shoal_fuzz::{heap, stable};
use shoal_proto::announcement::Announcement;
use shoal_proto::control::{Request, Response};
use shoal_proto::desired::Desired;
use shoal_proto::ids::{ContentId, ShardIndex};
use shoal_proto::limits;
use shoal_proto::manifest::Manifest;
use shoal_proto::receipt::HubReceipt;
use shoal_proto::report::{HubFlush, HubSubmission};
use shoal_proto::trust::{Credential, Envelope, JoinClaim, JoinToken, Trust, TrustDocument};

/// Sets of hosts that a document may have, each of the size of the largest region.
const SETS_MAX: usize = limits::FLUSH_JOBS_MAX * (limits::FLUSH_STATES_MAX + 1);

/// What reading, writing and comparing a document may take of the heap: a multiple of its length, and the sets.
fn heap_max(bytes: &[u8]) -> usize {
    // A set of 200,000 hosts takes 25 KB in memory and 8 bytes on the wire.
    let sets = (bytes.len() / 8).min(SETS_MAX);
    (1 << 16) + 400 * bytes.len() + 4 * sets * (limits::HOSTS_MAX as usize / 8)
}

fn check_manifest(manifest: &Manifest) {
    let geometry = manifest.geometry(&ContentId([1; 32])).expect("a decoded manifest has a geometry");
    assert_eq!(geometry.bytes(), manifest.size());
    assert_eq!(geometry.piece_count(), manifest.piece_count());
    for shard in (0..geometry.shard_space().min(4096)).map(ShardIndex) {
        assert_eq!(manifest.shard_hash(&geometry, shard).is_some(), geometry.shard_len(shard).is_some());
    }
    for entry in &manifest.entries {
        assert!(!entry.path.starts_with(b"/") && !entry.path.split(|byte| *byte == b'/').any(|part| part == b".."));
    }
}

fn check(bytes: &[u8]) {
    match bytes.first() {
        Some(1) => {
            stable::document::<Manifest>(bytes).iter().for_each(check_manifest);
        }
        Some(2) => {
            stable::document::<Announcement>(bytes);
        }
        Some(3) => {
            stable::document::<Credential>(bytes);
        }
        Some(4) => {
            stable::document::<TrustDocument>(bytes);
        }
        Some(5) => {
            if let Some(envelope) = stable::document::<Envelope>(bytes) {
                let _ = envelope.open::<Announcement>();
                let _ = Trust::open(bytes, None);
            }
        }
        Some(6) => {
            stable::document::<Request>(bytes);
            stable::document::<Response>(bytes);
        }
        Some(7) => {
            stable::document::<HubFlush>(bytes);
        }
        Some(11) => {
            stable::document::<HubReceipt>(bytes);
        }
        Some(16) => {
            if let Some(token) = stable::document::<JoinToken>(bytes) {
                let _ = token.locality_of(Some(&token.place), &token.key);
            }
        }
        Some(17) => {
            stable::document::<JoinClaim>(bytes);
        }
        Some(9) => {
            stable::document::<Desired>(bytes);
        }
        _ => {
            stable::value::<HubSubmission>(bytes);
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heap::bounded(heap_max(bytes), || check(bytes)));
