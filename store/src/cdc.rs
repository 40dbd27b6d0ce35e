//! Content-defined cutting, so that versions share pieces: FastCDC (Xia et al., USENIX ATC '16) in its variant of 2020.
//!
//! Invariant: the cuts of a stream depend only on its bytes and on the average piece length.

use bytes::{Bytes, BytesMut};
use fastcdc::v2020::FastCDC;
use std::io::{self, Read};

/// Returns the average piece length for a content of this size, bytes. In small contents, small pieces let a small
/// change move little. In large contents, large pieces keep their number in the thousands.
pub fn average_piece_bytes(size: u64) -> u32 {
    const TABLE: [(u64, u32); 3] = [(1 << 20, 16 * 1024), (64 << 20, 64 * 1024), (1 << 30, 128 * 1024)];
    TABLE.iter().find(|(upto, _)| size <= *upto).map_or(1024 * 1024, |(_, average)| *average)
}

/// Returns the average piece length for a blob of an image, bytes. It depends only on type and size, so that a blob is
/// cut the same in every image. A new version of a plain archive shares most pieces if they are small. A new version of
/// a compressed archive shares none, so its pieces only have to keep every lane busy.
pub fn average_blob_piece_bytes(media_type: &str, size: u64) -> u32 {
    const PLAIN: [(u64, u32); 3] = [(64 << 20, 32 * 1024), (1 << 30, 64 * 1024), (32 << 30, 128 * 1024)];
    const PACKED: [(u64, u32); 1] = [(64 << 20, 256 * 1024)];
    if size <= 1 << 20 {
        return average_piece_bytes(size);
    }
    let table = if media_type.ends_with("tar") { &PLAIN[..] } else { &PACKED };
    table.iter().find(|(upto, _)| size <= *upto).map_or(1024 * 1024, |(_, average)| *average)
}

/// Lengths of pieces, bytes.
struct PieceBounds {
    min: usize,
    average: usize,
    max: usize,
}

impl PieceBounds {
    /// The longest piece is twice the average and not more, because a stripe's parity is as long as its longest piece.
    fn of(average: u32) -> Self {
        let average = average as usize;
        Self { min: average / 4, average, max: average * 2 }
    }
}

/// Cuts the bytes of a reader. Keeps at most a few pieces in memory.
#[derive(Debug)]
pub struct Cutter<R> {
    reader: R,
    average: u32,
    buffer: BytesMut,
    ended: bool,
}

impl<R: Read> Cutter<R> {
    /// Returns a cutter with an average piece length in bytes, which is limited to 1 KiB to 1 MiB.
    pub fn new(reader: R, average: u32) -> Self {
        let average = average.clamp(1024, 1024 * 1024);
        Self { reader, average, buffer: BytesMut::new(), ended: false }
    }

    /// Returns the reader, for example to ask why it failed.
    pub fn into_reader(self) -> R {
        self.reader
    }

    /// Returns the next piece. `None` at the end.
    ///
    /// # Errors
    /// The reader's error.
    pub fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let PieceBounds { min, average, max } = PieceBounds::of(self.average);
        if self.buffer.len() < max && !self.ended {
            self.fill(max)?;
        }
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let window = self.buffer.len().min(max);
        let (_, end) = FastCDC::new(&self.buffer[..window], min, average, max).cut(0, window);
        Ok(Some(self.buffer.split_to(end.clamp(1, window)).freeze()))
    }

    /// Reads until two pieces of the longest kind are buffered.
    fn fill(&mut self, max: usize) -> io::Result<()> {
        let kept = self.buffer.len();
        let want = max * 2;
        // Returned pieces keep the old buffer alive. Its tail, less than one piece, moves to a new buffer.
        let mut fresh = BytesMut::zeroed(want);
        fresh[..kept].copy_from_slice(&self.buffer);
        let mut filled = kept;
        while filled < want {
            match self.reader.read(&mut fresh[filled..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        fresh.truncate(filled);
        self.buffer = fresh;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_testkit::noise;

    fn cut(bytes: &[u8], average: u32) -> Vec<Bytes> {
        let mut cutter = Cutter::new(bytes, average);
        std::iter::from_fn(|| cutter.next_piece().unwrap()).collect()
    }

    #[test]
    fn pieces_add_up_and_keep_their_bounds() {
        for len in [0, 1, 4095, 4096, 16 * 1024, 32 * 1024, 32 * 1024 + 1, 1 << 20] {
            let bytes = noise(len, 1);
            let pieces = cut(&bytes, 16 * 1024);
            assert_eq!(pieces.concat(), bytes, "{len}");
            assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= 32 * 1024));
            let all_but_last = pieces.len().saturating_sub(1);
            assert!(pieces[..all_but_last].iter().all(|piece| piece.len() >= 4 * 1024));
        }
    }

    #[test]
    fn plain_archives_are_cut_finer_than_compressed_ones() {
        let plain = "application/vnd.oci.image.layer.v1.tar";
        let table = [
            (plain, 1000, 16 * 1024),
            (plain, 50 << 20, 32 * 1024),
            (plain, 300 << 20, 64 * 1024),
            (plain, 10 << 30, 128 * 1024),
            (plain, 100 << 30, 1024 * 1024),
            ("application/vnd.docker.image.rootfs.diff.tar", 10 << 30, 128 * 1024),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", 10 << 30, 1024 * 1024),
            ("application/vnd.oci.image.layer.v1.tar+zstd", 30 << 20, 256 * 1024),
            ("application/octet-stream", 1 << 30, 1024 * 1024),
        ];
        for (media_type, size, average) in table {
            assert_eq!(average_blob_piece_bytes(media_type, size), average, "{media_type} {size}");
        }
    }

    #[test]
    fn cuts_do_not_depend_on_how_the_bytes_arrive() {
        struct Dribble<'a>(&'a [u8]);
        impl Read for Dribble<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let len = buf.len().min(777).min(self.0.len());
                buf[..len].copy_from_slice(&self.0[..len]);
                self.0 = &self.0[len..];
                Ok(len)
            }
        }
        let bytes = noise(1 << 20, 2);
        let mut cutter = Cutter::new(Dribble(&bytes), 16 * 1024);
        let dribbled: Vec<Bytes> = std::iter::from_fn(|| cutter.next_piece().unwrap()).collect();
        assert_eq!(dribbled, cut(&bytes, 16 * 1024));
    }

    #[test]
    fn an_insertion_changes_few_pieces() {
        let mut bytes = noise(4 << 20, 3);
        let before: std::collections::HashSet<Bytes> = cut(&bytes, 16 * 1024).into_iter().collect();
        bytes.splice(1_000_000..1_000_000, noise(100, 4));
        let fresh = cut(&bytes, 16 * 1024).into_iter().filter(|piece| !before.contains(piece)).count();
        assert!(fresh <= 4, "{fresh} new pieces");
    }
}
