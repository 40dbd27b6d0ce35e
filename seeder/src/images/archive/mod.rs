//! An image in files: an OCI layout, as a folder or a tar archive, or an archive of `docker save`.
//!
//! Newer archives of docker have both forms. The one that names the wanted image is taken, and the other one if a blob
//! is missing there. Owns: the choice of form and image (`names`), the files (`files`).
//! Invariant: nothing outside the folder or archive is opened, whatever names it contains. Blobs are found by digest,
//! and other names by the archive's own list.

mod error;
mod files;
mod names;
mod saved;

pub(crate) use error::ArchiveError;

use crate::oci_documents::{Gather, Gathered, Platforms, digest_of};
use bytes::Bytes;
use error::{fault_error, json_error, malformed};
use files::Files;
use names::{Listed, Listing};
use saved::SavedImage;
use shoal_proto::go_json::GoValue;
use shoal_proto::image::{Digest, ImageBlob, ImageIndex, Reference};
use shoal_proto::image_documents::{Descriptor, IndexDocument, REFERRER_LISTS, Referrer, ReferrerList, ReferrerLists};
use shoal_proto::platform::{PlatformChoice, StatedPlatform};
use shoal_store::{BlobSource, OpenSource};
use std::collections::BTreeMap;
use std::io::{self, Cursor};

/// An image found in files.
pub(crate) struct LocalImage {
    pub(crate) index: ImageIndex,
    /// The name of `index`, parsed.
    pub(crate) reference: Reference,
    files: Files,
    documents: BTreeMap<Digest, Bytes>,
    /// Files of blobs that are not named by their digest.
    names: BTreeMap<Digest, String>,
}

/// An image that one of the two forms contains.
struct Found {
    gathered: Gathered,
    names: BTreeMap<Digest, String>,
}

/// What the files list, in the forms that they have.
struct Contents {
    layout: Option<IndexDocument>,
    saved: Option<Vec<SavedImage>>,
}

/// The two forms of an image in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Layout,
    Saved,
}

