//! Loads an image into containerd without a registry: first its blobs, then its layers' snapshots, last its record.
//!
//! Invariant: a lease keeps what is written from containerd's garbage collector until the record keeps it. An
//! interrupted load resumes where it stopped.

use crate::client::Containerd;
use crate::error::RuntimeError;
use crate::image::{self, DEPTH_MAX, DOCUMENT_BYTES_MAX, Descriptor, ImageError, is_digest, sha256};
use crate::unpacked::Unpacked;
use crate::wire::{self, Labels};
use bytes::Bytes;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Payload bytes in one message. containerd accepts messages of up to 16 MiB.
const PART_BYTES: usize = 4 * 1024 * 1024;
/// Messages of one write that wait to be sent.
const PARTS_QUEUED: usize = 2;
/// Life of the lease of a load. A failed load leaves the lease, so that the next attempt finds the blobs.
const LEASE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Deadline for unpacking one layer.
const UNPACK_TIMEOUT: Duration = Duration::from_secs(3600);

/// The source of the blobs of a load.
pub trait BlobReader: Send + Sync + 'static {
    /// Returns verified bytes from `offset`: at most `len`, and at least one before the end of the blob. Blocks.
    ///
    /// # Errors
    /// Fails if the blob is missing or cannot be read.
    fn read(&self, digest: &str, offset: u64, len: usize) -> io::Result<Bytes>;
}

/// A blob to write, with the labels that tell containerd's garbage collector what the blob refers to.
struct BlobWrite {
    blob: Descriptor,
    labels: Labels,
}

struct Layer {
    blob: Descriptor,
    /// The digest of the uncompressed layer.
    diff_id: String,
}

/// The steps of a load.
struct LoadPlan {
    /// In order: a blob comes after all blobs that it refers to.
    writes: Vec<BlobWrite>,
    /// The lowest layer is the first.
    layers: Vec<Layer>,
    config_digest: String,
}

impl Containerd {
    /// Loads the image `root` under the name `image` and unpacks it. Existing blobs and layers stay as they are.
    ///
    /// # Errors
    /// Fails if `blobs` fails, if the image's documents are invalid, or if containerd fails.
    pub async fn load(
        &self,
        image: &str,
        root: &Descriptor,
        blobs: Arc<dyn BlobReader>,
    ) -> Result<Unpacked, RuntimeError> {
        let lease = format!("shoal.load-{}", root.digest.trim_start_matches("sha256:"));
        let expire = ("containerd.io/gc.expire".to_string(), rfc3339(SystemTime::now() + LEASE_LIFE));
        self.create_lease(&lease, Labels::from([expire])).await?;
        let loaded = self.load_under(&lease, image, root, &blobs).await?;
        let _ = self.delete_lease(&lease).await; // the lease also expires by itself
        Ok(loaded)
    }

