//! Loading an image without a registry: its blobs into containerd's store, its layers into snapshots, its record last.
//!
//! Invariant: a lease that ends by itself keeps what is written from containerd's garbage collector until the record
//! holds it, and a load that is cut goes on where it was.

use crate::image::{self, Descriptor, Unpacked, is_digest, sha256};
use crate::wire::{self, Labels};
use crate::{Containerd, RuntimeError};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// Payload in one message; containerd takes messages of 16 MiB.
const PART_BYTES: usize = 4 * 1024 * 1024;
/// Messages on their way.
const PARTS_QUEUED: usize = 2;
/// A load that failed or died leaves its lease for this long.
const LEASE_FOR: Duration = Duration::from_secs(24 * 3600);
/// How long unpacking one layer may take.
const UNPACK_MAX: Duration = Duration::from_secs(3600);

/// Where a load takes blobs from.
pub trait Blobs: Send + Sync + 'static {
    /// Bytes from `offset`, at most `len` and at least one before the blob's end, verified. Blocks.
    fn read(&self, digest: &str, offset: u64, len: usize) -> std::io::Result<Bytes>;
}

/// A blob to write, and the labels by which containerd's garbage collector finds what belongs to it.
struct Part {
    blob: Descriptor,
    labels: Labels,
}

impl Containerd {
    /// Loads the image `root` under `name` and unpacks it. Blobs and layers that are there already are left as they are.
    pub async fn load(&self, name: &str, root: &Descriptor, blobs: Arc<dyn Blobs>) -> Result<Unpacked, RuntimeError> {
        let lease = format!("shoal.load-{}", root.digest.trim_start_matches("sha256:"));
        let until = SystemTime::now() + LEASE_FOR;
        let expire = ("containerd.io/gc.expire".to_string(), rfc3339(until));
        self.make_lease(&lease, Labels::from([expire])).await?;
        // After a failure the lease stays, so that the next attempt finds what this one brought.
        let loaded = self.load_under(&lease, name, root, &blobs).await?;
        // It ends by itself too; what matters is that the image is there.
        let _ = self.drop_lease(&lease).await;
        Ok(loaded)
    }

