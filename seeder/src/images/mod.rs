//! Images on their way in: from a folder, an archive or a registry to one content whose blobs are its streams.
//!
//! Owns: images in files ([`archive`]), pulls from registries (`pull`), what refers to an image (`referrers`), names of
//! jobs (`names`), and the order of images that share layers (`layer_dependencies`).
//! Invariant: the reference by which hosts know an image is written out in full before its job begins.

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

pub(crate) mod archive;
mod layer_dependencies;
mod names;
mod pull;
mod referrers;

pub(crate) use layer_dependencies::LayerDependencies;
pub(crate) use pull::{PullError, PulledImage};

use crate::config::SeederConfig;
use crate::oci_documents::{DocumentError, Gather, ParsePlatformsError, Platforms};
use crate::push_roots::{PushPathError, PushRoots};
use crate::registry::{RegistryError, Repository};
use archive::{ArchiveError, LocalImage};
use bytes::Bytes;
use pull::Pulls;
use shoal_api::images::{ResolvedBlob, ResolvedImage};
use shoal_api::jobs::{ImageRequest, PushRequest};
use shoal_proto::announcement::Kind;
use shoal_proto::ids::JobId;
use shoal_proto::image::{Digest, ImageBlob, ImageIndex, ParseReferenceError, Reference};
use shoal_store::Store;
use shoal_store::ingest::IngestProgress;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Why an image cannot be pushed or resolved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("only a push of kind image can name an image; remove `image` or use the kind `image`")]
    OtherKind,
    #[error("the push does not say which image to pull; give its reference")]
    NoReference,
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    #[error(transparent)]
    Platforms(#[from] ParsePlatformsError),
    #[error(transparent)]
    Path(#[from] PushPathError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Documents(#[from] DocumentError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Pull(#[from] PullError),
}

/// Which image a push needs, parsed.
pub(crate) struct WantedImage {
    reference: Option<Reference>,
    platforms: Platforms,
    with_referrers: bool,
}

impl WantedImage {
    /// Parses the reference and the platform.
    ///
    /// # Errors
    /// Returns an error if one of them is invalid.
    pub(crate) fn parse(request: &ImageRequest) -> Result<Self, ImageError> {
        let reference = request.reference.as_deref().map(str::parse::<Reference>).transpose()?;
        let platforms = request.platform.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        Ok(Self { reference, platforms, with_referrers: request.with_referrers })
    }

    /// Finds the image in files. Blocks.
    ///
    /// # Errors
    /// Returns an error if the files contain no such image.
    pub(crate) fn open_files(&self, path: &Path, roots: &PushRoots) -> Result<LocalImage, ImageError> {
        Ok(LocalImage::open(roots.open(path)?, self.reference.as_ref(), &self.platforms)?)
    }

    fn reference(&self) -> Result<&Reference, ImageError> {
        self.reference.as_ref().ok_or(ImageError::NoReference)
    }
}

/// Fills in what the push of an image leaves out: the full reference, and the job's name and version.
///
/// Reads the documents of an image in files, so it blocks then. Returns other pushes unchanged.
///
/// # Errors
/// Returns an error if the image is not named, is not in the files, or the files lie outside of the push roots.
pub(crate) fn complete(mut request: PushRequest, roots: &PushRoots) -> Result<PushRequest, ImageError> {
    if request.kind != Kind::Image {
        return if request.image.is_some() { Err(ImageError::OtherKind) } else { Ok(request) };
    }
    let image = request.image.get_or_insert_default();
    let wanted = WantedImage::parse(image)?;
    let reference = match image.pull {
        true => wanted.reference()?.clone(),
        false => wanted.open_files(&request.path, roots)?.reference,
    };
    image.reference = Some(reference.to_string());
    let names = names::job_names(&reference);
    request.name = if request.name.is_empty() { names.name } else { request.name };
    request.version = if request.version.is_empty() { names.version } else { request.version };
    Ok(request)
}

/// Returns the name that stands for the reference of a push's image, or `None` for other pushes.
///
/// # Errors
/// Returns an error if the reference cannot be parsed.
pub(crate) fn reference_name(request: &PushRequest) -> Result<Option<String>, ImageError> {
    let Some(image) = &request.image else { return Ok(None) };
    let wanted = WantedImage::parse(image)?;
    Ok(wanted.reference.as_ref().map(|reference| names::job_names(reference).name))
}

/// An image's blobs, and the bytes of those that are documents.
struct GatheredImage {
    index: ImageIndex,
    documents: BTreeMap<Digest, Bytes>,
}

impl GatheredImage {
    /// Adds a document that no other document names.
    fn add_document(&mut self, blob: ImageBlob, bytes: Bytes) {
        self.documents.insert(blob.digest, bytes);
        // Behind the root, which hosts need first. No document is empty, and empty blobs come last.
        self.index.blobs.insert(1.min(self.index.blobs.len()), blob);
    }
}

/// Images at registries.
pub(crate) struct Images {
    config: SeederConfig,
    store: Store,
    pulls: Pulls,
}

impl Images {
    pub(crate) fn new(config: SeederConfig, store: Store) -> Self {
        let pulls = Pulls::new(&config.dir);
        Self { config, store, pulls }
    }

    /// Pulls the blobs of an image that the store lacks.
    ///
    /// # Errors
    /// Returns an error if the registry does not serve the image, or there is no space for it.
    pub(crate) async fn pull(
        &self,
        job: JobId,
        wanted: &WantedImage,
        progress: &IngestProgress,
    ) -> Result<PulledImage, ImageError> {
        let repository = Repository::open(&self.config, wanted.reference()?).await?;
        // Pulls have their own places, not those of ingests: a slow registry must not delay a push of a small version.
        let _place = self.pulls.place().await;
        let GatheredImage { index, documents } = gather(&repository, wanted, Purpose::Pull).await?;
        Ok(self.pulls.pull(&repository, &self.store, job, index, documents, progress).await?)
    }

    /// Asks the registry once whether it has an image.
    ///
    /// # Errors
    /// Returns an error if the registry does not serve the image's manifest or index at once.
    pub(crate) async fn look_up(&self, reference: &Reference) -> Result<(), RegistryError> {
        let repository = Repository::open(&self.config, reference).await?;
        repository.with_patience(Duration::ZERO).resolve(reference).await.map(drop)
    }

    /// Returns what pulling an image would bring to `hosts` hosts. Fetches only documents.
    ///
    /// # Errors
    /// Returns an error if the registry does not serve the image's documents.
    pub(crate) async fn resolve(&self, request: &PushRequest, hosts: u32) -> Result<ResolvedImage, ImageError> {
        let wanted = WantedImage::parse(&request.image.clone().unwrap_or_default())?;
        let repository = Repository::open(&self.config, wanted.reference()?).await?;
        let index = gather(&repository, &wanted, Purpose::Look).await?.index;
        let is_stored = |digest: &Digest, size| self.store.blob(digest).is_some_and(|blob| blob.size == size);
        let blobs = index.blobs.into_iter().map(|blob| ResolvedBlob {
            stored: is_stored(&blob.digest, blob.size),
            digest: blob.digest,
            media_type: blob.media_type,
            size: blob.size,
        });
        Ok(ResolvedImage { reference: index.reference, root: index.root, blobs: blobs.collect(), hosts })
    }
}

/// Why an image's documents are fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Pull,
    /// Nothing is kept, so what refers to the image does not matter unless it travels too.
    Look,
}

