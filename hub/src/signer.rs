//! The hub's signature on receipts.
//!
//! Invariant: a receipt is signed with the key that the credential beside it names.

use shoal_api::hub::Receipt;
use shoal_net::admission::Admission;
use shoal_proto::codec::Document;
use shoal_proto::hex;
use shoal_proto::receipt::HubReceipt;
use shoal_proto::trust::{Envelope, Keypair};

/// Signs receipts.
pub(crate) struct ReceiptSigner {
    keys: Keypair,
    admission: Admission,
}

impl ReceiptSigner {
    /// `admission` has the credential of `keys`.
    pub(crate) fn new(keys: Keypair, admission: Admission) -> Self {
        Self { keys, admission }
    }

    /// Signs a receipt.
    pub(crate) fn sign(&self, receipt: &HubReceipt, duplicate: bool) -> Receipt {
        let signed = Envelope::seal(receipt, &self.keys).to_bytes();
        let credential = hex::encode(&self.admission.credential());
        Receipt { sequence: receipt.sequence, duplicate, credential, signed: hex::encode(&signed) }
    }
}
