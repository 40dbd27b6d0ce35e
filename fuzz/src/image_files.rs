//! Documents of images with right digests, which no fuzzer finds by chance.
//!
//! Invariant: a place holder is replaced by the digest and the size of the document behind it, so that documents can
//! refer to one another.

use shoal_containerd::sha256;

/// Splits an input into documents. A `~` ends one. `body` returns the part of a document that others refer to.
pub fn documents(data: &[u8], body: fn(&[u8]) -> &[u8]) -> Vec<Vec<u8>> {
    let mut documents: Vec<Vec<u8>> = data.split(|byte| *byte == b'~').take(8).map(<[u8]>::to_vec).collect();
    for at in (0..documents.len()).rev() {
        let filled = fill(&documents[at], &documents[at + 1..], body);
        documents[at] = filled;
    }
    documents
}

/// Replaces `@1` by the reference to the next document, `@2` by that to the one after it, and so on.
fn fill(document: &[u8], later: &[Vec<u8>], body: fn(&[u8]) -> &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(document.len());
    let mut rest = document;
    while let [first, tail @ ..] = rest {
        let target = match (first, tail.first()) {
            (b'@', Some(digit @ b'1'..=b'7')) => later.get(usize::from(digit - b'1')),
            _ => None,
        };
        match target {
            Some(target) => {
                out.extend_from_slice(reference(body(target)).as_bytes());
                rest = &tail[1..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn reference(target: &[u8]) -> String {
    format!(r#""digest":"{}","size":{}"#, sha256(target), target.len())
}

/// Returns a tar archive with these files, as the names and the kinds say. The kind is the type flag of the header.
pub fn tar(files: &[(&[u8], u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, body) in files {
        let mut header = [0u8; 512];
        let put = |header: &mut [u8; 512], at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(&mut header, 0, &name[..name.len().min(100)]);
        put(&mut header, 100, b"0000644\0");
        let is_link = matches!(kind, b'1' | b'2');
        let len = if is_link { 0 } else { body.len() };
        put(&mut header, 124, format!("{len:011o}\0").as_bytes());
        put(&mut header, 136, b"00000000000\0");
        header[156] = *kind;
        if is_link {
            put(&mut header, 157, &body[..body.len().min(100)]);
        }
        put(&mut header, 257, b"ustar\x0000");
        put(&mut header, 148, b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        if !is_link {
            out.extend_from_slice(body);
            out.resize(out.len().next_multiple_of(512), 0);
        }
    }
    out.resize(out.len() + 1024, 0);
    out
}