/// Follows an image's documents at its registry.
async fn gather(repository: &Repository, wanted: &WantedImage, why: Purpose) -> Result<GatheredImage, ImageError> {
    let reference = wanted.reference()?;
    let root = repository.resolve(reference).await?;
    let (digest, bytes) = (root.descriptor.digest, root.bytes.clone());
    let mut gather = Gather::new(root.descriptor, wanted.platforms.clone())?;
    gather.add(root.bytes)?;
    let referrers = match why == Purpose::Pull || wanted.with_referrers {
        true => Some(referrers::find(repository, digest, &bytes, wanted.with_referrers).await?),
        false => None,
    };
    if let Some(found) = referrers.as_ref().filter(|_| wanted.with_referrers) {
        found.add_to(&mut gather)?;
    }
    while let Some(next) = gather.next() {
        let document = repository.document(&next.digest.to_string()).await?;
        gather.add(document.bytes)?;
    }
    let mut gathered = gather.finish(reference);
    for layer in std::mem::take(&mut gathered.nondistributable) {
        if repository.has_blob(&layer.digest).await? {
            gathered.add(layer);
        } else {
            tracing::info!(%reference, digest = %layer.digest, "an image is pulled without a layer that its registry \
                need not have and lacks");
        }
    }
    let mut image = GatheredImage { index: gathered.index, documents: gathered.documents };
    if let Some(found) = referrers {
        found.note(&mut image);
    }
    Ok(image)
}
