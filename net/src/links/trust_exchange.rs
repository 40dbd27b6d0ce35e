//! How trust documents travel over links: each end tells its version, and the end with the newer document sends it.
//!
//! Invariant: each document goes to a link at most once, and before any announcement that needs it. A link whose other
//! end sends useless or invalid documents ends.

use super::context::EndpointContext;
use super::error::ProtocolViolation;
use super::link::Link;
use crate::admission::Offered;
use bytes::Bytes;
use shoal_proto::trust::{Trust, TrustError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Documents that a link may bring again, or that exclude the one in force. An honest end sends no document twice.
const USELESS_MAX: u32 = 16;

/// What both ends of a link know of each other's trust documents.
#[derive(Debug, Default)]
pub struct TrustExchange {
    /// The newest version that the other end is known to have. 0 before it has told one.
    theirs: AtomicU64,
    /// The newest version that was sent to the other end.
    sent: AtomicU64,
    /// The newest version that the other end has sent.
    received: AtomicU64,
    /// Documents from the other end that it had sent before, or that exclude the one in force.
    useless: AtomicU32,
}

/// Tells the other end of a new link the version of the document in force.
pub fn tell_version(context: &EndpointContext, link: &Link) {
    let version = context.config().admission.trust().version();
    let _ = link.queue().push_trust_version(version); // fails only while the link closes
}

/// Handles the other end's version.
pub fn on_version(context: &EndpointContext, link: &Link, version: u64) {
    link.trust().theirs.fetch_max(version, Ordering::Relaxed);
    send_if_newer(&context.config().admission.trust(), link);
}

/// Handles a document from the other end. A newer one goes on to all links at once, so that it stays ahead of
/// announcements that need it.
///
/// # Errors
///
/// Fails if the document is invalid, or the other end has sent too many useless ones.
pub async fn on_document(context: &EndpointContext, link: &Link, bytes: Vec<u8>) -> Result<(), ProtocolViolation> {
    match context.config().admission.offer_received(bytes).await {
        Ok(Offered::InForce) => {
            let version = context.config().admission.trust().version();
            link.trust().theirs.fetch_max(version, Ordering::Relaxed);
            link.trust().received.fetch_max(version, Ordering::Relaxed);
            spread(context);
            return Ok(());
        }
        // Both ends may learn a document from others at the same time, and send it to each other.
        Ok(Offered::Known { version }) => {
            link.trust().theirs.fetch_max(version, Ordering::Relaxed);
            if link.trust().received.fetch_max(version, Ordering::Relaxed) < version {
                return Ok(());
            }
        }
        // The root signed two documents that exclude each other. An honest neighbour may have the other one.
        Err(error @ (TrustError::NotNewer { .. } | TrustError::NotContinued(_))) => {
            if let Some(skipped) = context.warnings().pass() {
                tracing::warn!(node = %link.node().short(), %error, skipped, "ignored a trust document");
            }
        }
        Err(error) => return Err(ProtocolViolation::InvalidTrust(error)),
    }
    if link.trust().useless.fetch_add(1, Ordering::Relaxed) >= USELESS_MAX {
        return Err(ProtocolViolation::UselessTrust);
    }
    Ok(())
}

/// Sends the document in force to every link whose other end has an older one.
pub fn spread(context: &EndpointContext) {
    let trust = context.config().admission.trust();
    context.registry().links().iter().for_each(|link| send_if_newer(&trust, link));
}

fn send_if_newer(trust: &Arc<Trust>, link: &Link) {
    let (exchange, version) = (link.trust(), trust.version());
    let theirs = exchange.theirs.load(Ordering::Relaxed);
    if theirs == 0 || theirs >= version || exchange.sent.fetch_max(version, Ordering::Relaxed) >= version {
        return;
    }
    if link.queue().push_trust(Bytes::copy_from_slice(trust.bytes())).is_err() {
        // The queue is full or closing. The periodic check of links tries again.
        exchange.sent.store(0, Ordering::Relaxed);
    }
}