    async fn load_under(
        &self,
        lease: &str,
        image: &str,
        root: &Descriptor,
        blobs: &Arc<dyn BlobReader>,
    ) -> Result<Unpacked, RuntimeError> {
        let plan = plan_load(root, blobs).await?;
        for write in plan.writes {
            self.write_blob(lease, write, blobs).await?;
        }
        let diff_ids: Vec<String> = plan.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let chain = image::chain_ids(&diff_ids);
        let mut parent = "";
        for (layer, snapshot) in plan.layers.iter().zip(&chain) {
            self.add_to_lease(lease, snapshot.clone(), format!("snapshots/{}", self.snapshotter())).await?;
            if !self.is_committed(snapshot).await? {
                self.unpack(lease, layer, parent, snapshot).await?;
            }
            parent = snapshot;
        }
        if let Some(top) = chain.last() {
            let key = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter());
            self.label_blob(&plan.config_digest, &key, top).await?;
        }
        self.put_image_record(image, root, lease).await?;
        // Pods that name the image by digest look for a record of that name.
        let repository = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(image, |(rest, _)| rest);
        self.put_image_record(&format!("{repository}@{}", root.digest), root, lease).await?;
        Ok(Unpacked::Yes { root: root.clone(), snapshot: chain.into_iter().next_back() })
    }

    async fn write_blob(&self, lease: &str, write: BlobWrite, blobs: &Arc<dyn BlobReader>) -> Result<(), RuntimeError> {
        let digest = write.blob.digest.clone();
        // The lease gets the blob before the look-up, so that an existing blob cannot be collected in between.
        self.add_to_lease(lease, digest.clone(), "content".to_string()).await?;
        if self.has_blob(&digest).await? {
            // Another image may have brought the blob without these labels.
            for (key, value) in &write.labels {
                self.label_blob(&digest, key, value).await?;
            }
            return Ok(());
        }
        let error = match self.stream_blob(lease, write, blobs).await {
            Ok(()) | Err(RuntimeError::AlreadyExists { .. }) => return Ok(()),
            Err(error) => error,
        };
        if matches!(error, RuntimeError::DigestMismatch { .. }) {
            // Without the abort, the next attempt would resume behind the wrong bytes.
            let path = "/containerd.services.content.v1.Content/Abort";
            let request = wire::AbortRequest { reference: write_name(&digest) };
            self.unary::<_, ()>(path, &format!("abort the write of blob {digest}"), request, Some(lease)).await?;
        }
        Err(error)
    }

    async fn stream_blob(
        &self,
        lease: &str,
        write: BlobWrite,
        blobs: &Arc<dyn BlobReader>,
    ) -> Result<(), RuntimeError> {
        let BlobWrite { blob, labels } = write;
        let total = i64::try_from(blob.size);
        let total = total.map_err(|_| RuntimeError::invalid_image(&blob.digest)(ImageError::TooLarge(blob.size)))?;
        let base = wire::WriteContentRequest {
            reference: write_name(&blob.digest),
            total,
            expected: blob.digest.clone(),
            ..Default::default()
        };
        let (sink, source) = mpsc::channel(PARTS_QUEUED);
        let stat = wire::WriteContentRequest { action: wire::WRITE_STAT, ..base.clone() };
        let _ = sink.send(stat).await; // the receiver lives, and the channel is empty
        let action = format!("write blob {}", blob.digest);
        let mut answers = self.open_write(&action, Requests(source), lease).await?;
        // An earlier attempt may have written the first bytes.
        let stored = answers.next().await?.map_or(0, |answer| answer.offset).clamp(0, total);
        let send = send_parts(sink, base, labels, blobs.clone(), stored);
        let receive = async {
            while let Some(answer) = answers.next().await? {
                if answer.action == wire::WRITE_COMMIT {
                    return Ok(());
                }
            }
            Err(answers.ended_early())
        };
        let (sent, received) = tokio::join!(send, receive);
        // If both fail, the failed read here is the cause, and containerd's answer is the effect.
        sent.and(received)
    }

    /// Unpacks one layer on top of the snapshot `parent` and commits it as `snapshot`.
    async fn unpack(&self, lease: &str, layer: &Layer, parent: &str, snapshot: &str) -> Result<(), RuntimeError> {
        let action = format!("unpack {}", layer.blob.digest);
        let key = format!("extract-shoal {snapshot}");
        let snapshotter = self.snapshotter().to_string();
        let labels = Labels::from([("containerd.io/snapshot.ref".to_string(), snapshot.to_string())]);
        // An interrupted attempt left unknown files under this key.
        let stale = wire::SnapshotKeyRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        let path = "/containerd.services.snapshots.v1.Snapshots/Remove";
        match self.unary::<_, ()>(path, &action, stale, Some(lease)).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let request = wire::PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_string(),
            labels: labels.clone(),
        };
        let path = "/containerd.services.snapshots.v1.Snapshots/Prepare";
        let prepared: wire::PrepareSnapshotResponse = self.unary(path, &action, request, Some(lease)).await?;
        let apply = wire::ApplyRequest { diff: Some(layer.blob.to_wire()), mounts: prepared.mounts };
        let path = "/containerd.services.diff.v1.Diff/Apply";
        let request = self.request(apply, Some(lease))?;
        let applied: wire::ApplyResponse = self.unary_within(path, &action, request, UNPACK_TIMEOUT).await?;
        let applied = applied.applied.unwrap_or_default().digest;
        if applied != layer.diff_id {
            let reason = format!("the layer unpacks to {applied}, not {}", layer.diff_id);
            return Err(RuntimeError::DigestMismatch { action, reason });
        }
        let name = snapshot.to_string();
        let request = wire::CommitSnapshotRequest { snapshotter, name, key, labels };
        let path = "/containerd.services.snapshots.v1.Snapshots/Commit";
        self.unary(path, &action, request, Some(lease)).await
    }
}

