//! Images and registries for tests: a small builder of OCI layouts, a real registry, and one that misbehaves.

#![allow(dead_code, reason = "each test file uses its own part")]

use crate::common::{filter, own_loopback, until};
use aws_lc_rs::digest::{SHA256, digest};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

/// The Debian packages these tests need.
const PACKAGES: &str = "docker-registry skopeo zstd";

/// A program that must be there.
fn program(name: &str) -> Command {
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|p| p.join(name).exists()));
    assert!(found, "`{name}` is needed: apt-get install -y --no-install-recommends {PACKAGES}");
    Command::new(name)
}

/// `sha256:` and the digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hex: String = digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A tar archive of these files, the same bytes for the same files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(0);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

/// How a layer goes into its image.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Packing {
    /// As it is.
    Plain,
    /// Without a time in it.
    Gzip,
    /// Begun anew at places the content says, for tools that send only what changed.
    GzipRsyncable,
    Zstd,
}

impl Packing {
    /// The packed bytes, and what is said after `tar` in a media type.
    fn pack(self, bytes: &[u8]) -> (Vec<u8>, &'static str) {
        match self {
            Self::Plain => (bytes.to_vec(), ""),
            Self::Gzip => (filter(program("gzip").arg("-n1"), bytes), "+gzip"),
            Self::GzipRsyncable => (filter(program("gzip").args(["-n1", "--rsyncable"]), bytes), "+gzip"),
            Self::Zstd => (filter(program("zstd").arg("-q3"), bytes), "+zstd"),
        }
    }
}

/// A layer: a plain archive, and how it goes into the image.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) tar: Vec<u8>,
    pub(crate) packing: Packing,
}

/// An image: its blobs by digest, and the manifest's.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// Digests of the layers, in order.
    pub(crate) layers: Vec<String>,
}

/// The media type of our manifests.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Image {
    pub(crate) fn new(layers: &[Layer]) -> Self {
        let mut blobs = BTreeMap::new();
        let mut rows = Vec::new();
        let mut digests = Vec::new();
        let diff_ids: Vec<String> = layers.iter().map(|layer| format!("\"{}\"", sha256(&layer.tar))).collect();
        for layer in layers {
            let (bytes, kind) = layer.packing.pack(&layer.tar);
            let digest = sha256(&bytes);
            rows.push(format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar{kind}","digest":"{digest}","size":{}}}"#,
                bytes.len()
            ));
            digests.push(digest.clone());
            blobs.insert(digest, bytes);
        }
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/bin/sh"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{}]}}"#,
            sha256(config.as_bytes()),
            config.len(),
            rows.join(",")
        );
        blobs.insert(sha256(config.as_bytes()), config.into_bytes());
        Self { manifest: manifest.into_bytes(), blobs, layers: digests }
    }

    /// The same, said to be about another: as a signature is.
    pub(crate) fn about(mut self, subject: &Self) -> Self {
        let text = String::from_utf8(self.manifest).unwrap();
        let (digest, size) = (sha256(&subject.manifest), subject.manifest.len());
        let subject = format!(r#","subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{size}}}}}"#);
        self.manifest = format!("{}{subject}", text.strip_suffix('}').unwrap()).into_bytes();
        self
    }

    /// All digests, the manifest's too.
    pub(crate) fn digests(&self) -> BTreeSet<String> {
        self.blobs.keys().cloned().chain([sha256(&self.manifest)]).collect()
    }

    /// Bytes of what is here and not in the other.
    pub(crate) fn beyond(&self, other: &Self) -> u64 {
        let new = self.blobs.iter().filter(|(digest, _)| !other.blobs.contains_key(*digest));
        new.map(|(_, bytes)| bytes.len() as u64).sum::<u64>() + self.manifest.len() as u64
    }

    /// Bytes of all.
    pub(crate) fn size(&self) -> u64 {
        self.blobs.values().map(|bytes| bytes.len() as u64).sum::<u64>() + self.manifest.len() as u64
    }

    /// Writes it as an OCI layout with this tag.
    pub(crate) fn write(&self, dir: &Path, tag: &str) {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let own = [(sha256(&self.manifest), self.manifest.clone())];
        for (digest, bytes) in self.blobs.clone().into_iter().chain(own) {
            fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        }
        let (digest, size) = (sha256(&self.manifest), self.manifest.len());
        let platform = r#""platform":{"architecture":"amd64","os":"linux"}"#;
        let name = format!(r#""annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}"#);
        let row = format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{size},{platform},{name}}}"#);
        fs::write(dir.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{row}]}}"#)).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

