//! Images on their way in: from a folder, an archive or a registry to one content whose blobs are its streams.
//!
//! Owns: [`documents`] and what they lead to, [`archive`]s and the [`files`] in them, [`pull`]s, [`names`] of jobs, and the order of images that [`layer_dependencies`] blobs.
//! Invariant: the name hosts know an image by is written out in full before its job begins.

pub mod archive;
pub mod documents;
mod files;
mod layer_dependencies;
pub mod names;
pub mod pull;

use crate::jobs::{ImageRequest, Jobs, Phase, PushError, PushRequest};
use crate::registry::{RegistryError, Repository};
use archive::LocalImage;
use documents::{Choice, Gather};
use serde::{Deserialize, Serialize};
use shoal_proto::announcement::Kind;
use shoal_proto::ids::JobId;
use shoal_proto::image::{Digest, ImageIndex, Reference};
use shoal_store::ingest::{IngestProgress, Ingested};
use std::collections::BTreeMap;

/// Fills in what a push of an image leaves out: its full name, and the job's name and version. Reads the archive's documents;
/// blocks.
pub fn complete(mut request: PushRequest) -> Result<PushRequest, PushError> {
    let fault = |why: &dyn std::fmt::Display| PushError::Image(why.to_string());
    if request.kind != Kind::Image {
        return match request.image {
            Some(_) => Err(fault(&"only a push of kind image can name one")),
            None => Ok(request),
        };
    }
    let image = request.image.get_or_insert_default();
    let asked = asked(image).map_err(|why| fault(&why))?;
    let reference = match (asked.reference, image.pull) {
        (Some(reference), true) => reference,
        (None, true) => return Err(fault(&"say which image is to be pulled")),
        (wanted, false) => {
            LocalImage::open(&request.path, wanted.as_ref(), &asked.choice).map_err(|error| fault(&error))?.reference
        }
    };
    image.reference = Some(reference.to_string());
    let (name, version) = names::job_names(&reference);
    request.name = if request.name.is_empty() { name } else { request.name };
    request.version = if request.version.is_empty() { version } else { request.version };
    Ok(request)
}

struct Asked {
    reference: Option<Reference>,
    choice: Choice,
}

fn asked(image: &ImageRequest) -> Result<Asked, String> {
    let reference = image.reference.as_deref().map(str::parse::<Reference>).transpose();
    let choice = image.platform.as_deref().map(str::parse).transpose()?.unwrap_or_default();
    Ok(Asked { reference: reference.map_err(|error| error.to_string())?, choice })
}

/// What a name leads to, as `shoal prewarm --dry-run` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolved {
    /// The name, written out in full.
    pub reference: String,
    /// What it leads to now.
    pub root: Digest,
    /// Its blobs.
    pub blobs: Vec<ResolvedBlob>,
    /// Hosts the selector names.
    pub hosts: u32,
}

/// A blob, and whether the seeder has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResolvedBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    /// It is in the seeder's store, and is not pulled.
    pub held: bool,
}

type Documents = BTreeMap<Digest, bytes::Bytes>;

/// Follows an image's documents at its registry.
async fn gather(repository: &Repository, asked: &Asked) -> Result<(ImageIndex, Documents), String> {
    let reference = asked.reference.as_ref().ok_or("say which image is to be pulled")?;
    let text = |error: RegistryError| error.to_string();
    let (root, bytes) = repository.resolve(reference).await.map_err(text)?;
    let mut gather = Gather::new(root, asked.choice.clone()).map_err(|error| error.to_string())?;
    gather.bring(bytes).map_err(|error| error.to_string())?;
    while let Some(next) = gather.next() {
        let (_, bytes) = repository.document(&next.digest.to_string()).await.map_err(text)?;
        gather.bring(bytes).map_err(|error| error.to_string())?;
    }
    Ok(gather.finish(reference))
}

impl Jobs {
    /// Takes an image in, pulling it first if it is to be.
    pub(crate) async fn ingest_image(&self, job: JobId, request: &PushRequest) -> Result<Ingested, String> {
        let image = request.image.clone().unwrap_or_default();
        let asked = asked(&image)?;
        if image.pull {
            return self.pull_image(job, &asked).await;
        }
        let (store, path) = (self.node().store.clone(), request.path.clone());
        let options = self.ingest_options(None);
        let open = move || LocalImage::open(&path, asked.reference.as_ref(), &asked.choice);
        let local = tokio::task::spawn_blocking(open).await.map_err(|error| error.to_string())?;
        let local = local.map_err(|error| error.to_string())?;
        let ingested = self.run_ingest(job, move |progress| {
            let index = local.index.clone();
            store.ingest_image(index, |blob| local.source(blob), None, &options, progress)
        });
        ingested.await.map_err(|error| error.to_string())
    }

    async fn pull_image(&self, job: JobId, asked: &Asked) -> Result<Ingested, String> {
        let reference = asked.reference.as_ref().ok_or("say which image is to be pulled")?;
        let repository = Repository::open(&self.config, reference).map_err(|error| error.to_string())?;
        let progress = IngestProgress::default();
        let pulled = async {
            // Not an ingest's turn: a registry may take its time, and a decision of the moment must not wait for it.
            let _turn = self.pulls.turns.acquire().await;
            let (index, documents) = gather(&repository, asked).await?;
            let pulled = self.pulls.pull(&repository, &self.node().store, job, index, documents, &progress).await;
            pulled.map_err(|error| error.to_string())
        };
        let pulled = self.show_while(job, Phase::Pulling, &progress, pulled).await?;
        let (store, options) = (self.node().store.clone(), self.ingest_options(None));
        let ingested = self.run_ingest(job, move |progress| pulled.ingest(&store, &options, progress));
        ingested.await.map_err(|error| error.to_string())
    }

    /// What a push of an image that is to be pulled would do.
    pub(crate) async fn resolve(&self, request: &PushRequest) -> Result<Resolved, PushError> {
        let fault = PushError::Image;
        let asked = asked(&request.image.clone().unwrap_or_default()).map_err(fault)?;
        let reference = asked.reference.as_ref().ok_or_else(|| fault("say which image".into()))?;
        let hosts = self.selected(&request.to)?;
        let repository = Repository::open(&self.config, reference).map_err(|error| fault(error.to_string()))?;
        let (index, _documents) = gather(&repository, &asked).await.map_err(fault)?;
        let held = |digest: &Digest, size| self.node().store.blob(digest).is_some_and(|held| held.size == size);
        let blobs = index.blobs.into_iter().map(|blob| ResolvedBlob {
            held: held(&blob.digest, blob.size),
            digest: blob.digest,
            media_type: blob.media_type,
            size: blob.size,
        });
        Ok(Resolved { reference: index.reference, root: index.root, blobs: blobs.collect(), hosts })
    }
}
