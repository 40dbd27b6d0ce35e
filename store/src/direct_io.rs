//! Writing pieces around the page cache.
//!
//! What a host receives is read from memory while it is passed on, and hardly again for a while: in the page cache it would
//! push out what the host serves its customers from, at the price of filling each page. Pieces begin and end in the middle
//! of a disk's blocks, so the first and the last block are written together with what their neighbours have in them.
//! What lies in memory as it will in blocks is written from where it is; only those two blocks are copied.
//! Invariant: whoever writes holds the stream's [`Edges`], and a block is written with all that was ever written to it.

use rustix::io::{Errno, pwritev};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// What such writes are aligned to, in memory and on the disk, bytes. No disk or file system in use asks for more.
pub(crate) const BLOCK: usize = 4096;
/// Blocks remembered, of those at pieces' edges. Neighbours arrive within a stripe or two of each other, nearly always.
const EDGES_MAX: usize = 128;

/// Where writes start from: memory that is aligned, used again and again.
#[derive(Debug, Default)]
pub(crate) struct Bounce(Vec<u8>);

impl Bounce {
    /// So many bytes of it; what is in them is left from before.
    fn aligned(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len + BLOCK {
            self.0.resize(len + BLOCK, 0);
        }
        let start = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[start..start + len]
    }
}

/// Blocks of a file that belong to more than one piece, as they were written last. First in, first out.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    blocks: BTreeMap<u64, Box<[u8]>>,
    order: VecDeque<u64>,
    /// Of a file that began empty: all such blocks that hold something.
    written: Option<HashSet<u64>>,
}

impl Edges {
    /// Of a file that has nothing in it yet: its blocks need not be read before they are first written.
    pub(crate) fn of_empty() -> Self {
        Self { written: Some(HashSet::new()), ..Self::default() }
    }

    fn keep(&mut self, at: u64, block: &[u8]) {
        if let Some(written) = &mut self.written {
            written.insert(at);
        }
        if self.blocks.insert(at, block.into()).is_none() {
            self.order.push_back(at);
            if self.order.len() > EDGES_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.blocks.remove(&oldest);
            }
        }
    }

    /// Bytes were written in another way: the blocks at their ends are not what they were.
    pub(crate) fn forget(&mut self, offset: u64, len: usize) {
        for at in [floor(offset), floor(offset + len as u64)] {
            if let Some(written) = &mut self.written {
                written.insert(at);
            }
            if self.blocks.remove(&at).is_some() {
                self.order.retain(|kept| *kept != at);
            }
        }
    }

    /// Fills a block with what is in the file.
    fn load(&self, file: &File, at: u64, block: &mut [u8]) -> io::Result<()> {
        match self.blocks.get(&at) {
            Some(kept) => block.copy_from_slice(kept),
            None if self.written.as_ref().is_some_and(|written| !written.contains(&at)) => block.fill(0),
            None => file.read_exact_at(block, at)?,
        }
        Ok(())
    }
}

/// The start of the block that an offset is in.
pub(crate) fn floor(offset: u64) -> u64 {
    offset - offset % BLOCK as u64
}

/// Writes bytes that end within the file's last whole block, through a descriptor that goes around the page cache.
pub(crate) fn write(file: &File, edges: &mut Edges, bounce: &mut Bounce, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let end = offset + bytes.len() as u64;
    let (first, last) = (floor(offset), end.next_multiple_of(BLOCK as u64));
    let (head_shared, tail_shared) = (first != offset, last != end);
    let inner = inner(offset, bytes);
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
    // Without inner blocks both go out together, wherever they are parted.
    let (head, rest) = buffer.split_at(before.len().next_multiple_of(BLOCK).min(buffer.len()));
    write_all_at(file, &mut [head, &bytes[inner], rest].map(IoSlice::new), first)?;
    if head_shared {
        edges.keep(first, &buffer[..BLOCK]);
    }
    if tail_shared {
        edges.keep(last - BLOCK as u64, &buffer[tail..]);
    }
    Ok(())
}

/// The whole blocks among bytes that are aligned in memory as on the disk; nothing at their end if they are not.
fn inner(offset: u64, bytes: &[u8]) -> Range<usize> {
    let start = (offset.next_multiple_of(BLOCK as u64) - offset) as usize;
    let end = floor(offset + bytes.len() as u64).saturating_sub(offset) as usize;
    match bytes.get(start..end) {
        Some(blocks) if !blocks.is_empty() && blocks.as_ptr().addr().is_multiple_of(BLOCK) => start..end,
        _ => bytes.len()..bytes.len(),
    }
}

fn write_all_at(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    // Empty ones would be taken for a disk that takes no more.
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

        /// Any pieces, in any order, some written in the other way: the file holds their bytes. The file here is one with
        /// a page cache, which makes no difference to what is written.
        #[test]
        fn every_byte_ends_where_it_belongs(
            lens in prop::collection::vec(1usize..40_000, 1..60),
            seed in any::<u64>(),
            known in any::<bool>(),
        ) {
            let total: usize = lens.iter().sum::<usize>().next_multiple_of(BLOCK);
            let wanted: Vec<u8> = (0..total).map(|at| (at as u64 ^ seed).wrapping_mul(0x9E37_79B9).to_le_bytes()[3]).collect();
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
            let (mut edges, mut bounce) = (if known { Edges::of_empty() } else { Edges::default() }, Bounce::default());
            for (turn, (at, len)) in pieces.into_iter().enumerate() {
                let mut memory = vec![0; len + BLOCK];
                // As it lies on the disk, or not.
                let start = (at % BLOCK + BLOCK - memory.as_ptr().addr() % BLOCK + usize::from(turn % 3 == 2)) % BLOCK;
                memory[start..start + len].copy_from_slice(&wanted[at..at + len]);
                let bytes = &memory[start..start + len];
                if turn % 5 == 4 {
                    file.write_all_at(bytes, at as u64).unwrap();
                    edges.forget(at as u64, len);
                } else {
                    write(&file, &mut edges, &mut bounce, at as u64, bytes).unwrap();
                }
                prop_assert!(edges.blocks.len() <= EDGES_MAX && edges.blocks.len() == edges.order.len());
            }
            prop_assert!(std::fs::read(&path).unwrap() == wanted);
        }
    }
}
