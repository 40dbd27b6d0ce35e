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

/// The layers of one manifest.
struct PlannedManifest {
    /// The lowest layer is the first.
    layers: Vec<Layer>,
    config_digest: String,
}

/// The steps of a load.
struct LoadPlan {
    /// In order: a blob comes after all blobs that it refers to.
    writes: Vec<BlobWrite>,
    /// The manifests that containerd may choose, the best last.
    manifests: Vec<PlannedManifest>,
}

/// What an image is to containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// The file system of containers.
    FileSystem,
    /// Something that containerd cannot unpack, for example a signature or an image that lacks a layer.
    Other {
        /// Why, for a person.
        why: String,
    },
}

/// Returns what the image `root` is to containerd on this machine.
///
/// # Errors
/// Fails if `blobs` fails, or if the image's documents are invalid or not for this machine.
pub async fn examine(root: &Descriptor, blobs: &Arc<dyn BlobReader>) -> Result<ImageKind, RuntimeError> {
    let mut at = root.clone();
    for _ in 0..=DEPTH_MAX {
        let bytes = read_document(&at, blobs).await?;
        let invalid = RuntimeError::invalid_image(&at.digest);
        if at.is_index() {
            let picked = image::pick_manifests(&bytes).map_err(invalid)?;
            let Some(row) = here(picked.rows, blobs).await.into_iter().next() else {
                return Ok(ImageKind::Other { why: "its index names no platform".to_string() });
            };
            at = row;
            continue;
        }
        let manifest = image::parse_manifest(&bytes).map_err(invalid)?;
        if let Some(why) = manifest.why_no_file_system() {
            return Ok(ImageKind::Other { why });
        }
        for layer in manifest.nondistributable() {
            if !is_here(layer, blobs).await {
                let why = format!("layer {} is not distributed with the image", layer.digest);
                return Ok(ImageKind::Other { why });
            }
        }
        return Ok(ImageKind::FileSystem);
    }
    Err(RuntimeError::invalid_image(&root.digest)(ImageError::NestedIndexes))
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
        let mut snapshot = None;
        for manifest in &plan.manifests {
            snapshot = self.unpack_manifest(lease, manifest).await?;
        }
        for name in record_names(image, &root.digest) {
            self.put_image_record(&name, root, lease).await?;
        }
        Ok(Unpacked::Yes { root: root.clone(), snapshot })
    }

    /// Unpacks the layers of a manifest. Returns the snapshot of the last one.
    async fn unpack_manifest(&self, lease: &str, manifest: &PlannedManifest) -> Result<Option<String>, RuntimeError> {
        let diff_ids: Vec<String> = manifest.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let chain = image::chain_ids(&diff_ids);
        let mut parent = "";
        for (layer, snapshot) in manifest.layers.iter().zip(&chain) {
            self.add_to_lease(lease, snapshot.clone(), format!("snapshots/{}", self.snapshotter())).await?;
            if !self.is_committed(snapshot).await? {
                self.unpack(lease, layer, parent, snapshot).await?;
            }
            parent = snapshot;
        }
        if let Some(top) = chain.last() {
            let key = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter());
            self.label_blob(&manifest.config_digest, &key, top).await?;
        }
        Ok(chain.into_iter().next_back())
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

/// Returns the names of an image's records. Pods that name the image by digest look for a record of that name.
fn record_names(image: &str, digest: &str) -> Vec<String> {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    // A colon before the last slash begins a port.
    let repository = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(rest, _)| rest);
    let mut names = vec![image.to_string(), format!("{repository}@{digest}")];
    names.dedup();
    names
}

/// Whether the first byte of a blob can be read.
async fn is_here(blob: &Descriptor, blobs: &Arc<dyn BlobReader>) -> bool {
    blob.size == 0 || read_part(blobs, &blob.digest, 0, 1).await.is_ok()
}

/// Returns the rows whose blobs are here, or the first row if none is.
async fn here(rows: Vec<Descriptor>, blobs: &Arc<dyn BlobReader>) -> Vec<Descriptor> {
    let mut found = Vec::new();
    for row in &rows {
        if is_here(row, blobs).await {
            found.push(row.clone());
        }
    }
    if found.is_empty() { rows.into_iter().take(1).collect() } else { found }
}

/// A document that a plan follows.
struct OpenDocument {
    blob: Descriptor,
    depth: usize,
    /// Whether its index names no platform, so that the configuration has to be for this machine.
    is_unstated: bool,
}

