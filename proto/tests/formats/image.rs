//! Images: names as people write them, digests, and what an image's index may not say.

use crate::samples;
use shoal_proto::codec::Document;
use shoal_proto::image::{
    Digest, ImageBlob, ImageIndex, OCI_INDEX, Reference, is_index, is_layer, is_manifest, is_media_type,
    is_nondistributable, is_other_digest,
};
use shoal_proto::limits;
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root};

fn image(manifest: &mut Manifest) -> &mut ImageIndex {
    manifest.image.as_mut().unwrap()
}

#[test]
fn names_are_written_out_in_full() {
    let digest = format!("sha256:{}", "0f".repeat(32));
    let table = [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest"),
        ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/nginx:1", "docker.io/library/nginx:1"),
        ("docker.io/bitnami/redis", "docker.io/bitnami/redis:latest"),
        // containerd reads this as a registry of its own.
        ("registry-1.docker.io/nginx", "registry-1.docker.io/nginx:latest"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        (&format!("nginx@{digest}"), &format!("docker.io/library/nginx@{digest}")),
        ("localhost/a", "localhost/a:latest"),
        ("registry.example:5000/lab/app:v1", "registry.example:5000/lab/app:v1"),
        ("10.0.0.1:5000/a__b/c-d.e", "10.0.0.1:5000/a__b/c-d.e:latest"),
        (&format!("r.example/a@{digest}"), &format!("r.example/a@{digest}")),
        (&format!("r.example/a:_T@{digest}"), &format!("r.example/a:_T@{digest}")),
    ];
    for (written, full) in table {
        let reference: Reference = written.parse().unwrap();
        assert_eq!(reference.to_string(), *full, "{written}");
        assert_eq!(full.parse(), Ok(reference), "{written}");
    }
    let parsed: Reference = "registry.example:5000/lab/app:v1".parse().unwrap();
    assert_eq!((&*parsed.host, &*parsed.path, parsed.tag.as_deref()), ("registry.example:5000", "lab/app", Some("v1")));
}

#[test]
fn a_digest_pins_a_name_and_is_no_part_of_it() {
    let digest = format!("sha256:{}", "0f".repeat(32));
    let read = |text: &str| text.parse::<Reference>().unwrap();
    let tagged = read("r.example/a:v1");
    assert!(read(&format!("r.example/a:v1@{digest}")).has_name_of(&tagged));
    assert!(read(&format!("r.example/a@{digest}")).has_name_of(&tagged), "a digest alone fits any tag");
    assert!(tagged.has_name_of(&read("r.example/a:v1")));
    for other in ["r.example/a:v2", "r.example/b:v1", "q.example/a:v1"] {
        assert!(!tagged.has_name_of(&read(other)), "{other}");
    }
}

#[test]
fn names_that_are_none() {
    let long = format!("r.example/{}", "a".repeat(256));
    let bad = [
        "",
        "/",
        "a/",
        "/a",
        "A",
        "r.example/A",
        "a:",
        "a:.x",
        "a b",
        "a//b",
        "../a",
        "r.example/../a",
        "r.example/a/..",
        "r.example/.a",
        "r.example/a.",
        "r.example/a..b",
        "r.example:/a",
        "r.example:0/a",
        "r.example:70000/a",
        "r.example:+5/a",
        "-r.example/a",
        "r..example/a",
        "user@r.example/a",
        "a@sha256:00",
        "a@sha512:00",
        "http://r.example/a",
        "r.example/a\0",
        "r.example/a%2f",
        "r.example/a?x",
        "r.example/é",
        &long,
    ];
    for text in bad {
        assert!(text.parse::<Reference>().is_err(), "{text:?}");
    }
    assert!(format!("a:{}", "t".repeat(128)).parse::<Reference>().is_ok());
    assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
}

#[test]
fn digests_are_exact() {
    let text = format!("sha256:{}", "ab".repeat(32));
    let digest: Digest = text.parse().unwrap();
    assert_eq!(digest, Digest([0xab; 32]));
    assert_eq!(digest.to_string(), text);
    for bad in
        [&text[7..], &text[..70], &format!("{text}0"), &text.to_uppercase(), &text.replace("sha256", "sha512"), ""]
    {
        assert!(bad.parse::<Digest>().is_err(), "{bad}");
    }
    assert!(text.replace('a', "A").parse::<Digest>().is_err());
    let other = format!("sha512:{}", "ab".repeat(64));
    let error = other.parse::<Digest>().unwrap_err().to_string();
    assert!(is_other_digest(&other) && error.contains("only SHA-256 is supported"), "{error}");
    for none in [text.as_str(), "sha512:00", "../x", "", "SHA512:00", &other.replace("ab", "/.")] {
        assert!(!is_other_digest(none), "{none}");
    }
    assert!(format!("sha256:../../{}", "a".repeat(58)).parse::<Digest>().is_err());
}

#[test]
fn media_types_fit_in_a_header() {
    for good in ["a/b", "application/vnd.oci.image.layer.v1.tar+gzip", "text/plain;charset=utf-8"] {
        assert!(is_media_type(good), "{good}");
    }
    for bad in ["", "a", "/b", "a/", "a /b", "a/b\r\nX: y", "a/b\0", "a/é", "a/\"b", &format!("a/{}", "b".repeat(255))]
    {
        assert!(!is_media_type(bad), "{bad:?}");
    }
    for layer in [
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        let is_free = !layer.contains("nondistributable") && !layer.contains("foreign");
        assert_eq!((is_layer(layer), is_nondistributable(layer)), (true, !is_free), "{layer}");
    }
    assert!(!is_layer("application/vnd.dev.cosign.simplesigning.v1+json"));
    assert!(is_index(OCI_INDEX) && is_manifest(OCI_INDEX) && !is_manifest("application/octet-stream"));
}

#[test]
fn images_that_are_none() {
    type Spoil = fn(&mut Manifest);
    let entry = Entry { path: b"a".to_vec(), mode: 0o644, kind: EntryKind::File { size: 0 } };
    let table: [(&str, Spoil); 17] = [
        ("no image", |m| m.image = None),
        ("an image that is a directory", |m| m.root = Root::Directory { mode: 0o755 }),
        ("a name in short", |m| image(m).reference = "nginx".into()),
        ("no name", |m| image(m).reference = "../x".into()),
        ("a pinned name of other bytes", |m| {
            image(m).reference = format!("r.example/a:v1@{}", Digest([9; 32]));
        }),
        ("a root that is not here", |m| image(m).root = Digest([9; 32])),
        ("a root that is a layer", |m| image(m).root = Digest([0x53; 32])),
        ("a digest twice", |m| image(m).blobs[2].digest = Digest([0x52; 32])),
        ("a header in a media type", |m| image(m).blobs[2].media_type = "a/b\r\nx: y".into()),
        ("no media type", |m| image(m).blobs[2].media_type = String::new()),
        ("a wrong size", |m| image(m).blobs[2].size = 701),
        ("sizes exchanged", |m| image(m).blobs.swap(1, 2)),
        ("a blob too few", |m| image(m).blobs.truncate(2)),
        ("a blob too many", |m| {
            image(m).blobs.push(ImageBlob { digest: Digest([9; 32]), media_type: "a/b".into(), size: 1 });
        }),
        ("an empty blob with another's digest", |m| {
            image(m).blobs.push(ImageBlob { digest: Digest([9; 32]), media_type: "a/b".into(), size: 0 });
        }),
        ("no blobs", |m| image(m).blobs.clear()),
        ("too many blobs", |m| {
            let blob = image(m).blobs[1].clone();
            image(m).blobs = vec![blob; limits::BLOBS_MAX + 1];
        }),
    ];
    for (what, spoil) in table {
        let mut manifest = samples::image_manifest();
        spoil(&mut manifest);
        assert!(Manifest::from_bytes(&manifest.to_bytes()).is_err(), "{what}");
    }
    let mut pinned = samples::image_manifest();
    image(&mut pinned).reference = format!("r.example/a:v1@{}", Digest([0x51; 32]));
    assert_eq!(Manifest::from_bytes(&pinned.to_bytes()).unwrap(), pinned);
    let with_entry = Manifest { entries: vec![entry], ..samples::image_manifest() };
    assert!(Manifest::from_bytes(&with_entry.to_bytes()).is_err());
    let stray = Manifest { image: samples::image_manifest().image, ..samples::manifest() };
    assert!(Manifest::from_bytes(&stray.to_bytes()).is_err());
}

#[test]
fn an_empty_blob_has_no_stream() {
    let nothing = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let mut manifest = samples::image_manifest();
    let empty = ImageBlob { digest: nothing.parse().unwrap(), media_type: "a/b".into(), size: 0 };
    image(&mut manifest).blobs.push(empty);
    assert_eq!(Manifest::from_bytes(&manifest.to_bytes()).unwrap(), manifest);
    image(&mut manifest).blobs.swap(2, 3);
    assert!(Manifest::from_bytes(&manifest.to_bytes()).is_err(), "only the last can be without");
}
