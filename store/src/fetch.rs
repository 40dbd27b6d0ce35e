//! A content from its manifest to its completion: begin, fill, finish, adopt.
//!
//! Invariant: a content that the database calls complete is whole and durable. A folder without a manifest is not a
//! content.

use crate::content::Content;
use crate::errors::{BeginError, FinishError, ReadError};
use crate::inner::Inner;
use crate::lock::lock;
use crate::space::FreedSpace;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::Document;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Hash, PieceIndex};
use shoal_proto::manifest::Manifest;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// A content that can be fetched into.
#[derive(Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub struct Begun {
    pub content: ContentId,
    pub manifest: Arc<Manifest>,
    pub geometry: Geometry,
    /// Pieces that the store has.
    pub have: Bitmap,
    /// Payload bytes copied or linked from other contents.
    pub reused: u64,
    /// Contents that were evicted.
    pub evicted: Vec<ContentId>,
}

impl Begun {
    fn new(content: &Content, reused: u64, evicted: Vec<ContentId>) -> Self {
        Self {
            content: content.id,
            manifest: content.manifest.clone(),
            geometry: content.geometry.clone(),
            have: content.have(),
            reused,
            evicted,
        }
    }
}

/// How a content is begun.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BeginAs {
    /// A content of its own: durable, in the database, with pieces of any other content.
    Content,
    /// A version of a feed: neither flushed nor in the database, with pieces of the former version only.
    FeedVersion { former: Option<ContentId> },
}

impl Inner {
    /// Begins a content: makes space, creates its files, copies known pieces. Returns a content that the store has as
    /// it is.
    pub(crate) fn begin(self: &Arc<Self>, manifest_bytes: &[u8], how: BeginAs) -> Result<Begun, BeginError> {
        let id = Manifest::id(manifest_bytes);
        if let Some(content) = self.content(&id) {
            return Ok(Begun::new(&content, 0, Vec::new()));
        }
        let manifest = Arc::new(Manifest::from_bytes(manifest_bytes)?);
        let begun = self.begin_new(id, manifest, manifest_bytes, how);
        begun.inspect_err(|_| {
            let _ = fs::remove_dir_all(self.folder(&id)); // the next start deletes what is left
        })
    }

    fn begin_new(
        self: &Arc<Self>,
        id: ContentId,
        manifest: Arc<Manifest>,
        manifest_bytes: &[u8],
        how: BeginAs,
    ) -> Result<Begun, BeginError> {
        let dir = self.folder(&id);
        fs::create_dir_all(&dir)?;
        let content = Content::new(&dir, id, manifest, &self.opened)?;
        let linked = self.link_blobs(&content);
        let need = content.geometry.bytes() - linked.bytes() + manifest_bytes.len() as u64;
        let FreedSpace { reservation: _reservation, evicted } = self.make_space(need, None)?;
        content.layout.create_files().map_err(|error| would_not_fit(error, need, self.usage().free))?;
        let is_durable = matches!(how, BeginAs::Content);
        if !is_durable {
            content.set_unindexed();
        }
        // The manifest comes last: a folder without one is an attempt that did not get this far.
        write_manifest(&dir, manifest_bytes, is_durable)?;
        let reused = match how {
            BeginAs::Content => {
                let reused = linked.bytes() + self.copy_known_pieces(&content)?;
                self.save_state(&content)?;
                reused
            }
            BeginAs::FeedVersion { former: Some(former) } => self.copy_pieces_from(&content, &former)?,
            BeginAs::FeedVersion { former: None } => 0,
        };
        let content = Arc::new(content);
        self.insert_content(content.clone());
        Ok(Begun::new(&content, reused, evicted))
    }

    /// Writes all pieces of a content from memory. Leaves out pieces with a wrong hash.
    pub(crate) fn write_all_pieces(&self, id: &ContentId, data: &[u8]) -> Result<(), ReadError> {
        let content = self.content(id).ok_or(ReadError::NotHere)?;
        let mut at = 0;
        for piece in (0..content.geometry.piece_count()).map(PieceIndex) {
            let len = content.geometry.piece_len(piece) as usize;
            let Some(bytes) = data.get(at..at + len) else { return Err(ReadError::NotHere) };
            at += len;
            if !content.has(piece) && Hash::of(bytes) == content.manifest.piece_hash(piece) {
                content.layout.write(piece, bytes)?;
                content.mark(piece);
            }
        }
        Ok(())
    }

    /// Makes a content durable and complete. The caller has emptied the queues before.
    pub(crate) fn finish(&self, id: &ContentId) -> Result<(), FinishError> {
        let content = self.content(id).ok_or(FinishError::UnknownContent)?;
        let missing = content.pieces_missing();
        if missing > 0 {
            return Err(FinishError::Incomplete(missing));
        }
        if content.has_write_failed() {
            return Err(FinishError::WriteFailed);
        }
        content.layout.sync()?;
        File::open(&content.dir)?.sync_all()?;
        self.complete(&content)
    }

    /// Marks a durable content as complete, in memory and in the database.
    fn complete(&self, content: &Content) -> Result<(), FinishError> {
        content.set_complete(true);
        content.layout.seal();
        content.discard_share();
        content.stamp_completed();
        self.save_state(content)?;
        lock(&self.blobs).add(content);
        self.index_pieces(content)?;
        self.tables.sync()?;
        Ok(())
    }

    /// Makes a finished ingest a content. Drops the new copy if the content is complete already.
    pub(crate) fn adopt(&self, id: ContentId, folder: &Path, manifest: Arc<Manifest>) -> Result<(), FinishError> {
        let _alone = lock(&self.adopting);
        if self.content(&id).is_some_and(|content| content.is_complete()) {
            return Ok(());
        }
        let into = self.folder(&id);
        if into.exists() {
            self.remove(&id)?;
        }
        fs::rename(folder, &into)?;
        let content = Content::new(&into, id, manifest, &self.opened)?;
        content.set_have(Bitmap::full(content.geometry.piece_count()));
        content.layout.sync()?;
        File::open(&into)?.sync_all()?;
        // The rename itself is durable only after a sync of the parent folder.
        if let Some(parent) = into.parent() {
            File::open(parent)?.sync_all()?;
        }
        self.complete(&content)?;
        self.insert_content(Arc::new(content));
        Ok(())
    }

    /// Hashes a content again. Returns the damaged pieces, which count as missing from now on.
    pub(crate) fn scrub(&self, id: &ContentId) -> Vec<PieceIndex> {
        let Some(content) = self.content(id) else { return Vec::new() };
        let stored: Vec<PieceIndex> = content.have().iter().map(PieceIndex).collect();
        let damaged: Vec<PieceIndex> = stored.into_iter().filter(|piece| !content.is_intact(*piece)).collect();
        damaged.iter().for_each(|piece| content.unmark(*piece));
        damaged
    }
}

/// Tells a full disk from a broken one.
fn would_not_fit(error: io::Error, need: u64, available: u64) -> BeginError {
    match error.kind() {
        io::ErrorKind::StorageFull => BeginError::WouldNotFit { need, available },
        _ => error.into(),
    }
}

fn write_manifest(dir: &Path, bytes: &[u8], is_durable: bool) -> io::Result<()> {
    let mut file = File::create(dir.join("manifest"))?;
    file.write_all(bytes)?;
    if is_durable { file.sync_data() } else { Ok(()) }
}
