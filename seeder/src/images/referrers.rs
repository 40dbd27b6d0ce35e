//! What refers to an image at its registry: signatures, attestations, lists of parts.
//!
//! A registry lists the referrers of a manifest. The seeder notes the list with the image, so that a host's mirror
//! knows whether it has them all. On request they travel with the image. Invariant: an image without a note has no
//! referrers that its registry would list, or comes from files.

use super::GatheredImage;
use crate::oci_documents::{DocumentError, Gather, digest_of};
use crate::registry::{RegistryError, Repository};
use bytes::Bytes;
use shoal_proto::go_json::GoValue;
use shoal_proto::image::{Digest, ImageBlob};
use shoal_proto::image_documents::{Descriptor, REFERRER_LISTS, Referrer, ReferrerList, ReferrerLists};

/// The lists for an image, as its registry gave them.
pub struct Found {
    lists: ReferrerLists,
    /// The referrers of the image itself.
    of_root: Vec<Descriptor>,
}

impl Found {
    /// Adds the referrers of the image to its documents.
    ///
    /// # Errors
    /// Returns an error if a referrer is not a manifest, or leads over a limit.
    pub fn add_to(&self, gather: &mut Gather) -> Result<(), DocumentError> {
        self.of_root.iter().cloned().try_for_each(|row| gather.also(row))
    }

    /// Notes the lists with the image, if they say anything.
    pub fn note(&self, image: &mut GatheredImage) {
        let says_something = |list: &ReferrerList| list.manifests.as_ref().is_none_or(|found| !found.is_empty());
        if !self.lists.lists.iter().any(says_something) {
            return;
        }
        let Ok(text) = serde_json::to_vec(&self.lists) else { return };
        let digest = digest_of(&text);
        let blob = ImageBlob { digest, media_type: REFERRER_LISTS.into(), size: text.len() as u64 };
        image.add_document(blob, Bytes::from(text));
    }
}

/// Asks the registry for the referrers of an image, and for those of the manifest to which the image itself refers.
///
/// # Errors
/// Returns an error if the registry does not list the image's own referrers and they `are_needed`.
pub async fn find(
    repository: &Repository,
    root: Digest,
    bytes: &Bytes,
    are_needed: bool,
) -> Result<Found, RegistryError> {
    let mut found = Found { lists: ReferrerLists::default(), of_root: Vec::new() };
    match repository.referrers(&root).await {
        Ok(rows) => {
            found.lists.lists.push(list(root, &rows));
            found.of_root = rows;
        }
        Err(error) if are_needed => return Err(error),
        Err(error) => found.lists.lists.push(unknown(root, &error)),
    }
    let document: Option<GoValue> = serde_json::from_slice(bytes).ok();
    if let Some(Referrer { subject, .. }) = document.as_ref().and_then(Referrer::read).filter(|it| it.subject != root) {
        found.lists.lists.push(match repository.referrers(&subject).await {
            Ok(rows) => list(subject, &rows),
            Err(error) => unknown(subject, &error),
        });
    }
    Ok(found)
}

fn list(subject: Digest, rows: &[Descriptor]) -> ReferrerList {
    ReferrerList { subject, manifests: Some(rows.iter().map(|row| row.digest).collect()) }
}

fn unknown(subject: Digest, error: &RegistryError) -> ReferrerList {
    let error = crate::errors::with_sources(error);
    tracing::info!(%subject, error, "a registry gives no list of referrers, so mirrors send clients to it");
    ReferrerList { subject, manifests: None }
}
