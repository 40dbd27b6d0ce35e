//! What the tracker and the hub exchange beside reports: trust documents, and a new credential for the hub.
//!
//! Invariant: the tracker and the hub soon have the newer document of both, in whichever of them it arrived.

use crate::requests::lock;
use crate::state::TrackerState;
use shoal_api::trust::{CredentialInForce, TrustInForce};
use shoal_net::admission::Admission;
use shoal_service::http_client::Client;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the tracker waits before it asks the hub again. Revocations do not need the hub, so this may be slow.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// Exchanges documents until the token is cancelled.
pub(crate) async fn run(state: Arc<Mutex<TrackerState>>, admission: Admission, hub: Client, token: CancellationToken) {
    let mut changes = admission.changes();
    loop {
        let exchanges = async {
            exchange(&admission, &hub).await;
            renew(&state, &hub).await;
        };
        if token.run_until_cancelled(exchanges).await.is_none() {
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

/// Renews the hub's credential when it is due and this tracker's issuer may.
async fn renew(state: &Mutex<TrackerState>, hub: &Client) {
    if !lock(state).credentials().is_issuer() {
        return;
    }
    let former = match hub.answer("/v1/credential").await {
        Ok((200, former)) => former,
        Ok((status, _)) => return tracing::debug!(status, "the hub does not send its credential"),
        Err(error) => return tracing::debug!(%error, "cannot read the hub's credential"),
    };
    let fresh = match lock(state).credentials().renew_hub(&former) {
        Ok(Some(fresh)) => fresh,
        Ok(None) => return,
        Err(error) => return tracing::debug!(error = &error as &dyn Error, "cannot renew the hub's credential"),
    };
    match hub.post_bytes::<CredentialInForce>("/v1/credential", fresh).await {
        Ok(CredentialInForce { not_after }) => tracing::info!(not_after, "renewed the hub's credential"),
        Err(error) => tracing::warn!(%error, "the hub does not take its new credential"),
    }
}
