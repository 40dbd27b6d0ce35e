//! Which complete images have a blob.
//!
//! Invariant: an entry names a content that is complete, or was complete a moment ago.

use crate::content::Content;
use shoal_proto::ids::ContentId;
use shoal_proto::image::{Digest, ImageBlob};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A stream of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlobPlace {
    pub(crate) content: ContentId,
    pub(crate) stream: usize,
}

/// The places of each blob.
#[derive(Debug, Default)]
pub(crate) struct BlobPlaces {
    places: BTreeMap<Digest, BTreeSet<BlobPlace>>,
}

/// Returns the blobs of an image with the numbers of their streams. Other contents have none.
pub(crate) fn blobs(content: &Content) -> impl Iterator<Item = (usize, &ImageBlob)> {
    content.manifest.image.iter().flat_map(|image| image.blobs.iter().enumerate())
}

impl BlobPlaces {
    pub(crate) fn of<'a>(contents: impl Iterator<Item = &'a Arc<Content>>) -> Self {
        let mut places = Self::default();
        contents.filter(|content| content.is_complete()).for_each(|content| places.add(content));
        places
    }

    /// Returns the places of a blob.
    pub(crate) fn get(&self, digest: &Digest) -> Vec<BlobPlace> {
        self.places.get(digest).into_iter().flatten().copied().collect()
    }

    pub(crate) fn add(&mut self, content: &Content) {
        for (stream, blob) in blobs(content) {
            self.places.entry(blob.digest).or_default().insert(BlobPlace { content: content.id, stream });
        }
    }

    pub(crate) fn remove(&mut self, content: &Content) {
        for (stream, blob) in blobs(content) {
            if let Some(places) = self.places.get_mut(&blob.digest) {
                places.remove(&BlobPlace { content: content.id, stream });
                if places.is_empty() {
                    self.places.remove(&blob.digest);
                }
            }
        }
    }
}
