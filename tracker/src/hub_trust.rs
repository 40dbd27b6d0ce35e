//! The exchange of trust documents with the hub, which knows the trackers of all regions.
//!
//! Invariant: the tracker and the hub soon have the newer document of both, in whichever of them it arrived.

use shoal_api::trust::TrustInForce;
use shoal_net::admission::Admission;
use shoal_service::http_client::Client;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the tracker waits before it asks the hub again. Revocations do not need the hub, so this may be slow.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// Exchanges documents until the token is cancelled.
pub(crate) async fn run(admission: Admission, hub: Client, token: CancellationToken) {
    let mut changes = admission.changes();
    loop {
        if token.run_until_cancelled(exchange(&admission, &hub)).await.is_none() {
            return;
        }
        tokio::select! {
            () = token.cancelled() => return,
            _ = changes.changed() => {}
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

/// Sends the document in force, and takes the hub's document if that is newer.
async fn exchange(admission: &Admission, hub: &Client) {
    let ours = admission.trust();
    let theirs = match hub.post_bytes::<TrustInForce>("/v1/trust", ours.bytes().to_vec()).await {
        Ok(theirs) => theirs,
        Err(error) => return tracing::debug!(%error, "cannot send the trust document to the hub"),
    };
    if theirs.version <= ours.version() {
        return;
    }
    let document = match hub.answer("/v1/trust").await {
        Ok((200, document)) => document,
        Ok((status, _)) => return tracing::debug!(status, "the hub does not send its trust document"),
        Err(error) => return tracing::debug!(%error, "cannot read the trust document of the hub"),
    };
    if let Err(error) = admission.offer_received(document).await {
        tracing::warn!(%error, "refused the hub's trust document");
    }
}
