//! The hub's receipt for a flush.
//!
//! Invariant: a receipt is of one flush of one tracker, because it has the hash of all bytes of the submission.

use crate::codec::{DecodeError, DocKind, Document};
use crate::ids::{Hash, NodeId};
use crate::limits;
use crate::trust::{Envelope, Role, Trust, TrustError};
use minicbor::{Decode, Encode};

/// What a hub confirms: it has a flush on its disk, or it had a newer one of the same tracker.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HubReceipt {
    /// The tracker that sent the flush.
    #[n(0)]
    pub tracker: NodeId,
    /// The sequence of the flush.
    #[n(1)]
    pub sequence: u64,
    /// The hash of the submission as it was sent.
    #[n(2)]
    pub submission: Hash,
}

impl Document for HubReceipt {
    const KIND: DocKind = DocKind::HubReceipt;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::HUB_RECEIPT_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        Ok(())
    }
}

/// Why an answer is not the hub's receipt for a flush.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// The credential or the signature is not a hub's.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The bytes are not a receipt.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The receipt is for another flush.
    #[error("the receipt is for another flush")]
    OtherFlush,
}

impl HubReceipt {
    /// Checks that a hub of the cluster signed exactly this receipt. `credential` and `signed` are the hub's answer.
    ///
    /// # Errors
    /// [`ReceiptError`] if the credential is not admitted, is not a hub's, or the signature or the receipt differs.
    pub fn check(&self, trust: &Trust, credential: &[u8], signed: &[u8], now: u64) -> Result<(), ReceiptError> {
        let envelope = Envelope::from_bytes(signed)?;
        let admitted = trust.admit(credential, envelope.signer(), now)?;
        if admitted.role != Role::Hub {
            return Err(TrustError::WrongRole(admitted.role).into());
        }
        let receipt: Self = envelope.open()?;
        if receipt == *self { Ok(()) } else { Err(ReceiptError::OtherFlush) }
    }
}
