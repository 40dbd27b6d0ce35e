//! Versions of feeds: many, short-lived, each sharing most of its pieces with the one before.
//!
//! A feed's version costs the index nothing and waits for no flush: after a kill it is found by hashing, after a loss of
//! power it is fetched again.
//! Invariant: a version leaves nothing in the index.

use super::{BeginError, Begun, Content, FinishError, Store, lock};
use crate::cdc::Cutter;
use crate::erasure::ReedSolomonCode;
use crate::ingest::{Cut, IngestError, IngestOptions, Ingested, code_stripe};
use crate::layout::stream_path;
use bytes::Bytes;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::Document;
use shoal_proto::ids::{ContentId, Hash};
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;

/// Average piece of a feed's version, bytes: a small change moves little, and the manifest stays below a hundredth.
pub const VERSION_PIECE_BYTES_AVG: u32 = 8 * 1024;

impl Store {
    /// Begins a feed's version, taking over what the former one has. Blocks while it copies.
    pub fn begin_version(&self, manifest: &[u8], former: Option<ContentId>) -> Result<Begun, BeginError> {
        self.begin_as(manifest, Some(former))
    }

    /// Returns once every piece of a version is written; its stream can be read then. Blocks.
    pub fn finish_version(&self, id: &ContentId) -> Result<(), FinishError> {
        let content = self.inner.content(id).ok_or(FinishError::Unknown)?;
        self.flush_queue();
        let missing = content.geometry.piece_count() - lock(&content.have).count();
        if missing > 0 { Err(FinishError::Incomplete(missing)) } else { Ok(()) }
    }

    /// Whether every piece of a content is here.
    pub fn is_whole(&self, id: &ContentId) -> bool {
        let whole = |content: &Content| lock(&content.have).count() == content.geometry.piece_count();
        self.inner.content(id).is_some_and(|content| whole(&content))
    }

    /// Waits until the store's threads have done all they were given so far.
    pub(super) fn flush_queue(&self) {
        let (done, wait) = sync_channel(0);
        let _ = self.queue.send(crate::verifier::Work::Barrier(done));
        // Nothing is ever sent: its end is dropped once all work before is done.
        let _ = wait.recv();
    }

    /// Takes a feed's version in from memory, sharing pieces with the former one. Blocks.
    pub fn ingest_version(
        &self,
        data: &Bytes,
        options: &IngestOptions,
        former: Option<&ContentId>,
    ) -> Result<Ingested, IngestError> {
        let average = options.average.unwrap_or(VERSION_PIECE_BYTES_AVG);
        let need = 2 * data.len() as u64;
        let (_promise, _evicted) = self.make_space(need).map_err(|error| match error {
            BeginError::WouldNotFit { need, room } => IngestError::NoSpace { need, room },
            other => IngestError::Store(io::Error::other(other.to_string())),
        })?;
        let former = former.and_then(|former| self.manifest(former));
        let cut = cut_version(data, average, options, former.as_deref())?;
        let manifest = Arc::new(version_manifest(data.len() as u64, average, options, cut));
        manifest.validate().map_err(|error| IngestError::Limit(error.to_string()))?;
        let bytes = manifest.to_bytes();
        let content = Manifest::id(&bytes);
        let ingested = Ingested { content, manifest: manifest.clone(), manifest_bytes: bytes.len() as u64 };
        let _alone = lock(&self.inner.adopting);
        if self.is_whole(&content) {
            return Ok(ingested);
        }
        let folder = self.ingest_folder()?;
        File::create(stream_path(&folder.path, 0))?.write_all(data)?;
        fs::write(folder.path.join("manifest"), &bytes)?;
        let into = self.inner.folder(&content);
        if into.exists() {
            self.remove(&content).map_err(FinishError::Index)?;
        }
        fs::rename(&folder.path, &into)?;
        let taken = Content::new(&into, content, manifest, &self.inner.opened)
            .map_err(|error| IngestError::Store(io::Error::other(error.to_string())))?;
        taken.unindexed.store(true, Ordering::Relaxed);
        *lock(&taken.have) = Bitmap::full(taken.geometry.piece_count());
        lock(&self.inner.contents).insert(content, Arc::new(taken));
        Ok(ingested)
    }
}

