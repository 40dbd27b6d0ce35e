//! Images among the contents: blobs by digest, contents by name, and one file for a blob of many images.
//!
//! Invariant: a blob is served only from a complete content, and its file is never written again.

use crate::blob_places::blobs;
use crate::content::Content;
use crate::inner::Inner;
use crate::layout::{FileExtent, stream_path};
use crate::lock::lock;
use shoal_kv::KvError;
use shoal_proto::ids::{ContentId, PieceIndex};
use shoal_proto::image::{Digest, ImageBlob};
use shoal_proto::manifest::Manifest;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A blob of a complete image.
#[derive(Clone, Debug)]
pub struct BlobFile {
    /// The blob's file. Callers may read and link it, but never write to it. An empty blob has no file.
    pub path: PathBuf,
    /// The blob's length, bytes.
    pub size: u64,
    /// The blob's media type in this image.
    pub media_type: String,
    /// The image's content.
    pub content: ContentId,
}

impl BlobFile {
    /// Opens the blob for reading.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if the image was evicted meanwhile. The caller then looks the blob up again.
    pub fn open(&self) -> io::Result<File> {
        File::open(if self.size == 0 { "/dev/null".as_ref() } else { self.path.as_path() })
    }
}

/// A complete image.
#[derive(Clone, Debug)]
pub struct StoredImage {
    #[allow(missing_docs, reason = "the type says it")]
    pub content: ContentId,
    /// The manifest. [`Manifest::image`] is set.
    pub manifest: Arc<Manifest>,
}

impl StoredImage {
    fn of(content: &Content) -> Self {
        Self { content: content.id, manifest: content.manifest.clone() }
    }
}

/// A complete image that has a certain blob as one of its streams.
#[derive(Clone)]
pub(crate) struct BlobHolder {
    pub(crate) content: Arc<Content>,
    pub(crate) stream: usize,
}

impl BlobHolder {
    pub(crate) fn blob(&self) -> Option<&ImageBlob> {
        self.content.manifest.image.as_ref()?.blobs.get(self.stream)
    }

    pub(crate) fn path(&self) -> PathBuf {
        stream_path(&self.content.dir, self.stream)
    }
}

/// Files that a new content shares with others. While this lives, their space counts as taken.
pub(crate) struct LinkedFiles<'a> {
    inner: &'a Inner,
    files: Vec<FileExtent>,
}

impl<'a> LinkedFiles<'a> {
    pub(crate) fn none(inner: &'a Inner) -> Self {
        Self { inner, files: Vec::new() }
    }

    /// Counts a shared file.
    pub(crate) fn add(&mut self, file: FileExtent) {
        lock(&self.inner.linked).push(file);
        self.files.push(file);
    }

    /// Returns the bytes that need no space of their own.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl Drop for LinkedFiles<'_> {
    fn drop(&mut self) {
        let mut linked = lock(&self.inner.linked);
        for file in &self.files {
            // One entry per link: another content being begun may share the same file.
            if let Some(place) = linked.iter().position(|other| other == file) {
                linked.swap_remove(place);
            }
        }
    }
}

impl Inner {
    /// Returns a complete image that has this blob.
    pub(crate) fn blob_holder(&self, digest: &Digest) -> Option<BlobHolder> {
        let places = lock(&self.blobs).get(digest);
        places.into_iter().find_map(|place| {
            let content = self.content(&place.content).filter(|content| content.is_complete())?;
            Some(BlobHolder { content, stream: place.stream }).filter(|holder| holder.blob().is_some())
        })
    }

    /// Returns a complete image that has this blob with this size.
    pub(crate) fn blob_holder_of_size(&self, digest: &Digest, size: u64) -> Option<BlobHolder> {
        let places = lock(&self.blobs).get(digest);
        places.into_iter().find_map(|place| {
            let content = self.content(&place.content).filter(|content| content.is_complete())?;
            let holder = BlobHolder { content, stream: place.stream };
            holder.blob().is_some_and(|blob| blob.size == size).then_some(holder)
        })
    }

    /// Returns a blob of a complete image. Counts as a use of that image.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<BlobFile> {
        let holder = self.blob_holder(digest)?;
        let blob = holder.blob()?;
        holder.content.touch();
        let media_type = blob.media_type.clone();
        Some(BlobFile { path: holder.path(), size: blob.size, media_type, content: holder.content.id })
    }

    /// Returns the complete images by full name. Of several contents of one name, the newest.
    pub(crate) fn images(&self) -> BTreeMap<String, StoredImage> {
        let mut newest: BTreeMap<String, Arc<Content>> = BTreeMap::new();
        for content in self.contents().into_iter().filter(|content| content.is_complete()) {
            let Some(image) = &content.manifest.image else { continue };
            let entry = newest.entry(image.reference.clone()).or_insert_with(|| content.clone());
            if entry.age() < content.age() {
                *entry = content;
            }
        }
        newest.into_iter().map(|(name, content)| (name, StoredImage::of(&content))).collect()
    }

    /// Returns the newest complete image of a name.
    pub(crate) fn image(&self, reference: &str) -> Option<StoredImage> {
        let is_named = |content: &&Arc<Content>| {
            content.is_complete() && content.manifest.image.as_ref().is_some_and(|image| image.reference == reference)
        };
        let contents = self.contents();
        contents.iter().filter(is_named).max_by_key(|content| content.age()).map(|content| StoredImage::of(content))
    }

    /// Notes the sequence of an announcement that named a content.
    pub(crate) fn set_sequence(&self, id: &ContentId, sequence: u64) -> Result<(), KvError> {
        let Some(content) = self.content(id) else { return Ok(()) };
        content.raise_sequence(sequence);
        self.save_state(&content)
    }

    /// Links streams of a new content to files that the store has, and marks their pieces. The host fetches or copies
    /// the streams that cannot be linked.
    pub(crate) fn link_blobs(&self, content: &Content) -> LinkedFiles<'_> {
        let mut linked = LinkedFiles::none(self);
        for (stream, blob) in blobs(content).filter(|(_, blob)| blob.size > 0) {
            let Some(holder) = self.blob_holder_of_size(&blob.digest, blob.size) else { continue };
            let Ok(inode) = content.layout.link(stream, &holder.path()) else { continue };
            // A manifest may give the digest of one blob to the pieces of another. Only the pieces' hashes prove the
            // file.
            let pieces = content.layout.pieces_of(stream).map(PieceIndex);
            if pieces.clone().all(|piece| content.is_intact(piece)) {
                pieces.for_each(|piece| content.mark(piece));
                linked.add(FileExtent { inode, bytes: blob.size });
            } else if let Err(error) = content.layout.unlink(stream) {
                tracing::warn!(content = %content.id.short(), %error, "cannot remove a link");
            }
        }
        linked
    }
}
