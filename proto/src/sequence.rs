//! Sequences: the numbers that order the versions of a name.
//!
//! A sequence is one number: the trust epoch in its upper 20 bits, milliseconds since 1970 in its lower 44 bits. So a
//! comparison of two sequences compares the epochs first (ADR 0028).
//! Invariant: [`next`] returns a number above all sequences that the caller knows, in the present epoch.

use crate::limits::{CLOCK_SKEW_MAX_S, TRUST_EPOCH_MAX};

/// Bits of the milliseconds. They last until the year 2527.
const MS_BITS: u32 = 44;
const MS_MAX: u64 = (1 << MS_BITS) - 1;

/// Why no sequence can be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// A version of a later trust epoch is known.
    #[error(
        "a version of trust epoch {known} is known, and the trust document in force has epoch {in_force}; \
             publish the newest trust document to this seeder"
    )]
    OldEpoch {
        /// The epoch of the known version.
        known: u32,
        /// The epoch of the trust document in force.
        in_force: u32,
    },
    /// The last version is so far ahead of the clock that hosts would refuse its successor.
    #[error(
        "the last version is {ahead_s} s ahead of this clock, and hosts accept {CLOCK_SKEW_MAX_S} s; \
             correct the clock, or increase the trust epoch with `shoal cluster rotate-publisher`"
    )]
    AheadOfClock {
        /// Seconds between the clock and the last version.
        ahead_s: u64,
    },
    /// The clock, or the epoch, is beyond what a sequence can hold.
    #[error("the clock or the trust epoch is out of range")]
    OutOfRange,
}

/// Returns the first sequence of an epoch at a time, or `None` if one of both is out of range.
pub fn at(epoch: u32, unix_ms: u64) -> Option<u64> {
    (epoch <= TRUST_EPOCH_MAX && unix_ms <= MS_MAX).then(|| u64::from(epoch) << MS_BITS | unix_ms)
}

/// Returns the trust epoch of a sequence.
pub fn epoch_of(sequence: u64) -> u32 {
    (sequence >> MS_BITS) as u32
}

/// Returns the time of a sequence, milliseconds since 1970.
pub fn unix_ms_of(sequence: u64) -> u64 {
    sequence & MS_MAX
}

/// Returns the sequence for the next version of a name: the clock, or one more than `last`.
///
/// # Errors
///
/// [`SequenceError`] if hosts would refuse such a version, or no number is left.
pub fn next(epoch: u32, now_ms: u64, last: u64) -> Result<u64, SequenceError> {
    let clock = at(epoch, now_ms).ok_or(SequenceError::OutOfRange)?;
    let known = epoch_of(last);
    if known > epoch {
        return Err(SequenceError::OldEpoch { known, in_force: epoch });
    }
    let next = clock.max(last.checked_add(1).ok_or(SequenceError::OutOfRange)?);
    let ahead_ms = unix_ms_of(next).saturating_sub(now_ms);
    if epoch_of(next) != epoch || ahead_ms > CLOCK_SKEW_MAX_S * 1000 {
        return Err(SequenceError::AheadOfClock { ahead_s: ahead_ms / 1000 });
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_795_000_000_000;

    proptest! {
        #[test]
        fn the_epoch_counts_before_the_time(
            (epoch, other) in (0..=TRUST_EPOCH_MAX, 0..=TRUST_EPOCH_MAX),
            (ms, other_ms) in (0..=MS_MAX, 0..=MS_MAX),
        ) {
            let (one, two) = (at(epoch, ms).unwrap(), at(other, other_ms).unwrap());
            prop_assert_eq!(one.cmp(&two), (epoch, ms).cmp(&(other, other_ms)));
            prop_assert_eq!((epoch_of(one), unix_ms_of(one)), (epoch, ms));
        }

        #[test]
        fn the_next_sequence_is_above_the_last_one_or_refused(epoch in 1..9u32, now in 0..=MS_MAX, last: u64) {
            if let Ok(next) = next(epoch, now, last) {
                prop_assert!(next > last && epoch_of(next) == epoch);
                prop_assert!(unix_ms_of(next) <= now + CLOCK_SKEW_MAX_S * 1000);
            }
        }
    }

    #[test]
    fn a_stolen_sequence_ends_with_its_epoch() {
        let stolen = at(1, MS_MAX).unwrap();
        assert!(matches!(next(1, NOW, stolen), Err(SequenceError::AheadOfClock { .. })));
        assert_eq!(next(2, NOW, stolen), Ok(at(2, NOW).unwrap()));
        assert_eq!(next(2, NOW, u64::MAX), Err(SequenceError::OldEpoch { known: TRUST_EPOCH_MAX, in_force: 2 }));
        assert_eq!(next(TRUST_EPOCH_MAX, NOW, u64::MAX), Err(SequenceError::OutOfRange));
        assert_eq!(next(1, MS_MAX + 1, 0), Err(SequenceError::OutOfRange));
    }

    #[test]
    fn a_clock_that_went_back_a_little_still_yields_sequences() {
        let last = at(3, NOW + 60_000).unwrap();
        assert_eq!(next(3, NOW, last), Ok(last + 1));
        let last = at(3, NOW + CLOCK_SKEW_MAX_S * 1000 + 5000).unwrap();
        assert_eq!(next(3, NOW, last), Err(SequenceError::AheadOfClock { ahead_s: CLOCK_SKEW_MAX_S + 5 }));
    }
}
