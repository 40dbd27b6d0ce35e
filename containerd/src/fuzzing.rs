//! The entry function of the fuzz target `oci`: documents of an image, as containerd's store returns them.
//!
//! Invariant: what the readers return has only checked digests.

use crate::image::{chain_ids, is_digest, parse_config, parse_manifest, pick_manifests};

/// Reads bytes as each kind of document.
///
/// # Panics
///
/// Panics if a reader returns a text that is not a digest.
pub fn read_documents(bytes: &[u8]) {
    if let Ok(manifest) = parse_manifest(bytes) {
        assert!(manifest.layers.iter().chain([&manifest.config]).all(|blob| is_digest(&blob.digest)));
    }
    if let Ok(picked) = pick_manifests(bytes) {
        assert!(picked.rows.iter().all(|row| is_digest(&row.digest)));
    }
    if let Ok(config) = parse_config(bytes) {
        let chain = chain_ids(&config.diff_ids);
        assert!(chain.len() == config.diff_ids.len() && chain.iter().all(|id| is_digest(id)));
    }
}
