//! Reed–Solomon over shards of unequal length.
//!
//! A stripe's parity is as long as its longest piece. Shorter pieces count as padded with zeros, but no padding is
//! made: zeros add nothing to a sum, so a short piece just stops contributing. The coefficients come from the crate
//! `reed-solomon-erasure`. Its code is systematic and maximum distance separable: any k of the k + m shards determine
//! the others.
//!
//! Invariant: any k shards of a stripe decode to the original pieces.

use reed_solomon_erasure::galois_8::{self, ReedSolomon};

/// Bytes encoded at a time. k + m columns of this size stay in the second-level cache.
const COLUMN: usize = 64 * 1024;

/// Why a stripe cannot be coded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErasureError {
    /// The code does not exist for this k and m.
    #[error("no erasure code has {data} data and {parity} parity shards")]
    #[allow(missing_docs, reason = "the message says it")]
    Shape { data: usize, parity: usize },
    /// The stripe has more pieces than there are shards.
    #[error("{have} shards do not determine {need} pieces")]
    #[allow(missing_docs, reason = "the message says it")]
    TooFew { have: usize, need: usize },
}

/// A parity shard that is there.
#[derive(Clone, Copy, Debug)]
pub struct ParityRow<'a> {
    /// Which of the stripe's parity shards it is.
    pub row: usize,
    #[allow(missing_docs, reason = "the name says it")]
    pub bytes: &'a [u8],
}

/// A piece that was missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebuiltPiece {
    /// The piece's place in the stripe.
    pub place: usize,
    #[allow(missing_docs, reason = "the name says it")]
    pub bytes: Vec<u8>,
}

/// An erasure code for stripes.
pub trait ErasureCode: Send + Sync {
    /// Returns one parity shard of a stripe of these pieces.
    fn parity(&self, row: usize, pieces: &[&[u8]]) -> Vec<u8>;

    /// Returns the missing pieces of a stripe. `pieces[i]` is `None` if piece `i`, of `lens[i]` bytes, is missing.
    ///
    /// # Errors
    /// [`ErasureError::TooFew`] if the shards do not determine the missing pieces.
    fn rebuild(
        &self,
        lens: &[usize],
        pieces: &[Option<&[u8]>],
        parity: &[ParityRow<'_>],
    ) -> Result<Vec<RebuiltPiece>, ErasureError>;
}

/// The code of the `reed-solomon-erasure` crate.
#[derive(Debug)]
pub struct ReedSolomonCode {
    /// `rows[j][i]` is the coefficient of piece `i` in parity row `j`.
    rows: Vec<Vec<u8>>,
}

impl ReedSolomonCode {
    /// Returns the code of `data` + `parity` shards. `parity` may be 0.
    ///
    /// # Errors
    /// [`ErasureError::Shape`] if no such code exists.
    pub fn new(data: usize, parity: usize) -> Result<Self, ErasureError> {
        let shape = || ErasureError::Shape { data, parity };
        if data == 0 {
            return Err(shape());
        }
        if parity == 0 {
            return Ok(Self { rows: Vec::new() });
        }
        let code = ReedSolomon::new(data, parity).map_err(|_| shape())?;
        let mut rows = vec![vec![0u8; data]; parity];
        for place in 0..data {
            // The parity of a unit vector is a column of the coefficients.
            let mut shards = vec![[0u8; 1]; data + parity];
            shards[place] = [1];
            code.encode(&mut shards).map_err(|_| shape())?;
            for (row, shard) in rows.iter_mut().zip(&shards[data..]) {
                row[place] = shard[0];
            }
        }
        Ok(Self { rows })
    }
}

/// Computes `out ^= coefficient * input` over the bytes that both have.
fn add_scaled(coefficient: u8, input: &[u8], out: &mut [u8]) {
    let len = input.len().min(out.len());
    if coefficient != 0 && len > 0 {
        galois_8::mul_slice_xor(coefficient, &input[..len], &mut out[..len]);
    }
}

impl ErasureCode for ReedSolomonCode {
    fn parity(&self, row: usize, pieces: &[&[u8]]) -> Vec<u8> {
        let len = pieces.iter().map(|piece| piece.len()).max().unwrap_or(0);
        let mut out = vec![0u8; len];
        for start in (0..len).step_by(COLUMN) {
            let end = (start + COLUMN).min(len);
            for (piece, coefficient) in pieces.iter().zip(&self.rows[row]) {
                if start < piece.len() {
                    add_scaled(*coefficient, &piece[start..end.min(piece.len())], &mut out[start..end]);
                }
            }
        }
        out
    }

