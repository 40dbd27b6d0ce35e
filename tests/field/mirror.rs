//! The read half of the distribution specification, point by point, against the mirror of a host.
//!
//! The images are those that the specification's own conformance program pushes: nested and empty indexes, artifacts,
//! layers that a registry need not have, unknown fields and large manifests.

use crate::shelf::{LAYER, OCI_CONFIG, OCI_INDEX, Shelf, digest, on};
use crate::{done, mirror, region};
use serde_json::{Value, json};
use shoal_testkit::Region;
use shoal_testkit::oci::sha256;
use std::io::{Read, Write};
use std::net::TcpStream;

const NAME: &str = "r.example";

/// A request and what the specification asks of its answer.
struct Point {
    what: &'static str,
    method: &'static str,
    path: String,
    headers: String,
    status: u16,
    /// Headers by lower-case name. An empty value means that the header is missing.
    expected: Vec<(&'static str, String)>,
    body: Body,
}

/// What the body of an answer must be.
enum Body {
    Empty,
    Bytes(Vec<u8>),
    /// An error with this code.
    Error(&'static str),
    Json(Value),
    Any,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

fn ask(addr: &str, method: &str, path: &str, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let pair = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string()));
    Answer { status, headers: lines.filter_map(pair).collect(), body: bytes[end + 4..].to_vec() }
}

impl Point {
    fn get(what: &'static str, path: String, status: u16, body: Body) -> Self {
        Self { what, method: "GET", path, headers: String::new(), status, expected: Vec::new(), body }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.expected.push((name, value.to_string()));
        self
    }

    fn sending(mut self, header: &str) -> Self {
        self.headers.push_str(&format!("{header}\r\n"));
        self
    }

    fn by(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    fn check(&self, addr: &str) {
        let Self { what, method, path, .. } = self;
        let answer = ask(addr, method, path, &self.headers);
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, self.status, "{what}: {method} {path}: {text}");
        for (name, value) in &self.expected {
            let found = answer.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value);
            assert_eq!(found, value, "{what}: {name}: {method} {path}");
        }
        match &self.body {
            Body::Any => {}
            Body::Empty => assert!(answer.body.is_empty(), "{what}: {text}"),
            Body::Bytes(bytes) => assert!(answer.body == *bytes, "{what}: {method} {path}"),
            Body::Json(expected) => {
                assert_eq!(serde_json::from_slice::<Value>(&answer.body).unwrap(), *expected, "{what}")
            }
            Body::Error(code) => {
                let found: Value = serde_json::from_slice(&answer.body).unwrap();
                assert_eq!(found["errors"][0]["code"], *code, "{what}: {path}");
            }
        }
    }
}