/// An OCI layout of an index of two images, for these platforms, with the tag `it`; gives the index.
pub(crate) fn write_index(dir: &Path, images: &[(&Image, &str)]) -> Vec<u8> {
    let mut rows = Vec::new();
    for (image, architecture) in images {
        image.write(dir, "it");
        let (digest, size) = (sha256(&image.manifest), image.manifest.len());
        let platform = format!(r#""platform":{{"architecture":"{architecture}","os":"linux"}}"#);
        rows.push(format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{size},{platform}}}"#));
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[{}]}}"#, rows.join(","));
    fs::write(dir.join("blobs/sha256").join(&sha256(index.as_bytes())[7..]), &index).unwrap();
    let name = r#""annotations":{"org.opencontainers.image.ref.name":"it"}"#;
    let row =
        format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{},{name}}}"#, sha256(index.as_bytes()), index.len());
    fs::write(dir.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{row}]}}"#)).unwrap();
    index.into_bytes()
}

/// Runs skopeo; it must succeed.
pub(crate) fn skopeo(args: &[&str]) {
    let output = program("skopeo").args(args).output().unwrap();
    assert!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Debian's registry.
pub(crate) struct Registry {
    child: Child,
    pub(crate) addr: String,
    log: PathBuf,
}

impl Registry {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(own_loopback(), dir, "")
    }

    /// With more settings of its `http` section.
    pub(crate) fn start_with(addr: Ipv4Addr, dir: &Path, more: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        // The registry does not say which port it got. On an address of its own, a drawn port stays free.
        let addr = TcpListener::bind((addr, 0)).unwrap().local_addr().unwrap().to_string();
        let storage = dir.join("data").display().to_string();
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{storage}'}}}}\nhttp: {{addr: '{addr}', {more}}}\n"
        );
        fs::write(dir.join("config.yml"), text).unwrap();
        let log = dir.join("log");
        let file = File::create(&log).unwrap();
        let child = program("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let made = Self { child, addr, log };
        until("the registry is up", || TcpStream::connect(&made.addr).ok().map(drop));
        made
    }

    /// Uploads an image, its bytes as they are.
    pub(crate) fn put(&self, image: &Image, dir: &Path, name: &str) {
        image.write(dir, "it");
        let (from, to) = (format!("oci:{}:it", dir.display()), format!("docker://{}/{name}", self.addr));
        skopeo(&["copy", "-q", "--preserve-digests", "--dest-tls-verify=false", &from, &to]);
    }

    /// How often the seeder was given each blob, since the registry began.
    pub(crate) fn served(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for line in fs::read_to_string(&self.log).unwrap_or_default().lines() {
            let ours = line.contains("\"GET /v2/") && line.contains("/blobs/sha256:") && line.ends_with("\"shoal\"");
            let Some(from) = line.find("/blobs/").filter(|_| ours) else { continue };
            *counts.entry(line[from + 7..from + 7 + 71].to_string()).or_default() += 1;
        }
        counts
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request as a registry of our own sees it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// An answer of a registry of our own.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Sends this much of the body and then breaks off, or waits to be dropped.
    pub(crate) only: Option<(usize, Ending)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The connection is closed.
    Cut,
    /// Nothing more comes until the other side goes away.
    Silence,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), only: None }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Handler = Box<dyn Fn(&Seen, usize) -> Reply + Send + Sync>;

/// A registry of our own, which does as it is told. A request's number among those to its path comes with it.
pub(crate) struct Fake {
    pub(crate) addr: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    pub(crate) fn start(handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (handler, log): (Arc<Handler>, _) = (Arc::new(Box::new(handler)), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, log) = (handler.clone(), log.clone());
                std::thread::spawn(move || answer(stream, &handler, &log));
            }
        });
        Self { addr, seen }
    }

    /// What was asked so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn answer(stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Seen>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_string();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let seen = Seen { path, headers };
    let number = {
        let mut log = log.lock().unwrap();
        log.push(seen.clone());
        log.iter().filter(|other| other.path == seen.path).count()
    };
    let reply = handler(&seen, number);
    let mut stream = stream;
    let mut head =
        format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\nconnection: close\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    let upto = reply.only.map_or(reply.body.len(), |(upto, _)| upto.min(reply.body.len()));
    stream.write_all(&reply.body[..upto]).ok()?;
    if let Some((_, Ending::Silence)) = reply.only {
        let _ = reader.read(&mut [0]);
    }
    Some(())
}

/// Answers as a well-behaved registry would.
pub(crate) fn serve(image: &Image, seen: &Seen) -> Reply {
    if seen.path.contains("/manifests/") {
        return Reply::new(200, image.manifest.clone()).with("content-type", OCI_MANIFEST);
    }
    let digest = seen.path.rsplit('/').next().unwrap_or_default();
    let Some(bytes) = image.blobs.get(digest) else { return Reply::new(404, "") };
    let from =
        seen.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        None => Reply::new(200, bytes.clone()),
        Some(from) => {
            let from: usize = from;
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[from..]).with("content-range", &range)
        }
    }
}