    fn rebuild(
        &self,
        lens: &[usize],
        pieces: &[Option<&[u8]>],
        parity: &[ParityRow<'_>],
    ) -> Result<Vec<RebuiltPiece>, ErasureError> {
        let missing: Vec<usize> = (0..lens.len()).filter(|place| pieces[*place].is_none()).collect();
        let usable: Vec<&ParityRow<'_>> =
            parity.iter().filter(|parity| parity.row < self.rows.len()).take(missing.len()).collect();
        if usable.len() < missing.len() {
            let have = lens.len() - missing.len() + usable.len();
            return Err(ErasureError::TooFew { have, need: lens.len() });
        }
        let longest = missing.iter().map(|place| lens[*place]).max().unwrap_or(0);
        // Subtract the known pieces from each parity row. What is left comes from the missing pieces alone.
        let mut residues: Vec<Vec<u8>> = Vec::with_capacity(usable.len());
        for ParityRow { row, bytes } in &usable {
            let mut residue = vec![0u8; longest];
            let len = bytes.len().min(longest);
            residue[..len].copy_from_slice(&bytes[..len]);
            for (place, piece) in pieces.iter().enumerate() {
                if let Some(piece) = piece {
                    add_scaled(self.rows[*row][place], piece, &mut residue);
                }
            }
            residues.push(residue);
        }
        let square: Vec<Vec<u8>> =
            usable.iter().map(|parity| missing.iter().map(|place| self.rows[parity.row][*place]).collect()).collect();
        let inverse = invert(square).ok_or(ErasureError::TooFew { have: 0, need: lens.len() })?;
        Ok(missing
            .iter()
            .zip(&inverse)
            .map(|(place, coefficients)| {
                let mut piece = vec![0u8; lens[*place]];
                for (coefficient, residue) in coefficients.iter().zip(&residues) {
                    add_scaled(*coefficient, residue, &mut piece);
                }
                RebuiltPiece { place: *place, bytes: piece }
            })
            .collect())
    }
}

/// Returns the inverse of a square matrix over GF(2^8), by Gauss–Jordan elimination. `None` if the matrix is singular.
fn invert(mut left: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let size = left.len();
    let mut right: Vec<Vec<u8>> =
        (0..size).map(|row| (0..size).map(|column| u8::from(row == column)).collect()).collect();
    for column in 0..size {
        let pivot = (column..size).find(|row| left[*row][column] != 0)?;
        left.swap(column, pivot);
        right.swap(column, pivot);
        let scale = galois_8::div(1, left[column][column]);
        for matrix in [&mut left, &mut right] {
            for value in &mut matrix[column] {
                *value = galois_8::mul(*value, scale);
            }
        }
        for row in (0..size).filter(|row| *row != column) {
            let factor = left[row][column];
            for matrix in [&mut left, &mut right] {
                let (source, target) = pair(matrix, column, row);
                for (to, from) in target.iter_mut().zip(source) {
                    *to ^= galois_8::mul(factor, *from);
                }
            }
        }
    }
    Some(right)
}

/// Returns two different rows of a matrix, the first to read and the second to change.
fn pair(matrix: &mut [Vec<u8>], read: usize, change: usize) -> (&[u8], &mut [u8]) {
    if read < change {
        let (head, tail) = matrix.split_at_mut(change);
        (&head[read], &mut tail[0])
    } else {
        let (head, tail) = matrix.split_at_mut(read);
        (&tail[0], &mut head[change])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_k_shards_decode_to_the_pieces(
            seed in any::<u64>(),
            lens in prop::collection::vec(1usize..3000, 1..12),
            parity in 1usize..5,
            lost in prop::collection::btree_set(0usize..16, 0..5),
        ) {
            let data = 12;
            let code = ReedSolomonCode::new(data, parity).unwrap();
            let bytes = |place: usize, len: usize| -> Vec<u8> {
                (0..len).map(|at| (seed.wrapping_mul(at as u64 + 3).rotate_left(place as u32) >> 7) as u8).collect()
            };
            let pieces: Vec<Vec<u8>> = lens.iter().enumerate().map(|(place, len)| bytes(place, *len)).collect();
            let refs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let rows: Vec<Vec<u8>> = (0..parity).map(|row| code.parity(row, &refs)).collect();
            let held: Vec<Option<&[u8]>> =
                refs.iter().enumerate().map(|(place, piece)| (!lost.contains(&place)).then_some(*piece)).collect();
            let kept: Vec<ParityRow<'_>> = rows
                .iter()
                .enumerate()
                .filter(|(row, _)| !lost.contains(&(data + row)))
                .map(|(row, bytes)| ParityRow { row, bytes })
                .collect();
            let missing = held.iter().filter(|piece| piece.is_none()).count();
            match code.rebuild(&lens, &held, &kept) {
                Ok(rebuilt) => {
                    prop_assert_eq!(rebuilt.len(), missing);
                    for piece in rebuilt {
                        prop_assert_eq!(&piece.bytes, &pieces[piece.place]);
                    }
                }
                Err(error) => {
                    prop_assert!(missing > kept.len(), "{} with {} missing, {} rows", error, missing, kept.len());
                }
            }
        }
    }

    #[test]
    fn agrees_with_the_crate_on_equal_lengths() {
        let (data, parity) = (16, 4);
        let code = ReedSolomonCode::new(data, parity).unwrap();
        let pieces: Vec<Vec<u8>> =
            (0..data).map(|place| (0..200_000).map(|at| (at * 31 + place * 7) as u8).collect()).collect();
        let refs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let mut shards = pieces.clone();
        shards.extend(vec![vec![0u8; 200_000]; parity]);
        ReedSolomon::new(data, parity).unwrap().encode(&mut shards).unwrap();
        for row in 0..parity {
            assert_eq!(code.parity(row, &refs), shards[data + row]);
        }
    }
}
