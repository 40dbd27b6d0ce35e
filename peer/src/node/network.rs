//! What links bring: hosts, messages, announcements, payload.

use super::{Driver, Stranger};
use shoal_net::bulk::BulkEvent;
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::Document;
use shoal_proto::frame::{AnnounceFrame, CloseReason, Part};
use shoal_proto::ids::{ContentId, HostIndex, NodeId};
use shoal_proto::limits;
use shoal_proto::trust::Envelope;
use shoal_store::{PutError, StoreEvent};
use shoal_swarm::io::Input;
use std::sync::Arc;

/// Events kept for a link whose other end membership does not tell of yet.
const SAID_MAX: usize = 256;

impl Driver {
    pub(super) fn on_link_event(&mut self, event: BulkEvent) {
        match event {
            BulkEvent::LinkUp { node, .. } => {
                self.linked.insert(node, ());
                self.book.metrics.links.set(self.linked.len() as i64);
                self.link_up(node);
            }
            BulkEvent::LinkDown { node, reason, error } => {
                self.linked.remove(&node);
                self.strangers.remove(&node);
                self.book.metrics.links.set(self.linked.len() as i64);
                tracing::debug!(node = %node.short(), ?reason, ?error, "link down");
                if let Some(host) = self.membership.by_node(&node) {
                    self.tell(Input::LinkDown { host, reason });
                }
            }
            BulkEvent::DialFailed { node, error } => {
                tracing::debug!(node = %node.short(), %error, "cannot dial");
                if let Some(host) = self.membership.by_node(&node) {
                    self.tell(Input::DialFailed { host });
                }
            }
            BulkEvent::Sent { node, content, part } => {
                let shard = match part {
                    Part::Shard(shard) => Some(shard),
                    Part::Manifest => None,
                };
                if let Some(to) = self.membership.by_node(&node) {
                    self.tell(Input::Sent { to, content, shard });
                }
            }
            other => self.on_said(other),
        }
    }

    /// What a host said, once we know who it is.
    fn on_said(&mut self, event: BulkEvent) {
        let node = match &event {
            BulkEvent::Message { node, .. } | BulkEvent::Announce { node, .. } | BulkEvent::Part { node, .. } => *node,
            _ => return,
        };
        if let Some(stranger) = self.strangers.get_mut(&node) {
            // Payload is nothing a stranger was asked for.
            if stranger.said.len() < SAID_MAX && !matches!(event, BulkEvent::Part { .. }) {
                stranger.said.push(event);
            }
            return;
        }
        let Some(from) = self.membership.by_node(&node) else { return };
        match event {
            BulkEvent::Message { message, .. } => self.tell(Input::Message { from, message }),
            BulkEvent::Announce { frame, .. } => self.on_announce(from, frame),
            BulkEvent::Part { content, part, payload, .. } => {
                if let Some(me) = self.me {
                    let tier = self.membership.tier(me, from);
                    self.book.received(content, Some(tier), payload.len() as u64);
                }
                match part {
                    Part::Manifest => self.begin(content, payload, Some(from)),
                    Part::Shard(shard) => match self.store.put(&content, shard, payload, u64::from(from.0)) {
                        Ok(()) => self.puts += 1,
                        // Not ours any more, or never asked for.
                        Err(PutError::Unknown) => {
                            self.book.metrics.surplus.inc();
                        }
                        Err(PutError::Full(_)) => {
                            debug_assert!(false, "puts are counted below the store's bound");
                        }
                    },
                }
            }
            _ => {}
        }
    }

    /// Tells the brain of a link, or remembers it until membership knows the host.
    pub(super) fn link_up(&mut self, node: NodeId) {
        match self.membership.by_node(&node) {
            Some(host) if self.brain.is_some() => self.tell(Input::LinkUp { host }),
            _ => {
                let since = self.now();
                self.strangers.entry(node).or_insert(Stranger { since, said: Vec::new() });
            }
        }
    }

    /// Takes in links whose hosts membership knows by now.
    pub(super) fn greet_strangers(&mut self) {
        if self.brain.is_none() {
            return;
        }
        let known: Vec<NodeId> =
            self.strangers.keys().filter(|node| self.membership.by_node(node).is_some()).copied().collect();
        for node in known {
            let Some(stranger) = self.strangers.remove(&node) else { continue };
            self.link_up(node);
            for event in stranger.said {
                self.on_said(event);
            }
        }
    }

    pub(super) fn on_store(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Verified { content, shard, token } => {
                self.puts = self.puts.saturating_sub(1);
                let from = HostIndex(token as u32);
                self.tell(Input::ShardVerified { content, shard, from });
                self.report_progress(&content);
            }
            StoreEvent::Corrupt { content, shard, token } => {
                self.puts = self.puts.saturating_sub(1);
                self.book.metrics.corrupt.inc();
                let from = HostIndex(token as u32);
                tracing::warn!(content = %content.short(), %shard, %from, "bad shard");
                self.tell(Input::ShardCorrupt { content, shard, from });
            }
            StoreEvent::Rebuilt { content, shards, .. } => self.tell(Input::Rebuilt { content, shards }),
            StoreEvent::WriteFailed { content, error } => self.disk_failed(content, &error),
        }
    }

    fn on_announce(&mut self, from: HostIndex, frame: AnnounceFrame) {
        let trust = self.trust.clone();
        let opened = Envelope::from_bytes(&frame.envelope)
            .map_err(Into::into)
            .and_then(|envelope| trust.open_published::<Announcement>(&envelope));
        let announcement = match opened {
            Ok(announcement) => Arc::new(announcement),
            Err(error) => {
                self.book.metrics.untrusted.inc();
                tracing::warn!(%from, %error, "refused an announcement");
                return;
            }
        };
        if announcement.expires_at <= shoal_net::admission::system_clock() {
            return;
        }
        let job = announcement.job;
        if !self.envelopes.contains_key(&job) {
            self.keep_job(announcement.clone(), frame.envelope.into());
        }
        if let (Some(me), Some(data)) = (self.me, &frame.data) {
            let tier = self.membership.tier(me, from);
            self.book.received(announcement.content, Some(tier), data.len() as u64);
        }
        let inline = match (frame.manifest, frame.data) {
            (Some(manifest), Some(data)) => self.take_inline(&announcement, manifest, data),
            _ => false,
        };
        self.tell(Input::Announced { from: Some(from), lane: frame.lane, announcement: announcement.clone(), inline });
        self.refuse_if_stale(&announcement);
    }

    pub(super) fn close(&mut self, host: HostIndex, reason: CloseReason) {
        if let Some(member) = self.membership.get(host) {
            self.endpoint.close(member.node, reason);
        }
    }

    /// Largest content whose data may travel in announcements.
    pub(super) fn is_small(announcement: &Announcement) -> bool {
        announcement.size <= limits::INLINE_DATA_BYTES_MAX
            && announcement.manifest_bytes <= limits::INLINE_MANIFEST_BYTES_MAX as u64
    }

    /// Progress of a content goes into the reports of its jobs.
    pub(super) fn report_progress(&mut self, content: &ContentId) {
        let progress = self.progress(content);
        let (tiers, sent) = (self.book.tiers(content), self.book.sent(content));
        let mut reports = self.shared.reports();
        for (announcement, _) in self.envelopes.values().filter(|(announcement, _)| announcement.content == *content) {
            reports.progress(announcement.job, progress.have, progress.total, tiers, sent);
        }
        drop(reports);
        self.shared.tell_soon();
    }
}
