//! Our client with a real containerd and without our daemons: load, unpack, pin.

use crate::image::{Item, layer, layout, shell};
use crate::runtime::{Release, Runtime, on_each_release, require_packages};
use bytes::Bytes;
use serde_json::Value;
use shoal_containerd::{BlobReader, Containerd, Descriptor, RuntimeError, Unpacked};
use shoal_testkit::{noise, until};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

on_each_release!(
    an_image_is_loaded_unpacked_pinned_and_unpinned,
    a_wrong_byte_is_found_and_a_killed_containerd_is_reconnected
);

const NAME: &str = "registry.example:5000/lab/direct:v1";

/// Blobs of an OCI layout. One byte of the blob `wrong` is changed.
struct Layout {
    dir: PathBuf,
    wrong: Option<String>,
}

impl BlobReader for Layout {
    fn read(&self, digest: &str, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let file = File::open(self.dir.join("blobs/sha256").join(&digest["sha256:".len()..]))?;
        let mut bytes = vec![0; len];
        let read = file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        if offset == 0 && self.wrong.as_deref() == Some(digest) {
            bytes[0] ^= 1;
        }
        Ok(bytes.into())
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn root(layout: &Path) -> Descriptor {
    let root = &json(&layout.join("index.json"))["manifests"][0];
    let text = |key: &str| root[key].as_str().unwrap();
    Descriptor::new(text("mediaType"), text("digest"), root["size"].as_u64().unwrap())
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

fn an_image_is_loaded_unpacked_pinned_and_unpinned(release: Release) {
    require_packages();
    let dir = tempfile::tempdir().unwrap();
    let data = noise(6_000_000, 1);
    let layers = [shell(), layer(&[Item::Folder("data"), Item::File("data/noise", 0o644, &data)])];
    let at = layout(&dir.path().join("image"), "v1", &layers);
    let mut runtime = Runtime::new(release, &dir.path().join("host"), false);
    runtime.start();
    let socket = runtime.socket();
    let blobs = || Arc::new(Layout { dir: at.clone(), wrong: None });
    block_on(async {
        let client = Containerd::new(&socket, "k8s.io", "overlayfs");
        let inspected = client.inspect().await.unwrap();
        assert!(!inspected.has_cri, "CRI is switched off in this containerd");
        assert!(inspected.snapshot_dir.unwrap().starts_with(&runtime.dir) && inspected.content_dir.is_some());
        let none = Containerd::new(&socket, "k8s.io", "none-such").inspect().await.unwrap_err();
        assert!(none.to_string().contains("none-such"), "{none}");
        assert_eq!(client.unpacked(NAME).await.unwrap(), Unpacked::No);
        let loaded = client.load(NAME, &root(&at), blobs()).await.unwrap();
        assert_eq!(client.unpacked(NAME).await.unwrap(), loaded);
        client.load(NAME, &root(&at), blobs()).await.expect("the second call changes nothing");
        client.pin("0011", NAME, &loaded).await.unwrap();
        client.pin("0022", NAME, &loaded).await.unwrap();
        assert_eq!(client.pins().await.unwrap().len(), 2);
    });
    let output = runtime.run(NAME, "sha256sum < /data/noise");
    assert!(output.contains(&shoal_containerd::sha256(&data)["sha256:".len()..]), "{output}");
    assert!(runtime.ok(&["images", "ls"]).contains("io.cri-containerd.pinned=pinned"));
    assert!(!runtime.ok(&["leases", "ls"]).contains("shoal.load"), "the lease of the load is still there");

    // The pin keeps the data when the image records are removed.
    let names = runtime.ok(&["images", "ls", "-q"]);
    let names: Vec<&str> = names.lines().collect();
    assert_eq!(names.len(), 2, "one record by tag and one by digest: {names:?}");
    for name in names {
        runtime.ok(&["images", "rm", "--sync", name]);
    }
    let blobs = |runtime: &Runtime| runtime.ok(&["content", "ls", "-q"]).lines().count();
    assert_eq!(blobs(&runtime), 4);
    let pins = |client: Containerd| async move {
        client.unpin("0011", NAME).await.unwrap();
        client.unpin("0022", NAME).await.unwrap();
        client.unpin("0022", NAME).await.expect("the second call changes nothing");
        client.pins().await.unwrap().len()
    };
    assert_eq!(block_on(async { pins(Containerd::new(&socket, "k8s.io", "overlayfs")).await }), 0);
    until("containerd collects unpinned data", || (blobs(&runtime) == 0).then_some(()));
}

fn a_wrong_byte_is_found_and_a_killed_containerd_is_reconnected(release: Release) {
    require_packages();
    let dir = tempfile::tempdir().unwrap();
    let data = noise(3_000_000, 2);
    let at = layout(&dir.path().join("image"), "v1", &[shell(), layer(&[Item::File("noise", 0o644, &data)])]);
    let manifest = json(&at.join("blobs/sha256").join(&root(&at).digest["sha256:".len()..]));
    let second = manifest["layers"][1]["digest"].as_str().unwrap().to_string();
    let mut runtime = Runtime::new(release, &dir.path().join("host"), true);
    runtime.start();
    block_on(async {
        let client = Containerd::new(&runtime.socket(), "k8s.io", "overlayfs");
        assert!(client.inspect().await.unwrap().has_cri);
        let wrong = Arc::new(Layout { dir: at.clone(), wrong: Some(second) });
        let error = client.load(NAME, &root(&at), wrong).await.unwrap_err();
        assert!(matches!(error, RuntimeError::DigestMismatch { .. }), "{error}");
        assert_eq!(client.unpacked(NAME).await.unwrap(), Unpacked::No);
        let error = client.cri_pull(NAME, Duration::from_secs(60)).await.unwrap_err();
        assert!(
            matches!(error, RuntimeError::Failed { .. } | RuntimeError::NotFound { .. }),
            "without a registry: {error}"
        );
        runtime.kill();
        let error = client.inspect().await.unwrap_err();
        assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error}");
        runtime.start();
        // The same client connects again.
        let right = Arc::new(Layout { dir: at.clone(), wrong: None });
        client.load(NAME, &root(&at), right).await.unwrap();
        assert!(matches!(client.unpacked(NAME).await.unwrap(), Unpacked::Yes { .. }));
    });
}
