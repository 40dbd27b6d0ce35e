//! The entry function of the fuzz target `oci`: documents of an image, as containerd's store returns them.
//!
//! Invariant: what the readers return has only checked digests.

use crate::image::{chain_ids, is_digest, parse_diff_ids, parse_manifest, pick_manifest};

/// Reads bytes as each kind of document.
///
/// # Panics
///
/// Panics if a reader returns a text that is not a digest.
pub fn read_documents(bytes: &[u8]) {
    if let Ok(manifest) = parse_manifest(bytes) {
        assert!(manifest.layers.iter().chain([&manifest.config]).all(|blob| is_digest(&blob.digest)));
    }
    if let Ok(picked) = pick_manifest(bytes) {
        assert!(is_digest(&picked.digest));
    }
    if let Ok(diff_ids) = parse_diff_ids(bytes) {
        let chain = chain_ids(&diff_ids);
        assert!(chain.len() == diff_ids.len() && chain.iter().all(|id| is_digest(id)));
    }
}
