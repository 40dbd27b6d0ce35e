//! Derivation of the traffic keys that follow the present ones (RFC 8446, section 7.2).
//!
//! Invariant: each call moves its direction one key forward, so a key is never derived twice.

use crate::error::RecordError;
use crate::record_key::RecordKey;
use rustls::kernel::KernelConnection;

/// Derives the next traffic key of either direction.
pub trait Rekey: Send {
    /// Returns the next key for sealing.
    ///
    /// # Errors
    ///
    /// Fails if the key cannot be derived.
    fn next_sealing_key(&mut self) -> Result<RecordKey, RecordError>;

    /// Returns the next key for opening.
    ///
    /// # Errors
    ///
    /// Fails if the key cannot be derived.
    fn next_opening_key(&mut self) -> Result<RecordKey, RecordError>;
}

impl<Data: Send> Rekey for KernelConnection<Data> {
    fn next_sealing_key(&mut self) -> Result<RecordKey, RecordError> {
        let (sequence, secrets) = self.update_tx_secret().map_err(RecordError::NextKey)?;
        RecordKey::from_rustls(&secrets, sequence)
    }

    fn next_opening_key(&mut self) -> Result<RecordKey, RecordError> {
        let (sequence, secrets) = self.update_rx_secret().map_err(RecordError::NextKey)?;
        RecordKey::from_rustls(&secrets, sequence)
    }
}
