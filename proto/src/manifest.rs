//! The manifest: entries or blobs of a content, its pieces with their hashes, and its code.
//!
//! Invariant: a decoded [`Manifest`] is consistent and safe to materialise. Lengths add up. No path is absolute, has
//! `..`, repeats, or passes through a link or file. No link leaves the content.

use crate::bitmap::Bitmap;
use crate::codec::{DecodeError, DocKind, Document};
use crate::geometry::Geometry;
use crate::ids::{ContentId, Hash, PieceIndex, ShardIndex};
use crate::image::ImageIndex;
use crate::limits;
use minicbor::{Decode, Encode};
use std::sync::Arc;

/// The mode bits that a content may carry: read, write and execute. Set-user-id, set-group-id and sticky bits never
/// cross hosts, because a file gets another owner there.
pub const MODE_BITS: u32 = 0o777;

/// The type of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum EntryKind {
    /// A directory.
    #[n(0)]
    Directory,
    /// A file of `size` bytes. Files lie end to end in the stream, in entry order.
    #[n(1)]
    File {
        /// Length, bytes.
        #[n(0)]
        size: u64,
    },
    /// A symbolic link.
    #[n(2)]
    Link {
        /// The target, relative and inside the content.
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        target: Vec<u8>,
    },
}

/// One file, directory or link. Paths are bytes: Linux names need not be UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// Relative path, components joined by `/`.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub path: Vec<u8>,
    /// Permission bits, within [`MODE_BITS`].
    #[n(1)]
    pub mode: u32,
    /// The type, with the size of a file or the target of a link.
    #[n(2)]
    pub kind: EntryKind,
}

/// The form of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Root {
    /// One file. The manifest has that single entry.
    #[n(0)]
    File,
    /// A directory with these permission bits. The entries lie in it.
    #[n(1)]
    Directory {
        /// Permission bits of the directory itself, within [`MODE_BITS`].
        #[n(0)]
        mode: u32,
    },
    /// A container image. [`Manifest::image`] describes it, and the manifest has no entries.
    #[n(2)]
    Image,
}

/// The description of a content. The BLAKE3 of its encoding is the [`ContentId`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Manifest {
    /// File, directory or image.
    #[n(0)]
    pub root: Root,
    /// Entries in ascending path order, parents before children.
    #[n(1)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::ENTRIES_MAX }, _, _>")]
    pub entries: Vec<Entry>,
    /// Lengths of the streams in order, bytes. A directory or file is one stream, or none where it is empty. Each blob
    /// of an image is one stream.
    #[n(2)]
    pub streams: Vec<u64>,
    /// Target of the average piece length, bytes. It is 0 for an image, where it differs by blob.
    #[n(3)]
    pub piece_bytes_avg: u32,
    /// Data shards in a stripe (k).
    #[n(4)]
    pub data: u8,
    /// Parity shards in a stripe (m).
    #[n(5)]
    pub parity: u8,
    /// Distribution trees (L).
    #[n(6)]
    pub lanes: u8,
    /// Piece lengths, `u32` little-endian each.
    #[n(7)]
    #[cbor(with = "minicbor::bytes")]
    pub piece_lens: Vec<u8>,
    /// Piece hashes, 32 bytes each.
    #[n(8)]
    #[cbor(with = "minicbor::bytes")]
    pub piece_hashes: Vec<u8>,
    /// Parity hashes, 32 bytes each, m per stripe, in the order of stripes.
    #[n(9)]
    #[cbor(with = "minicbor::bytes")]
    pub parity_hashes: Vec<u8>,
    /// The blobs of an image. Absent for files and directories.
    #[n(10)]
    pub image: Option<ImageIndex>,
}

impl Document for Manifest {
    const KIND: DocKind = DocKind::Manifest;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::MANIFEST_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        self.validate_pieces()?;
        match (self.root, &self.image) {
            (Root::Image, Some(image)) if self.entries.is_empty() => image.validate(&self.streams),
            (Root::Image, Some(_)) => Err(DecodeError::invalid("entries", "an image has none")),
            (Root::Image, None) => Err(DecodeError::invalid("image", "missing")),
            (_, Some(_)) => Err(DecodeError::invalid("image", "only an image has one")),
            (_, None) => self.validate_entries(),
        }
    }
}

impl Manifest {
    /// Returns the id of the content with these manifest bytes.
    pub fn id(bytes: &[u8]) -> ContentId {
        ContentId(*blake3::hash(bytes).as_bytes())
    }

    /// Payload bytes.
    pub fn size(&self) -> u64 {
        self.streams.iter().sum()
    }

    /// Number of pieces.
    pub fn piece_count(&self) -> u32 {
        (self.piece_lens.len() / 4) as u32
    }

    /// Lengths of the pieces, bytes.
    pub fn lens(&self) -> impl Iterator<Item = u32> + '_ {
        self.piece_lens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// The content's shape.
    pub fn geometry(&self, id: &ContentId) -> Result<Geometry, DecodeError> {
        let lens: Arc<[u32]> = self.lens().collect();
        Geometry::new(self.data, self.parity, self.lanes, id, lens)
    }

    /// Returns the hash of a piece. It panics where the piece does not exist.
    pub fn piece_hash(&self, piece: PieceIndex) -> Hash {
        hash_at(&self.piece_hashes, piece.index())
    }