/// Cuts a version so that it shares as much with the former one as can be: where the former was cut if that is as long
/// (a table whose rows changed in their places), else by content.
fn cut_version(
    data: &Bytes,
    average: u32,
    options: &IngestOptions,
    former: Option<&Manifest>,
) -> Result<Cut, IngestError> {
    let (k, m) = (usize::from(options.data), usize::from(options.parity));
    let code = ReedSolomonCode::new(k, m).map_err(|error| IngestError::Limit(error.to_string()))?;
    let mut pieces = cut_by_content(data, average)?;
    if let Some(former) = former {
        let known: HashSet<&[u8]> = former.piece_hashes.chunks_exact(32).collect();
        let fresh = |pieces: &[(Bytes, Hash)]| -> usize {
            pieces.iter().filter(|(_, hash)| !known.contains(&hash.0[..])).map(|(bytes, _)| bytes.len()).sum()
        };
        if former.size() == data.len() as u64 {
            let same = cut_like(data, former);
            if fresh(&same) < fresh(&pieces) {
                pieces = same;
            }
        }
    }
    let mut cut = Cut::default();
    let mut stripe = Vec::with_capacity(k);
    for (piece, hash) in pieces {
        cut.lens.extend_from_slice(&(piece.len() as u32).to_le_bytes());
        cut.hashes.extend_from_slice(hash.as_bytes());
        stripe.push(piece);
        if stripe.len() == k {
            code_stripe(&code, &mut stripe, options.parity, &mut cut);
        }
    }
    if !stripe.is_empty() {
        code_stripe(&code, &mut stripe, options.parity, &mut cut);
    }
    Ok(cut)
}

fn cut_by_content(data: &Bytes, average: u32) -> io::Result<Vec<(Bytes, Hash)>> {
    let mut cutter = Cutter::new(&data[..], average);
    let mut pieces = Vec::new();
    while let Some(piece) = cutter.next_piece()? {
        let hash = Hash::of(&piece);
        pieces.push((piece, hash));
    }
    Ok(pieces)
}

fn cut_like(data: &Bytes, former: &Manifest) -> Vec<(Bytes, Hash)> {
    let mut at = 0;
    let piece = |len: u32| {
        let piece = data.slice(at..at + len as usize);
        at += len as usize;
        let hash = Hash::of(&piece);
        (piece, hash)
    };
    former.lens().map(piece).collect()
}

fn version_manifest(size: u64, average: u32, options: &IngestOptions, cut: Cut) -> Manifest {
    Manifest {
        root: Root::File,
        entries: vec![Entry { path: b"current".to_vec(), mode: 0o644, kind: EntryKind::File { size } }],
        streams: if size > 0 { vec![size] } else { Vec::new() },
        piece_bytes_avg: average,
        data: options.data,
        parity: options.parity,
        lanes: options.lanes,
        piece_lens: cut.lens,
        piece_hashes: cut.hashes,
        parity_hashes: cut.parity_hashes,
        image: None,
    }
}

/// The manifest of a version so small that it travels in its announcement: one piece, no parity.
pub fn inline_manifest(data: &[u8]) -> Manifest {
    let options = IngestOptions { average: None, data: 1, parity: 0, lanes: 1 };
    let mut cut = Cut::default();
    if !data.is_empty() {
        cut.lens.extend_from_slice(&(data.len() as u32).to_le_bytes());
        cut.hashes.extend_from_slice(Hash::of(data).as_bytes());
    }
    version_manifest(data.len() as u64, VERSION_PIECE_BYTES_AVG, &options, cut)
}
