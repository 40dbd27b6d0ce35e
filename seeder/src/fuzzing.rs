//! The entry functions of the fuzz targets: images from outside, challenges of registries, rollouts.
//!
//! Invariant: a function only calls the code that reads the same bytes in a running seeder.

use crate::images::archive::LocalImage;
use crate::oci_documents::{Gather, Platforms, digest_of};
use crate::registry::auth::challenge;
use crate::rollout::spec::{check, rules};
use shoal_api::rollouts::RolloutSpec;
use shoal_proto::image::{ImageIndex, Reference};
use shoal_proto::image_documents::Descriptor;
use std::io;
use std::path::Path;

/// What was found of a blob of an archive.
#[derive(Debug)]
pub struct ReadBlob {
    /// Length that the index states, bytes.
    pub size: u64,
    /// Bytes that could be read.
    pub read: u64,
}

fn reference() -> Option<Reference> {
    "registry.example/fuzz/image:1".parse().ok()
}

fn platforms(all: bool) -> Platforms {
    if all { Platforms::All } else { Platforms::default() }
}

/// Follows documents from the first one, whose descriptor is in the place of a registry's answer. The others are the
/// blobs that the registry has.
pub fn gather(documents: &[Vec<u8>], all_platforms: bool) -> Option<ImageIndex> {
    let (root, others) = documents.split_first()?;
    let root = Descriptor::read(&serde_json::from_slice(root).ok()?).ok()?;
    let mut gather = Gather::new(root, platforms(all_platforms)).ok()?;
    while let Some(next) = gather.next() {
        let found = others.iter().find(|bytes| digest_of(bytes) == next.digest)?;
        gather.add(found.clone().into()).ok()?;
    }
    Some(gather.finish(&reference()?).index)
}

/// Opens an archive and reads every blob of its image.
pub fn read_archive(path: &Path, named: bool) -> Vec<ReadBlob> {
    let wanted = reference().filter(|_| named);
    let Ok(source) = shoal_store::OpenSource::open(path) else { return Vec::new() };
    let Ok(image) = LocalImage::open(source, wanted.as_ref(), &Platforms::default()) else { return Vec::new() };
    let read = |blob| {
        let shoal_store::BlobSource::Reader(mut reader) = image.source(blob).ok()? else { return None };
        let read = io::copy(&mut reader, &mut io::sink()).ok()?;
        Some(ReadBlob { size: blob.size, read })
    };
    image.index.blobs.iter().filter_map(read).collect()
}

/// Reads the `WWW-Authenticate` header of a registry.
pub fn read_challenge(header: &str) -> bool {
    challenge([header].into_iter()).is_some()
}

/// Checks a rollout. A rollout that passes has rules for its hosts.
///
/// # Panics
///
/// Panics if the rules of a rollout that passed cannot be made.
pub fn check_rollout(spec: &RolloutSpec) -> bool {
    if check(spec).is_err() {
        return false;
    }
    match rules(spec) {
        Ok(rules) => assert!(!rules.is_empty(), "no rule for any host"),
        Err(error) => panic!("a rollout passed its check and has no rules: {error}"),
    }
    true
}
