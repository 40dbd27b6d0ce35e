//! Images in files: which are found and which are refused.

use super::error::io_error;
use super::*;
use shoal_proto::image::{DOCKER_MANIFEST, OCI_MANIFEST};
use std::fs::{self, File};
use std::io::Read;
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

/// Writes files as a folder and as an archive, and opens both.
fn open_both(files: &[(&str, &[u8])], wanted: &str) -> [Result<LocalImage, ArchiveError>; 2] {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let archive = dir.path().join("archive.tar");
    tar(&archive, files, &[]);
    [folder, archive].map(|path| open(&path, Some(wanted)))
}

/// A blob's file in a layout, and its descriptor.
struct Blob {
    name: String,
    bytes: Vec<u8>,
    row: String,
}

fn blob(media_type: &str, bytes: &[u8], more: &str) -> Blob {
    let digest = digest_of(bytes);
    let row = format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}{more}}}"#, bytes.len());
    Blob { name: blob_name(&digest), bytes: bytes.to_vec(), row }
}

const LAYOUT: (&str, &[u8]) = ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
const NAME_V1: &str = r#","annotations":{"org.opencontainers.image.ref.name":"r.example/app:v1"}"#;

/// The files of a layout with one image, whose manifest has these fields beside its configuration.
fn layout_of(config: &Blob, blobs: &[&Blob], more: &str) -> (Vec<(String, Vec<u8>)>, Digest) {
    let manifest = blob(OCI_MANIFEST, format!(r#"{{"config":{}{more}}}"#, config.row).as_bytes(), NAME_V1);
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifest.row);
    let mut files = vec![(LAYOUT.0.to_string(), LAYOUT.1.to_vec()), ("index.json".to_string(), index.into_bytes())];
    for blob in [config, &manifest].into_iter().chain(blobs.iter().copied()) {
        files.push((blob.name.clone(), blob.bytes.clone()));
    }
    (files, digest_of(&manifest.bytes))
}

fn borrowed(files: &[(String, Vec<u8>)]) -> Vec<(&str, &[u8])> {
    files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect()
}

#[test]
fn lists_that_go_writes_as_null_are_empty() {
    let config = blob("application/vnd.oci.image.config.v1+json", br#"{"rootfs":{"diff_ids":null}}"#, "");
    for layers in ["", r#","layers":null"#, r#","layers":[],"annotations":null"#] {
        let (files, root) = layout_of(&config, &[], layers);
        for image in open_both(&borrowed(&files), "r.example/app:v1") {
            let image = image.unwrap();
            assert_eq!((image.index.root, image.index.blobs.len()), (root, 2), "{layers}");
        }
    }
    let rows = br#"[{"Config":"c.json","RepoTags":null,"Layers":null}]"#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.tar");
    tar(&path, &[("manifest.json", rows), ("c.json", &config.bytes)], &[]);
    assert_eq!(open(&path, Some("r.example/app:v1")).unwrap().index.blobs.len(), 2);
}

#[test]
fn a_saved_image_without_digests_of_its_layers_is_hashed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.tar");
    let rows = br#"[{"Config":"c.json","RepoTags":["r.example/app:v1"],"Layers":["a","b","c"]}]"#;
    let layers: [&[u8]; 3] = [b"plain", b"\x1f\x8b gzip", b"\x28\xb5\x2f\xfd zstd"];
    let files = [("manifest.json", &rows[..]), ("c.json", b"{}"), ("a", layers[0]), ("b", layers[1]), ("c", layers[2])];
    tar(&path, &files, &[]);
    let image = open(&path, None).unwrap();
    for (bytes, packing) in layers.into_iter().zip([".tar", ".tar.gzip", ".tar.zstd"]) {
        let (_, blob) = image.index.find(&digest_of(bytes)).unwrap();
        assert!(blob.media_type.ends_with(packing), "{}", blob.media_type);
        assert_eq!(read(&image, &digest_of(bytes)).unwrap(), bytes);
    }
}

#[test]
fn a_pinned_name_is_checked_against_the_bytes() {
    let config = blob("application/vnd.oci.image.config.v1+json", b"{}", "");
    let (files, root) = layout_of(&config, &[], "");
    for image in open_both(&borrowed(&files), &format!("r.example/app:v1@{root}")) {
        assert_eq!(image.unwrap().index.reference, format!("r.example/app:v1@{root}"));
    }
    let wrong = format!("r.example/app:v1@{}", digest_of(b"other"));
    for image in open_both(&borrowed(&files), &wrong) {
        let error = image.err().expect("other bytes than the name says").to_string();
        assert!(error.contains(&root.to_string()) && error.contains(&wrong), "{error}");
    }
}

#[test]
fn the_form_that_is_whole_is_taken() {
    let layer = blob("application/vnd.oci.image.layer.v1.tar", b"layer", "");
    let ids = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, digest_of(b"layer"));
    let config = blob("application/vnd.oci.image.config.v1+json", ids.as_bytes(), "");
    let (mut files, root) = layout_of(&config, &[&layer], &format!(r#","layers":[{}]"#, layer.row));
    let rows =
        format!(r#"[{{"Config":"{}","RepoTags":["r.example/app:v1"],"Layers":["{}"]}}]"#, config.name, layer.name);
    files.push(("manifest.json".into(), rows.into_bytes()));
    let [folder, archive] = open_both(&borrowed(&files), "r.example/app:v1");
    assert_eq!((folder.unwrap().index.root, archive.unwrap().index.root), (root, root), "a layout comes first");
    // Without its manifest the layout is not whole.
    let without: Vec<_> = files.iter().filter(|(name, _)| *name != blob_name(&root)).cloned().collect();
    let [folder, archive] = open_both(&borrowed(&without), "r.example/app:v1");
    assert!(folder.is_err(), "a folder has one form only");
    let archive = archive.unwrap();
    let manifest = String::from_utf8(read(&archive, &archive.index.root).unwrap()).unwrap();
    assert!(manifest.contains(DOCKER_MANIFEST), "{manifest}");
    // Neither form has the layer.
    let without: Vec<_> = files.iter().filter(|(name, _)| *name != layer.name).cloned().collect();
    for image in open_both(&borrowed(&without), "r.example/app:v1") {
        let error = image.err().expect("a layer is missing").to_string();
        assert!(error.contains("lack blob") && error.contains(&digest_of(b"layer").to_string()), "{error}");
    }
}

#[test]
fn a_layer_of_another_length_is_refused() {
    let mut layer = blob("application/vnd.oci.image.layer.v1.tar", b"layer", "");
    let config = blob("application/vnd.oci.image.config.v1+json", b"{}", "");
    layer.bytes.push(0);
    let (files, _) = layout_of(&config, &[&layer], &format!(r#","layers":[{}]"#, layer.row));
    for image in open_both(&borrowed(&files), "r.example/app:v1") {
        let error = image.err().expect("a layer is too long").to_string();
        assert!(error.contains("has 6 bytes, and its manifest says 5"), "{error}");
    }
}

#[test]
fn a_layer_that_may_be_missing_is_taken_in_if_it_is_here() {
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let layer = blob(kind, b"foreign", r#","urls":["https://x.example/l"]"#);
    let config = blob("application/vnd.oci.image.config.v1+json", b"{}", "");
    let more = format!(r#","layers":[{}]"#, layer.row);
    for (here, count) in [(&[&layer][..], 3), (&[], 2)] {
        let (files, _) = layout_of(&config, here, &more);
        for image in open_both(&borrowed(&files), "r.example/app:v1") {
            assert_eq!(image.unwrap().index.blobs.len(), count);
        }
    }
}

#[test]
fn an_artifact_notes_to_which_manifest_it_refers() {
    let config = blob("application/vnd.oci.empty.v1+json", b"{}", "");
    let subject = digest_of(b"signed");
    let more = format!(r#","subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{subject}","size":6}}"#);
    let (files, root) = layout_of(&config, &[], &more);
    for image in open_both(&borrowed(&files), "r.example/app:v1") {
        let image = image.unwrap();
        let note = image.index.blobs.iter().find(|blob| blob.media_type == REFERRER_LISTS).unwrap();
        let lists: ReferrerLists = serde_json::from_slice(&read(&image, &note.digest).unwrap()).unwrap();
        assert_eq!(lists.lists, [ReferrerList { subject, manifests: Some(vec![root]) }]);
        assert_eq!(image.index.blobs[0].digest, root);
    }
}
