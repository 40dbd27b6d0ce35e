//! Writes of pieces around the page cache (`O_DIRECT`).
//!
//! A host forwards received shards from memory and rarely reads them again soon. In the page cache, they would push out
//! the files that the host serves to its users. A direct write covers whole disk blocks, but pieces begin and end
//! inside of blocks. The first and the last block of a piece therefore belong to two pieces, and are written with the
//! bytes of both. The blocks in between are written from where the payload lies, if its alignment in memory allows it.
//! Invariant: a writer holds the stream's [`EdgeBlocks`], and writes a block with everything that was written to it
//! before.

use rustix::io::{Errno, pwritev};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Alignment of direct writes in memory and on the disk, bytes. No common disk or file system needs more.
pub(crate) const BLOCK: usize = 4096;
/// Edge blocks that are remembered. Neighbouring pieces nearly always arrive within two stripes of each other.
const EDGE_BLOCKS_MAX: usize = 128;

/// Aligned memory for the copied parts of writes. Each write reuses it.
#[derive(Debug, Default)]
pub(crate) struct BounceBuffer(Vec<u8>);

impl BounceBuffer {
    /// Returns `len` aligned bytes with arbitrary values.
    fn aligned(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len + BLOCK {
            self.0.resize(len + BLOCK, 0);
        }
        let start = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[start..start + len]
    }
}

/// The last written bytes of blocks that belong to two pieces. The oldest block is forgotten first.
#[derive(Debug, Default)]
pub(crate) struct EdgeBlocks {
    blocks: BTreeMap<u64, Box<[u8]>>,
    order: VecDeque<u64>,
    /// Edge blocks with data. Only for a file that began empty, whose other blocks are known to be zeros.
    written: Option<HashSet<u64>>,
}

impl EdgeBlocks {
    /// Returns the edge blocks of an empty file. Its blocks need no read before their first write.
    pub(crate) fn of_empty_file() -> Self {
        Self { written: Some(HashSet::new()), ..Self::default() }
    }

    fn remember(&mut self, at: u64, block: &[u8]) {
        if let Some(written) = &mut self.written {
            written.insert(at);
        }
        if self.blocks.insert(at, block.into()).is_none() {
            self.order.push_back(at);
            if self.order.len() > EDGE_BLOCKS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.blocks.remove(&oldest);
            }
        }
    }

    /// Forgets the blocks at the ends of a write through the page cache, which changed them.
    pub(crate) fn forget(&mut self, offset: u64, len: usize) {
        for at in [block_start(offset), block_start(offset + len as u64)] {
            if let Some(written) = &mut self.written {
                written.insert(at);
            }
            if self.blocks.remove(&at).is_some() {
                self.order.retain(|kept| *kept != at);
            }
        }
    }

    /// Fills a block with the bytes of the file.
    fn load(&self, file: &File, at: u64, block: &mut [u8]) -> io::Result<()> {
        match self.blocks.get(&at) {
            Some(kept) => block.copy_from_slice(kept),
            None if self.written.as_ref().is_some_and(|written| !written.contains(&at)) => block.fill(0),
            None => file.read_exact_at(block, at)?,
        }
        Ok(())
    }
}

/// Returns the start of the block that contains an offset.
pub(crate) fn block_start(offset: u64) -> u64 {
    offset - offset % BLOCK as u64
}

