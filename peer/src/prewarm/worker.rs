//! Brings one image into containerd: pulls or loads it, checks that it is unpacked, and pins it.
//!
//! Invariant: an attempt that can succeed later is repeated within bounds, with growing pauses. Every other failure
//! ends the work at once.

use super::config::{CRI_NAMESPACE, ContainerdConfig, PullMethod};
use super::disk_space::{self, NoSpace};
use super::metrics::PrewarmMetrics;
use super::quiet::QuietTime;
use crate::error_chain::ErrorChain;
use crate::handle::Prewarmed;
use crate::images::{Images, RecentPulls};
use shoal_containerd::{BlobReader, Containerd, Descriptor, ImageKind, Runtime, RuntimeError, Unpacked, examine};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::image::{Digest, Reference};
use shoal_proto::manifest::Manifest;
use shoal_proto::report::Reason;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pulls of one image before the worker gives up.
const PULLS_MAX: u32 = 3;
/// First pause between two attempts.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Why an image is not prewarmed.
#[derive(Debug, thiserror::Error)]
pub enum PrewarmFault {
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// containerd answered, and then fell silent during a further call.
    #[error(
        "containerd fell silent while it worked on {image}, perhaps because of it; the next attempt is in {} s: see \
         containerd's log", .pause.as_secs()
    )]
    FellSilent { image: String, pause: Duration, source: RuntimeError },
    /// The pull succeeded, but containerd has another image or has it not unpacked.
    #[error(
        "{image} was pulled, but containerd {found}; check hosts.toml and config_path, see `shoal containerd setup`"
    )]
    NotUnpacked { image: String, found: String },
    #[error("{image} was not unpacked within {limit}")]
    Timeout { image: String, limit: shoal_service::units::Span },
    #[error("a bug in shoal stopped the work; see the log")]
    Panicked,
    /// The job ended, or its content was removed.
    #[error("the job ended before the image was prewarmed")]
    Stopped,
}

impl PrewarmFault {
    /// Returns the category of the fault in reports.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoSpace(_) | Self::Runtime(RuntimeError::NoSpace { .. }) => Reason::NoSpace,
            Self::Runtime(RuntimeError::Unreachable { .. }) | Self::FellSilent { .. } => Reason::RuntimeAway,
            Self::Runtime(RuntimeError::DigestMismatch { .. }) => Reason::DigestMismatch,
            Self::Timeout { .. } | Self::Runtime(RuntimeError::Timeout { .. }) => Reason::Timeout,
            Self::Runtime(_) | Self::NotUnpacked { .. } | Self::Panicked => Reason::PullFailed,
            Self::Stopped => Reason::Cancelled,
        }
    }
}

/// Returns containerd's name for an image. containerd drops the tag of a name that also has a digest.
fn containerd_name(reference: &Reference) -> String {
    match &reference.digest {
        Some(_) => Reference { tag: None, ..reference.clone() }.to_string(),
        None => reference.to_string(),
    }
}

/// Returns the descriptor of an image's manifest or index.
fn root_of(image: &Image) -> Result<Descriptor, PrewarmFault> {
    let blob = image.manifest.image.as_ref().and_then(|index| Some(index.find(&image.root)?.1));
    let blob = blob.ok_or(PrewarmFault::Stopped)?;
    Ok(Descriptor::new(&blob.media_type, &blob.digest.to_string(), blob.size))
}

fn has_root(unpacked: &Unpacked, wanted: &Digest) -> bool {
    matches!(unpacked, Unpacked::Yes { root, .. } if root.digest == wanted.to_string())
}

struct Image {
    name: String,
    root: Digest,
    manifest: Arc<Manifest>,
}

/// Everything that the work on one image needs. Clones share it.
#[derive(Clone)]
pub struct Worker {
    pub client: Containerd,
    pub config: ContainerdConfig,
    pub images: Images,
    /// The manifests that clients requested from the mirror. `None` without a mirror.
    pub mirror_pulls: Option<Arc<RecentPulls>>,
    pub metrics: PrewarmMetrics,
    pub quiet: Arc<QuietTime>,
}

