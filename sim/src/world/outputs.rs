//! What a driver does in a daemon: hands inputs to a core, and carries out the outputs of the core.

use super::event::Event;
use super::observer::WorldEvent;
use super::{Cargo, MANIFEST_BYTES, MANIFEST_BYTES_PER_PIECE, World};
use crate::layout::SEEDER;
use shoal_proto::announcement::Class;
use shoal_proto::ids::{ContentId, HostIndex, JobId, PieceIndex, ShardIndex, StripeIndex};
use shoal_swarm::io::{Input, Output, Via};
use shoal_swarm::node::Node;
use std::collections::btree_map::Entry;

impl World {
    /// Hands an input to a host's core and carries out all outputs that follow.
    pub(super) fn input(&mut self, host: HostIndex, input: Input) {
        if self.hosts[host.index()].node.is_none() {
            return;
        }
        self.apply_to_disk(host, &input);
        let now = self.now();
        let Some(node) = self.hosts[host.index()].node.as_mut() else { return };
        node.handle(now, input);
        self.notify(&WorldEvent::Handled { host });
        while let Some(output) = self.hosts[host.index()].node.as_mut().and_then(Node::poll_output) {
            self.notify(&WorldEvent::Output { host, output: &output });
            self.carry_out(host, output);
        }
        self.schedule_tick(host);
    }

    /// The disk changes before the core learns of it, as in a daemon.
    fn apply_to_disk(&mut self, host: HostIndex, input: &Input) {
        match input {
            Input::ShardVerified { content, shard, .. } => self.store_shard(host, content, *shard),
            Input::Rebuilt { content, shards, .. } => {
                shards.iter().for_each(|shard| self.store_shard(host, content, *shard));
            }
            Input::Announced { announcement, .. } => self.record_order(host, announcement.job),
            Input::WholeDropped { content } => self.drop_whole(host, content),
            _ => {}
        }
    }

    /// Puts a piece on a host's disk. Parity is not kept.
    fn store_shard(&mut self, host: HostIndex, content: &ContentId, shard: ShardIndex) {
        let Some(number) = self.number_of(content) else { return };
        let geometry = &self.pushes[number].geometry;
        if let Some(piece) = geometry.piece_of(shard) {
            let none = geometry.no_pieces();
            self.disk_mut(host, number).get_or_insert(none).set(piece.0);
        }
    }

    fn schedule_tick(&mut self, host: HostIndex) {
        let row = &mut self.hosts[host.index()];
        let Some(at) = row.node.as_ref().and_then(Node::poll_timeout) else { return };
        let at = at.0.max(self.now + 1);
        if row.tick_at.is_none_or(|former| at < former) {
            row.tick_at = Some(at);
            let life = row.life;
            self.events_ahead.push(at, Event::Tick { host, life });
        }
    }

    fn carry_out(&mut self, host: HostIndex, output: Output) {
        match output {
            Output::Connect { host: other } => self.connect(host, other),
            Output::Disconnect { host: other, .. } => self.break_link(host, other),
            Output::Send { to, message } if self.is_linked(host, to) => {
                self.deliver(host, to, Input::Message { from: host, message });
            }
            Output::SendAnnounce { to, job, via, inline } if self.is_linked(host, to) => {
                self.send_announcement(host, to, job, via, inline);
            }
            Output::SendShard { to, content, shard, class } if self.is_linked(host, to) => {
                let Some(number) = self.number_of(&content) else { return };
                let bytes = self.pushes[number].geometry.shard_len(shard).unwrap_or(0);
                self.send(host, to, number, Cargo::Shard(shard), u64::from(bytes), class);
            }
            Output::SendManifest { to, content, class } if self.is_linked(host, to) => {
                let Some(number) = self.number_of(&content) else { return };
                let pieces = u64::from(self.pushes[number].geometry.piece_count());
                let bytes = MANIFEST_BYTES + MANIFEST_BYTES_PER_PIECE * pieces;
                self.send(host, to, number, Cargo::Manifest, bytes, class);
            }
            Output::Rebuild { content, stripe } => self.rebuild(host, content, stripe),
            Output::Complete { content } => self.complete(host, &content),
            Output::MakeShare { content, placement } => self.make_share(host, content, placement),
            Output::DropWhole { content } => self.input_at(self.now, host, Input::WholeDropped { content }),
            Output::DropPartial { content, .. } => self.drop_partial(host, content),
            Output::Notice(notice) => self.notices.push((host, notice)),
            // The rest concerns files and logs, which are not simulated.
            _ => {}
        }
    }

    fn send_announcement(&mut self, host: HostIndex, to: HostIndex, job: JobId, via: Via, inline: bool) {
        let Some(number) = self.pushes.iter().position(|pushed| pushed.announcement.job == job) else {
            self.forward_order(host, to, via, job);
            return;
        };
        let announcement = self.pushes[number].announcement.clone();
        if inline {
            let class = Class::from(announcement.kind);
            self.send(host, to, number, Cargo::Inline(via), self.pushes[number].geometry.bytes(), class);
        } else {
            self.deliver(host, to, Input::Announced { from: Some(host), via, announcement, inline: false });
        }
    }

    /// Reconstructs the missing pieces of a stripe, which takes no time.
    fn rebuild(&mut self, host: HostIndex, content: ContentId, stripe: StripeIndex) {
        let Some(number) = self.number_of(&content) else { return };
        let geometry = self.pushes[number].geometry.clone();
        let have = self.node(host).and_then(|node| node.pieces(&content)).cloned().unwrap_or_default();
        let pieces = geometry.stripe_pieces(stripe).filter(|piece| !have.get(*piece));
        let shards = pieces.map(|piece| geometry.shard_of(PieceIndex(piece))).collect();
        self.input_at(self.now, host, Input::Rebuilt { content, stripe, shards });
    }

    fn complete(&mut self, host: HostIndex, content: &ContentId) {
        let Some(number) = self.number_of(content) else { return };
        let now = self.now;
        self.hosts[host.index()].shares.remove(&number);
        if let Entry::Vacant(entry) = self.pushes[number].done.entry(host) {
            entry.insert(now);
            if host != SEEDER {
                self.finished.push((host, number));
            }
        }
    }
}
