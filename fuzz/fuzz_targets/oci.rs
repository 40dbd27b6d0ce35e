//! Documents of images from registries: the seeder's reader and that of the containerd client, and challenges of
//! registries.

#![no_main]

use shoal_fuzz::{heap, image_files};
use shoal_proto::image::{Digest, ImageIndex, Reference, is_manifest, is_media_type};
use shoal_proto::limits;
use std::collections::BTreeSet;

fn check_index(index: &ImageIndex) {
    assert!(index.blobs.len() <= limits::BLOBS_MAX + 1);
    assert!(index.reference.parse::<Reference>().is_ok());
    let (_, root) = index.find(&index.root).expect("the root is among the blobs");
    assert!(is_manifest(&root.media_type));
    let digests: BTreeSet<Digest> = index.blobs.iter().map(|blob| blob.digest).collect();
    assert_eq!(digests.len(), index.blobs.len(), "a digest twice");
    assert!(index.blobs.iter().all(|blob| is_media_type(&blob.media_type)));
    assert!(index.blobs.is_sorted_by_key(|blob| blob.size == 0), "empty blobs come last");
}

fn check(data: &[u8]) {
    let documents = image_files::documents(data, |document| document);
    for all_platforms in [false, true] {
        if let Some(index) = shoal_seeder::fuzzing::gather(&documents, all_platforms) {
            check_index(&index);
        }
    }
    for document in &documents {
        shoal_containerd::fuzzing::read_documents(document);
        if let Ok(text) = std::str::from_utf8(document) {
            shoal_seeder::fuzzing::read_challenge(text);
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| heap::bounded((1 << 20) + 400 * data.len(), || check(data)));
