//! Shards and manifests on their way through this host: from a link to the store, and from the store to a link.
//!
//! Invariant: at most [`SUBMITTED_MAX`] shards are in the store's queue. The driver reads no link while there are more,
//! so a slow disk slows the senders down instead of filling memory.

use super::Context;
use super::accounting::Event;
use super::blocking_pool::WorkKind;
use super::completions::Completion;
use bytes::Bytes;
use shoal_net::links::{OutFrame, SendError};
use shoal_proto::announcement::Class;
use shoal_proto::frame::Part;
use shoal_proto::ids::{ContentId, HostIndex, ShardIndex};
use shoal_store::{ReadError, SubmitError};
use shoal_swarm::io::Input;

/// Shards in the store's queue at a time. It is below the store's own bound, so the store refuses none.
const SUBMITTED_MAX: usize = shoal_store::SUBMIT_QUEUE_MAX / 2;

/// The token of a submitted shard. The store returns it with the result.
fn token_of(from: HostIndex) -> u64 {
    u64::from(from.0)
}

/// The sender in a token.
fn sender_of(token: u64) -> HostIndex {
    HostIndex(u32::try_from(token).unwrap_or(u32::MAX))
}

/// Payload to send.
pub struct OutgoingPart {
    pub to: HostIndex,
    pub content: ContentId,
    pub part: Part,
    pub class: Class,
}

impl OutgoingPart {
    /// Tells the core that nothing more happens to this part.
    fn report_sent(&self, cx: &mut Context) {
        cx.tell(Input::Sent { to: self.to, content: self.content, shard: shard_of(self.part) });
    }
}

/// The shard that a part is. `None` means the manifest.
pub fn shard_of(part: Part) -> Option<ShardIndex> {
    match part {
        Part::Shard(shard) => Some(shard),
        Part::Manifest => None,
    }
}

/// The received shards under way.
#[derive(Default)]
pub struct Payload {
    /// Shards in the store's queue. The store returns one event for each.
    submitted: usize,
}

impl Payload {
    /// Whether the driver must not read links now.
    pub fn is_full(&self) -> bool {
        self.submitted >= SUBMITTED_MAX
    }

    /// Hands a received shard to the store, which checks its hash.
    pub fn submit(&mut self, cx: &Context, from: HostIndex, content: ContentId, shard: ShardIndex, payload: Bytes) {
        match cx.store.submit_shard(&content, shard, payload, token_of(from)) {
            Ok(()) => self.submitted += 1,
            // The content was removed, or this host never asked for the shard.
            Err(SubmitError::UnknownContent) => cx.accounting.count(Event::ShardUnwanted),
            Err(SubmitError::Full(_)) => debug_assert!(false, "SUBMITTED_MAX is below the store's bound"),
        }
    }

    pub fn on_verified(&mut self, cx: &mut Context, content: ContentId, shard: ShardIndex, token: u64) {
        self.submitted = self.submitted.saturating_sub(1);
        cx.accounting.count(Event::ShardVerified);
        cx.tell(Input::ShardVerified { content, shard, from: sender_of(token) });
        cx.note_progress(content);
    }

    pub fn on_corrupt(&mut self, cx: &mut Context, content: ContentId, shard: ShardIndex, token: u64) {
        self.submitted = self.submitted.saturating_sub(1);
        let from = sender_of(token);
        cx.accounting.count(Event::ShardCorrupt);
        if let Some(skipped) = cx.warnings.pass() {
            tracing::warn!(content = %content.short(), %shard, %from, skipped, "received a corrupt shard");
        }
        cx.tell(Input::ShardCorrupt { content, shard, from });
    }
}

/// Sends a shard, from the cache at once or from the disk after a read.
pub fn send_shard(cx: &mut Context, to: HostIndex, content: ContentId, shard: ShardIndex, class: Class) {
    let part = OutgoingPart { to, content, part: Part::Shard(shard), class };
    match cx.store.read_cached(&content, shard) {
        Some(payload) => send(cx, &part, payload),
        None => read(cx, part, move |store| store.read(&content, shard)),
    }
}

/// Sends a content's manifest from the disk, or from memory if `known` has it.
pub fn send_manifest(cx: &mut Context, to: HostIndex, content: ContentId, class: Class, known: Option<Bytes>) {
    let part = OutgoingPart { to, content, part: Part::Manifest, class };
    match known {
        Some(manifest) => send(cx, &part, manifest),
        None => read(cx, part, move |store| store.read_manifest(&content)),
    }
}

fn read(
    cx: &mut Context,
    part: OutgoingPart,
    read: impl FnOnce(&shoal_store::Store) -> Result<Bytes, ReadError> + Send + 'static,
) {
    let store = cx.store.clone();
    cx.pool.run(WorkKind::Read, part.class, move || {
        let read = read(&store);
        Completion::PayloadRead { part, read }
    });
}

pub fn on_read(cx: &mut Context, part: &OutgoingPart, read: Result<Bytes, ReadError>) {
    match read {
        Ok(payload) => send(cx, part, payload),
        Err(error) => {
            tracing::warn!(content = %part.content.short(), %error, "cannot read stored payload");
            part.report_sent(cx);
            if let Some(shard) = shard_of(part.part) {
                cx.tell(Input::PieceLost { content: part.content, shard });
            }
        }
    }
}

/// Queues payload on a link. The link reports `Sent` to the core later, and this function does if no link can.
fn send(cx: &mut Context, part: &OutgoingPart, payload: Bytes) {
    let bytes = payload.len() as u64;
    let OutgoingPart { to, content, class, .. } = *part;
    let Some(node) = cx.region.member(to).map(|member| member.node) else { return };
    match cx.endpoint.send(node, OutFrame::Part { content, part: part.part, class, payload }) {
        Ok(()) => cx.accounting.sent(content, bytes),
        // `LinkDown` follows. It ends everything under way on the link.
        Err(SendError::Gone) => {}
        Err(error) => {
            if let Some(skipped) = cx.warnings.pass() {
                tracing::warn!(%to, content = %content.short(), %error, skipped, "cannot send a shard");
            }
            part.report_sent(cx);
        }
    }
}