/// The images, each under a tag of one repository.
struct Images {
    shelf: Shelf,
    tags: Vec<(&'static str, Value)>,
    /// Manifests below others, which have no tags.
    below: Vec<Value>,
    subject: Value,
    missing_layer: Value,
    layer: Value,
}

fn images() -> Images {
    let mut shelf = Shelf::with_referrers_api();
    let (amd, arm) = (shelf.image("amd", "amd64"), shelf.image("arm", "arm64"));
    let one = shelf.index(&[on(&amd, "amd64", ""), on(&arm, "arm64", "")]);
    let second = shelf.image("second", "amd64");
    let two = shelf.index(&[on(&second, "amd64", "")]);
    let nested = shelf.index(&[one.clone(), two.clone()]);
    let empty = shelf.document(OCI_INDEX, &json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": null }));
    let subject = shelf.image("subject", "amd64");
    let artifact = shelf.artifact(&subject, "application/vnd.example.oci.conformance.v1", "artifact");
    let layer = shelf.put(LAYER, &[7; 98]);
    let missing = shelf.put("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", b"missing");
    let config = shelf.document(OCI_CONFIG, &json!({ "os": "linux", "architecture": "amd64", "new": { "a": [null] } }));
    let lacking =
        shelf.manifest(json!({ "config": config, "layers": [missing, layer], "org.example.new": { "x": 1 } }));
    let annotations: serde_json::Map<String, Value> =
        (0..300).map(|at| (format!("large-{at}"), "A".repeat(10_000).into())).collect();
    let large = shelf.manifest(json!({ "config": config, "layers": null, "annotations": annotations }));
    shelf.remove(&missing);
    let tags = vec![
        ("index", one.clone()),
        ("index-of-index", nested),
        ("empty-index", empty),
        ("subject", subject.clone()),
        ("artifact", artifact),
        ("nondistributable", lacking),
        ("large", large),
    ];
    tags.iter().for_each(|(tag, row)| shelf.tag(tag, row));
    Images { shelf, tags, below: vec![amd, one, second, two], subject, missing_layer: missing, layer }
}

fn prewarmed(images: &Images) -> Region {
    let mut region = region(1, &[]);
    let registry = images.shelf.serve();
    region.seeder.configure(&format!("registries.'{NAME}'={{plain_http=true,url='http://{}'}}", registry.addr));
    region.seeder.restart();
    region.wait_up(1);
    for (tag, _) in &images.tags {
        let image = format!("{NAME}/lab/app:{tag}");
        let status = done(&region, &["prewarm", &image, "--platform", "linux/amd64"]);
        assert_eq!(status["phase"], "done", "{tag}: {status:#}");
    }
    region
}

#[test]
fn the_mirror_has_the_read_half_of_the_specification() {
    let images = images();
    let region = prewarmed(&images);
    let addr = mirror(&region, 0);
    let at = |rest: &str| format!("/v2/lab/app/{rest}");
    let mut points = vec![
        Point::get("end-1", "/v2/".into(), 200, Body::Any).with("docker-distribution-api-version", "registry/2.0"),
        Point::get("end-1 HEAD", "/v2/".into(), 200, Body::Empty).by("HEAD"),
    ];
    for (tag, row) in &images.tags {
        let (bytes, digest) = (images.shelf.bytes(row).to_vec(), digest(row));
        let kind = row["mediaType"].as_str().unwrap();
        for path in [at(&format!("manifests/{tag}")), at(&format!("manifests/{digest}"))] {
            let full = |point: Point| {
                let len = bytes.len().to_string();
                point.with("docker-content-digest", digest).with("content-type", kind).with("content-length", &len)
            };
            points.push(full(Point::get("end-3", path.clone(), 200, Body::Bytes(bytes.clone()))));
            points.push(full(Point::get("end-3 HEAD", path.clone(), 200, Body::Empty).by("HEAD")));
            let known = Point::get("not modified", path, 304, Body::Empty);
            points.push(known.sending(&format!("if-none-match: \"{digest}\"")).with("docker-content-digest", digest));
        }
    }
    for row in &images.below {
        let bytes = images.shelf.bytes(row).to_vec();
        points.push(Point::get("nested", at(&format!("manifests/{}", digest(row))), 200, Body::Bytes(bytes)));
    }
    let blob = at(&format!("blobs/{}", digest(&images.layer)));
    let bytes = |from: usize, to: usize| Body::Bytes(vec![7; to - from]);
    for (range, status, content_range, body) in [
        ("", 200, "", bytes(0, 98)),
        ("bytes=0-9", 206, "bytes 0-9/98", bytes(0, 10)),
        ("bytes=5-", 206, "bytes 5-97/98", bytes(5, 98)),
        ("bytes=-7", 206, "bytes 91-97/98", bytes(91, 98)),
        ("bytes=90-500", 206, "bytes 90-97/98", bytes(90, 98)),
        ("bytes=500-", 416, "bytes */98", Body::Error("RANGE_INVALID")),
        ("bytes=9-3", 200, "", bytes(0, 98)),
    ] {
        let point = Point::get("end-2", blob.clone(), status, body).with("content-range", content_range);
        points.push(if range.is_empty() { point } else { point.sending(&format!("range: {range}")) });
    }
    points.push(Point::get("end-2 HEAD", blob, 200, Body::Empty).by("HEAD").with("content-length", "98"));
    let mut names: Vec<&str> = images.tags.iter().map(|(tag, _)| *tag).collect();
    names.sort_unstable();
    let list = |tags: &[&str]| Body::Json(json!({ "name": "lab/app", "tags": tags }));
    points.push(Point::get("end-8a", at("tags/list"), 200, list(&names)).with("link", ""));
    let next = format!("</v2/lab/app/tags/list?n=3&last={}>; rel=\"next\"", names[2]);
    points.push(Point::get("end-8b", at("tags/list?n=3"), 200, list(&names[..3])).with("link", &next));
    let after = at(&format!("tags/list?last={}", names[2]));
    points.push(Point::get("end-8b last", after, 200, list(&names[3..])).with("link", ""));
    let referrers = at(&format!("referrers/{}", digest(&images.subject)));
    let listed = Point::get("end-12a", referrers.clone(), 200, Body::Any).with("content-type", OCI_INDEX);
    points.push(listed.with("oci-filters-applied", ""));
    let none = Body::Json(json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }));
    let filtered = Point::get("end-12b", format!("{referrers}?artifactType=a%2Fb"), 200, none);
    points.push(filtered.with("oci-filters-applied", "artifactType"));
    points.extend(errors(&images));
    points.iter().for_each(|point| point.check(addr));
}

/// What the mirror lacks, and what it does not do.
fn errors(images: &Images) -> Vec<Point> {
    let at = |rest: &str| format!("/v2/lab/app/{rest}");
    let unknown = sha256(b"unknown");
    let miss = |path: String, code: &'static str| Point::get("error", path, 404, Body::Error(code));
    let mut points = vec![
        miss(at("manifests/none"), "MANIFEST_UNKNOWN"),
        miss(at(&format!("manifests/{unknown}")), "MANIFEST_UNKNOWN"),
        miss(at("manifests/sha256:baddigeststring"), "DIGEST_INVALID"),
        miss(at(&format!("blobs/{unknown}")), "BLOB_UNKNOWN"),
        miss(at(&format!("blobs/sha512:{}", "0".repeat(128))), "BLOB_UNKNOWN"),
        miss(at(&format!("blobs/{}", digest(&images.missing_layer))), "BLOB_UNKNOWN"),
        miss("/v2/lab/none/manifests/v1".into(), "NAME_UNKNOWN"),
        miss("/v2/lab/none/tags/list".into(), "NAME_UNKNOWN"),
        miss("/v2/Lab/app/manifests/v1".into(), "NAME_INVALID"),
        // The registry may have referrers that the host lacks, so an unknown subject is no empty list.
        miss(at(&format!("referrers/{unknown}")), "MANIFEST_UNKNOWN"),
        Point::get("pages", at("tags/list?n=x"), 400, Body::Error("PAGINATION_NUMBER_INVALID")),
    ];
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let refused = Point::get("read-only", at("manifests/index"), 405, Body::Error("UNSUPPORTED"));
        points.push(refused.by(method).sending("content-length: 0").with("allow", "GET, HEAD"));
    }
    points
}
