//! Images with unusual layers: tar headers, a configuration and a manifest by hand, as an OCI layout on disk.

use serde_json::{Value, json};
use shoal_testkit::program::filter;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An entry of a layer. The names may be invalid on purpose.
pub(crate) enum Item<'a> {
    Folder(&'a str),
    File(&'a str, u32, &'a [u8]),
    Link(&'a str, &'a str),
}

/// Appends a ustar header and the bytes of a file. The `tar` crate refuses the names that some tests need.
fn entry(tar: &mut Vec<u8>, name: &str, kind: u8, mode: u32, target: &str, bytes: &[u8]) {
    let mut head = [0u8; 512];
    let mut put = |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", bytes.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(157, target);
    put(257, "ustar");
    put(263, "00");
    head[156] = kind;
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&head);
    tar.extend_from_slice(bytes);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// A layer.
pub(crate) fn layer(items: &[Item<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for item in items {
        match item {
            Item::Folder(name) => entry(&mut tar, &format!("{name}/"), b'5', 0o755, "", b""),
            Item::File(name, mode, bytes) => entry(&mut tar, name, b'0', *mode, "", bytes),
            Item::Link(name, target) => entry(&mut tar, name, b'2', 0o777, target, b""),
        }
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// A layer with a shell.
pub(crate) fn shell() -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").unwrap();
    let mut items = vec![Item::Folder("bin"), Item::File("bin/busybox", 0o755, &busybox)];
    let links = ["sh", "sha256sum", "cat", "sleep"].map(|name| format!("bin/{name}"));
    items.extend(links.iter().map(|name| Item::Link(name, "busybox")));
    layer(&items)
}

fn blob(layout: &Path, kind: &str, bytes: &[u8]) -> Value {
    let digest = shoal_containerd::sha256(bytes);
    fs::write(layout.join("blobs/sha256").join(&digest["sha256:".len()..]), bytes).unwrap();
    json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
}

/// Writes an image of these layers as an OCI layout; returns the folder. The first layer is compressed.
pub(crate) fn layout(at: &Path, reference: &str, layers: &[Vec<u8>]) -> PathBuf {
    let ids: Vec<String> = layers.iter().map(|tar| shoal_containerd::sha256(tar)).collect();
    layout_with_ids(at, reference, layers, &ids)
}

/// The same with these digests of the unpacked layers in the configuration.
pub(crate) fn layout_with_ids(at: &Path, reference: &str, layers: &[Vec<u8>], ids: &[String]) -> PathBuf {
    fs::create_dir_all(at.join("blobs/sha256")).unwrap();
    let mut described = Vec::new();
    for (place, tar) in layers.iter().enumerate() {
        described.push(if place == 0 {
            blob(
                at,
                "application/vnd.oci.image.layer.v1.tar+gzip",
                &filter(Command::new("gzip").args(["-1", "-n"]), tar),
            )
        } else {
            blob(at, "application/vnd.oci.image.layer.v1.tar", tar)
        });
    }
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    let config = blob(at, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": described });
    let mut root = blob(at, kind, manifest.to_string().as_bytes());
    root["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
    fs::write(at.join("index.json"), json!({ "schemaVersion": 2, "manifests": [root] }).to_string()).unwrap();
    fs::write(at.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string()).unwrap();
    at.to_path_buf()
}
