//! What pulling an image would bring.
//!
//! Invariant: resolving an image moves only its documents, never a layer.

use serde::{Deserialize, Serialize};
use shoal_proto::image::Digest;

/// What a reference means at its registry now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResolvedImage {
    /// The reference, written out in full.
    pub reference: String,
    /// Digest of the manifest or index that the reference names.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::Digest"))]
    pub root: Digest,
    /// Documents, configurations and layers of the image.
    pub blobs: Vec<ResolvedBlob>,
    /// Number of hosts that the selectors match.
    pub hosts: u32,
}

/// A blob of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResolvedBlob {
    #[allow(missing_docs, reason = "the type says it")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::Digest"))]
    pub digest: Digest,
    /// The blob's media type.
    pub media_type: String,
    /// Bytes of the blob.
    pub size: u64,
    /// The seeder's store has the blob, so the seeder does not pull it.
    pub stored: bool,
}