/// Writes bytes through a descriptor with `O_DIRECT`. The bytes end at or before the file's last whole block.
pub(crate) fn write(
    file: &File,
    edges: &mut EdgeBlocks,
    bounce: &mut BounceBuffer,
    offset: u64,
    bytes: &[u8],
) -> io::Result<()> {
    let end = offset + bytes.len() as u64;
    let (first, last) = (block_start(offset), end.next_multiple_of(BLOCK as u64));
    let (head_shared, tail_shared) = (first != offset, last != end);
    let inner = inner(offset, bytes);
    // The buffer gets everything outside of the inner blocks: the two edge blocks, or all bytes.
    let (before, after) = (&bytes[..inner.start], &bytes[inner.end..]);
    let buffer = bounce.aligned((last - first) as usize - inner.len());
    let tail = buffer.len().saturating_sub(BLOCK);
    if head_shared {
        edges.load(file, first, &mut buffer[..BLOCK])?;
    }
    if tail_shared && !(head_shared && tail == 0) {
        edges.load(file, last - BLOCK as u64, &mut buffer[tail..])?;
    }
    buffer[(offset - first) as usize..][..before.len()].copy_from_slice(before);
    buffer[tail..][..after.len()].copy_from_slice(after);
    // Without inner blocks, head and rest are adjacent on the disk, and any split between them is right.
    let (head, rest) = buffer.split_at(before.len().next_multiple_of(BLOCK).min(buffer.len()));
    write_all_at(file, &mut [head, &bytes[inner], rest].map(IoSlice::new), first)?;
    if head_shared {
        edges.remember(first, &buffer[..BLOCK]);
    }
    if tail_shared {
        edges.remember(last - BLOCK as u64, &buffer[tail..]);
    }
    Ok(())
}

/// Returns the range of whole blocks that have the same alignment in memory and on the disk. Returns an empty range at
/// the end if there are none.
fn inner(offset: u64, bytes: &[u8]) -> Range<usize> {
    let start = (offset.next_multiple_of(BLOCK as u64) - offset) as usize;
    let end = block_start(offset + bytes.len() as u64).saturating_sub(offset) as usize;
    match bytes.get(start..end) {
        Some(blocks) if !blocks.is_empty() && blocks.as_ptr().addr().is_multiple_of(BLOCK) => start..end,
        _ => bytes.len()..bytes.len(),
    }
}

fn write_all_at(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    // `pwritev` of empty slices returns 0, which below means that the disk takes no more bytes.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match pwritev(file, slices, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::OpenOptions;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Writes any pieces in any order, some of them through the page cache. The file then has their bytes. The
        /// test's descriptor has no `O_DIRECT`, which does not change what is written.
        #[test]
        fn every_byte_ends_where_it_belongs(
            lens in prop::collection::vec(1usize..40_000, 1..60),
            seed in any::<u64>(),
            known in any::<bool>(),
        ) {
            let total: usize = lens.iter().sum::<usize>().next_multiple_of(BLOCK);
            let byte = |at: usize| (at as u64 ^ seed).wrapping_mul(0x9E37_79B9).to_le_bytes()[3];
            let wanted: Vec<u8> = (0..total).map(byte).collect();
            let mut pieces: Vec<(usize, usize)> = lens
                .iter()
                .scan(0, |at, len| { let row = (*at, *len); *at += len; Some(row) })
                .collect();
            let used = pieces.last().map_or(0, |(at, len)| at + len);
            if used < total {
                pieces.push((used, total - used));
            }
            pieces.sort_by_key(|(at, _)| (*at as u64 ^ seed).wrapping_mul(0xD134_2543_DE82_EF95));
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("stream");
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
            file.set_len(total as u64).unwrap();
            let mut edges = if known { EdgeBlocks::of_empty_file() } else { EdgeBlocks::default() };
            let mut bounce = BounceBuffer::default();
            for (turn, (at, len)) in pieces.into_iter().enumerate() {
                let mut memory = vec![0; len + BLOCK];
                // Aligned in memory as on the disk, or not.
                let start = (at % BLOCK + BLOCK - memory.as_ptr().addr() % BLOCK + usize::from(turn % 3 == 2)) % BLOCK;
                memory[start..start + len].copy_from_slice(&wanted[at..at + len]);
                let bytes = &memory[start..start + len];
                if turn % 5 == 4 {
                    file.write_all_at(bytes, at as u64).unwrap();
                    edges.forget(at as u64, len);
                } else {
                    write(&file, &mut edges, &mut bounce, at as u64, bytes).unwrap();
                }
                prop_assert!(edges.blocks.len() <= EDGE_BLOCKS_MAX && edges.blocks.len() == edges.order.len());
            }
            prop_assert!(std::fs::read(&path).unwrap() == wanted);
        }
    }
}