    async fn load_under(
        &self,
        lease: &str,
        name: &str,
        root: &Descriptor,
        blobs: &Arc<dyn Blobs>,
    ) -> Result<Unpacked, RuntimeError> {
        let (parts, layers, diff_ids, config) = plan(root, blobs).await?;
        for part in parts {
            self.write_blob(lease, part, blobs).await?;
        }
        let chain = image::chain_ids(&diff_ids);
        let mut parent = String::new();
        for ((layer, diff_id), snapshot) in layers.iter().zip(&diff_ids).zip(&chain) {
            self.keep(lease, snapshot.clone(), format!("snapshots/{}", self.snapshotter())).await?;
            if !self.is_committed(snapshot).await? {
                self.unpack(lease, layer, diff_id, &parent, snapshot).await?;
            }
            parent.clone_from(snapshot);
        }
        if let Some(top) = chain.last() {
            let key = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter());
            self.label_blob(&config, &key, top).await?;
        }
        self.record(name, root, lease).await?;
        // Pods that name the image by digest look for a record of that name.
        let repository = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(rest, _)| rest);
        self.record(&format!("{repository}@{}", root.digest), root, lease).await?;
        Ok(Unpacked::Yes { root: root.clone(), snapshot: chain.into_iter().next_back() })
    }

    async fn write_blob(&self, lease: &str, part: Part, blobs: &Arc<dyn Blobs>) -> Result<(), RuntimeError> {
        let digest = part.blob.digest.clone();
        // Kept before it is looked for: what is found stays.
        self.keep(lease, digest.clone(), "content".to_string()).await?;
        if self.info(&digest).await?.is_some() {
            // Another image brought it, perhaps without the labels.
            for (key, value) in &part.labels {
                self.label_blob(&digest, key, value).await?;
            }
            return Ok(());
        }
        let what = format!("write {digest}");
        let status = match self.stream_blob(lease, part, blobs).await {
            Ok(()) => return Ok(()),
            Err(status) => status,
        };
        if status.code() == Code::AlreadyExists {
            return Ok(());
        }
        let error = self.fault(&what, &status);
        if matches!(error, RuntimeError::Mismatch { .. }) {
            // What is wrong must not be what the next attempt goes on from.
            let path = "/containerd.services.content.v1.Content/Abort";
            let request = wire::AbortRequest { reference: write_ref(&digest) };
            self.quick::<_, ()>(path, &what, request, Some(lease)).await?;
        }
        Err(error)
    }

    async fn stream_blob(&self, lease: &str, part: Part, blobs: &Arc<dyn Blobs>) -> Result<(), Status> {
        let Part { blob, labels } = part;
        let total = i64::try_from(blob.size).map_err(|_| Status::invalid_argument("too large a blob"))?;
        let base = wire::WriteContentRequest {
            reference: write_ref(&blob.digest),
            total,
            expected: blob.digest.clone(),
            ..Default::default()
        };
        let (sink, source) = mpsc::channel(PARTS_QUEUED);
        let stat = wire::WriteContentRequest { action: wire::WRITE_STAT, ..base.clone() };
        let _ = sink.send(stat).await;
        let Some(mut answers) = self.write(Requests(source), lease).await? else { return Ok(()) };
        // How much of it an earlier attempt left.
        let there = answers.message().await?.map_or(0, |answer| answer.offset).clamp(0, total);
        let feed = feed(sink, base, labels, blobs.clone(), there);
        let drain = async {
            while let Some(answer) = answers.message().await? {
                if answer.action == wire::WRITE_COMMIT {
                    return Ok(());
                }
            }
            Err(Status::unavailable("containerd ended a write before its commit"))
        };
        let (fed, drained) = tokio::join!(feed, drain);
        // Where both failed, ours is the cause and theirs the effect.
        fed.and(drained)
    }

    async fn unpack(
        &self,
        lease: &str,
        layer: &Descriptor,
        diff_id: &str,
        parent: &str,
        snapshot: &str,
    ) -> Result<(), RuntimeError> {
        let what = format!("unpack {}", layer.digest);
        let key = format!("extract-shoal {snapshot}");
        let snapshotter = self.snapshotter().to_string();
        let labels = Labels::from([("containerd.io/snapshot.ref".to_string(), snapshot.to_string())]);
        // What an attempt that was cut left under this key is of unknown contents.
        let stale = wire::SnapshotKeyRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        let path = "/containerd.services.snapshots.v1.Snapshots/Remove";
        match self.quick::<_, ()>(path, &what, stale, Some(lease)).await {
            Ok(()) | Err(RuntimeError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
        let request = wire::PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_string(),
            labels: labels.clone(),
        };
        let path = "/containerd.services.snapshots.v1.Snapshots/Prepare";
        let prepared: wire::PrepareSnapshotResponse = self.quick(path, &what, request, Some(lease)).await?;
        let apply = wire::ApplyRequest { diff: Some(layer.to_wire()), mounts: prepared.mounts };
        let path = "/containerd.services.diff.v1.Diff/Apply";
        let request = self.ask(apply, Some(lease))?;
        let applied: wire::ApplyResponse = self.call(path, &what, request, UNPACK_MAX).await?;
        let applied = applied.applied.unwrap_or_default().digest;
        if applied != diff_id {
            return Err(RuntimeError::Mismatch { what, why: format!("unpacked to {applied}, not {diff_id}") });
        }
        let name = snapshot.to_string();
        let request = wire::CommitSnapshotRequest { snapshotter, name, key, labels };
        let path = "/containerd.services.snapshots.v1.Snapshots/Commit";
        self.quick(path, &what, request, Some(lease)).await
    }
}

/// Names the write of a blob, so that a later attempt goes on where this one was.
fn write_ref(digest: &str) -> String {
    format!("shoal-{digest}")
}

/// Sends a blob's parts from `there` on, and the commit.
async fn feed(
    sink: mpsc::Sender<wire::WriteContentRequest>,
    base: wire::WriteContentRequest,
    labels: Labels,
    blobs: Arc<dyn Blobs>,
    there: i64,
) -> Result<(), Status> {
    let mut at = there;
    while at < base.total {
        let (source, digest, offset) = (blobs.clone(), base.expected.clone(), at.unsigned_abs());
        let read = tokio::task::spawn_blocking(move || source.read(&digest, offset, PART_BYTES)).await;
        let data = read.map_err(|error| Status::internal(error.to_string()))?;
        let data = data.map_err(|error| Status::data_loss(format!("cannot read {}: {error}", base.expected)))?;
        if data.is_empty() {
            return Err(Status::data_loss(format!("{} ends early", base.expected)));
        }
        let len = i64::try_from(data.len()).unwrap_or(i64::MAX);
        let part = wire::WriteContentRequest { action: wire::WRITE_DATA, offset: at, data, ..base.clone() };
        if sink.send(part).await.is_err() {
            // The answer says why.
            return Ok(());
        }
        at = at.saturating_add(len);
    }
    let commit = wire::WriteContentRequest { action: wire::WRITE_COMMIT, offset: base.total, labels, ..base };
    let _ = sink.send(commit).await;
    Ok(())
}

/// A channel as a stream.
struct Requests(mpsc::Receiver<wire::WriteContentRequest>);