/// Reads the documents below `root` and plans the load.
async fn plan_load(root: &Descriptor, blobs: &Arc<dyn BlobReader>) -> Result<LoadPlan, RuntimeError> {
    let mut plan = LoadPlan { writes: Vec::new(), manifests: Vec::new() };
    let mut indexes = Vec::new();
    let mut open = vec![OpenDocument { blob: root.clone(), depth: 0, is_unstated: false }];
    while let Some(OpenDocument { blob, depth, is_unstated }) = open.pop() {
        let bytes = read_document(&blob, blobs).await?;
        if !blob.is_index() {
            plan_manifest(&mut plan, blob, &bytes, is_unstated, blobs).await?;
            continue;
        }
        if depth >= DEPTH_MAX {
            return Err(RuntimeError::invalid_image(&root.digest)(ImageError::NestedIndexes));
        }
        let picked = image::pick_manifests(&bytes).map_err(RuntimeError::invalid_image(&blob.digest))?;
        let is_unstated = picked.are_unstated;
        let rows = here(picked.rows, blobs).await;
        if rows.is_empty() {
            return Err(RuntimeError::invalid_image(&blob.digest)(ImageError::NoPlatform));
        }
        let label = |(place, row): (usize, &Descriptor)| {
            (format!("containerd.io/gc.ref.content.m.{place}"), row.digest.clone())
        };
        let labels: Labels = rows.iter().enumerate().map(label).collect();
        // The best row comes first, so it is planned last.
        open.extend(rows.into_iter().map(|blob| OpenDocument { blob, depth: depth + 1, is_unstated }));
        indexes.push(BlobWrite { blob, labels });
    }
    plan.writes.extend(indexes.into_iter().rev());
    Ok(plan)
}

