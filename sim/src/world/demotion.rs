//! Demoted contents: orders, and the rack shares on hosts' disks.

use super::observer::WorldEvent;
use super::{ContentNumber, World};
use crate::layout::SEEDER;
use shoal_proto::announcement::{Announcement, Order};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, HostIndex, JobId, ShardIndex, StripeIndex};
use shoal_proto::rack_placement::RackPlacement;
use shoal_swarm::io::{Input, Via};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a host keeps of a content beside the whole, or instead of the whole.
#[derive(Clone, Debug, Default)]
pub struct RackShare {
    /// The placements whose rack shares are here. A second demotion of the rack adds one.
    pub placements: Vec<RackPlacement>,
    /// The host has removed the whole.
    pub whole_dropped: bool,
}

impl World {
    /// Orders all hosts to replace a content by rack shares.
    pub fn demote(&mut self, number: ContentNumber) {
        self.order(number, Order::Demote);
    }

    /// Orders all hosts to restore a content. Times of completion count from now.
    pub fn promote(&mut self, number: ContentNumber) {
        self.pushes[number].done.clear();
        self.pushes[number].at = self.now;
        self.order(number, Order::Promote);
    }

    fn order(&mut self, number: ContentNumber, order: Order) {
        let count = self.orders.len() as u64;
        let mut job = [0xff; 16];
        job[..8].copy_from_slice(&count.to_be_bytes());
        let former = &self.pushes[number].announcement;
        let announcement = Arc::new(Announcement {
            job: JobId(job),
            sequence: 1_000_000 + count,
            created_at: 1_000_000 + count,
            order: Some(order),
            ..(**former).clone()
        });
        self.notify(&WorldEvent::Ordered { content: announcement.content });
        self.orders.push((number, announcement.clone()));
        self.input(SEEDER, Input::Announced { from: None, via: Via::Lane(0), announcement, inline: false });
    }

    /// Makes a host refuse to demote a content.
    pub fn pin(&mut self, host: HostIndex, number: ContentNumber) {
        self.hosts[host.index()].pins.insert(number);
    }

    /// A host's rack share of a content.
    pub fn share(&self, host: HostIndex, number: ContentNumber) -> Option<&RackShare> {
        self.hosts[host.index()].shares.get(&number)
    }

    /// Whether a host stores a shard as part of its rack share.
    pub fn has_in_share(&self, host: HostIndex, number: ContentNumber, shard: ShardIndex) -> bool {
        let geometry = &self.pushes[number].geometry;
        self.share(host, number)
            .is_some_and(|share| share.placements.iter().any(|placement| placement.holds(geometry, host, shard)))
    }

    /// Whether every running host has replaced a content by its rack share.
    pub fn is_demoted(&self, number: ContentNumber) -> bool {
        let running = self.peers().filter(|host| self.is_running(*host));
        running.into_iter().all(|host| self.share(host, number).is_some_and(|share| share.whole_dropped))
    }

    /// Bytes of a content on a host's disk.
    pub fn bytes_on_disk(&self, host: HostIndex, number: ContentNumber) -> u64 {
        let geometry = &self.pushes[number].geometry;
        let shards = (0..geometry.stripe_count()).flat_map(|stripe| geometry.stripe_shards(StripeIndex(stripe)));
        let stored = shards.filter(|shard| match geometry.piece_of(*shard) {
            Some(piece) => self.disk(host, number).is_some_and(|disk| disk.get(piece.0)),
            None => self.has_in_share(host, number, *shard),
        });
        stored.filter_map(|shard| geometry.shard_len(shard)).map(u64::from).sum()
    }

    /// Remembers an order that a host received, for its next start.
    pub(super) fn record_order(&mut self, host: HostIndex, job: JobId) {
        if let Some(place) = self.orders.iter().position(|(_, order)| order.job == job) {
            self.hosts[host.index()].orders.insert(place);
        }
    }

    pub(super) fn forward_order(&mut self, host: HostIndex, to: HostIndex, via: Via, job: JobId) {
        let Some((_, order)) = self.orders.iter().find(|(_, order)| order.job == job) else { return };
        let announcement = order.clone();
        self.deliver(host, to, Input::Announced { from: Some(host), via, announcement, inline: false });
    }

    pub(super) fn make_share(&mut self, host: HostIndex, content: ContentId, placement: RackPlacement) {
        let Some(number) = self.number_of(&content) else { return };
        if self.hosts[host.index()].pins.contains(&number) {
            self.input_at(self.now + 1, host, Input::ShareRefused { content });
            return;
        }
        self.hosts[host.index()].shares.entry(number).or_default().placements.push(placement.clone());
        self.input_at(self.now + 1, host, Input::ShareMade { content, placement });
    }

    /// Removes from a host's disk what is not in its rack share.
    pub(super) fn drop_whole(&mut self, host: HostIndex, content: &ContentId) {
        let Some(number) = self.number_of(content) else { return };
        let geometry = self.pushes[number].geometry.clone();
        let share = self.hosts[host.index()].shares.entry(number).or_default();
        share.whole_dropped = true;
        let mut kept = geometry.no_pieces();
        for placement in &share.placements {
            placement.share(&geometry, host).filter_map(|shard| geometry.piece_of(shard)).for_each(|piece| {
                kept.set(piece.0);
            });
        }
        *self.disk_mut(host, number) = Some(kept);
        self.pushes[number].done.remove(&host);
    }

    pub(super) fn drop_partial(&mut self, host: HostIndex, content: ContentId) {
        let Some(number) = self.number_of(&content) else { return };
        *self.disk_mut(host, number) = None;
    }

    /// Tells the core of a host that starts the orders which the host has received.
    pub(super) fn restore_orders(&mut self, host: HostIndex) {
        let received: Vec<usize> = self.hosts[host.index()].orders.iter().copied().collect();
        for place in received {
            let announcement = self.orders[place].1.clone();
            self.input(host, Input::Announced { from: None, via: Via::AntiEntropy, announcement, inline: true });
        }
    }

    /// The input that describes what a host that starts finds of a content.
    pub(super) fn found_on_disk(&self, host: HostIndex, number: ContentNumber, have: Bitmap) -> Input {
        let pushed = &self.pushes[number];
        let (content, geometry) = (pushed.announcement.content, pushed.geometry.clone());
        let Some(share) = self.share(host, number) else { return Input::ContentReady { content, geometry, have } };
        let mut parity: BTreeMap<StripeIndex, u32> = BTreeMap::new();
        for shard in share.placements.iter().flat_map(|placement| placement.share(&geometry, host)) {
            if let (None, Some((stripe, place))) = (geometry.piece_of(shard), geometry.split(shard)) {
                *parity.entry(stripe).or_default() |= 1 << (place - u32::from(geometry.data()));
            }
        }
        Input::ShareFound {
            content,
            geometry,
            have,
            parity,
            placements: share.placements.clone(),
            share_only: share.whole_dropped,
        }
    }
}
