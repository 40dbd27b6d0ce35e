//! Flushes on their way to the hub. A flush is on the disk before it is sent, and stays there until the hub has it.
//!
//! Invariant: sequences grow and never repeat, so that the hub counts each flush once.

use crate::tables::{META, SEQUENCE, SPOOL};
use shoal_kv::{Database, KvError, Table};
use shoal_net::admission::system_clock;
use std::sync::Arc;

/// A flush that waits for the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct SpooledFlush {
    pub sequence: u64,
    pub bytes: Vec<u8>,
}

/// The flushes that wait, by sequence.
#[derive(Debug)]
pub struct Spool {
    flushes: Table,
    meta: Table,
    next: u64,
    /// Rows of `flushes`, counted here because a count in the database reads them all.
    waiting: usize,
}

impl Spool {
    /// Continues from the disk.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn open(database: &Arc<dyn Database>) -> Result<Self, KvError> {
        let (flushes, meta) = (Table::new(database, SPOOL), Table::new(database, META));
        // A tracker that lost its folder starts above every sequence that it can have used. It writes less than one
        // flush per millisecond, so the clock in milliseconds is such a number.
        let next = meta.get_u64(SEQUENCE)?.map_or_else(|| system_clock() * 1000, |last| last.saturating_add(1));
        let waiting = flushes.count()?;
        Ok(Self { flushes, meta, next, waiting })
    }

    /// Returns the sequence that the next flush takes.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Stores a flush under [`Spool::next_sequence`]. It survives a kill when this returns.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), KvError> {
        self.meta.put_u64(SEQUENCE, self.next)?;
        self.flushes.put(self.next.to_be_bytes(), bytes)?;
        self.flushes.flush()?;
        self.next += 1;
        self.waiting += 1;
        Ok(())
    }

    /// Returns the oldest flush.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn first(&self) -> Result<Option<SpooledFlush>, KvError> {
        let Some(row) = self.flushes.first()? else { return Ok(None) };
        let sequence = row.key.as_slice().try_into().map_or(0, u64::from_be_bytes);
        Ok(Some(SpooledFlush { sequence, bytes: row.value }))
    }

    /// Drops a flush that the hub has.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn remove(&mut self, sequence: u64) -> Result<(), KvError> {
        if self.flushes.get(sequence.to_be_bytes())?.is_some() {
            self.flushes.delete(sequence.to_be_bytes())?;
            self.waiting -= 1;
        }
        Ok(())
    }

    /// Returns how many flushes wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Returns whether no flush waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Drops every flush. The caller reports all of their jobs again.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn clear(&mut self) -> Result<(), KvError> {
        self.flushes.clear()?;
        self.waiting = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables;

    #[test]
    fn flushes_stay_until_acknowledged_and_sequences_never_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Vec::new();
        for round in 0..3u8 {
            let database = tables::open(dir.path()).unwrap();
            let mut spool = Spool::open(&database).unwrap();
            assert_eq!(spool.len(), usize::from(round));
            seen.push(spool.next_sequence());
            spool.push(&[round]).unwrap();
            assert_eq!(spool.first().unwrap().unwrap().bytes, [0]);
        }
        assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1));
        let database = tables::open(dir.path()).unwrap();
        let mut spool = Spool::open(&database).unwrap();
        spool.remove(seen[0]).unwrap();
        assert_eq!(spool.first().unwrap().unwrap(), SpooledFlush { sequence: seen[1], bytes: vec![1] });
        spool.remove(seen[0]).unwrap();
        assert_eq!(spool.len(), 2, "a second removal counts nothing");
        spool.clear().unwrap();
        assert!(spool.is_empty() && spool.first().unwrap().is_none());
    }
}