/// Returns the name of the write of a blob. A later attempt under the same name resumes the write.
fn write_name(digest: &str) -> String {
    format!("shoal-{digest}")
}

/// Reads from a blob on a thread that may block.
async fn read_part(blobs: &Arc<dyn BlobReader>, digest: &str, offset: u64, len: usize) -> Result<Bytes, RuntimeError> {
    let (source, owned) = (blobs.clone(), digest.to_string());
    let read = tokio::task::spawn_blocking(move || source.read(&owned, offset, len)).await;
    let read = read.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    // An empty part before the end would repeat for ever.
    let read = read.and_then(|part| if part.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(part) });
    read.map_err(|source| RuntimeError::ReadBlob { digest: digest.to_string(), source })
}

/// Sends a blob's bytes from `stored` to its end, and the commit.
async fn send_parts(
    sink: mpsc::Sender<wire::WriteContentRequest>,
    base: wire::WriteContentRequest,
    labels: Labels,
    blobs: Arc<dyn BlobReader>,
    stored: i64,
) -> Result<(), RuntimeError> {
    let mut at = stored;
    while at < base.total {
        let data = read_part(&blobs, &base.expected, at.unsigned_abs(), PART_BYTES).await?;
        let len = i64::try_from(data.len()).unwrap_or(i64::MAX);
        let part = wire::WriteContentRequest { action: wire::WRITE_DATA, offset: at, data, ..base.clone() };
        if sink.send(part).await.is_err() {
            // containerd ended the stream. Its answer has the reason.
            return Ok(());
        }
        at = at.saturating_add(len);
    }
    let commit = wire::WriteContentRequest { action: wire::WRITE_COMMIT, offset: base.total, labels, ..base };
    let _ = sink.send(commit).await; // if containerd ended the stream, its answer has the reason
    Ok(())
}

/// The messages of one write, as the stream that tonic sends.
struct Requests(mpsc::Receiver<wire::WriteContentRequest>);

impl tokio_stream::Stream for Requests {
    type Item = wire::WriteContentRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// Reads the documents below `root` and plans the load.
async fn plan_load(root: &Descriptor, blobs: &Arc<dyn BlobReader>) -> Result<LoadPlan, RuntimeError> {
    let mut indexes = Vec::new();
    let mut at = root.clone();
    let manifest = loop {
        let bytes = read_document(&at, blobs).await?;
        let invalid = RuntimeError::invalid_image(&at.digest);
        if !at.is_index() {
            break image::parse_manifest(&bytes).map_err(invalid)?;
        }
        if indexes.len() >= DEPTH_MAX {
            return Err(RuntimeError::invalid_image(&root.digest)(ImageError::NestedIndexes));
        }
        let entry = image::pick_manifest(&bytes).map_err(invalid)?;
        let labels = Labels::from([("containerd.io/gc.ref.content.m.0".to_string(), entry.digest.clone())]);
        indexes.push(BlobWrite { blob: at, labels });
        at = entry;
    };
    let config = manifest.config;
    let diff_ids = image::parse_diff_ids(&read_document(&config, blobs).await?);
    let diff_ids = diff_ids.map_err(RuntimeError::invalid_image(&config.digest))?;
    if diff_ids.len() != manifest.layers.len() {
        let count = ImageError::LayerCount { layers: manifest.layers.len(), diff_ids: diff_ids.len() };
        return Err(RuntimeError::invalid_image(&root.digest)(count));
    }
    let layers = manifest.layers.into_iter().zip(diff_ids).map(|(blob, diff_id)| Layer { blob, diff_id });
    let layers: Vec<Layer> = layers.collect();
    let config_digest = config.digest.clone();
    let mut references = Labels::from([("containerd.io/gc.ref.content.config".to_string(), config_digest.clone())]);
    let mut writes = Vec::new();
    for (place, layer) in layers.iter().enumerate() {
        references.insert(format!("containerd.io/gc.ref.content.l.{place}"), layer.blob.digest.clone());
        let labels = Labels::from([("containerd.io/uncompressed".to_string(), layer.diff_id.clone())]);
        writes.push(BlobWrite { blob: layer.blob.clone(), labels });
    }
    writes.push(BlobWrite { blob: config, labels: Labels::new() });
    writes.push(BlobWrite { blob: at, labels: references });
    writes.extend(indexes.into_iter().rev());
    Ok(LoadPlan { writes, layers, config_digest })
}

/// Returns a manifest, index or configuration whose bytes have the expected digest.
async fn read_document(blob: &Descriptor, blobs: &Arc<dyn BlobReader>) -> Result<Vec<u8>, RuntimeError> {
    let invalid = RuntimeError::invalid_image(&blob.digest);
    if !is_digest(&blob.digest) {
        return Err(invalid(ImageError::Digest(blob.digest.clone())));
    }
    if blob.size > DOCUMENT_BYTES_MAX {
        return Err(invalid(ImageError::TooLarge(blob.size)));
    }
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < blob.size {
        bytes.extend_from_slice(&read_part(blobs, &blob.digest, bytes.len() as u64, PART_BYTES).await?);
    }
    if sha256(&bytes) != blob.digest {
        let reason = "the bytes have another digest".to_string();
        return Err(RuntimeError::DigestMismatch { action: format!("read blob {}", blob.digest), reason });
    }
    Ok(bytes)
}

/// Formats a time for a label of containerd.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Converts days to a date. A year begins in March, so that a leap day is the last day of its year.
    // An era is 400 years, after which the calendar repeats.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year_of_era + era * 400 + carry;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    struct InMemory(BTreeMap<String, Bytes>);

