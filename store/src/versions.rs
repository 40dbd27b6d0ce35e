//! Versions of feeds: many, short-lived, each with most of the pieces of the version before.
//!
//! A feed's version needs no row in the database and no flush. After a kill, the store finds it by hashing. After a
//! loss of power, the host fetches it again.
//! Invariant: a version leaves nothing in the database.

use crate::cdc::Cutter;
use crate::content::Content;
use crate::errors::FinishError;
use crate::ingest::{IngestError, IngestOptions, Ingested};
use crate::inner::Inner;
use crate::layout::stream_path;
use crate::lock::lock;
use crate::piece_table::{ManifestParts, PieceTable};
use bytes::Bytes;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::Document;
use shoal_proto::ids::{ContentId, Hash};
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::Arc;

/// Average piece of a feed's version, bytes. A small change moves little, and the manifest stays below a hundredth.
pub const VERSION_PIECE_BYTES_AVG: u32 = 8 * 1024;

impl Inner {
    /// Checks that a version has all its pieces on the disk. The caller has emptied the queues before.
    pub(crate) fn finish_version(&self, id: &ContentId) -> Result<(), FinishError> {
        let content = self.content(id).ok_or(FinishError::UnknownContent)?;
        let missing = content.pieces_missing();
        if missing > 0 { Err(FinishError::Incomplete(missing)) } else { Ok(()) }
    }

    pub(crate) fn has_every_piece(&self, id: &ContentId) -> bool {
        self.content(id).is_some_and(|content| content.pieces_missing() == 0)
    }

    /// Ingests a version from memory, cut so that it shares pieces with the former one.
    pub(crate) fn ingest_version(
        self: &Arc<Self>,
        data: &Bytes,
        options: &IngestOptions,
        former: Option<&ContentId>,
    ) -> Result<Ingested, IngestError> {
        let average = options.average.unwrap_or(VERSION_PIECE_BYTES_AVG);
        // Twice the data, because the former version stays until readers have this one.
        let _space = self.make_space(2 * data.len() as u64, None)?;
        let former = former.and_then(|former| Some(self.content(former)?.manifest.clone()));
        let pieces = cut_version(data, average, options, former.as_deref())?;
        let manifest = Arc::new(version_manifest(data.len() as u64, average, pieces));
        manifest.validate()?;
        let bytes = manifest.to_bytes();
        let id = Manifest::id(&bytes);
        let ingested = Ingested { content: id, manifest: manifest.clone(), manifest_bytes: bytes.len() as u64 };
        let _alone = lock(&self.adopting);
        if self.has_every_piece(&id) {
            return Ok(ingested);
        }
        let folder = self.ingest_folder()?;
        File::create(stream_path(&folder.path, 0))?.write_all(data)?;
        fs::write(folder.path.join("manifest"), &bytes)?;
        let into = self.folder(&id);
        if into.exists() {
            self.remove(&id)?;
        }
        fs::rename(&folder.path, &into)?;
        let content = Content::new(&into, id, manifest, &self.opened)?;
        content.set_unindexed();
        content.set_have(Bitmap::full(content.geometry.piece_count()));
        self.insert_content(Arc::new(content));
        Ok(ingested)
    }
}

/// A piece with its hash.
struct HashedPiece {
    bytes: Bytes,
    hash: Hash,
}

impl HashedPiece {
    fn new(bytes: Bytes) -> Self {
        Self { hash: Hash::of(&bytes), bytes }
    }
}

/// Cuts a version so that it shares many pieces with the former one. A version of the same length may have changed in
/// place, as a table does. For such a version the former cuts are better if they leave fewer new bytes.
fn cut_version(
    data: &Bytes,
    average: u32,
    options: &IngestOptions,
    former: Option<&Manifest>,
) -> Result<PieceTable, IngestError> {
    let mut pieces = cut_by_content(data, average)?;
    if let Some(former) = former.filter(|former| former.size() == data.len() as u64) {
        let known: HashSet<&[u8]> = former.piece_hashes.chunks_exact(32).collect();
        let new_bytes = |pieces: &[HashedPiece]| -> usize {
            pieces.iter().filter(|piece| !known.contains(&piece.hash.0[..])).map(|piece| piece.bytes.len()).sum()
        };
        let same_cuts = cut_like(data, former);
        if new_bytes(&same_cuts) < new_bytes(&pieces) {
            pieces = same_cuts;
        }
    }
    let mut table = PieceTable::new(options.shape())?;
    pieces.into_iter().for_each(|piece| table.push(piece.bytes, piece.hash));
    Ok(table)
}

fn cut_by_content(data: &Bytes, average: u32) -> io::Result<Vec<HashedPiece>> {
    let mut cutter = Cutter::new(&data[..], average);
    let mut pieces = Vec::new();
    while let Some(piece) = cutter.next_piece()? {
        pieces.push(HashedPiece::new(piece));
    }
    Ok(pieces)
}

fn cut_like(data: &Bytes, former: &Manifest) -> Vec<HashedPiece> {
    let mut at = 0;
    let piece = |len: u32| {
        let bytes = data.slice(at..at + len as usize);
        at += len as usize;
        HashedPiece::new(bytes)
    };
    former.lens().map(piece).collect()
}

fn version_manifest(size: u64, average: u32, pieces: PieceTable) -> Manifest {
    pieces.into_manifest(ManifestParts {
        root: Root::File,
        entries: vec![Entry { path: b"current".to_vec(), mode: 0o644, kind: EntryKind::File { size } }],
        streams: if size > 0 { vec![size] } else { Vec::new() },
        piece_bytes_avg: average,
        image: None,
    })
}

/// Returns the manifest of a version that travels inside its announcement: one piece without parity.
pub fn inline_manifest(data: &[u8]) -> Manifest {
    let (mut piece_lens, mut piece_hashes) = (Vec::new(), Vec::new());
    if !data.is_empty() {
        piece_lens.extend_from_slice(&(data.len() as u32).to_le_bytes());
        piece_hashes.extend_from_slice(Hash::of(data).as_bytes());
    }
    let size = data.len() as u64;
    Manifest {
        root: Root::File,
        entries: vec![Entry { path: b"current".to_vec(), mode: 0o644, kind: EntryKind::File { size } }],
        streams: if size > 0 { vec![size] } else { Vec::new() },
        piece_bytes_avg: VERSION_PIECE_BYTES_AVG,
        data: 1,
        parity: 0,
        lanes: 1,
        piece_lens,
        piece_hashes,
        parity_hashes: Vec::new(),
        image: None,
    }
}
