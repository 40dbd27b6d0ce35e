//! The registry mirror over real sockets and a real store: requests of normal and hostile clients, and failures of the
//! disk, the network and the daemon.

use bytes::Bytes;
use serde_json::{Value, json};
use shoal_peer::arrivals::Arrivals;
use shoal_peer::feeds::LatestVersions;
use shoal_peer::handle::{DriverCommand, NodeHandle};
use shoal_peer::mirror::{self, MirrorConfig};
use shoal_proto::ids::{ContentId, PieceIndex};
use shoal_proto::image::{Digest, ImageBlob, ImageIndex, OCI_MANIFEST};
use shoal_proto::image_documents::{REFERRER_LISTS, ReferrerList, ReferrerLists};
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
    /// What the registry said of its referrers when the seeder pulled the image.
    note: Option<ReferrerLists>,
}

impl Image {
    fn new(reference: &str, layer: Vec<u8>) -> Self {
        let manifest = format!("{{\"of\":\"{}\"}}", sha256(&layer)).into_bytes();
        Self { reference: reference.into(), manifest, layer, note: None }
    }

    /// A signature or another artifact of a type, which refers to an image. Its annotation tells it from others.
    fn artifact(reference: &str, subject: &Image, kind: &str, text: &str) -> Self {
        let subject = format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":1}}"#, subject.root());
        let manifest = format!(
            r#"{{"artifactType":{},"config":{{"mediaType":"a/config"}},"layers":null,"subject":{subject},"annotations":{{"text":"{text}"}}}}"#,
            if kind.is_empty() { "null".to_string() } else { format!("\"{kind}\"") }
        );
        Self { manifest: manifest.into_bytes(), ..Self::new(reference, text.as_bytes().to_vec()) }
    }

