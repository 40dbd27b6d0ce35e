//! One image's way into containerd.
//!
//! Invariant: what may pass is tried again with pauses that grow, within bounds; what will not is told at once.

use super::requests::PrewarmFault;
use super::{Pull, Tools, disk_space};
use shoal_containerd::{Descriptor, Runtime, RuntimeError, Unpacked};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::image::{Digest, Reference};
use shoal_proto::manifest::Manifest;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pulls of one image before it is given up.
const PULLS_MAX: u32 = 3;
/// First pause, and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// What containerd calls an image. It drops the tag of a name that has a digest too.
fn name_of(reference: &Reference) -> String {
    match &reference.digest {
        Some(_) => Reference { tag: None, ..reference.clone() }.to_string(),
        None => reference.to_string(),
    }
}

struct Image {
    name: String,
    root: Digest,
    manifest: Arc<Manifest>,
}

impl Tools {
    /// Warms a job's image; ends when it is warm, or will not be.
    pub(super) async fn warm(&self, job: JobId, content: ContentId) -> Result<(), PrewarmFault> {
        let found = self.images.image_of(&content);
        let (manifest, reference) = found.ok_or(PrewarmFault::Stopped)?;
        let root = manifest.image.as_ref().map(|image| image.root).ok_or(PrewarmFault::Stopped)?;
        let image = Image { name: name_of(&reference), root, manifest };
        let (mut pulls, mut pause, mut away_since) = (0, PAUSE.0, None::<Instant>);
        loop {
            let fault = match self.attempt(job, &image).await {
                Ok(()) => {
                    tracing::info!(image = %image.name, "warm");
                    return Ok(());
                }
                Err(fault) => fault,
            };
            let over = match &fault {
                PrewarmFault::Away(_) => {
                    away_since.get_or_insert_with(Instant::now).elapsed() >= self.config.patience.0
                }
                PrewarmFault::Mismatch(_) | PrewarmFault::Failed(_) => {
                    away_since = None;
                    pulls += 1;
                    pulls >= PULLS_MAX
                }
                PrewarmFault::NoSpace(_) | PrewarmFault::Late(_) | PrewarmFault::Stopped => true,
            };
            if over {
                tracing::error!(image = %image.name, %fault, "cannot warm an image");
                return Err(fault);
            }
            tracing::warn!(image = %image.name, %fault, "an image is not warm yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn attempt(&self, job: JobId, image: &Image) -> Result<(), PrewarmFault> {
        let fault = |error: RuntimeError| PrewarmFault::from_runtime(&error);
        let runtime = self.client.inspect().await.map_err(fault)?;
        let mut there = self.client.unpacked(&image.name).await.map_err(fault)?;
        if !is(&there, &image.root) {
            let (images, manifest, known) = (self.images.clone(), image.manifest.clone(), runtime.clone());
            let min_free = self.config.min_free.0;
            let room = tokio::task::spawn_blocking(move || disk_space::check(&images, &manifest, &known, min_free));
            room.await.map_err(|panic| PrewarmFault::Failed(panic.to_string()))??;
            self.pull(&runtime, image).await?;
            there = self.client.unpacked(&image.name).await.map_err(fault)?;
        }
        if !is(&there, &image.root) {
            let has = match &there {
                Unpacked::No => "containerd has it not unpacked".to_string(),
                Unpacked::Yes { root, .. } => format!("containerd has {} under this name", root.digest),
            };
            let hint = "is the mirror in its hosts.toml, and config_path set? see `shoal containerd setup`";
            return Err(PrewarmFault::Failed(format!("{} was pulled, but {has}; {hint}", image.name)));
        }
        self.client.pin(&job.to_string(), &image.name, &there).await.map_err(fault)
    }

    async fn pull(&self, runtime: &Runtime, image: &Image) -> Result<(), PrewarmFault> {
        let limit = self.config.timeout.0;
        let by_cri = match self.config.pull {
            Pull::Auto => runtime.cri && self.client.namespace() == "k8s.io",
            Pull::Cri => true,
            Pull::Direct => false,
        };
        if by_cri {
            let pulled = self.client.cri_pull(&image.name, limit).await;
            pulled.map_err(|error| PrewarmFault::from_runtime(&error))?;
            if self.asked.as_ref().is_some_and(|asked| !asked.contains(&image.root)) {
                self.counters.past_mirror.inc();
                tracing::warn!(
                    image = %image.name,
                    "containerd pulled an image without asking the mirror; see `shoal containerd setup`"
                );
            }
            return Ok(());
        }
        let blob = image.manifest.image.as_ref().and_then(|index| Some(index.find(&image.root)?.1.clone()));
        let blob = blob.ok_or(PrewarmFault::Stopped)?;
        let root = Descriptor::new(&blob.media_type, &blob.digest.to_string(), blob.size);
        let load = self.client.load(&image.name, &root, Arc::new(self.images.clone()));
        match tokio::time::timeout(limit, load).await {
            Ok(loaded) => loaded.map(drop).map_err(|error| PrewarmFault::from_runtime(&error)),
            Err(_) => Err(PrewarmFault::Late(format!("{} was not unpacked in time", image.name))),
        }
    }
}

fn is(there: &Unpacked, wanted: &Digest) -> bool {
    matches!(there, Unpacked::Yes { root, .. } if root.digest == wanted.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_called_as_containerd_calls_them() {
        let name = |text: &str| name_of(&text.parse().unwrap());
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(name("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(name("registry.example:5000/lab/app:v1"), "registry.example:5000/lab/app:v1");
        assert_eq!(name(&format!("a.example/b:v1@{digest}")), format!("a.example/b@{digest}"));
    }
}