impl Worker {
    /// Brings a job's image into containerd. Returns once it is unpacked and pinned, or once that failed for good.
    ///
    /// What containerd cannot unpack stays in the store, where the mirror serves it.
    pub async fn prewarm(&self, job: JobId, content: ContentId) -> Result<Prewarmed, PrewarmFault> {
        let (manifest, reference) = self.images.image_of(&content).ok_or(PrewarmFault::Stopped)?;
        let root = manifest.image.as_ref().map(|image| image.root).ok_or(PrewarmFault::Stopped)?;
        let image = Image { name: containerd_name(&reference), root, manifest };
        if let Some(why) = self.why_no_file_system(&image).await? {
            tracing::info!(image = %image.name, why, "keeps an image that is no file system");
            return Ok(Prewarmed::Kept { why: format!("no file system, since {why}; the mirror serves it") });
        }
        let (mut pulls, mut pause, mut unreachable_since) = (0, PAUSE_FIRST, None::<Instant>);
        loop {
            let paused = Instant::now();
            self.quiet.over().await;
            // The pause may be for another image.
            unreachable_since = unreachable_since.map(|since| since + paused.elapsed());
            let fault = match self.attempt(job, &image).await {
                Ok(()) => {
                    self.quiet.end();
                    tracing::info!(image = %image.name, "prewarmed an image");
                    return Ok(Prewarmed::Unpacked);
                }
                Err(fault) => fault,
            };
            let give_up = match fault.reason() {
                Reason::RuntimeAway => {
                    unreachable_since.get_or_insert_with(Instant::now).elapsed() >= self.config.retry_for.0
                }
                Reason::DigestMismatch | Reason::PullFailed => {
                    unreachable_since = None;
                    pulls += 1;
                    pulls >= PULLS_MAX
                }
                _ => true,
            };
            if give_up {
                tracing::error!(image = %image.name, error = %ErrorChain(&fault), "cannot prewarm an image");
                return Err(fault);
            }
            tracing::warn!(image = %image.name, error = %ErrorChain(&fault), "will retry to prewarm an image");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(&self, job: JobId, image: &Image) -> Result<(), PrewarmFault> {
        let runtime = self.client.inspect().await?;
        match self.attempt_with(runtime, job, image).await {
            Err(PrewarmFault::Runtime(source @ RuntimeError::Unreachable { .. })) => {
                Err(PrewarmFault::FellSilent { image: image.name.clone(), pause: self.quiet.begin(), source })
            }
            other => other,
        }
    }

    async fn attempt_with(&self, runtime: Runtime, job: JobId, image: &Image) -> Result<(), PrewarmFault> {
        let mut unpacked = self.client.unpacked(&image.name).await?;
        if !has_root(&unpacked, &image.root) {
            self.check_space(&runtime, image).await?;
            self.pull(&runtime, image).await?;
            unpacked = self.client.unpacked(&image.name).await?;
        }
        if !has_root(&unpacked, &image.root) {
            let found = match &unpacked {
                Unpacked::No => "has not unpacked it".to_string(),
                Unpacked::Yes { root, .. } => format!("has {} under this name", root.digest),
            };
            return Err(PrewarmFault::NotUnpacked { image: image.name.clone(), found });
        }
        Ok(self.client.pin(&job.to_string(), &image.name, &unpacked).await?)
    }

    async fn check_space(&self, runtime: &Runtime, image: &Image) -> Result<(), PrewarmFault> {
        let (images, manifest, runtime) = (self.images.clone(), image.manifest.clone(), runtime.clone());
        let min_free = self.config.min_free.0;
        let check = move || disk_space::check(&images, &manifest, &runtime, min_free);
        let checked = tokio::task::spawn_blocking(check).await;
        Ok(checked.map_err(|_| PrewarmFault::Panicked)??)
    }

    async fn pull(&self, runtime: &Runtime, image: &Image) -> Result<(), PrewarmFault> {
        let by_cri = match self.config.pull {
            PullMethod::Auto => runtime.has_cri && self.client.namespace() == CRI_NAMESPACE,
            PullMethod::Cri => true,
            PullMethod::Direct => false,
        };
        if !by_cri {
            return self.load(image).await;
        }
        self.client.cri_pull(&image.name, self.config.timeout.0).await?;
        if self.mirror_pulls.as_ref().is_some_and(|pulls| !pulls.contains(&image.root)) {
            self.metrics.past_mirror.inc();
            let image = &image.name;
            tracing::warn!(%image, "containerd pulled an image without the mirror; see `shoal containerd setup`");
        }
        Ok(())
    }

    /// Returns why containerd cannot unpack an image, or `None` if it may. containerd itself judges what is unclear.
    async fn why_no_file_system(&self, image: &Image) -> Result<Option<String>, PrewarmFault> {
        let blobs: Arc<dyn BlobReader> = Arc::new(self.images.clone());
        match examine(&root_of(image)?, &blobs).await {
            Ok(ImageKind::Other { why }) => Ok(Some(why)),
            Ok(ImageKind::FileSystem) | Err(_) => Ok(None),
        }
    }

    /// Writes the image to containerd without a registry.
    async fn load(&self, image: &Image) -> Result<(), PrewarmFault> {
        let root = root_of(image)?;
        let load = self.client.load(&image.name, &root, Arc::new(self.images.clone()));
        let limit = self.config.timeout;
        match tokio::time::timeout(limit.0, load).await {
            Ok(loaded) => Ok(loaded.map(drop)?),
            Err(_) => Err(PrewarmFault::Timeout { image: image.name.clone(), limit }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_the_names_that_containerd_uses() {
        let name = |text: &str| containerd_name(&text.parse().unwrap());
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(name("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(name("registry.example:5000/lab/app:v1"), "registry.example:5000/lab/app:v1");
        assert_eq!(name(&format!("a.example/b:v1@{digest}")), format!("a.example/b@{digest}"));
    }
}
