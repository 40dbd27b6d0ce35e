//! Dispatches what links and the store bring: hosts, messages, announcements, payload.

use super::Driver;
use super::accounting::Level;
use super::payload::shard_of;
use shoal_net::links::{LinkEvent, OutFrame};
use shoal_proto::frame::Part;
use shoal_proto::ids::NodeId;
use shoal_proto::message::Message;
use shoal_store::StoreEvent;
use shoal_swarm::io::Input;

impl Driver {
    pub fn on_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::LinkUp { node, credential, .. } => {
                self.cx.region.on_link_up(node, &credential);
                self.ask_for_rack(node);
                self.count_links();
                self.admit_link(node);
            }
            LinkEvent::LinkDown { node, reason, error } => {
                self.cx.region.on_link_down(&node);
                self.count_links();
                tracing::debug!(node = %node.short(), ?reason, ?error, "link down");
                if let Some(host) = self.cx.region.host_of(&node) {
                    self.cx.tell(Input::LinkDown { host, reason });
                }
            }
            LinkEvent::DialFailed { node, error } => {
                tracing::debug!(node = %node.short(), %error, "cannot dial");
                if let Some(host) = self.cx.region.host_of(&node) {
                    self.cx.tell(Input::DialFailed { host });
                }
            }
            LinkEvent::Sent { node, content, part } => {
                if let Some(to) = self.cx.region.host_of(&node) {
                    self.cx.tell(Input::Sent { to, content, shard: shard_of(part) });
                }
            }
            LinkEvent::Message { node, message: Message::WantRackPeers } => self.answer_rack_peer(node),
            LinkEvent::Message { node, message: Message::RackPeers { rows } } => self.on_rack_list(node, rows),
            LinkEvent::Message { node, .. } | LinkEvent::Announce { node, .. } | LinkEvent::Part { node, .. } => {
                self.on_frame(node, event);
            }
        }
    }

    fn count_links(&self) {
        self.cx.accounting.set(Level::Links(self.cx.region.linked().len()));
    }

    /// Handles a frame, or keeps it until the membership names its sender.
    pub fn on_frame(&mut self, node: NodeId, event: LinkEvent) {
        if self.cx.region.is_unknown(&node) {
            self.cx.region.keep_event(&node, event);
            return;
        }
        let Some(from) = self.cx.region.host_of(&node) else { return };
        match event {
            LinkEvent::Message { message, .. } => {
                self.feeds.note_neighbour(&message);
                self.cx.tell(Input::Message { from, message });
            }
            LinkEvent::Announce { frame, .. } => self.on_announce(from, frame),
            LinkEvent::Part { content, part, payload, .. } => {
                if let Some(tier) = self.cx.region.tier_of(from) {
                    self.cx.accounting.received(content, Some(tier), payload.len() as u64);
                }
                match part {
                    Part::Manifest => {
                        let bytes = payload.len();
                        tracing::debug!(content = %content.short(), %from, bytes, "received a manifest");
                        self.contents.on_manifest(&mut self.cx, content, payload, from);
                    }
                    Part::Shard(shard) => self.payload.submit(&self.cx, from, content, shard, payload),
                }
            }
            _ => {}
        }
    }

    /// Tells the core about a link, or keeps the link's events until the membership names its other end.
    pub fn admit_link(&mut self, node: NodeId) {
        match self.cx.region.host_of(&node) {
            Some(host) if self.cx.core.is_some() => self.cx.tell(Input::LinkUp { host }),
            _ => {
                let now = self.cx.now();
                self.cx.region.wait_for_membership(node, now);
            }
        }
    }

    /// Dials the remembered rack peers, or asks those with a link, while this host has no membership.
    pub fn dial_rack_peers(&mut self) {
        for rack_peer in self.cx.region.rack_peers_to_ask() {
            if self.cx.region.is_linked(&rack_peer.node) {
                self.ask_for_rack(rack_peer.node);
            } else {
                self.cx.endpoint.dial(rack_peer.node, rack_peer.addrs);
            }
        }
    }

    /// Asks a rack peer for the members of the rack, if this host needs them.
    fn ask_for_rack(&self, node: NodeId) {
        if self.cx.region.should_ask_for_rack(&node) {
            let _ = self.cx.endpoint.send(node, OutFrame::Message(Message::WantRackPeers)); // `save` asks again
        }
    }

    /// Sends the members of the rack to a rack peer that asks.
    fn answer_rack_peer(&self, node: NodeId) {
        if let Some(rows) = self.cx.region.rack_list_for(&node) {
            let _ = self.cx.endpoint.send(node, OutFrame::Message(Message::RackPeers { rows })); // it asks again
        }
    }

    pub fn on_store_event(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Verified { content, shard, token } => {
                self.payload.on_verified(&mut self.cx, content, shard, token);
            }
            StoreEvent::Corrupt { content, shard, token } => {
                self.payload.on_corrupt(&mut self.cx, content, shard, token);
            }
            StoreEvent::Rebuilt { content, stripe, shards } => {
                self.cx.tell(Input::Rebuilt { content, stripe, shards });
            }
            StoreEvent::WriteFailed { content, error } => self.on_disk_failed(content, &error),
        }
    }
}