    /// Returns the hash of a shard, data or parity, or `None` if the shard does not exist.
    pub fn shard_hash(&self, geometry: &Geometry, shard: ShardIndex) -> Option<Hash> {
        if let Some(piece) = geometry.piece_of(shard) {
            return Some(self.piece_hash(piece));
        }
        let (stripe, place) = geometry.split(shard)?;
        let row = place.checked_sub(u32::from(self.data))?;
        Some(hash_at(&self.parity_hashes, stripe.index() * usize::from(self.parity) + row as usize))
    }

    fn validate_pieces(&self) -> Result<(), DecodeError> {
        let count = self.piece_count();
        let check = |ok: bool, what, why: &str| if ok { Ok(()) } else { Err(DecodeError::invalid(what, why)) };
        check(self.piece_bytes_avg <= limits::PIECE_BYTES_MAX, "piece_bytes_avg", "longer than a piece can be")?;
        check(self.piece_lens.len().is_multiple_of(4), "piece_lens", "not a whole number of pieces")?;
        check(self.piece_hashes.len() == count as usize * 32, "piece_hashes", "not one a piece")?;
        let geometry = self.geometry(&ContentId([0; 32]))?;
        let parity = geometry.stripe_count() as usize * usize::from(self.parity) * 32;
        check(self.parity_hashes.len() == parity, "parity_hashes", "not m a stripe")?;
        // No piece crosses the end of a stream.
        let mut lens = self.lens();
        for stream in &self.streams {
            check(*stream > 0, "streams", "empty stream")?;
            let mut rest = *stream;
            while rest > 0 {
                let len = u64::from(lens.next().unwrap_or(0));
                check((1..=rest).contains(&len), "streams", "pieces do not fill a stream")?;
                rest -= len;
            }
        }
        check(lens.next().is_none(), "streams", "pieces beyond the last stream")
    }

    /// Whether one of the first `count` entries is this directory. The entries are sorted.
    fn has_directory(&self, count: usize, path: &[u8]) -> bool {
        let before = &self.entries[..count];
        before
            .binary_search_by(|entry| entry.path.as_slice().cmp(path))
            .is_ok_and(|at| before[at].kind == EntryKind::Directory)
    }

    fn validate_entries(&self) -> Result<(), DecodeError> {
        let bad = |why: &str, path: &[u8]| {
            Err(DecodeError::invalid("entry", format!("{why}: `{}`", String::from_utf8_lossy(path))))
        };
        if self.entries.len() > limits::ENTRIES_MAX {
            return Err(DecodeError::invalid("entries", "too many"));
        }
        let mut total = 0u64;
        let mut previous: Option<&[u8]> = None;
        for (at, entry) in self.entries.iter().enumerate() {
            let path = entry.path.as_slice();
            if !is_safe_path(path) {
                return bad("unsafe path", path);
            }
            if previous.is_some_and(|previous| previous >= path) {
                return bad("out of order", path);
            }
            previous = Some(path);
            if entry.mode & !MODE_BITS != 0 {
                return bad("mode has more than read, write and execute bits", path);
            }
            if let Some(cut) = path.iter().rposition(|b| *b == b'/')
                && !self.has_directory(at, &path[..cut])
            {
                return bad("parent is not a directory of this content", path);
            }
            match &entry.kind {
                EntryKind::Directory => {}
                EntryKind::File { size } => {
                    total = match total.checked_add(*size) {
                        Some(total) => total,
                        None => return bad("sizes overflow", path),
                    };
                }
                EntryKind::Link { target } => {
                    if !link_stays_inside(path, target) {
                        return bad("link leads out of the content", path);
                    }
                }
            }
        }
        let single_file = matches!(&self.entries[..], [Entry { kind: EntryKind::File { .. }, path, .. }]
            if !path.contains(&b'/'));
        if self.root == Root::File && !single_file {
            return Err(DecodeError::invalid("entries", "a file content has exactly one file"));
        }
        if let Root::Directory { mode } = self.root
            && mode & !MODE_BITS != 0
        {
            return Err(DecodeError::invalid("root", "mode has more than read, write and execute bits"));
        }
        if total != self.size() {
            return Err(DecodeError::invalid("entries", "file sizes do not add up to the streams"));
        }
        Ok(())
    }

    /// Returns an empty set of pieces of this content.
    pub fn no_pieces(&self) -> Bitmap {
        Bitmap::new(self.piece_count())
    }
}

fn hash_at(hashes: &[u8], index: usize) -> Hash {
    let mut out = [0u8; 32];
    out.copy_from_slice(&hashes[index * 32..index * 32 + 32]);
    Hash(out)
}

/// Whether a path is relative, normalised and within limits.
pub fn is_safe_path(path: &[u8]) -> bool {
    path.len() <= limits::PATH_BYTES_MAX
        && !path.contains(&0)
        && path.split(|b| *b == b'/').all(|part| {
            !part.is_empty() && part != b"." && part != b".." && part.len() <= limits::PATH_COMPONENT_BYTES_MAX
        })
}

/// Whether a link at `path` to `target` stays inside the content, by the text of both. `..` may reach at most the root
/// of the content and stands only at the front. Behind another link, `a/../..` could reach further than its text says.
pub fn link_stays_inside(path: &[u8], target: &[u8]) -> bool {
    // The kernel accepts targets of at most 4095 bytes.
    if target.is_empty() || target.len() >= limits::PATH_BYTES_MAX || target[0] == b'/' || target.contains(&0) {
        return false;
    }
    let depth = path.iter().filter(|b| **b == b'/').count();
    let mut climbed = 0;
    let mut descended = false;
    for part in target.split(|b| *b == b'/') {
        match part {
            b".." if descended => return false,
            b".." => climbed += 1,
            b"" | b"." => {}
            _ => descended = true,
        }
    }
    climbed <= depth
}
