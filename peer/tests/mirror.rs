//! The registry mirror over real sockets and a real store: requests of normal and hostile clients, and failures of the
//! disk, the network and the daemon.

use bytes::Bytes;
use shoal_peer::arrivals::Arrivals;
use shoal_peer::feeds::LatestVersions;
use shoal_peer::handle::{DriverCommand, NodeHandle};
use shoal_peer::mirror::{self, MirrorConfig};
use shoal_proto::ids::{ContentId, PieceIndex};
use shoal_proto::image::{Digest, ImageBlob, ImageIndex, OCI_MANIFEST};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::{CancellationToken, Tasks};
use shoal_service::units::Span;
use shoal_store::ingest::{IngestOptions, IngestProgress};
use shoal_store::{BlobSource, Store, StoreConfig};
use shoal_testkit::noise;
use std::fs;
use std::io::{Cursor, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn open(dir: &Path) -> Store {
    open_with(dir, Arrivals::default())
}

fn open_with(dir: &Path, arrivals: Arrivals) -> Store {
    Store::open(StoreConfig::new(dir), Box::new(move |event| arrivals.on_store_event(&event))).unwrap()
}

fn sha256(bytes: &[u8]) -> Digest {
    shoal_containerd::sha256(bytes).parse().unwrap()
}

/// An image of one layer. Its manifest is a text with the layer's digest.
struct Image {
    reference: String,
    manifest: Vec<u8>,
    layer: Vec<u8>,
}

impl Image {
    fn new(reference: &str, layer: Vec<u8>) -> Self {
        Self { reference: reference.into(), manifest: format!("{{\"of\":\"{}\"}}", sha256(&layer)).into_bytes(), layer }
    }

    fn root(&self) -> Digest {
        sha256(&self.manifest)
    }

    fn put(&self, store: &Store) -> ContentId {
        let blob = |bytes: &[u8], kind: &str| ImageBlob {
            digest: sha256(bytes),
            media_type: kind.into(),
            size: bytes.len() as u64,
        };
        let blobs = vec![blob(&self.manifest, OCI_MANIFEST), blob(&self.layer, LAYER)];
        let index = ImageIndex { reference: self.reference.clone(), root: self.root(), blobs };
        let source = |blob: &ImageBlob| {
            let bytes = if blob.media_type == LAYER { self.layer.clone() } else { self.manifest.clone() };
            Ok(BlobSource::Reader(Box::new(Cursor::new(bytes))))
        };
        let progress = Arc::new(IngestProgress::default());
        store.ingest_image(index, source, None, &IngestOptions::default(), &progress).unwrap().content
    }
}

/// A mirror on a store, and a driver that answers pings while `answers` is true.
struct Running {
    addr: SocketAddr,
    store: Store,
    answers: Arc<AtomicBool>,
    metrics: Metrics,
    _runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Running {
    fn start(max_wait: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let arrivals = Arrivals::default();
        let store = open_with(dir.path(), arrivals.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let answers = Arc::new(AtomicBool::new(true));
        let (commands, inbox) = mpsc::channel(4);
        runtime.spawn(drive(inbox, answers.clone()));
        let (_, membership) = watch::channel(Arc::default());
        let metrics = Metrics::default();
        let (shared, feeds) = (Arc::default(), LatestVersions::new(&metrics));
        let node = NodeHandle { commands, membership, shared, store: store.clone(), feeds, arrivals };
        let config = MirrorConfig { max_wait: Span(max_wait), ..MirrorConfig::default() };
        let addr = runtime.block_on(async {
            let mut tasks = Tasks::new(CancellationToken::new());
            let any = "127.0.0.1:0".parse().unwrap();
            let started = mirror::start(&config, any, &node, None, &metrics, &mut tasks).await.unwrap();
            tokio::spawn(async move { tasks.run().await });
            started.addr
        });
        Self { addr, store, answers, metrics, _runtime: runtime, _dir: dir }
    }

    fn with(images: &[&Image]) -> Self {
        let running = Self::start(Duration::from_millis(300));
        images.iter().for_each(|image| {
            image.put(&running.store);
        });
        running
    }

    fn send(&self, method: &str, path: &str, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n").unwrap();
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &str) -> Reply {
        let mut bytes = Vec::new();
        // The mirror may reset a connection that it cuts.
        let _ = self.send(method, path, headers).read_to_end(&mut bytes);
        Reply::parse(&bytes)
    }

    fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "")
    }

    fn metric(&self, line: &str) -> u64 {
        let text = self.metrics.render();
        let found = text.lines().find_map(|row| row.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0)
    }
}

/// Answers pings as the driver does. While `answers` is false, it hangs with a ping in hand.
async fn drive(mut inbox: mpsc::Receiver<DriverCommand>, answers: Arc<AtomicBool>) {
    while let Some(command) = inbox.recv().await {
        while !answers.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        if let DriverCommand::Ping(reply) = command {
            let _ = reply.send(());
        }
    }
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer has a head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let pair = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string()));
        Self { status, headers: lines.filter_map(pair).collect(), body: bytes[end + 4..].to_vec() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

fn until(what: &str, mut look: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !look() {
        assert!(Instant::now() < end, "gave up waiting: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn clients_get_manifests_and_blobs() {
    let image = Image::new("registry.example:5000/lab/app:v1", noise(3_000_000, 1));
    let mirror = Running::with(&[&image]);
    assert_eq!(mirror.get("/v2/").status, 200);
    assert_eq!(mirror.get("/v2/").header("docker-distribution-api-version"), "registry/2.0");

    let by_tag = "/v2/lab/app/manifests/v1?ns=registry.example%3A5000";
    let root = image.root().to_string();
    let head = mirror.ask("HEAD", by_tag, "accept: */*\r\n");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-type"), OCI_MANIFEST, "containerd fails on any other media type");
    assert_eq!(head.header("docker-content-digest"), root);
    assert_eq!(head.header("content-length"), image.manifest.len().to_string());
    assert!(mirror.get(by_tag).body == image.manifest);
    assert!(mirror.get("/v2/lab/app/manifests/v1").body == image.manifest, "skopeo names no registry");
    let by_digest = mirror.get(&format!("/v2/lab/app/manifests/{root}?ns=registry.example:5000"));
    assert!(by_digest.body == image.manifest && by_digest.header("content-type") == OCI_MANIFEST);

    let layer = format!("/v2/lab/app/blobs/{}?ns=registry.example%3A5000", sha256(&image.layer));
    let whole = mirror.ask("GET", &layer, "accept-encoding: gzip\r\n");
    assert!(whole.status == 200 && whole.body == image.layer);
    assert_eq!(whole.header("content-encoding"), "");
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let head = mirror.ask("HEAD", &layer, "");
    assert_eq!((head.status, head.body.len(), head.header("content-length")), (200, 0, "3000000"));
    // The layer is only a blob. The manifest is a blob too.
    let as_manifest = format!("/v2/lab/app/manifests/{}", sha256(&image.layer));
    assert_eq!(mirror.get(&as_manifest).status, 404);
    assert!(mirror.get(&format!("/v2/lab/app/blobs/{root}")).body == image.manifest);

    // The store has no referrer. The registry may have some.
    assert_eq!(mirror.get(&format!("/v2/lab/app/referrers/{root}")).status, 404);
    let hits = mirror.metric("shoal_mirror_requests_total{what=\"manifest\",outcome=\"hit\"}");
    assert_eq!(hits, 4, "requests are counted");
    assert!(mirror.metric("shoal_mirror_sent_bytes_total") >= 3_000_000);
}

#[test]
fn ranges_are_served_one_by_one_and_in_parallel() {
    let image = Image::new("registry.example/app:v1", noise(5_000_000, 2));
    let mirror = Running::with(&[&image]);
    let layer = format!("/v2/app/blobs/{}", sha256(&image.layer));
    let part = |range: &str| mirror.ask("GET", &layer, &format!("range: bytes={range}\r\n"));
    for (range, from, to) in [
        ("0-", 0, 5_000_000),
        ("1234567-", 1_234_567, 5_000_000),
        ("0-0", 0, 1),
        ("1999999-2000001", 1_999_999, 2_000_002),
        ("4999999-", 4_999_999, 5_000_000),
        ("-10", 4_999_990, 5_000_000),
        ("100-99999999", 100, 5_000_000),
    ] {
        let reply = part(range);
        assert_eq!(reply.status, 206, "{range}");
        assert_eq!(reply.header("content-range"), format!("bytes {from}-{}/5000000", to - 1));
        assert!(reply.body == image.layer[from..to], "{range}");
    }
    let beyond = part("5000000-");
    assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */5000000"));
    assert!(part("0-1,5-6").body == image.layer, "several ranges in one request get the whole blob");

    // As containerd 2 does: open-ended ranges from many offsets, each cancelled once its part has arrived.
    std::thread::scope(|scope| {
        for from in (0..5_000_000).step_by(500_000) {
            let (mirror, layer, image) = (&mirror, &layer, &image);
            scope.spawn(move || {
                let mut stream = mirror.send("GET", layer, &format!("range: bytes={from}-\r\n"));
                let mut bytes = vec![0; 500_000 + 400];
                let mut got = 0;
                while got < bytes.len() {
                    match stream.read(&mut bytes[got..]).unwrap() {
                        0 => break,
                        more => got += more,
                    }
                }
                let reply = Reply::parse(&bytes[..got]);
                let len = reply.body.len().min(500_000);
                assert!(reply.status == 206 && reply.body[..len] == image.layer[from..from + len]);
            });
        }
    });
    // A client that disconnects frees its stream. More clients than there are streams come and go here.
    (0..60).for_each(|_| drop(mirror.send("GET", &layer, "")));
    until("the streams are free", || part("0-").body == image.layer);
}

#[test]
fn absent_objects_are_refused_at_once() {
    let here = Image::new("one.example/app:v1", noise(1000, 3));
    let elsewhere = Image::new("two.example/app:v1", noise(1000, 4));
    let mirror = Running::with(&[&here, &elsewhere]);
    let root = mirror.get("/v2/app/manifests/v1?ns=two.example");
    assert_eq!(root.header("docker-content-digest"), elsewhere.root().to_string());
    for path in [
        "/v2/app/manifests/v1",
        "/v2/app/manifests/v2?ns=one.example",
        "/v2/app/manifests/v1?ns=three.example",
        "/v2/other/manifests/v1?ns=one.example",
        "/v2/app/manifests/v1?ns=../../etc",
        "/v2/../../etc/manifests/passwd",
        "/v2/%2e%2e/%2e%2e/etc/blobs/passwd",
        "/v2/app/blobs/sha256:../../../../etc/passwd",
        "/v2/app/blobs/sha256%3a..%2f..%2fmanifest",
        "/v2/app/tags/list",
        "/v2/_catalog",
        "/healthz",
        "/",
    ] {
        let reply = mirror.get(path);
        assert_eq!(reply.status, 404, "{path}");
        assert_eq!(reply.header("content-type"), "application/json", "{path}");
    }
    let unknown = format!("/v2/app/blobs/{}", sha256(b"unknown"));
    assert!(String::from_utf8(mirror.get(&unknown).body).unwrap().contains("BLOB_UNKNOWN"));
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let reply = mirror.ask(method, "/v2/app/blobs/uploads/", "content-length: 0\r\n");
        assert_eq!((reply.status, reply.header("allow")), (405, "GET, HEAD"), "{method}");
    }
    let mut large = mirror.send("POST", "/v2/app/blobs/uploads/", "content-length: 100000\r\n");
    let _ = large.write_all(&[b'x'; 100_000]);
    let mut endless = TcpStream::connect(mirror.addr).unwrap();
    let _ = write!(endless, "GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(1_000_000));
    let mut rubbish = TcpStream::connect(mirror.addr).unwrap();
    let _ = rubbish.write_all(&[0; 4096]);
    assert_eq!(mirror.get("/v2/").status, 200, "it still serves");
}

#[test]
fn no_wrong_byte_is_sent() {
    let image = Image::new("registry.example/app:v1", noise(4_000_000, 5));
    let mirror = Running::with(&[]);
    let content = image.put(&mirror.store);
    let layer = format!("/v2/app/blobs/{}", sha256(&image.layer));
    assert!(mirror.get(&layer).body == image.layer);
    // The disk damages one byte.
    let manifest = mirror.store.manifest(&content).unwrap();
    let (stream, _) = manifest.image.as_ref().unwrap().find(&sha256(&image.layer)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(mirror.store.stream_path(&content, stream)).unwrap();
    file.write_all_at(&[image.layer[3_000_000] ^ 1], 3_000_000).unwrap();
    let reply = mirror.get(&layer);
    assert_eq!(reply.status, 200);
    assert!(
        reply.body.len() <= 3_000_000 && reply.body[..] == image.layer[..reply.body.len()],
        "the body is cut before the wrong byte"
    );
    until("the cut is counted", || mirror.metric("shoal_mirror_cut_total") == 1);
    let resumed = mirror.ask("GET", &layer, "range: bytes=3000000-\r\n");
    assert_eq!(resumed.status, 503, "the client resumes at the registry");
}

#[test]
fn an_arriving_image_is_streamed_and_cut_when_it_stops() {
    let image = Image::new("registry.example/app:v1", noise(6_000_000, 6));
    let elsewhere = tempfile::tempdir().unwrap();
    let source = open(elsewhere.path());
    let content = image.put(&source);
    let mirror = Running::with(&[]);
    let begun = mirror.store.begin(&source.read_manifest(&content).unwrap()).unwrap();
    let layer = format!("/v2/app/blobs/{}", sha256(&image.layer));
    let put = |piece: u32| {
        let shard = begun.geometry.shard_of(PieceIndex(piece));
        let bytes: Bytes = source.read(&content, shard).unwrap();
        mirror.store.submit_shard(&content, shard, bytes, 0).unwrap();
        until("it is verified", || mirror.store.pieces_stored(&content) == Some(piece + 1));
    };
    assert_eq!(mirror.get(&layer).status, 404, "nothing arrives, so the client continues with the registry");
    put(0);
    assert_eq!(mirror.get("/v2/app/manifests/v1?ns=registry.example").status, 200, "the manifest has arrived");
    let pieces = begun.geometry.piece_count();
    put(1);
    std::thread::scope(|scope| {
        let whole = scope.spawn(|| mirror.get(&layer));
        (2..pieces - 1).for_each(put);
        let cut = whole.join().unwrap();
        assert_eq!(cut.status, 200);
        assert!(cut.body.len() < image.layer.len(), "the last piece never came");
        assert!(cut.body[..] == image.layer[..cut.body.len()]);
    });
    let sent: u64 = begun.geometry.piece_lens()[1..pieces as usize - 1].iter().map(|len| u64::from(*len)).sum();
    let rest = format!("range: bytes={sent}-\r\n");
    assert_eq!(mirror.ask("GET", &layer, &rest).status, 404, "it does not arrive for the next attempt either");
    put(pieces - 1);
    let resumed = mirror.ask("GET", &layer, &rest);
    assert!(resumed.status == 206 && resumed.body[..] == image.layer[sent as usize..]);
}

#[test]
fn a_hanging_daemon_closes_the_port() {
    let image = Image::new("registry.example/app:v1", noise(1000, 7));
    let mirror = Running::with(&[&image]);
    let path = "/v2/app/manifests/v1?ns=registry.example";
    assert_eq!(mirror.get(path).status, 200);
    let mut idle = TcpStream::connect(mirror.addr).unwrap();
    mirror.answers.store(false, Ordering::SeqCst);
    until("the mirror refuses while the driver is silent", || mirror.get(path).status == 503);
    until("the port is closed", || {
        TcpStream::connect(mirror.addr).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    idle.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(idle.read(&mut [0; 8]).unwrap_or(0), 0, "connections are closed too");
    mirror.answers.store(true, Ordering::SeqCst);
    until("it is open again", || TcpStream::connect(mirror.addr).is_ok());
    until("it serves again", || mirror.get(path).status == 200);
}
