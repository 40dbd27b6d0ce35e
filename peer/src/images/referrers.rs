//! What refers to a manifest: signatures, attestations and other artifacts in the store.
//!
//! A client takes a list for the whole list. So the mirror answers only if it has all that the registry listed when the
//! seeder pulled, or if everything came from files, whose pusher knows what there is.
//! Invariant: a list that may be incomplete is not returned.

use super::catalog::Images;
use serde_json::Value;
use shoal_proto::go_json::GoValue;
use shoal_proto::image::{Digest, ImageBlob, is_manifest};
use shoal_proto::image_documents::{REFERRER_LISTS, Referrer, ReferrerLists};
use std::collections::{BTreeMap, BTreeSet};

/// Largest document, in bytes, that is searched for a reference to a manifest.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Most referrers in one answer.
const REFERRERS_MAX: usize = 256;
/// Most bytes of annotations in one answer. Registries answer with 4 MiB at most.
const ANNOTATIONS_BYTES_MAX: usize = 3 << 20;

/// A manifest that refers to another one.
struct Found {
    blob: ImageBlob,
    referrer: Referrer,
}

impl Found {
    fn annotations_bytes(&self) -> usize {
        self.referrer.annotations.iter().map(|(key, text)| key.len() + text.len()).sum()
    }

    fn descriptor(self) -> Value {
        let Self { blob, referrer } = self;
        let (media_type, digest, size) = (blob.media_type, blob.digest.to_string(), blob.size);
        let mut row = serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size });
        if !referrer.artifact_type.is_empty() {
            row["artifactType"] = referrer.artifact_type.into();
        }
        if !referrer.annotations.is_empty() {
            row["annotations"] = referrer.annotations.into_iter().collect();
        }
        row
    }
}

impl Images {
    /// Returns the descriptors of all manifests that refer to `subject`. Blocks.
    ///
    /// Returns `None` if there are none, or if the registry may have others.
    pub(crate) fn referrers(&self, subject: &Digest) -> Option<Vec<Value>> {
        let mut listed = BTreeSet::new();
        let mut found: BTreeMap<Digest, Found> = BTreeMap::new();
        for blob in self.documents() {
            let bytes = self.document(&blob);
            if blob.media_type == REFERRER_LISTS {
                // Without its note the host does not know what it lacks.
                let lists: ReferrerLists = serde_json::from_slice(&bytes?).ok()?;
                for list in lists.lists.into_iter().filter(|list| list.subject == *subject) {
                    listed.extend(list.manifests?);
                }
                continue;
            }
            let document: Option<GoValue> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let referrer = document.as_ref().and_then(Referrer::read).filter(|found| found.subject == *subject);
            if let Some(referrer) = referrer {
                found.insert(blob.digest, Found { blob, referrer });
            }
        }
        let is_whole = listed.iter().all(|digest| found.contains_key(digest));
        let annotations: usize = found.values().map(Found::annotations_bytes).sum();
        let fits = found.len() <= REFERRERS_MAX && annotations <= ANNOTATIONS_BYTES_MAX;
        (is_whole && fits && !found.is_empty()).then(|| found.into_values().map(Found::descriptor).collect())
    }

    /// Returns the documents of all complete images, and the notes on their referrers. Each digest comes once.
    fn documents(&self) -> Vec<ImageBlob> {
        let images = self.complete();
        let blobs = images.iter().filter_map(|manifest| manifest.image.as_ref()).flat_map(|image| &image.blobs);
        let is_document = |blob: &&ImageBlob| is_manifest(&blob.media_type) || blob.media_type == REFERRER_LISTS;
        let documents = blobs.filter(is_document).filter(|blob| blob.size <= DOCUMENT_BYTES_MAX);
        let by_digest: BTreeMap<Digest, ImageBlob> = documents.map(|blob| (blob.digest, blob.clone())).collect();
        by_digest.into_values().collect()
    }

    /// Returns the bytes of a document, or `None` if the disk lacks or damaged a part of it.
    fn document(&self, blob: &ImageBlob) -> Option<Vec<u8>> {
        let blob = self.blob(&blob.digest)?;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < blob.size {
            bytes.extend_from_slice(&blob.read_from(bytes.len() as u64).ok()?);
        }
        Some(bytes)
    }
}
