//! Demoted contents: orders, and the shares of them on hosts' disks.

use super::{ContentNumber, World};
use crate::check::Seen;
use crate::layout::SEEDER;
use shoal_proto::announcement::{Announcement, Order};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, HostIndex, JobId, ShardIndex, StripeIndex};
use shoal_proto::rack_placement::RackPlacement;
use shoal_swarm::io::{Input, Via};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a host keeps of a content beside the whole, or instead of it.
#[derive(Clone, Debug, Default)]
pub struct Share {
    /// The placements whose shares are here.
    pub placements: Vec<RackPlacement>,
    /// The whole is gone.
    pub shed: bool,
}

impl World {
    /// Has every host keep only its share of a content.
    pub fn demote(&mut self, number: ContentNumber) {
        self.order(number, Order::Demote);
    }

    /// Has every host have a content whole again.
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
        self.tell_checks(&Seen::Ordered { content: announcement.content });
        self.orders.push((number, announcement.clone()));
        self.input(SEEDER, Input::Announced { from: None, via: Via::Lane(0), announcement, inline: false });
    }

    /// Has a host keep a content whole, whatever is ordered.
    pub fn pin(&mut self, host: HostIndex, number: ContentNumber) {
        self.hosts[host.index()].pins.insert(number);
    }

    /// What a host keeps of a demoted content.
    pub fn share(&self, host: HostIndex, number: ContentNumber) -> Option<&Share> {
        self.hosts[host.index()].shares.get(&number)
    }

    /// Whether a host has a shard on its disk as part of its share.
    pub fn shares(&self, host: HostIndex, number: ContentNumber, shard: ShardIndex) -> bool {
        let geometry = &self.pushes[number].geometry;
        self.share(host, number)
            .is_some_and(|share| share.placements.iter().any(|placement| placement.holds(geometry, host, shard)))
    }

    /// Whether every host that runs has only its share of a content.
    pub fn is_shed(&self, number: ContentNumber) -> bool {
        let running = self.peers().filter(|host| self.is_running(*host));
        running.into_iter().all(|host| self.share(host, number).is_some_and(|share| share.shed))
    }

    /// Bytes of a content on a host's disk.
    pub fn bytes_on_disk(&self, host: HostIndex, number: ContentNumber) -> u64 {
        let geometry = &self.pushes[number].geometry;
        let shards = (0..geometry.stripe_count()).flat_map(|stripe| geometry.stripe_shards(StripeIndex(stripe)));
        let held = shards.filter(|shard| match geometry.piece_of(*shard) {
            Some(piece) => self.disk(host, number).is_some_and(|disk| disk.get(piece.0)),
            None => self.shares(host, number, *shard),
        });
        held.filter_map(|shard| geometry.shard_len(shard)).map(u64::from).sum()
    }

    pub(super) fn hear_order(&mut self, host: HostIndex, job: JobId) {
        if let Some(place) = self.orders.iter().position(|(_, order)| order.job == job) {
            self.hosts[host.index()].orders.insert(place);
        }
    }

    pub(super) fn pass_order(&mut self, host: HostIndex, to: HostIndex, via: Via, job: JobId) {
        let Some((_, order)) = self.orders.iter().find(|(_, order)| order.job == job) else { return };
        let announcement = order.clone();
        self.say(host, to, Input::Announced { from: Some(host), via, announcement, inline: false });
    }

    pub(super) fn make_share(&mut self, host: HostIndex, content: ContentId, placement: RackPlacement) {
        let Some(number) = self.number_of(&content) else { return };
        if self.hosts[host.index()].pins.contains(&number) {
            self.later(self.now + 1, host, Input::ShareRefused { content });
            return;
        }
        self.hosts[host.index()].shares.entry(number).or_default().placements.push(placement.clone());
        self.later(self.now + 1, host, Input::ShareMade { content, placement });
    }

    /// A host has let the whole go, and is about to be told.
    pub(super) fn let_go(&mut self, host: HostIndex, content: &ContentId) {
        let Some(number) = self.number_of(content) else { return };
        let geometry = self.pushes[number].geometry.clone();
        let share = self.hosts[host.index()].shares.entry(number).or_default();
        share.shed = true;
        let mut kept = geometry.no_pieces();
        for placement in &share.placements {
            placement.share(&geometry, host).filter_map(|shard| geometry.piece_of(shard)).for_each(|piece| {
                kept.set(piece.0);
            });
        }
        *self.disk_mut(host, number) = Some(kept);
        self.pushes[number].done.remove(&host);
    }

    pub(super) fn forgo(&mut self, host: HostIndex, content: ContentId) {
        let Some(number) = self.number_of(&content) else { return };
        *self.disk_mut(host, number) = None;
    }

    /// Tells a host that starts of the orders it knows.
    pub(super) fn recall_orders(&mut self, host: HostIndex) {
        let known: Vec<usize> = self.hosts[host.index()].orders.iter().copied().collect();
        for place in known {
            let announcement = self.orders[place].1.clone();
            self.input(host, Input::Announced { from: None, via: Via::AntiEntropy, announcement, inline: true });
        }
    }

    /// What a host that starts finds of a content.
    pub(super) fn found(&self, host: HostIndex, number: ContentNumber, have: Bitmap) -> Input {
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
            share_only: share.shed,
        }
    }
}