    fn noted(mut self, subject: &Image, manifests: Option<&[&Image]>) -> Self {
        let manifests = manifests.map(|all| all.iter().map(|image| image.root()).collect());
        self.note = Some(ReferrerLists { lists: vec![ReferrerList { subject: subject.root(), manifests }] });
        self
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
        let note = self.note.as_ref().map(|note| serde_json::to_vec(note).unwrap());
        let mut blobs = vec![blob(&self.manifest, OCI_MANIFEST), blob(&self.layer, LAYER)];
        blobs.extend(note.iter().map(|note| blob(note, REFERRER_LISTS)));
        let index = ImageIndex { reference: self.reference.clone(), root: self.root(), blobs };
        let source = |blob: &ImageBlob| {
            let bytes = match blob.media_type.as_str() {
                LAYER => self.layer.clone(),
                REFERRER_LISTS => note.clone().unwrap(),
                _ => self.manifest.clone(),
            };
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

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The code of an error.
    fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap().to_string()
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
fn tags_are_listed_in_order_and_in_parts() {
    let images = ["v10", "v9", "v1", "V1"].map(|tag| Image::new(&format!("one.example/app:{tag}"), noise(100, 20)));
    let mut pinned = Image::new("", noise(100, 21));
    pinned.reference = format!("one.example/app:pinned@{}", pinned.root());
    let other = Image::new("two.example/other:x", noise(100, 22));
    let mirror = Running::with(&[&images[0], &images[1], &images[2], &images[3], &pinned, &other]);
    let list = |query: &str| mirror.get(&format!("/v2/app/tags/list{query}"));
    let whole = list("?ns=one.example");
    assert_eq!((whole.status, whole.header("content-type")), (200, "application/json"));
    assert_eq!(whole.json(), json!({ "name": "app", "tags": ["V1", "v1", "v10", "v9"] }));
    assert_eq!(list("").json(), whole.json(), "only one registry has the repository");
    assert_eq!(list("?last=v1").json()["tags"], json!(["v10", "v9"]));
    let first = list("?ns=one.example&n=2");
    assert_eq!(first.json()["tags"], json!(["V1", "v1"]));
    let next = first.header("link");
    assert_eq!(next, "</v2/app/tags/list?n=2&last=v1&ns=one.example>; rel=\"next\"");
    let second = mirror.get(next.trim_start_matches('<').split_once('>').unwrap().0);
    assert_eq!((second.json()["tags"].clone(), second.header("link")), (json!(["v10", "v9"]), ""));
    assert_eq!(list("?n=0").json()["tags"], json!([]));
    assert_eq!((list("?n=x").status, list("?n=x").code()), (400, "PAGINATION_NUMBER_INVALID".to_string()));
    let unknown = list("?ns=two.example");
    assert_eq!((unknown.status, unknown.code()), (404, "NAME_UNKNOWN".to_string()));
    assert_eq!(mirror.ask("HEAD", "/v2/app/tags/list", "").body.len(), 0);
}

#[test]
fn a_name_with_a_digest_says_nothing_about_the_tag() {
    let now = Image::new("one.example/app:latest", noise(100, 30));
    let mut before = Image::new("", noise(100, 31));
    before.reference = format!("one.example/app:latest@{}", before.root());
    let mirror = Running::with(&[&now, &before]);
    for ns in ["?ns=one.example", ""] {
        let tag = mirror.get(&format!("/v2/app/manifests/latest{ns}"));
        assert_eq!((tag.status, tag.header("docker-content-digest")), (200, &*now.root().to_string()), "{ns}");
        let digest = mirror.get(&format!("/v2/app/manifests/{}{ns}", before.root()));
        assert!(digest.status == 200 && digest.body == before.manifest);
    }
    let alone = Running::with(&[&before]);
    assert_eq!(alone.get("/v2/app/manifests/latest?ns=one.example").status, 404, "the registry knows the tag");
}

#[test]
fn names_of_dockers_registry_have_one_form() {
    let image = Image::new("docker.io/library/nginx:v1", noise(100, 40));
    let mirror = Running::with(&[&image]);
    for path in [
        "/v2/library/nginx/manifests/v1?ns=docker.io",
        "/v2/nginx/manifests/v1?ns=docker.io",
        "/v2/nginx/manifests/v1?ns=index.docker.io",
        "/v2/library/nginx/manifests/v1",
    ] {
        assert_eq!(mirror.get(path).status, 200, "{path}");
    }
    assert_eq!(mirror.get("/v2/nginx/manifests/v1?ns=r.example").status, 404);
}

#[test]
fn what_a_client_has_is_not_sent_again() {
    let image = Image::new("one.example/app:v1", noise(1000, 50));
    let mirror = Running::with(&[&image]);
    let (root, layer) = (image.root().to_string(), sha256(&image.layer).to_string());
    let paths = [
        ("/v2/app/manifests/v1".to_string(), &root),
        (format!("/v2/app/manifests/{root}"), &root),
        (format!("/v2/app/blobs/{layer}"), &layer),
    ];
    for (path, digest) in &paths {
        let etag = mirror.get(path).header("etag").to_string();
        assert_eq!(etag, format!("\"{digest}\""));
        for known in [etag.clone(), format!("\"x\", W/{etag}"), "*".to_string()] {
            for method in ["GET", "HEAD"] {
                let reply = mirror.ask(method, path, &format!("if-none-match: {known}\r\nrange: bytes=0-1\r\n"));
                assert_eq!(
                    (reply.status, reply.body.len(), reply.header("etag")),
                    (304, 0, &*etag),
                    "{method} {known}"
                );
            }
        }
        assert_eq!(mirror.ask("GET", path, "if-none-match: \"other\"\r\n").status, 200);
    }
}

#[test]
fn errors_have_the_codes_of_the_specification() {
    let image = Image::new("one.example/app:v1", noise(100, 60));
    let mirror = Running::with(&[&image]);
    let (unknown, sha512) = (sha256(b"unknown"), format!("sha512:{}", "0".repeat(128)));
    for (path, code) in [
        (format!("/v2/app/blobs/{unknown}"), "BLOB_UNKNOWN"),
        (format!("/v2/app/blobs/{sha512}"), "BLOB_UNKNOWN"),
        (format!("/v2/app/manifests/{unknown}"), "MANIFEST_UNKNOWN"),
        (format!("/v2/app/manifests/{sha512}"), "MANIFEST_UNKNOWN"),
        ("/v2/app/manifests/v2".into(), "MANIFEST_UNKNOWN"),
        ("/v2/other/manifests/v1".into(), "NAME_UNKNOWN"),
        ("/v2/app/manifests/v1?ns=two.example".into(), "NAME_UNKNOWN"),
        ("/v2/App/manifests/v1".into(), "NAME_INVALID"),
        ("/v2/app/manifests/sha256:baddigeststring".into(), "DIGEST_INVALID"),
        ("/v2/app/blobs/sha256:baddigeststring".into(), "DIGEST_INVALID"),
        ("/v2/app/blobs/uploads/".into(), "UNSUPPORTED"),
        ("/v2/_catalog".into(), "UNSUPPORTED"),
    ] {
        let reply = mirror.get(&path);
        assert_eq!((reply.status, reply.code()), (404, code.to_string()), "{path}");
    }
    let refused = mirror.ask("DELETE", "/v2/app/manifests/v1", "");
    assert_eq!((refused.status, refused.code()), (405, "UNSUPPORTED".to_string()));
}

#[test]
fn referrers_are_listed_if_the_list_is_whole() {
    let image = Image::new("one.example/app:v1", noise(100, 70));
    let signature = || Image::artifact("one.example/app:sig", &image, "", "signature");
    let sbom = || Image::artifact("one.example/app:sbom", &image, "a/sbom+json", "parts");
    let path = format!("/v2/app/referrers/{}", image.root());
    let both = [&signature(), &sbom()].map(|artifact| artifact.root().to_string());

    // What comes from files has no note. The one who pushed it knows what there is.
    let files = Running::with(&[&image, &signature()]);
    let reply = files.get(&path);
    let row = json!({
        "mediaType": OCI_MANIFEST, "digest": both[0], "size": signature().manifest.len(),
        "artifactType": "a/config", "annotations": { "text": "signature" },
    });
    assert_eq!((reply.status, reply.header("oci-filters-applied")), (200, ""));
    assert_eq!(reply.json()["manifests"], json!([row]));

    // The registry listed two, and the host has one.
    let (first, second) = (signature(), sbom());
    let noted = signature().noted(&image, Some(&[&first, &second]));
    let part = Running::with(&[&image, &noted]);
    assert_eq!(part.get(&path).status, 404, "an incomplete list would hide a signature");
    sbom().put(&part.store);
    let listed = |query: &str| {
        let reply = part.get(&format!("{path}{query}"));
        let rows = reply.json()["manifests"].as_array().unwrap().len();
        (reply.status, rows, reply.header("oci-filters-applied").to_string())
    };
    assert_eq!(listed(""), (200, 2, String::new()));
    assert_eq!(listed("?artifactType=a/sbom%2Bjson"), (200, 1, "artifactType".to_string()));
    assert_eq!(listed("?artifactType=a/sbom+json&artifactType=a/config"), (200, 2, "artifactType".to_string()));
    assert_eq!(listed("?artifactType=a/none"), (200, 0, "artifactType".to_string()));

    // The registry gave no list.
    let unknown = Running::with(&[&Image::new("one.example/app:v1", noise(100, 70)).noted(&image, None), &signature()]);
    assert_eq!(unknown.get(&path).status, 404);
    let none = Running::with(&[&image]);
    assert_eq!(none.get(&path).status, 404, "the registry may have some");
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