impl LocalImage {
    /// Finds the image of this name, or the only image. Blocks.
    ///
    /// # Errors
    /// Returns an error if the files have neither known form, no such image, or other bytes than the name says.
    pub(crate) fn open(
        source: OpenSource,
        wanted: Option<&Reference>,
        platforms: &Platforms,
    ) -> Result<Self, ArchiveError> {
        let path = source.path().display().to_string();
        let files = Files::open(source)?;
        let contents = Contents::read(&files, path)?;
        let chosen = names::choose(&contents.listing(), wanted)?;
        let mut first_error = None;
        for listed in chosen.forms {
            match contents.find(&files, &listed, &chosen.reference, platforms) {
                Ok(Found { mut gathered, names }) => {
                    note_referrer(&mut gathered);
                    let (index, documents) = (gathered.index, gathered.documents);
                    return Ok(Self { index, reference: chosen.reference, files, documents, names });
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| malformed("the files", "no form of them contains the image")))
    }

    /// Returns where the bytes of a blob are.
    ///
    /// # Errors
    /// Returns an error if the files lack the blob.
    pub(crate) fn source(&self, blob: &ImageBlob) -> io::Result<BlobSource> {
        if let Some(bytes) = self.documents.get(&blob.digest) {
            return Ok(BlobSource::Reader(Box::new(Cursor::new(bytes.clone()))));
        }
        let name = self.names.get(&blob.digest).cloned().unwrap_or_else(|| blob_name(&blob.digest));
        Ok(BlobSource::Reader(self.files.reader(&name)?.0))
    }
}

impl Contents {
    /// Reads the lists of both forms. One that cannot be read does not count if the other one can.
    fn read(files: &Files, path: String) -> Result<Self, ArchiveError> {
        let has_layout = files.has("index.json") && files.has("oci-layout");
        let has_saved = files.is_archive() && files.has("manifest.json");
        if !has_layout && !has_saved {
            return Err(ArchiveError::UnknownForm(path));
        }
        let layout = has_layout.then(|| read_layout(files)).transpose();
        let saved = has_saved.then(|| saved::read_list(files)).transpose();
        let (layout, saved) = match (layout, saved) {
            (Ok(layout), Ok(saved)) => (layout, saved),
            (Ok(Some(layout)), Err(_)) => (Some(layout), None),
            (Err(_), Ok(Some(saved))) => (None, Some(saved)),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        Ok(Self { layout, saved })
    }

    /// Returns the names of all images.
    fn listing(&self) -> Listing {
        let layout = self.layout.iter().flat_map(|index| (0..index.len()).map(move |place| (index, place)));
        let layout = layout.map(|(index, place)| Listed {
            form: Form::Layout,
            place,
            digest: index.row(place).ok().map(|row| row.digest),
            names: name_in_layout(index, place).into_iter().collect(),
        });
        let saved = self.saved.iter().flatten().enumerate().map(|(place, image)| Listed {
            form: Form::Saved,
            place,
            digest: None,
            names: image.tags.clone(),
        });
        Listing { images: layout.chain(saved).collect() }
    }

    /// Returns an image if all its blobs are in the files.
    fn find(
        &self,
        files: &Files,
        chosen: &names::ChosenForm,
        reference: &Reference,
        platforms: &Platforms,
    ) -> Result<Found, ArchiveError> {
        let mut found = match (chosen.form, &self.layout, &self.saved) {
            (Form::Layout, Some(index), _) => {
                let root = layout_root(index, &chosen.places, platforms)?;
                Found { gathered: gather(files, root, platforms, reference)?, names: BTreeMap::new() }
            }
            (Form::Saved, _, Some(images)) => {
                let image = chosen.places.first().and_then(|place| images.get(*place));
                let image = image.ok_or_else(|| malformed("manifest.json", "the image is missing"))?;
                saved::find(files, image, platforms, reference)?
            }
            _ => return Err(malformed("the files", "this form is missing")),
        };
        // Layers that a registry need not have are taken in if they are here.
        for layer in std::mem::take(&mut found.gathered.nondistributable) {
            if files.size(&blob_name(&layer.digest)).is_some_and(|size| size == layer.size) {
                found.gathered.add(layer);
            } else {
                tracing::info!(digest = %layer.digest, "an image is taken in without a layer that the files lack");
            }
        }
        check_whole(files, &found)?;
        check_digest(reference, &found.gathered.index)?;
        Ok(found)
    }
}

fn read_layout(files: &Files) -> Result<IndexDocument, ArchiveError> {
    let document: GoValue = serde_json::from_slice(&files.document("index.json")?).map_err(json_error("index.json"))?;
    IndexDocument::read(&document).map_err(fault_error("index.json"))
}

/// Returns the root of an image in a layout, which may list the platforms of one image separately.
fn layout_root(index: &IndexDocument, places: &[usize], platforms: &Platforms) -> Result<Descriptor, ArchiveError> {
    let several = || malformed("index.json", "several images have that name; choose one with --platform");
    let root = match (places, platforms) {
        ([place], _) => *place,
        (_, Platforms::All) => return Err(several()),
        (_, Platforms::One(wanted)) => {
            let all = index.platforms();
            let stated: Vec<StatedPlatform> = places.iter().filter_map(|place| all.get(*place).cloned()).collect();
            let candidates = PlatformChoice::new(wanted, &stated).candidates();
            candidates.first().and_then(|place| places.get(*place)).copied().ok_or_else(several)?
        }
    };
    index.row(root).map_err(fault_error("index.json"))
}

/// Follows an image's documents from its root.
fn gather(
    files: &Files,
    root: Descriptor,
    platforms: &Platforms,
    reference: &Reference,
) -> Result<Gathered, ArchiveError> {
    let mut gather = Gather::new(root, platforms.clone())?;
    while let Some(next) = gather.next() {
        let bytes = files.document(&blob_name(&next.digest))?;
        gather.add(bytes.into())?;
    }
    Ok(gather.finish(reference))
}

/// Checks that the files have every blob with its length. The ingest checks the digests.
fn check_whole(files: &Files, found: &Found) -> Result<(), ArchiveError> {
    let Gathered { index, documents, .. } = &found.gathered;
    for blob in index.blobs.iter().filter(|blob| blob.size > 0 && !documents.contains_key(&blob.digest)) {
        let name = found.names.get(&blob.digest).cloned().unwrap_or_else(|| blob_name(&blob.digest));
        match files.size(&name) {
            None => return Err(ArchiveError::Missing { digest: blob.digest, name }),
            Some(size) if size != blob.size => {
                return Err(ArchiveError::Length { digest: blob.digest, name, size, expected: blob.size });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Refuses an image under a name that has the digest of another one.
fn check_digest(reference: &Reference, index: &ImageIndex) -> Result<(), ArchiveError> {
    match reference.digest {
        Some(expected) if expected != index.root => {
            Err(ArchiveError::WrongDigest { reference: reference.to_string(), found: index.root })
        }
        _ => Ok(()),
    }
}

/// Notes with an artifact to which manifest it refers. The operator who pushes it knows what else there is.
fn note_referrer(gathered: &mut Gathered) {
    let Some(bytes) = gathered.documents.get(&gathered.index.root) else { return };
    let document: Option<GoValue> = serde_json::from_slice(bytes).ok();
    let Some(Referrer { subject, .. }) = document.as_ref().and_then(Referrer::read) else { return };
    let list = ReferrerList { subject, manifests: Some(vec![gathered.index.root]) };
    let Ok(text) = serde_json::to_vec(&ReferrerLists { lists: vec![list] }) else { return };
    let digest = digest_of(&text);
    gathered.documents.insert(digest, text.clone().into());
    gathered.add(ImageBlob { digest, media_type: REFERRER_LISTS.into(), size: text.len() as u64 });
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Returns the name of a row, which may be a tag alone.
fn name_in_layout(index: &IndexDocument, place: usize) -> Option<String> {
    let by = |key: &str| index.annotation(place, key).map(str::to_string);
    by("io.containerd.image.name").or_else(|| by("org.opencontainers.image.ref.name"))
}

#[cfg(test)]
mod tests;
