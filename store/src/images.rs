//! Images among the contents: which blobs are here, what a name leads to, and one file for a blob that many images have.
//!
//! Invariant: a blob is given out only from a complete content, and its file is never written to again.

use crate::store::{Content, Inner, Store, lock};
use shoal_proto::ids::{ContentId, Hash, PieceIndex};
use shoal_proto::image::{Digest, ImageBlob};
use shoal_proto::manifest::Manifest;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A blob of a complete image.
#[derive(Clone, Debug)]
pub struct BlobFile {
    /// Its file, shared with the store: read it, link it, never write to it. An empty blob has none.
    pub path: PathBuf,
    /// Its length, bytes.
    pub size: u64,
    /// Its media type in that image.
    pub media_type: String,
    /// The image's content.
    pub content: ContentId,
}

impl BlobFile {
    /// Opens it for reading. Not there any more if its image was evicted meanwhile: ask for the blob again.
    pub fn open(&self) -> io::Result<File> {
        File::open(if self.size == 0 { "/dev/null".as_ref() } else { self.path.as_path() })
    }
}

/// A complete image.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// Its content.
    pub content: ContentId,
    /// Its manifest; [`Manifest::image`] is there.
    pub manifest: Arc<Manifest>,
}

/// Which complete contents have a blob, and as which stream.
#[derive(Debug, Default)]
pub(crate) struct BlobPlaces {
    rows: BTreeMap<Digest, BTreeSet<(ContentId, usize)>>,
}

fn blobs(content: &Content) -> impl Iterator<Item = (usize, &ImageBlob)> {
    content.manifest.image.iter().flat_map(|image| image.blobs.iter().enumerate())
}

impl BlobPlaces {
    pub(crate) fn of<'a>(contents: impl Iterator<Item = &'a Arc<Content>>) -> Self {
        let mut places = Self::default();
        contents.filter(|content| content.is_complete()).for_each(|content| places.add(content));
        places
    }

    pub(crate) fn add(&mut self, content: &Content) {
        for (stream, blob) in blobs(content) {
            self.rows.entry(blob.digest).or_default().insert((content.id, stream));
        }
    }

    pub(crate) fn remove(&mut self, content: &Content) {
        for (stream, blob) in blobs(content) {
            if let Some(row) = self.rows.get_mut(&blob.digest) {
                row.remove(&(content.id, stream));
                if row.is_empty() {
                    self.rows.remove(&blob.digest);
                }
            }
        }
    }
}

/// Streams of a content being begun that are files of others. While it lives, their room counts as taken.
pub(crate) struct Linked<'a> {
    inner: &'a Inner,
    files: Vec<(u64, u64)>,
}

impl Linked<'_> {
    /// Counts a file that is shared.
    pub(crate) fn add(&mut self, inode: u64, len: u64) {
        lock(&self.inner.linked).push((inode, len));
        self.files.push((inode, len));
    }

    /// Bytes that need no room of their own.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, len)| len).sum()
    }
}

impl Drop for Linked<'_> {
    fn drop(&mut self) {
        let mut linked = lock(&self.inner.linked);
        for file in &self.files {
            if let Some(place) = linked.iter().position(|row| row == file) {
                linked.swap_remove(place);
            }
        }
    }
}

impl Inner {
    /// A complete content that has a blob of this digest and length, and its stream there.
    pub(crate) fn holder(&self, digest: &Digest, size: u64) -> Option<(Arc<Content>, usize)> {
        let places: Vec<(ContentId, usize)> = lock(&self.blobs).rows.get(digest)?.iter().copied().collect();
        places.into_iter().find_map(|(id, stream)| {
            let content = self.content(&id).filter(|content| content.is_complete())?;
            let fits = content.manifest.image.as_ref()?.blobs.get(stream).is_some_and(|blob| blob.size == size);
            fits.then_some((content, stream))
        })
    }

