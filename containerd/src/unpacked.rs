//! Whether containerd can start containers from an image.
//!
//! Invariant: the answer comes from blobs and snapshots. An image's record alone proves nothing about them.

use crate::client::Containerd;
use crate::error::RuntimeError;
use crate::image::{self, Descriptor, ImageError};

/// Whether containerd has an image unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unpacked {
    /// containerd lacks the image's record, a blob or the last snapshot.
    No,
    /// containerd can start containers from the image.
    Yes {
        /// The descriptor of the manifest or index that the image's record names.
        root: Descriptor,
        /// The snapshot of the last layer. `None` for an image without layers.
        snapshot: Option<String>,
    },
}

impl Containerd {
    /// Returns whether an image is unpacked.
    ///
    /// # Errors
    /// Fails if containerd fails, or if the image's documents are invalid.
    pub async fn unpacked(&self, image: &str) -> Result<Unpacked, RuntimeError> {
        let Some(root) = self.image_record(image).await? else { return Ok(Unpacked::No) };
        match self.top_snapshot(&root).await {
            Ok(Some(snapshot)) if !self.is_committed(&snapshot).await? => Ok(Unpacked::No),
            Ok(snapshot) => Ok(Unpacked::Yes { root, snapshot }),
            Err(RuntimeError::NotFound { .. }) => Ok(Unpacked::No),
            Err(error) => Err(error),
        }
    }

    /// Returns the name of the last layer's snapshot, for this machine's manifest below `root`.
    async fn top_snapshot(&self, root: &Descriptor) -> Result<Option<String>, RuntimeError> {
        let mut at = root.clone();
        for _ in 0..image::DEPTH_MAX {
            let invalid = RuntimeError::invalid_image(&at.digest);
            let bytes = self.read_blob(&at.digest).await?;
            if !at.is_index() {
                let config = image::parse_manifest(&bytes).map_err(invalid)?.config;
                let bytes = self.read_blob(&config.digest).await?;
                let diff_ids = image::parse_diff_ids(&bytes).map_err(RuntimeError::invalid_image(&config.digest))?;
                return Ok(image::chain_ids(&diff_ids).pop());
            }
            at = image::pick_manifest(&bytes).map_err(invalid)?;
        }
        Err(RuntimeError::invalid_image(&root.digest)(ImageError::NestedIndexes))
    }
}
