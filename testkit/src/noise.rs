//! Bytes for contents that must not compress and must not repeat.

/// Returns `len` bytes that do not compress or repeat. The same seed always returns the same bytes.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
