//! Images in files: which are found and which are refused.

use super::*;
use shoal_proto::image::OCI_MANIFEST;
use std::fs::{self, File};
use std::path::Path;

/// Writes a layout folder of one image with these annotations, and returns the root.
fn layout(dir: &Path, annotations: &str) -> Digest {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = digest_of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}"#, bytes.len()), digest)
    };
    let (config, _) = put("application/vnd.oci.image.config.v1+json", b"{}");
    let (layer, _) = put("application/vnd.oci.image.layer.v1.tar", b"layer");
    let manifest = format!(r#"{{"schemaVersion":2,"config":{config}}},"layers":[{layer}}}]}}"#);
    let (row, root) = put(OCI_MANIFEST, manifest.as_bytes());
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{row},"annotations":{{{annotations}}}}}]}}"#);
    fs::write(dir.join("index.json"), index).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    root
}

fn open(path: &Path, wanted: Option<&str>) -> Result<LocalImage, ArchiveError> {
    let source = OpenSource::open(path).map_err(io_error(&path.display().to_string()))?;
    LocalImage::open(source, wanted.map(|text| text.parse().unwrap()).as_ref(), &Platforms::default())
}

fn error(path: &Path, wanted: Option<&str>) -> String {
    match open(path, wanted) {
        Ok(image) => panic!("{:?}", image.index),
        Err(error) => crate::errors::with_sources(&error),
    }
}

fn tar(path: &Path, files: &[(&str, &[u8])], links: &[(&str, &str)]) {
    let mut archive = tar::Builder::new(File::create(path).unwrap());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    for (name, target) in links {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        // Written by hand, because the writer refuses names that a hostile archive can contain.
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_ustar_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        archive.append(&header, io::empty()).unwrap();
        header = tar::Header::new_ustar();
        header.set_mode(0o644);
    }
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, *bytes).unwrap();
    }
    archive.finish().unwrap();
}

fn read(image: &LocalImage, digest: &Digest) -> io::Result<Vec<u8>> {
    let (_, blob) = image.index.find(digest).unwrap();
    let BlobSource::Reader(mut reader) = image.source(blob)? else { panic!() };
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    Ok(bytes)
}

const V1: &str = r#""org.opencontainers.image.ref.name":"v1""#;

#[test]
fn a_layout_is_found_by_name_or_tag() {
    let dir = tempfile::tempdir().unwrap();
    let root = layout(dir.path(), V1);
    assert!(error(dir.path(), None).contains("--ref"), "a tag alone is not a full name");
    for wanted in ["r.example/app:v1", "r.example/app:other"] {
        let image = open(dir.path(), Some(wanted)).unwrap();
        assert_eq!((image.index.root, &*image.index.reference), (root, wanted), "the only image takes any name");
        assert_eq!(read(&image, &digest_of(b"layer")).unwrap(), b"layer");
        assert_eq!(image.index.blobs.len(), 3);
    }
    layout(dir.path(), r#""io.containerd.image.name":"r.example/app:v1","org.opencontainers.image.ref.name":"v1""#);
    assert_eq!(open(dir.path(), None).unwrap().index.reference, "r.example/app:v1");
    let none = error(dir.path(), Some("r.example/app:v2"));
    assert!(none.contains("no image r.example/app:v2") && none.contains("r.example/app:v1"), "{none}");
}

#[test]
fn a_layout_in_an_archive_is_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("layout");
    let root = layout(&folder, V1);
    let path = dir.path().join("layout.tar");
    let mut archive = tar::Builder::new(File::create(&path).unwrap());
    archive.append_dir_all(".", &folder).unwrap();
    archive.finish().unwrap();
    let image = open(&path, Some("r.example/app:v1")).unwrap();
    assert_eq!(image.index, open(&folder, Some("r.example/app:v1")).unwrap().index);
    assert_eq!(image.index.root, root);
    assert_eq!(read(&image, &digest_of(b"layer")).unwrap(), b"layer");
}

