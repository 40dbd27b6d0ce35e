//! A fixed-length set of small numbers: verified pieces, complete hosts, shards of a lane.
//!
//! Invariant: bits at or past `len` are zero, so counts and comparisons need no masks.

use crate::codec::DecodeError;
use crate::limits;
use minicbor::{Decode, Decoder, Encode, Encoder};

/// A bitmap over `0..len`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bitmap {
    len: u32,
    words: Vec<u64>,
}

/// Longest bitmap a decoder accepts: the pieces of the largest content. No region has as many hosts.
const LEN_MAX: u32 = limits::PIECES_MAX;
const _: () = assert!(limits::HOSTS_MAX <= LEN_MAX);

impl Bitmap {
    /// The empty set over `0..len`.
    pub fn new(len: u32) -> Self {
        Self { len, words: vec![0; (len as usize).div_ceil(64)] }
    }

    /// The full set over `0..len`.
    pub fn full(len: u32) -> Self {
        let mut map = Self { len, words: vec![u64::MAX; (len as usize).div_ceil(64)] };
        map.mask_tail();
        map
    }

    fn mask_tail(&mut self) {
        let tail = self.len % 64;
        if tail != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1u64 << tail) - 1;
        }
    }

    /// Returns the bytes of memory that the set takes. Its encoding can be much shorter.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(self.words.as_slice())
    }

    /// Size of the universe, not of the set.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the universe is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `bit` is in the set. A bit out of range never is.
    pub fn get(&self, bit: u32) -> bool {
        bit < self.len && self.words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }

    /// Adds `bit`. Returns whether the bit is new. A bit out of range is ignored.
    pub fn set(&mut self, bit: u32) -> bool {
        if bit >= self.len {
            return false;
        }
        let word = &mut self.words[(bit / 64) as usize];
        let mask = 1u64 << (bit % 64);
        let fresh = *word & mask == 0;
        *word |= mask;
        fresh
    }

    /// Removes `bit`. Returns whether the bit was set.
    pub fn unset(&mut self, bit: u32) -> bool {
        if !self.get(bit) {
            return false;
        }
        self.words[(bit / 64) as usize] &= !(1u64 << (bit % 64));
        true
    }

    /// Grows the universe to `len` and keeps the set. A smaller `len` changes nothing.
    pub fn grow(&mut self, len: u32) {
        if len > self.len {
            self.len = len;
            self.words.resize((len as usize).div_ceil(64), 0);
        }
    }

    /// Returns the number of members.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether every number of the universe is a member.
    pub fn is_full(&self) -> bool {
        self.count() == self.len
    }

    /// Whether the set is empty.
    pub fn none(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Adds every member of `other`. Numbers past the universe are ignored.
    pub fn union(&mut self, other: &Self) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
        self.mask_tail();
    }

    /// Removes every member of `other`.
    pub fn subtract(&mut self, other: &Self) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine &= !theirs;
        }
    }

    /// Iterates over the members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                Some(index as u32 * 64 + bit)
            })
        })
    }

    /// Returns the lowest member at or after `from`.
    pub fn next_set(&self, from: u32) -> Option<u32> {
        self.next_where(from, |word| word)
    }

    /// Returns the lowest non-member at or after `from`.
    pub fn next_unset(&self, from: u32) -> Option<u32> {
        self.next_where(from, |word| !word).filter(|bit| *bit < self.len)
    }

    fn next_where(&self, from: u32, view: impl Fn(u64) -> u64) -> Option<u32> {
        if from >= self.len {
            return None;
        }
        let mut index = (from / 64) as usize;
        let mut word = view(self.words[index]) & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return Some(index as u32 * 64 + word.trailing_zeros());
            }
            index += 1;
            word = view(*self.words.get(index)?);
        }
    }

    /// Iterates over maximal runs of members, as half-open ranges in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<u32>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next_set(at)?;
            let end = self.next_unset(start).unwrap_or(self.len);
            at = end;
            Some(start..end)
        })
    }
}

impl std::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bitmap({}/{})", self.count(), self.len)
    }
}

