//! What links bring: hosts, messages, announcements, payload.

use super::{Driver, Stranger};
use shoal_net::links::LinkEvent;
use shoal_proto::frame::{AnnounceFrame, CloseReason, Part};
use shoal_proto::ids::{HostIndex, NodeId};
use shoal_proto::message::Message;
use shoal_store::{StoreEvent, SubmitError};
use shoal_swarm::io::{Input, Via};
use std::sync::Arc;

/// Events kept for a link whose other end membership does not tell of yet.
const SAID_MAX: usize = 256;

impl Driver {
    pub(super) fn on_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::LinkUp { node, credential, .. } => {
                self.linked.insert(node);
                self.met(node, &credential);
                self.book.metrics.links.set(self.linked.len() as i64);
                self.link_up(node);
            }
            LinkEvent::LinkDown { node, reason, error } => {
                self.linked.remove(&node);
                self.parted(&node);
                self.strangers.remove(&node);
                self.book.metrics.links.set(self.linked.len() as i64);
                tracing::debug!(node = %node.short(), ?reason, ?error, "link down");
                if let Some(host) = self.membership.by_node(&node) {
                    self.tell(Input::LinkDown { host, reason });
                }
            }
            LinkEvent::DialFailed { node, error } => {
                tracing::debug!(node = %node.short(), %error, "cannot dial");
                if let Some(host) = self.membership.by_node(&node) {
                    self.tell(Input::DialFailed { host });
                }
            }
            LinkEvent::Sent { node, content, part } => {
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
    fn on_said(&mut self, event: LinkEvent) {
        let event = match event {
            LinkEvent::Message { node, message: Message::WantRackPeers } => return self.tell_mates_of(node),
            LinkEvent::Message { node, message: Message::RackPeers { rows } } => return self.hear_of_mates(node, rows),
            event => event,
        };
        let node = match &event {
            LinkEvent::Message { node, .. } | LinkEvent::Announce { node, .. } | LinkEvent::Part { node, .. } => *node,
            _ => return,
        };
        if let Some(stranger) = self.strangers.get_mut(&node) {
            // Payload is nothing a stranger was asked for.
            if stranger.said.len() < SAID_MAX && !matches!(event, LinkEvent::Part { .. }) {
                stranger.said.push(event);
            }
            return;
        }
        let Some(from) = self.membership.by_node(&node) else { return };
        match event {
            LinkEvent::Message { message, .. } => {
                self.hear_of_feeds(&message);
                self.tell(Input::Message { from, message });
            }
            LinkEvent::Announce { frame, .. } => self.on_announce(from, frame),
            LinkEvent::Part { content, part, payload, .. } => {
                if let Some(me) = self.me {
                    let tier = self.membership.tier(me, from);
                    self.book.received(content, Some(tier), payload.len() as u64);
                }
                match part {
                    Part::Manifest => {
                        tracing::debug!(content = %content.short(), %from, bytes = payload.len(), "manifest came");
                        self.manifest_came(content, payload, from);
                    }
                    Part::Shard(shard) => {
                        // The token brings back who sent it and how long it was.
                        let token = (payload.len() as u64) << 32 | u64::from(from.0);
                        match self.store.submit_shard(&content, shard, payload, token) {
                            Ok(()) => self.puts += 1,
                            // Not ours any more, or never asked for.
                            Err(SubmitError::UnknownContent) => {
                                self.book.metrics.surplus.inc();
                            }
                            Err(SubmitError::Full(_)) => {
                                debug_assert!(false, "puts are counted below the store's bound");
                            }
                        }
                    }
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
                self.book.metrics.pieces.inc();
                let from = HostIndex(token as u32);
                self.tell(Input::ShardVerified { content, shard, from });
                self.progressed(content);
            }
            StoreEvent::Corrupt { content, shard, token } => {
                self.puts = self.puts.saturating_sub(1);
                self.book.metrics.corrupt.inc();
                let from = HostIndex(token as u32);
                tracing::warn!(content = %content.short(), %shard, %from, "bad shard");
                self.tell(Input::ShardCorrupt { content, shard, from });
            }
            StoreEvent::Rebuilt { content, stripe, shards } => {
                self.tell(Input::Rebuilt { content, stripe, shards });
            }
            StoreEvent::WriteFailed { content, error } => self.disk_failed(content, &error),
        }
    }

    fn on_announce(&mut self, from: HostIndex, mut frame: AnnounceFrame) {
        if self.is_known_feed(from, &mut frame) {
            return;
        }
        let announcement = match self.open_announcement(&frame.envelope) {
            Ok(announcement) => announcement,
            Err(error) => {
                self.refuse_announcement(from, &frame.envelope, &error);
                return;
            }
        };
        if announcement.expires_at <= shoal_net::admission::system_clock() {
            self.book.metrics.refused.inc();
            return;
        }
        if announcement.feed.is_some() {
            self.on_feed_announce(from, frame, announcement);
            return;
        }
        let announcement = Arc::new(announcement);
        let content = announcement.content;
        if let (Some(me), Some(data)) = (self.me, &frame.data) {
            let tier = self.membership.tier(me, from);
            self.book.received(content, Some(tier), data.len() as u64);
        }
        let new = !self.envelopes.contains_key(&announcement.job);
        if new {
            self.keep_job(announcement.clone(), frame.envelope.into());
        }
        let ours = self.is_for_us(&announcement);
        let stale = ours && !announcement.demotes() && self.is_stale(&announcement);
        let inline = match (frame.manifest, frame.data) {
            (Some(manifest), Some(data)) if ours && !stale => self.take_inline(&announcement, manifest, data),
            _ => false,
        };
        // The brain hears of stale ones too, or neighbours would tell us of them for ever.
        let told = announcement.clone();
        self.tell(Input::Announced { from: Some(from), via: Via::from_wire(frame.lane), announcement: told, inline });
        if stale {
            self.refuse_stale(&announcement);
        } else if new && ours && !inline {
            self.use_held(content);
        }
        if new && ours && announcement.demotes() {
            self.demotion_came(&announcement);
        }
    }

    pub(super) fn close(&mut self, host: HostIndex, reason: CloseReason) {
        if let Some(member) = self.membership.get(host) {
            self.endpoint.close(member.node, reason);
        }
    }
}
