//! Backups: what was written is read, what was changed is refused, and no file leaves the folder.

#![no_main]

use arbitrary::Arbitrary;
use shoal_fuzz::heap;
use shoal_service::backup::{Head, Record, Writer, read};
use std::path::Component;

#[derive(Arbitrary, Debug)]
enum Part<'a> {
    Row(&'a str, &'a [u8], &'a [u8]),
    Secret(&'a str, &'a [u8]),
}

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// Bytes as they are.
    Raw(&'a [u8]),
    /// Bytes behind a proper head, with a proper end.
    Sealed(&'a [u8]),
    /// A proper archive of which one byte may be changed, or whose end may be missing.
    Written { role: &'a str, parts: Vec<Part<'a>>, change: Option<(u16, u8)>, cut: u8 },
}

/// Reads an archive and returns its records as text.
fn records(bytes: &[u8]) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let head = read(bytes, |_, record| {
        found.push(match record {
            Record::Row { table, key, value } => format!("row {table} {key:?} {value:?}"),
            Record::Secret { name, body } => format!("secret {name} {body:?}"),
            Record::File { path, len, body } => {
                let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
                assert!(inside && !path.as_os_str().is_empty(), "{} leads out of the folder", path.display());
                assert!(std::io::copy(body, &mut std::io::sink())? <= len, "a file is longer than it says");
                format!("file {}", path.display())
            }
        });
        Ok(())
    });
    head.ok().map(|_| found)
}

fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = b"shoal backup 1\n{\"role\":\"hub\",\"created_at\":1,\"contents\":false}\n".to_vec();
    bytes.extend_from_slice(body);
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(&[0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(hash.as_bytes());
    bytes
}

fn written(role: &str, parts: &[Part<'_>]) -> Option<(Vec<u8>, Vec<String>)> {
    let head = Head { role: role.into(), created_at: 1, contents: false };
    let mut writer = Writer::new(Vec::new(), &head).expect("a head can be written");
    let mut expected = Vec::new();
    for part in parts {
        match part {
            Part::Row(table, key, value) => {
                writer.row(table, key, value).ok()?;
                expected.push(format!("row {table} {key:?} {value:?}"));
            }
            Part::Secret(name, body) => {
                writer.secret(name, body).ok()?;
                expected.push(format!("secret {name} {body:?}"));
            }
        }
    }
    Some((writer.finish().expect("an archive ends"), expected))
}

libfuzzer_sys::fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Raw(bytes) => {
            heap::bounded((1 << 20) + 64 * bytes.len(), || records(bytes));
        }
        Input::Sealed(body) => {
            let bytes = sealed(body);
            heap::bounded((1 << 20) + 64 * bytes.len(), || records(&bytes));
        }
        Input::Written { role, parts, change, cut } => {
            // A longer head is refused by the reader.
            let Some((mut bytes, expected)) = written(role, &parts).filter(|_| role.len() < 500) else { return };
            if let Some((at, mask)) = change.filter(|(_, mask)| *mask != 0) {
                let at = usize::from(at) % bytes.len();
                bytes[at] ^= mask;
                assert!(records(&bytes).is_none(), "a changed archive was accepted");
            } else if cut > 0 {
                bytes.truncate(bytes.len().saturating_sub(usize::from(cut)));
                assert!(records(&bytes).is_none(), "a cut archive was accepted");
            } else {
                assert_eq!(records(&bytes), Some(expected));
            }
        }
    }
});