    impl BlobReader for InMemory {
        fn read(&self, digest: &str, offset: u64, len: usize) -> io::Result<Bytes> {
            let blob = self.0.get(digest).ok_or(io::ErrorKind::NotFound)?;
            let at = (offset as usize).min(blob.len());
            Ok(blob.slice(at..blob.len().min(at + len)))
        }
    }

    #[test]
    fn times_are_formatted_as_dates() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_763_993_245), "2025-11-24T14:07:25Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59Z");
    }

    #[tokio::test]
    async fn a_plan_writes_referenced_blobs_first_and_refuses_wrong_digests() {
        let mut blobs = BTreeMap::new();
        let mut put = |kind: &str, bytes: &str| {
            let blob = Descriptor::new(kind, &sha256(bytes.as_bytes()), bytes.len() as u64);
            blobs.insert(blob.digest.clone(), Bytes::from(bytes.to_string()));
            blob
        };
        let json = |blob: &Descriptor| {
            format!(r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#, blob.media_type, blob.digest, blob.size)
        };
        let layer = put("layer", "not really a layer");
        let config = put("config", &format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, sha256(b"x")));
        let manifest_text = format!(r#"{{"config":{},"layers":[{}]}}"#, json(&config), json(&layer));
        let manifest = put("application/vnd.oci.image.manifest.v1+json", &manifest_text);
        let index_text = format!(r#"{{"manifests":[{}]}}"#, json(&manifest));
        let index = put("application/vnd.oci.image.index.v1+json", &index_text);
        let wrong = format!(r#"{{"config":{},"layers":[]}}"#, json(&config));
        let wrong = put("application/vnd.oci.image.manifest.v1+json", &wrong);
        let liar = Descriptor::new(&manifest.media_type, &sha256(b"else"), manifest.size);
        blobs.insert(liar.digest.clone(), Bytes::from(manifest_text));
        let blobs: Arc<dyn BlobReader> = Arc::new(InMemory(blobs));
        let planned = plan_load(&index, &blobs).await.unwrap();
        let order: Vec<&str> = planned.writes.iter().map(|write| write.blob.digest.as_str()).collect();
        assert_eq!(order, [&layer.digest, &config.digest, &manifest.digest, &index.digest]);
        assert_eq!(planned.layers.len(), 1);
        assert_eq!(planned.layers[0].diff_id, sha256(b"x"));
        assert!(matches!(plan_load(&wrong, &blobs).await.err(), Some(RuntimeError::InvalidImage { .. })));
        assert!(matches!(plan_load(&liar, &blobs).await.err(), Some(RuntimeError::DigestMismatch { .. })));
        let gone = Descriptor::new(&manifest.media_type, &sha256(b"gone"), manifest.size);
        assert!(plan_load(&gone, &blobs).await.is_err());
    }
}