/// Adds a manifest, its configuration and its layers to a plan.
async fn plan_manifest(
    plan: &mut LoadPlan,
    blob: Descriptor,
    bytes: &[u8],
    is_unstated: bool,
    blobs: &Arc<dyn BlobReader>,
) -> Result<(), RuntimeError> {
    let manifest = image::parse_manifest(bytes).map_err(RuntimeError::invalid_image(&blob.digest))?;
    let config = manifest.config;
    let read = image::parse_config(&read_document(&config, blobs).await?);
    let read = read.map_err(RuntimeError::invalid_image(&config.digest))?;
    if is_unstated && !read.runs_here {
        return Err(RuntimeError::invalid_image(&config.digest)(ImageError::NoPlatform));
    }
    let diff_ids = read.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        let count = ImageError::LayerCount { layers: manifest.layers.len(), diff_ids: diff_ids.len() };
        return Err(RuntimeError::invalid_image(&blob.digest)(count));
    }
    let layers = manifest.layers.into_iter().zip(diff_ids).map(|(blob, diff_id)| Layer { blob, diff_id });
    let layers: Vec<Layer> = layers.collect();
    let config_digest = config.digest.clone();
    let mut references = Labels::from([("containerd.io/gc.ref.content.config".to_string(), config_digest.clone())]);
    for (place, layer) in layers.iter().enumerate() {
        references.insert(format!("containerd.io/gc.ref.content.l.{place}"), layer.blob.digest.clone());
        let labels = Labels::from([("containerd.io/uncompressed".to_string(), layer.diff_id.clone())]);
        plan.writes.push(BlobWrite { blob: layer.blob.clone(), labels });
    }
    plan.writes.push(BlobWrite { blob: config, labels: Labels::new() });
    plan.writes.push(BlobWrite { blob, labels: references });
    plan.manifests.push(PlannedManifest { layers, config_digest });
    Ok(())
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

    /// Blobs of an image in memory.
    #[derive(Default)]
    struct Image(BTreeMap<String, Bytes>);

    const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

    fn json(blob: &Descriptor) -> String {
        format!(r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#, blob.media_type, blob.digest, blob.size)
    }

    impl Image {
        fn put(&mut self, kind: &str, bytes: &str) -> Descriptor {
            let blob = Descriptor::new(kind, &sha256(bytes.as_bytes()), bytes.len() as u64);
            self.0.insert(blob.digest.clone(), Bytes::from(bytes.to_string()));
            blob
        }

        /// Puts a manifest with one layer, whose configuration is for this processor.
        fn manifest(&mut self, architecture: &str, kind: &str, layer: &str) -> Descriptor {
            let id = sha256(format!("unpacked {layer}").as_bytes());
            let layer = self.put(kind, layer);
            let config = format!(r#"{{"architecture":"{architecture}","rootfs":{{"diff_ids":["{id}"]}}}}"#);
            let config = self.put(OCI_CONFIG, &config);
            self.put(OCI_MANIFEST, &format!(r#"{{"config":{},"layers":[{}]}}"#, json(&config), json(&layer)))
        }

        fn index(&mut self, rows: &[String]) -> Descriptor {
            self.put(OCI_INDEX, &format!(r#"{{"manifests":[{}]}}"#, rows.join(",")))
        }

        fn without(mut self, blob: &Descriptor) -> Self {
            self.0.remove(&blob.digest);
            self
        }

        fn reader(self) -> Arc<dyn BlobReader> {
            Arc::new(InMemory(self.0))
        }
    }

    /// Returns a row with a platform, and with what else the platform says.
    fn row(blob: &Descriptor, architecture: &str, more: &str) -> String {
        let row = json(blob);
        let row = row.trim_end_matches('}');
        format!(r#"{row},"platform":{{"os":"linux","architecture":"{architecture}"{more}}}}}"#)
    }

    const HERE: &str = std::env::consts::ARCH;

    #[tokio::test]
    async fn a_plan_writes_referenced_blobs_first_and_refuses_wrong_digests() {
        let mut image = Image::default();
        let manifest = image.manifest(HERE, LAYER, "not really a layer");
        let index = image.index(&[json(&manifest)]);
        let config = image.put(OCI_CONFIG, r#"{"rootfs":{"diff_ids":["x"]}}"#);
        let wrong = image.put(OCI_MANIFEST, &format!(r#"{{"config":{},"layers":[]}}"#, json(&config)));
        let liar = Descriptor::new(OCI_MANIFEST, &sha256(b"else"), manifest.size);
        let bytes = image.0[&manifest.digest].clone();
        image.0.insert(liar.digest.clone(), bytes);
        let blobs = image.reader();
        let planned = plan_load(&index, &blobs).await.unwrap();
        let order: Vec<&str> = planned.writes.iter().map(|write| write.blob.digest.as_str()).collect();
        let [planned_manifest] = &planned.manifests[..] else { panic!("one manifest") };
        let layer = &planned_manifest.layers[0].blob.digest;
        assert_eq!(order, [layer, &planned_manifest.config_digest, &manifest.digest, &index.digest]);
        assert_eq!(planned_manifest.layers[0].diff_id, sha256(b"unpacked not really a layer"));
        assert!(matches!(plan_load(&wrong, &blobs).await.err(), Some(RuntimeError::InvalidImage { .. })));
        assert!(matches!(plan_load(&liar, &blobs).await.err(), Some(RuntimeError::DigestMismatch { .. })));
        let gone = Descriptor::new(OCI_MANIFEST, &sha256(b"gone"), manifest.size);
        assert!(plan_load(&gone, &blobs).await.is_err());
    }

    #[tokio::test]
    async fn a_plan_has_what_containerd_chooses() {
        let mut image = Image::default();
        let higher = image.manifest(HERE, LAYER, "level 3");
        let plain = image.manifest(HERE, LAYER, "plain");
        let index = image.index(&[row(&higher, HERE, r#","variant":"v99""#), row(&plain, HERE, "")]);
        let other = image.manifest("s390x", LAYER, "other");
        let unstated = image.index(&[json(&other)]);
        let nydus = image.manifest(HERE, LAYER, "nydus");
        let features = r#","os.features":["nydus.remoteimage.v1"]"#;
        let both = image.index(&[row(&nydus, HERE, features), row(&plain, HERE, "")]);
        let layers = |plan: &LoadPlan| -> Vec<String> {
            plan.manifests.iter().flat_map(|manifest| &manifest.layers).map(|layer| layer.blob.digest.clone()).collect()
        };
        let without_nydus = Image(image.0.clone()).without(&nydus).reader();
        let blobs = image.reader();
        assert_eq!(layers(&plan_load(&index, &blobs).await.unwrap()), [sha256(b"plain")]);
        let error = plan_load(&unstated, &blobs).await.err().unwrap().to_string();
        assert!(error.contains("cannot use image"), "a configuration for another processor: {error}");
        assert_eq!(
            layers(&plan_load(&both, &blobs).await.unwrap()),
            [sha256(b"nydus"), sha256(b"plain")],
            "older releases take the first, newer ones the second"
        );
        assert_eq!(layers(&plan_load(&both, &without_nydus).await.unwrap()), [sha256(b"plain")]);
    }

    #[tokio::test]
    async fn what_is_no_file_system_is_known() {
        let mut image = Image::default();
        let plain = image.manifest(HERE, LAYER, "plain");
        let signature = image.manifest("", "application/vnd.dev.cosign.simplesigning.v1+json", "signature");
        let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar";
        let complete = image.manifest(HERE, foreign, "here");
        let lacking = image.manifest(HERE, foreign, "missing");
        let missing = Descriptor::new(foreign, &sha256(b"missing"), 7);
        let index = image.index(&[row(&plain, HERE, "")]);
        let artifacts = image.index(&[json(&signature)]);
        let attestations = image.index(&[row(&signature, "unknown", "")]);
        let empty = image.index(&[]);
        let blobs = image.without(&missing).reader();
        for root in [&plain, &complete, &index] {
            assert_eq!(examine(root, &blobs).await.unwrap(), ImageKind::FileSystem, "{root:?}");
        }
        for root in [&signature, &lacking, &artifacts, &attestations, &empty] {
            assert!(matches!(examine(root, &blobs).await.unwrap(), ImageKind::Other { .. }), "{root:?}");
        }
    }

    #[test]
    fn records_have_the_name_and_the_digest() {
        for (image, names) in [
            ("r.example:5000/a:v1", &["r.example:5000/a:v1", "r.example:5000/a@sha256:1"][..]),
            ("r.example:5000/a", &["r.example:5000/a", "r.example:5000/a@sha256:1"]),
            ("r.example:5000/a@sha256:1", &["r.example:5000/a@sha256:1"]),
        ] {
            assert_eq!(record_names(image, "sha256:1"), names, "{image}");
        }
    }
}
