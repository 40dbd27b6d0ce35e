//! The brain's wishes, carried out.

use super::Driver;
use super::blocking_pool::Sort;
use super::contents::Done;
use shoal_net::links::{OutFrame, SendError, encode_announce};
use shoal_proto::announcement::Class;
use shoal_proto::frame::{AnnounceFrame, Part};
use shoal_proto::ids::{ContentId, HostIndex, JobId, ShardIndex};
use shoal_proto::message::Message;
use shoal_swarm::io::{Input, Notice, Output};

impl Driver {
    /// Drains the brain.
    pub(super) fn carry_out(&mut self) {
        while let Some(output) = self.brain.as_mut().and_then(|brain| brain.poll_output()) {
            self.effect(output);
        }
    }

    fn effect(&mut self, output: Output) {
        match output {
            Output::Connect { host } => match self.membership.get(host) {
                Some(member) => self.endpoint.dial(member.node, member.addrs.clone()),
                None => self.tell(Input::DialFailed { host }),
            },
            Output::Disconnect { host, reason } => self.close(host, reason),
            Output::Send { to, message } => self.send_message(to, message),
            Output::SendAnnounce { to, job, via, inline } => self.send_announce(to, job, via.to_wire(), inline),
            Output::SendShard { to, content, shard, class } => self.send_shard(to, content, shard, class),
            Output::SendManifest { to, content, class } => {
                if let Some(Some(manifest)) = self.beginning.get(&content) {
                    self.send_part(to, content, None, class, manifest.clone());
                    return;
                }
                let store = self.store.clone();
                self.done.run(Sort::Read, class as u8, move || Done::Read {
                    to,
                    content,
                    shard: None,
                    class,
                    read: store.read_manifest(&content).map_err(|error| error.to_string()),
                });
            }
            Output::ReleaseShard { content, shard } => self.store.release_from_cache(&content, shard),
            Output::Rebuild { content, stripe } => {
                let store = self.store.clone();
                self.done.run(Sort::Store, 0, move || {
                    store.rebuild(&content, stripe);
                    Done::Nothing
                });
            }
            Output::Complete { content } => self.complete(content),
            Output::Abandon { content } => self.abandon(content),
            Output::MakeShare { content, placement } => self.make_share(content, placement),
            Output::DropWhole { content } => self.shed(content),
            Output::DropPartial { content, job } => self.forgo(content, job),
            Output::ReserveRest { content } => self.regrow(content),
            Output::KeepWhole { content } => self.keep_whole(content),
            Output::Notice(notice) => match notice {
                Notice::Avoided { host, why } => tracing::debug!(%host, ?why, "avoided"),
                Notice::Reroute { content, lane, around } => {
                    tracing::debug!(content = %content.short(), ?lane, %around, "silent lane is rerouted");
                }
                Notice::Duplicate { bytes, .. } => {
                    self.book.metrics.duplicate_bytes.inc_by(u64::from(bytes));
                }
                Notice::Banned { host } => tracing::warn!(%host, "banned for bad shards"),
                Notice::RackLost { content, missing } => {
                    tracing::warn!(content = %content.short(), missing, "too much of the rack is lost; other racks are asked");
                }
                Notice::Repair { content, from, shards } => {
                    tracing::debug!(content = %content.short(), %from, shards, "repair");
                }
            },
        }
    }

    fn send_message(&mut self, to: HostIndex, message: Message) {
        let Some(member) = self.membership.get(to) else { return };
        let node = member.node;
        if let Message::WantManifest { content } = &message {
            let bytes = self
                .envelopes
                .values()
                .find(|(announcement, _)| announcement.content == *content)
                .map_or(0, |(announcement, _)| announcement.manifest_bytes);
            if let Err(error) = self.endpoint.expect_manifest(node, *content, bytes) {
                tracing::debug!(%to, %error, "cannot ask for a manifest now");
            }
        }
        if let Err(SendError::Full) = self.endpoint.send(node, OutFrame::Message(message)) {
            // A host that takes no messages while its link is up is of no use: begin anew with it.
            tracing::warn!(%to, "message queue is full");
            self.close(to, shoal_proto::frame::CloseReason::Busy);
        }
    }

    fn send_announce(&mut self, to: HostIndex, job: JobId, lane: u8, inline: bool) {
        let Some(node) = self.membership.get(to).map(|member| member.node) else { return };
        let Some((announcement, envelope)) = self.envelopes.get(&job) else { return };
        let content = announcement.content;
        let feed = announcement.feed.is_some();
        let held = self.feeds.held(&job).filter(|_| inline && feed);
        let (sequence, envelope) =
            held.map_or((announcement.sequence, envelope), |held| (held.sequence, &held.envelope));
        let small = match held {
            Some(held) => Some((held.manifest.clone(), held.data.clone())),
            None if inline && !feed => self.inlined.get(&content),
            None => None,
        };
        let bytes = small.as_ref().map_or(0, |(_, data)| data.len() as u64);
        // The same frame goes to all children of a lane.
        let key = (job, sequence, lane, small.is_some());
        let frame = match &self.encoded {
            Some((former, frame)) if *former == key => frame.clone(),
            _ => {
                let (manifest, data) = small.map(|(manifest, data)| (manifest.to_vec(), data.to_vec())).unzip();
                let frame = AnnounceFrame { envelope: envelope.to_vec(), lane, manifest, data };
                self.encoded.insert((key, encode_announce(&frame))).1.clone()
            }
        };
        // Without a link, or with a full queue, comparing job lists brings it later.
        let frame = if feed { OutFrame::Latest { key: (job, lane), body: frame } } else { OutFrame::Announce(frame) };
        if self.endpoint.send(node, frame).is_ok() {
            if feed {
                self.book.metrics.sent.inc_by(bytes);
            } else {
                self.book.count_sent(content, bytes);
            }
        }
    }

    fn send_shard(&mut self, to: HostIndex, content: ContentId, shard: ShardIndex, class: Class) {
        if let Some(bytes) = self.store.read_cached(&content, shard) {
            self.send_part(to, content, Some(shard), class, bytes);
            return;
        }
        let store = self.store.clone();
        self.done.run(Sort::Read, class as u8, move || Done::Read {
            to,
            content,
            shard: Some(shard),
            class,
            read: store.read(&content, shard).map_err(|error| error.to_string()),
        });
    }

    /// Puts payload on a link. The brain hears `Sent` from the link, or here when there is none to say it.
    pub(super) fn send_part(
        &mut self,
        to: HostIndex,
        content: ContentId,
        shard: Option<ShardIndex>,
        class: Class,
        payload: bytes::Bytes,
    ) {
        let part = shard.map_or(Part::Manifest, Part::Shard);
        let len = payload.len() as u64;
        let node = self.membership.get(to).map(|member| member.node);
        let sent = node.map(|node| self.endpoint.send(node, OutFrame::Part { content, part, class, payload }));
        match sent {
            Some(Ok(())) => self.book.count_sent(content, len),
            // `LinkDown` is on its way.
            Some(Err(SendError::Gone)) | None => {}
            Some(Err(error)) => {
                tracing::warn!(%to, content = %content.short(), %error, "cannot send a shard");
                self.tell(Input::Sent { to, content, shard });
            }
        }
    }
}
