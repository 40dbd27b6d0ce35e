//! The hub's signature on receipts.
//!
//! Invariant: a receipt is signed with the key that the credential beside it names.

use shoal_api::hub::Receipt;
use shoal_proto::codec::Document;
use shoal_proto::limits;
use shoal_proto::receipt::HubReceipt;
use shoal_proto::trust::{Envelope, Keypair};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

/// Signs receipts.
pub(crate) struct ReceiptSigner {
    keys: Keypair,
    credential: PathBuf,
}

impl ReceiptSigner {
    /// `credential` is the file of the credential of `keys`.
    pub(crate) fn new(keys: Keypair, credential: PathBuf) -> Self {
        Self { keys, credential }
    }

    /// Signs a receipt. The credential is read again, so that a renewed one is in use at once.
    ///
    /// # Errors
    /// Fails if the credential cannot be read.
    pub(crate) fn sign(&self, receipt: &HubReceipt, duplicate: bool) -> io::Result<Receipt> {
        let mut credential = Vec::new();
        File::open(&self.credential)?.take(limits::CREDENTIAL_BYTES_MAX as u64).read_to_end(&mut credential)?;
        let signed = Envelope::seal(receipt, &self.keys).to_bytes();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Receipt { sequence: receipt.sequence, duplicate, credential: hex(&credential), signed: hex(&signed) })
    }
}
