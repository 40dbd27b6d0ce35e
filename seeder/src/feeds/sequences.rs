//! Sequences of feeds.
//!
//! A sequence must never be used twice, not even by a seeder that was killed. Writing each one to the disk first
//! would cost a sync per version. So the disk holds a ceiling ahead of use: sequences up to it may have been used. A
//! restarted seeder begins above the ceiling.
//! Invariant: no sequence above the ceiling on disk is drawn.

use crate::errors::StateError;
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::sequence::{self, SequenceError};
use shoal_store::Store;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Key of the record with the ceiling.
const CEILING: &str = "feed-ceiling";
/// Sequences that are reserved at a time. A sequence is usually a millisecond, so this is one minute.
const RESERVED_SPAN: u64 = 60_000;

struct State {
    /// The last sequence drawn, by name.
    last: BTreeMap<String, u64>,
    /// The ceiling at the start. Sequences up to it may have been used by a former run.
    floor: u64,
    /// The ceiling on disk.
    ceiling: u64,
    /// A thread is raising the ceiling.
    is_raising: bool,
}

/// The result of [`Sequences::draw`].
pub struct Reserved {
    /// The sequence, unless the ceiling is too low.
    pub(super) sequence: Option<u64>,
    /// The caller now has to call [`Sequences::reserve`] with this ceiling.
    pub(super) reserve_up_to: Option<u64>,
}

/// The sequences of all feeds of a seeder.
pub struct Sequences {
    store: Store,
    state: Mutex<State>,
}

impl Sequences {
    /// Continues above the ceiling on disk.
    pub fn open(store: Store) -> Arc<Self> {
        let ceiling = store.get_state(CEILING).ok().flatten();
        let ceiling = ceiling.and_then(|bytes| decode_exact::<u64>(&bytes).ok()).unwrap_or(0);
        let state = State { last: BTreeMap::new(), floor: ceiling, ceiling, is_raising: false };
        Arc::new(Self { store, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws the next sequence of a name in trust epoch `epoch`, above `heard` and at least `now` (Unix milliseconds).
    pub fn draw(&self, name: &str, epoch: u32, now: u64, heard: u64) -> Result<Reserved, SequenceError> {
        let mut state = self.state();
        let last = state.last.get(name).copied().unwrap_or(state.floor);
        let next = sequence::next(epoch, now, last.max(heard))?;
        let should_reserve = next.saturating_add(RESERVED_SPAN / 2) > state.ceiling && !state.is_raising;
        state.is_raising |= should_reserve;
        let is_reserved = next <= state.ceiling;
        if is_reserved {
            state.last.insert(name.into(), next);
        }
        let reserve_up_to = should_reserve.then_some(next.saturating_add(RESERVED_SPAN));
        Ok(Reserved { sequence: is_reserved.then_some(next), reserve_up_to })
    }

    /// Raises the ceiling durably. Blocks.
    pub fn reserve(&self, ceiling: u64) -> Result<(), StateError> {
        let stored = self.store.put_state(CEILING, Some(encode(&ceiling))).and_then(|()| self.store.sync());
        let mut state = self.state();
        state.is_raising = false;
        if stored.is_ok() {
            state.ceiling = state.ceiling.max(ceiling);
        }
        Ok(stored?)
    }
}
