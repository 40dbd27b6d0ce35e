//! Flushes on their way to the hub: on the disk before they are sent, until they are acknowledged.
//!
//! Invariant: sequences grow by one and never repeat, so the hub can take each flush once.

use shoal_net::admission::system_clock;

/// The spool's records failed.
#[derive(Debug, thiserror::Error)]
#[error("the spool: {0}")]
pub struct SpoolError(String);

impl From<sled::Error> for SpoolError {
    fn from(error: sled::Error) -> Self {
        Self(error.to_string())
    }
}

/// Flushes by sequence.
pub struct Spool {
    tree: sled::Tree,
    meta: sled::Tree,
    next: u64,
}

impl Spool {
    /// Continues from the disk.
    pub fn open(db: &sled::Db) -> Result<Self, SpoolError> {
        let (tree, meta) = (db.open_tree("spool")?, db.open_tree("meta")?);
        let last = meta.get("sequence")?.and_then(|bytes| bytes.as_ref().try_into().ok()).map(u64::from_be_bytes);
        // A tracker that lost its folder begins above anything it can have used before: it flushes less than once a
        // millisecond.
        let next = last.map_or_else(|| system_clock() * 1000, |last| last + 1);
        Ok(Self { tree, meta, next })
    }

    /// The sequence the next flush takes.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Keeps a flush under [`Spool::next_sequence`], durably.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        self.meta.insert("sequence", &self.next.to_be_bytes())?;
        self.tree.insert(self.next.to_be_bytes(), bytes)?;
        self.tree.flush()?;
        self.next += 1;
        Ok(())
    }

    /// The oldest flush.
    pub fn first(&self) -> Result<Option<(u64, Vec<u8>)>, SpoolError> {
        let Some((key, value)) = self.tree.first()? else { return Ok(None) };
        let sequence = key.as_ref().try_into().map_or(0, u64::from_be_bytes);
        Ok(Some((sequence, value.to_vec())))
    }

    /// The hub has it.
    pub fn done(&self, sequence: u64) -> Result<(), SpoolError> {
        self.tree.remove(sequence.to_be_bytes())?;
        Ok(())
    }

    /// Flushes that wait.
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Drops all that wait: what they say is about to be said anew.
    pub fn clear(&self) -> Result<(), SpoolError> {
        self.tree.clear()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_stay_until_acknowledged_and_sequences_never_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Vec::new();
        for round in 0..3u8 {
            let db = sled::open(dir.path()).unwrap();
            let mut spool = Spool::open(&db).unwrap();
            assert_eq!(spool.len(), usize::from(round));
            seen.push(spool.next_sequence());
            spool.push(&[round]).unwrap();
            assert_eq!(spool.first().unwrap().unwrap().1, [0]);
        }
        assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1));
        let db = sled::open(dir.path()).unwrap();
        let spool = Spool::open(&db).unwrap();
        spool.done(seen[0]).unwrap();
        assert_eq!(spool.first().unwrap().unwrap(), (seen[1], vec![1]));
    }
}