/// Returns the documents of a saved image.
fn saved(layers: &str, diff_ids: &str) -> (String, String) {
    let config = format!(r#"{{"os":"linux","rootfs":{{"type":"layers","diff_ids":[{diff_ids}]}}}}"#);
    let rows = format!(r#"[{{"Config":"c.json","RepoTags":["r.example/app:v1"],"Layers":[{layers}]}}]"#);
    (rows, config)
}

#[test]
fn a_saved_image_always_gets_the_same_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    let digest = digest_of(b"layer");
    let (rows, config) = saved(r#""a/layer.tar""#, &format!("\"{digest}\""));
    // Older versions of Docker save a layer that another image has too as a link.
    let files = [("manifest.json", rows.as_bytes()), ("c.json", config.as_bytes()), ("b/layer.tar", b"layer")];
    tar(&path, &files, &[("a/layer.tar", "../b/layer.tar")]);
    let image = open(&path, None).unwrap();
    assert_eq!(image.index.reference, "r.example/app:v1");
    assert_eq!(read(&image, &digest).unwrap(), b"layer");
    let manifest = String::from_utf8(read(&image, &image.index.root).unwrap()).unwrap();
    assert!(manifest.contains(DOCKER_MANIFEST) && manifest.contains(&digest.to_string()), "{manifest}");
    assert_eq!(image.index, open(&path, Some("r.example/app:v1")).unwrap().index);
    assert_eq!(read(&image, &digest_of(config.as_bytes())).unwrap(), config.as_bytes());
}

#[test]
fn tricks_in_names_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("secret"), b"secret").unwrap();
    let path = dir.path().join("sub/image.tar");
    fs::create_dir(dir.path().join("sub")).unwrap();
    let diff_id = format!("\"{}\"", digest_of(b"secret"));
    let absolute = dir.path().join("secret").display().to_string();
    let attempt = |layer: &str, links: &[(&str, &str)]| {
        let (rows, config) = saved(&format!("\"{layer}\""), &diff_id);
        tar(&path, &[("manifest.json", rows.as_bytes()), ("c.json", config.as_bytes())], links);
        error(&path, None)
    };
    assert!(attempt("../secret", &[]).contains("leads out"));
    assert!(attempt("a/../../secret", &[]).contains("leads out"));
    assert!(attempt(&absolute, &[]).contains("leads out"));
    assert!(attempt("a", &[("a", "../secret")]).contains("not in the archive"));
    assert!(attempt("a", &[("a", &absolute[..absolute.len().min(99)])]).contains("not in the archive"));
    assert!(attempt("a", &[("a", "b"), ("b", "a")]).contains("not in the archive"), "links in a circle");
    // A layout names its blobs by digest only.
    let folder = dir.path().join("layout");
    layout(&folder, V1);
    let index = fs::read_to_string(folder.join("index.json")).unwrap();
    let root = index.find("sha256:").unwrap();
    let tricky = format!("{}sha256:../../../secret{}", &index[..root], &index[root + 71..]);
    fs::write(folder.join("index.json"), tricky).unwrap();
    assert!(error(&folder, Some("r.example/app:v1")).contains("sha256"));
}

#[test]
fn files_without_an_image_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(dir.path(), None).contains("neither an OCI layout nor"));
    let file = dir.path().join("file");
    for bytes in [&b""[..], b"\x1f\x8b\x08 compressed", &[7; 2000]] {
        fs::write(&file, bytes).unwrap();
        assert!(error(&file, None).contains("neither an OCI layout nor"));
    }
    assert!(error(&dir.path().join("none"), None).contains("No such file"));
    let (rows, config) = saved(r#""a""#, "");
    tar(&file, &[("manifest.json", rows.as_bytes()), ("c.json", config.as_bytes()), ("a", b"x")], &[]);
    assert!(error(&file, None).contains("as many layers"));
}