impl tokio_stream::Stream for Requests {
    type Item = wire::WriteContentRequest;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// Layers come first, so that nothing refers to what is not there yet.
type Plan = (Vec<Part>, Vec<Descriptor>, Vec<String>, String);

/// What to write for an image, in order; its layers, their uncompressed digests, and its configuration's digest.
async fn plan(root: &Descriptor, blobs: &Arc<dyn Blobs>) -> Result<Plan, RuntimeError> {
    let mut tops = Vec::new();
    let mut at = root.clone();
    let parsed = loop {
        let bytes = small(&at, blobs).await?;
        if !at.is_index() {
            break image::manifest(&at.digest, &bytes)?;
        }
        if tops.len() >= 4 {
            return Err(RuntimeError::Malformed(format!("{}: indexes within indexes", root.digest)));
        }
        let (entry, _) = image::pick(&at.digest, &bytes)?;
        let labels = Labels::from([("containerd.io/gc.ref.content.m.0".to_string(), entry.digest.clone())]);
        tops.push(Part { blob: at, labels });
        at = entry;
    };
    let diff_ids = image::diff_ids(&parsed.config.digest, &small(&parsed.config, blobs).await?)?;
    if diff_ids.len() != parsed.layers.len() {
        let (layers, ids) = (parsed.layers.len(), diff_ids.len());
        return Err(RuntimeError::Malformed(format!("{}: {layers} layers, {ids} uncompressed digests", root.digest)));
    }
    let mut labels = Labels::from([("containerd.io/gc.ref.content.config".to_string(), parsed.config.digest.clone())]);
    let mut parts = Vec::new();
    for (place, (layer, id)) in parsed.layers.iter().zip(&diff_ids).enumerate() {
        labels.insert(format!("containerd.io/gc.ref.content.l.{place}"), layer.digest.clone());
        let of_layer = Labels::from([("containerd.io/uncompressed".to_string(), id.clone())]);
        parts.push(Part { blob: layer.clone(), labels: of_layer });
    }
    parts.push(Part { blob: parsed.config.clone(), labels: Labels::new() });
    parts.push(Part { blob: at, labels });
    parts.extend(tops.into_iter().rev());
    Ok((parts, parsed.layers, diff_ids, parsed.config.digest))
}

/// A manifest or configuration, checked against its digest.
async fn small(blob: &Descriptor, blobs: &Arc<dyn Blobs>) -> Result<Vec<u8>, RuntimeError> {
    let digest = blob.digest.clone();
    if !is_digest(&digest) || blob.size > 8 * 1024 * 1024 {
        return Err(RuntimeError::Malformed(format!("`{digest}`, {} bytes, cannot be a manifest", blob.size)));
    }
    let (source, size) = (blobs.clone(), blob.size);
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            let part = source.read(&digest, bytes.len() as u64, PART_BYTES)?;
            if part.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    });
    let what = || format!("read {}", blob.digest);
    let bytes = match read.await {
        Ok(read) => {
            read.map_err(|error: std::io::Error| RuntimeError::Refused { what: what(), why: error.to_string() })?
        }
        Err(panic) => return Err(RuntimeError::Refused { what: what(), why: panic.to_string() }),
    };
    if sha256(&bytes) != blob.digest {
        return Err(RuntimeError::Mismatch { what: what(), why: "its bytes have another digest".into() });
    }
    Ok(bytes)
}

/// A time as containerd's labels want it.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days to a date, by eras of 400 years that begin in March.
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

    impl Blobs for InMemory {
        fn read(&self, digest: &str, offset: u64, len: usize) -> std::io::Result<Bytes> {
            let blob = self.0.get(digest).ok_or(std::io::ErrorKind::NotFound)?;
            let at = (offset as usize).min(blob.len());
            Ok(blob.slice(at..blob.len().min(at + len)))
        }
    }

    #[test]
    fn times_are_written_as_dates() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_763_993_245), "2025-11-24T14:07:25Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59Z");
    }

    #[tokio::test]
    async fn a_plan_writes_what_is_referred_to_first_and_refuses_lies() {
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
        let blobs: Arc<dyn Blobs> = Arc::new(InMemory(blobs));
        let (parts, layers, ids, _) = plan(&index, &blobs).await.unwrap();
        let order: Vec<&str> = parts.iter().map(|part| part.blob.digest.as_str()).collect();
        assert_eq!(order, [&layer.digest, &config.digest, &manifest.digest, &index.digest]);
        assert_eq!((layers.len(), ids.len()), (1, 1));
        assert!(matches!(plan(&wrong, &blobs).await.err(), Some(RuntimeError::Malformed(_))));
        assert!(matches!(plan(&liar, &blobs).await.err(), Some(RuntimeError::Mismatch { .. })));
        let gone = Descriptor::new(&manifest.media_type, &sha256(b"gone"), manifest.size);
        assert!(plan(&gone, &blobs).await.is_err());
    }
}
