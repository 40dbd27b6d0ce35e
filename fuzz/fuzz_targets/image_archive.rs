//! Archives of images, as they are and with proper headers and digests.

#![no_main]

use shoal_fuzz::{heap, image_files};
use std::path::PathBuf;
use std::sync::LazyLock;

/// A file in memory that every run writes anew.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = ["/dev/shm", "/tmp"].into_iter().find(|folder| PathBuf::from(folder).is_dir()).unwrap_or(".");
    PathBuf::from(folder).join(format!("shoal-fuzz-image-{}.tar", std::process::id()))
});

/// Splits a document into the line with its name and its body.
fn split(document: &[u8]) -> (&[u8], &[u8]) {
    match document.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&document[..at], &document[at + 1..]),
        None => (b"#", document),
    }
}

/// Splits the input into documents, and puts each into a file. A line before a document is the name of its file. `#`
/// stands for the name of a blob with the document's digest.
fn archive(data: &[u8]) -> Vec<u8> {
    let documents = image_files::documents(data, |document| split(document).1);
    let mut names = Vec::new();
    let mut bodies = Vec::new();
    for document in &documents {
        let (head, body) = split(document);
        let (kind, name) = match head {
            [b'!', kind, name @ ..] => (*kind, name),
            name => (b'0', name),
        };
        let name = match name {
            b"#" => format!("blobs/sha256/{}", &shoal_containerd::sha256(body)[7..]).into_bytes(),
            name => name.to_vec(),
        };
        names.push((name, kind));
        bodies.push(body);
    }
    let files: Vec<(&[u8], u8, &[u8])> =
        names.iter().zip(&bodies).map(|((name, kind), body)| (&name[..], *kind, *body)).collect();
    image_files::tar(&files)
}

fn check(data: &[u8]) {
    let [form, data @ ..] = data else { return };
    let bytes = if form & 1 == 0 { archive(data) } else { data.to_vec() };
    std::fs::write(&*FILE, &bytes).expect("a file in memory can be written");
    heap::bounded((4 << 20) + 100 * bytes.len(), || {
        for blob in shoal_seeder::fuzzing::read_archive(&FILE, form & 2 != 0) {
            // Every byte of a blob comes from the archive, or from the manifest that is made for it.
            assert!(blob.read <= bytes.len() as u64 + (64 << 10), "{blob:?} of an archive of {} bytes", bytes.len());
        }
    });
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));
