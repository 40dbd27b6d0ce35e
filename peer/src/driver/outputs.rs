//! Carries out the core's outputs.

use super::accounting::Event;
use super::blocking_pool::WorkKind;
use super::completions::Completion;
use super::{Driver, payload};
use shoal_net::links::{OutFrame, SendError};
use shoal_proto::announcement::Class;
use shoal_proto::frame::CloseReason;
use shoal_proto::ids::{ContentId, HostIndex};
use shoal_proto::limits;
use shoal_proto::message::Message;
use shoal_proto::report::{HostState, Reason};
use shoal_swarm::io::{Input, Notice, Output};
use shoal_swarm::node::BAN;

impl Driver {
    /// Carries out all outputs of the core.
    pub fn carry_out(&mut self) {
        while let Some(output) = self.cx.core.as_mut().and_then(|core| core.poll_output()) {
            self.carry_out_one(output);
        }
    }

    fn carry_out_one(&mut self, output: Output) {
        match output {
            Output::Connect { host } => match self.cx.region.member(host) {
                Some(member) => self.cx.endpoint.dial(member.node, member.addrs.clone()),
                None => self.cx.tell(Input::DialFailed { host }),
            },
            Output::Disconnect { host, reason } => self.close(host, reason),
            Output::Send { to, message } => self.send_message(to, message),
            Output::SendAnnounce { to, job, via, inline } => self.send_announce(to, job, via.to_wire(), inline),
            Output::SendShard { to, content, shard, class } => {
                payload::send_shard(&mut self.cx, to, content, shard, class);
            }
            Output::SendManifest { to, content, class } => {
                let known = self.contents.beginning_manifest(&content).cloned();
                payload::send_manifest(&mut self.cx, to, content, class, known);
            }
            Output::ReleaseShard { content, shard } => self.cx.store.release_from_cache(&content, shard),
            Output::Rebuild { content, stripe } => {
                let store = self.cx.store.clone();
                self.cx.pool.run(WorkKind::Store, Class::Control, move || {
                    store.rebuild(&content, stripe);
                    Completion::Nothing
                });
            }
            Output::Complete { content } => self.finish(content),
            Output::Abandon { content } => {
                let superseded = HostState::Failed(Reason::Superseded);
                self.cx.report_pushes(&content, superseded, "a newer version arrived before this one was complete");
                self.cx.drop_content(content);
            }
            Output::MakeShare { content, placement } => {
                let needed_by = self.activations.name_that_needs(&content);
                self.cx.make_rack_share(content, placement, needed_by);
            }
            Output::DropWhole { content } => {
                let needed_by = self.activations.name_that_needs(&content);
                self.cx.drop_whole(content, needed_by);
            }
            Output::DropPartial { content, job } => self.cx.drop_partial(content, job),
            Output::ReserveRest { content } => self.cx.reserve_rest(content),
            Output::KeepWhole { content } => self.cx.keep_whole(content),
            Output::Notice(Notice::Duplicate { bytes, .. }) => {
                self.cx.accounting.count(Event::DuplicateBytes(u64::from(bytes)));
            }
            Output::Notice(notice) => log(&notice),
        }
    }

    fn send_message(&mut self, to: HostIndex, message: Message) {
        let Some(node) = self.cx.region.member(to).map(|member| member.node) else { return };
        if let Message::WantManifest { content } = &message {
            // A link accepts only manifests that this host asked for, and only up to the announced length.
            let bytes = self.announced_manifest_bytes(content);
            if let Err(error) = self.cx.endpoint.expect_manifest(node, *content, bytes) {
                tracing::debug!(%to, %error, "cannot expect a manifest now");
            }
        }
        if let Message::Subscribe { content, .. } | Message::Want { content, .. } = &message {
            let size = self.cx.jobs.of_content(content).map(|announcement| announcement.size).max().unwrap_or(0);
            // A parity shard is as long as the longest piece, and no piece is longer than the content.
            let shard_max = size.min(limits::PIECE_BYTES_MAX.into()) as u32;
            self.cx.endpoint.expect_shards(node, *content, shard_max);
        }
        if let Err(SendError::Full) = self.cx.endpoint.send(node, OutFrame::Message(message)) {
            // A host that reads no messages while its link is up is of no use. A new link starts with an empty queue.
            if let Some(skipped) = self.cx.warnings.pass() {
                tracing::warn!(%to, skipped, "the link's message queue is full");
            }
            self.close(to, CloseReason::Busy);
        }
    }

    fn announced_manifest_bytes(&self, content: &ContentId) -> u64 {
        self.cx.jobs.of_content(content).next().map_or(0, |announcement| announcement.manifest_bytes)
    }

    fn close(&mut self, host: HostIndex, reason: CloseReason) {
        let Some(node) = self.cx.region.member(host).map(|member| member.node) else { return };
        match reason {
            // A link that is only closed is there again at once.
            CloseReason::Banned => self.cx.endpoint.ban(node, BAN),
            reason => self.cx.endpoint.close(node, reason),
        }
    }
}

fn log(notice: &Notice) {
    match notice {
        Notice::Avoided { host, why } => tracing::debug!(%host, ?why, "avoiding a parent"),
        Notice::Reroute { content, lane, around } => {
            tracing::debug!(content = %content.short(), ?lane, %around, "rerouting a stalled lane");
        }
        Notice::Duplicate { .. } => {}
        Notice::Banned { host } => tracing::warn!(%host, "banned a host for what it sent"),
        Notice::RackLost { content, missing } => {
            tracing::warn!(
                content = %content.short(),
                missing,
                "the rack lost too many shards; asking other racks for the rest"
            );
        }
        Notice::Repair { content, from, shards } => {
            tracing::debug!(content = %content.short(), %from, shards, "repairing");
        }
    }
}