impl FromIterator<u32> for Bitmap {
    /// Returns the smallest bitmap with the given members. `u32::MAX` is in no universe and is ignored.
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut map = Self::default();
        for number in numbers {
            map.grow(number.saturating_add(1));
            map.set(number);
        }
        map
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0u64;
    for shift in (0..35).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return u32::try_from(value).ok();
        }
    }
    None
}

impl Bitmap {
    /// Encodes runs as (gap, length) varints. Returns `None` where the result would have `limit` bytes or more.
    fn to_runs(&self, limit: usize) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut at = 0;
        for range in self.ranges() {
            if out.len() >= limit {
                return None;
            }
            put_varint(&mut out, range.start - at);
            put_varint(&mut out, range.end - range.start);
            at = range.end;
        }
        (out.len() < limit).then_some(out)
    }

    fn from_runs(len: u32, mut runs: &[u8]) -> Result<Self, DecodeError> {
        let bad = |why: &str| DecodeError::invalid("bitmap", why);
        let mut map = Self::new(len);
        let mut at = 0u32;
        while !runs.is_empty() {
            let gap = take_varint(&mut runs).ok_or_else(|| bad("truncated run"))?;
            let run = take_varint(&mut runs).ok_or_else(|| bad("truncated run"))?;
            let start = at.checked_add(gap).ok_or_else(|| bad("run out of range"))?;
            let end = start.checked_add(run).filter(|end| *end <= len).ok_or_else(|| bad("run out of range"))?;
            if run == 0 {
                return Err(bad("empty run"));
            }
            map.set_range(start, end);
            at = end;
        }
        Ok(map)
    }

    /// Adds `start..end`, which must lie within the universe.
    fn set_range(&mut self, start: u32, end: u32) {
        let (first, last) = ((start / 64) as usize, ((end - 1) / 64) as usize);
        for word in first..=last {
            let low = if word == first { start % 64 } else { 0 };
            let high = if word == last { (end - 1) % 64 } else { 63 };
            self.words[word] |= (u64::MAX << low) & (u64::MAX >> (63 - high));
        }
    }
}

// On the wire: [len, bytes]. Exactly ceil(len/8) bytes are the raw bits, lowest bit first. Fewer bytes are runs.
impl<C> Encode<C> for Bitmap {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let raw_len = (self.len as usize).div_ceil(8);
        e.array(2)?.u32(self.len)?;
        match self.to_runs(raw_len) {
            Some(runs) => e.bytes(&runs)?,
            None => {
                let raw: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).take(raw_len).collect();
                e.bytes(&raw)?
            }
        };
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Bitmap {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::decode_within(d, LEN_MAX)
    }
}

/// Decodes a set of hosts, for `#[cbor(decode_with)]`. The bound is the size of a region, so that a message with many
/// sets takes little memory.
pub(crate) fn decode_hosts<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Bitmap, minicbor::decode::Error> {
    Bitmap::decode_within(d, limits::HOSTS_MAX)
}

impl Bitmap {
    fn decode_within(d: &mut Decoder<'_>, len_max: u32) -> Result<Self, minicbor::decode::Error> {
        let bad = |why: String| minicbor::decode::Error::message(why);
        if d.array()? != Some(2) {
            return Err(bad("bitmap is not a pair".into()));
        }
        let len = d.u32()?;
        let bytes = d.bytes()?;
        if len > len_max {
            return Err(bad(format!("bitmap of {len} bits, the limit is {len_max}")));
        }
        if bytes.len() > (len as usize).div_ceil(8) {
            return Err(bad("bitmap longer than its universe".into()));
        }
        if bytes.len() < (len as usize).div_ceil(8) {
            return Self::from_runs(len, bytes).map_err(|error| bad(error.to_string()));
        }
        let mut map = Self::new(len);
        for (word, raw) in map.words.iter_mut().zip(bytes.chunks(8)) {
            let mut eight = [0u8; 8];
            eight[..raw.len()].copy_from_slice(raw);
            *word = u64::from_le_bytes(eight);
        }
        let before = map.words.last().copied();
        map.mask_tail();
        if map.words.last().copied() != before {
            return Err(bad("bits past the end of a bitmap".into()));
        }
        Ok(map)
    }
}
