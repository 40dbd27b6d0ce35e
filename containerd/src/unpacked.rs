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
        let mut invalid = None;
        for manifest in self.manifests_below(&root).await? {
            match self.top_snapshot(&manifest).await {
                Ok(Some(snapshot)) if !self.is_committed(&snapshot).await? => {}
                Ok(snapshot) => return Ok(Unpacked::Yes { root, snapshot }),
                Err(RuntimeError::NotFound { .. }) => {}
                Err(error @ RuntimeError::InvalidImage { .. }) => invalid = Some(error),
                Err(error) => return Err(error),
            }
        }
        invalid.map_or(Ok(Unpacked::No), Err)
    }

    /// Returns the manifests below `root` that this containerd may choose, as far as it has them.
    async fn manifests_below(&self, root: &Descriptor) -> Result<Vec<Descriptor>, RuntimeError> {
        let (mut found, mut open) = (Vec::new(), vec![(root.clone(), 0)]);
        while let Some((at, depth)) = open.pop() {
            if !at.is_index() {
                found.push(at);
                continue;
            }
            let invalid = RuntimeError::invalid_image(&at.digest);
            if depth >= image::DEPTH_MAX {
                return Err(invalid(ImageError::NestedIndexes));
            }
            let bytes = match self.read_blob(&at.digest).await {
                Err(RuntimeError::NotFound { .. }) => continue,
                read => read?,
            };
            let picked = image::pick_manifests(&bytes).map_err(invalid)?;
            open.extend(picked.rows.into_iter().map(|row| (row, depth + 1)));
        }
        Ok(found)
    }

    /// Returns the name of a manifest's last snapshot. `None` for an image without layers.
    async fn top_snapshot(&self, manifest: &Descriptor) -> Result<Option<String>, RuntimeError> {
        let bytes = self.read_blob(&manifest.digest).await?;
        let config = image::parse_manifest(&bytes).map_err(RuntimeError::invalid_image(&manifest.digest))?.config;
        let bytes = self.read_blob(&config.digest).await?;
        let config = image::parse_config(&bytes).map_err(RuntimeError::invalid_image(&config.digest))?;
        Ok(image::chain_ids(&config.diff_ids).pop())
    }
}