    pub(crate) fn nothing_linked(&self) -> Linked<'_> {
        Linked { inner: self, files: Vec::new() }
    }

    /// Bytes the contents take, each file once, and what shares of them take.
    pub(crate) fn used(&self) -> u64 {
        let mut seen = HashSet::new();
        let contents = lock(&self.contents);
        let whole = contents.values().filter(|content| !content.is_whole_dropped());
        let files = whole.flat_map(|content| content.layout.extents());
        let linked = lock(&self.linked).clone();
        let shares: u64 = contents.values().map(|content| content.extra.load(Ordering::Relaxed)).sum();
        shares + files.chain(linked).filter(|(inode, _)| seen.insert(*inode)).map(|(_, len)| len).sum::<u64>()
    }
}

impl Store {
    /// A blob, if a complete image has it. Counts as a use of that image.
    pub fn blob(&self, digest: &Digest) -> Option<BlobFile> {
        let places: Vec<(ContentId, usize)> = lock(&self.inner.blobs).rows.get(digest)?.iter().copied().collect();
        places.into_iter().find_map(|(id, stream)| {
            let content = self.inner.content(&id).filter(|content| content.is_complete())?;
            let blob = content.manifest.image.as_ref()?.blobs.get(stream)?;
            content.touch();
            let path = self.stream_path(&id, stream);
            Some(BlobFile { path, size: blob.size, media_type: blob.media_type.clone(), content: id })
        })
    }

    /// The complete images, by name written out in full. Of several contents of a name the newest, see
    /// [`Store::set_sequence`].
    pub fn images(&self) -> BTreeMap<String, StoredImage> {
        let mut images: BTreeMap<String, Arc<Content>> = BTreeMap::new();
        for content in lock(&self.inner.contents).values().filter(|content| content.is_complete()) {
            let Some(image) = &content.manifest.image else { continue };
            let newest = images.entry(image.reference.clone()).or_insert_with(|| content.clone());
            if newest.age() < content.age() {
                *newest = content.clone();
            }
        }
        let stored = |content: Arc<Content>| StoredImage { content: content.id, manifest: content.manifest.clone() };
        images.into_iter().map(|(name, content)| (name, stored(content))).collect()
    }

    /// What a name leads to, as [`Store::images`] would say.
    pub fn image(&self, reference: &str) -> Option<StoredImage> {
        let named = |content: &&Arc<Content>| {
            content.is_complete() && content.manifest.image.as_ref().is_some_and(|image| image.reference == reference)
        };
        let contents = lock(&self.inner.contents);
        let content = contents.values().filter(named).max_by_key(|content| content.age())?;
        Some(StoredImage { content: content.id, manifest: content.manifest.clone() })
    }

    /// An announcement of this sequence named the content: of the contents of one name, the one with the greatest counts.
    /// A lower one than known changes nothing.
    pub fn set_sequence(&self, id: &ContentId, sequence: u64) -> Result<(), shoal_kv::KvError> {
        let Some(content) = self.inner.content(id) else { return Ok(()) };
        content.sequence.fetch_max(sequence, Ordering::Relaxed);
        self.inner.save_state(&content)
    }

    /// Makes streams of a content that is being begun other names of files that are here, and marks their pieces. What
    /// cannot be linked is fetched or copied like anything else.
    pub(crate) fn link_blobs(&self, content: &Content) -> Linked<'_> {
        let mut linked = self.inner.nothing_linked();
        for (stream, blob) in blobs(content).filter(|(_, blob)| blob.size > 0) {
            let Some((holder, at)) = self.inner.holder(&blob.digest, blob.size) else { continue };
            let Ok(inode) = content.layout.link(stream, &self.stream_path(&holder.id, at)) else { continue };
            // The manifest says what the pieces are, not the digest: both have to be true of the file.
            let pieces = content.layout.pieces_of(stream).map(PieceIndex);
            let is_right = |piece: PieceIndex| {
                let hash = content.manifest.piece_hash(piece);
                content.layout.read(piece).is_ok_and(|bytes| Hash::of(&bytes) == hash)
            };
            if pieces.clone().all(is_right) {
                pieces.for_each(|piece| content.mark(piece));
                linked.add(inode, blob.size);
            } else if let Err(error) = content.layout.unlink(stream) {
                tracing::warn!(content = %content.id.short(), %error, "cannot take a link away");
            }
        }
        linked
    }
}
