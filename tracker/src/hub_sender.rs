//! The task that sends spooled flushes to the hub, oldest first.
//!
//! Invariant: a flush leaves the spool only with a receipt that a hub of the cluster signed, or when its jobs are due
//! again.

use crate::requests::lock;
use crate::state::TrackerState;
use shoal_api::hub::Receipt;
use shoal_net::admission::system_clock;
use shoal_proto::hex;
use shoal_proto::ids::Hash;
use shoal_proto::limits;
use shoal_proto::receipt::{HubReceipt, ReceiptError};
use shoal_service::http_client::{Client, ClientError};
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// First pause before a failed flush is sent again. Each further failure doubles the pause.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest pause before a failed flush is sent again.
const RETRY_MAX: Duration = Duration::from_secs(15);

/// The largest signed receipt, with its envelope.
const SIGNED_BYTES_MAX: usize = 2 * limits::HUB_RECEIPT_BYTES_MAX;

/// Sends flushes until the token is cancelled.
pub(crate) async fn run(
    state: Arc<Mutex<TrackerState>>,
    hub: Client,
    flush_written: Arc<Notify>,
    token: CancellationToken,
) {
    // Ends wherever the loop waits: a flush that was half sent stays in the spool.
    let _ = token.run_until_cancelled(send_all(&state, &hub, &flush_written)).await; // either way the task ends
}

/// Why an answer does not count as the hub's.
#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error("the receipt is not written in hexadecimal digits")]
    Digits,
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
}

/// Checks that a hub of the cluster signed a receipt for exactly this submission.
fn check(state: &Mutex<TrackerState>, answer: &Receipt, sequence: u64, submission: Hash) -> Result<(), AnswerError> {
    let credential = hex::decode(&answer.credential, limits::CREDENTIAL_BYTES_MAX).ok_or(AnswerError::Digits)?;
    let signed = hex::decode(&answer.signed, SIGNED_BYTES_MAX).ok_or(AnswerError::Digits)?;
    let (trust, tracker) = lock(state).trust_and_key();
    let receipt = HubReceipt { tracker, sequence, submission };
    Ok(receipt.check(&trust, &credential, &signed, system_clock())?)
}

async fn send_all(state: &Mutex<TrackerState>, hub: &Client, flush_written: &Notify) {
    let mut pause = RETRY_FIRST;
    loop {
        let next = lock(state).next_submission();
        let flush = match next {
            Ok(Some(flush)) => flush,
            Ok(None) => {
                flush_written.notified().await;
                continue;
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn Error, "cannot read the spool");
                return;
            }
        };
        let (sequence, submission) = (flush.sequence, Hash::of(&flush.bytes));
        let removed = match hub.post_bytes::<Receipt>("/v1/reports", flush.bytes).await {
            Ok(receipt) => match check(state, &receipt, sequence, submission) {
                Ok(()) => {
                    pause = RETRY_FIRST;
                    lock(state).on_acknowledged(sequence)
                }
                Err(error) => {
                    tracing::warn!(%error, sequence, "an answer is not the hub's; sending the flush again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                    continue;
                }
            },
            Err(ClientError::Refused(error)) if matches!(error.status, 400 | 413 | 422) => {
                tracing::error!(%error, sequence, "the hub rejects a flush; its jobs are reported again");
                let removed = lock(state).on_rejected(sequence);
                tokio::time::sleep(RETRY_MAX).await;
                removed
            }
            Err(error) => {
                tracing::warn!(%error, sequence, "cannot send a flush to the hub; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
                continue;
            }
        };
        if let Err(error) = removed {
            tracing::error!(error = &error as &dyn Error, "cannot remove a flush from the spool");
            return;
        }
    }
}
