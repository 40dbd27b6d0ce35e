//! Dispatches results of blocking work, and ends a content's way: complete, refused or failed.

use super::blocking_pool::WorkKind;
use super::feeds::PlaceError;
use super::payload::OutgoingPart;
use super::{Driver, payload};
use crate::activation::content_dir::ContentDirError;
use crate::handle::{Failure, SmallContent};
use bytes::Bytes;
use shoal_proto::announcement::Announcement;
use shoal_proto::ids::{ContentId, HostIndex};
use shoal_proto::rack_placement::RackPlacement;
use shoal_proto::report::{HostState, Reason};
use shoal_proto::trust::Role;
use shoal_store::{Begun, FinishError, ReadError};
use shoal_swarm::io::Input;
use std::fs::File;
use std::sync::Arc;

/// Result of work on the blocking pool.
pub enum Completion {
    /// The work has no result.
    Nothing,
    /// Payload to send was read.
    PayloadRead { part: OutgoingPart, read: Result<Bytes, ReadError> },
    /// A received manifest was hashed. `manifest` is `None` if it is not the announced one.
    ManifestHashed { content: ContentId, from: HostIndex, manifest: Option<Bytes> },
    /// The store reserved space for a content.
    Begun { content: ContentId, begun: Result<Begun, Failure> },
    /// The store made a complete content durable.
    Finished { content: ContentId, result: Result<(), FinishError> },
    /// The store made this host's rack share durable.
    RackShareMade { content: ContentId, placement: RackPlacement, made: Result<(), Failure> },
    /// The store keeps only rack shares of a content, this many bytes.
    WholeDropped { content: ContentId, kept_bytes: Result<u64, Failure> },
    /// The store reserved space for the rest of a content and evicted others.
    RestReserved { content: ContentId, evicted: Result<Vec<ContentId>, Failure> },
    /// A pushed version was switched to.
    Activated { announcement: Arc<Announcement>, result: Result<(), ContentDirError> },
    /// The file of a feed's large version was placed.
    FeedPlaced { announcement: Arc<Announcement>, result: Result<Arc<File>, PlaceError> },
    /// A seeder's small content was read for its announcement.
    SmallContentRead { announcement: Arc<Announcement>, small: Option<SmallContent> },
}

impl Driver {
    pub fn on_completion(&mut self, completion: Completion) {
        let cx = &mut self.cx;
        match completion {
            Completion::Nothing => {}
            Completion::PayloadRead { part, read } => payload::on_read(cx, &part, read),
            Completion::ManifestHashed { content, from, manifest } => {
                let begin_as = self.feeds.begin_as(cx, &content);
                self.contents.on_manifest_hashed(cx, content, from, manifest, begin_as);
            }
            Completion::Begun { content, begun } => {
                if let Err(failure) = self.contents.on_begun(cx, content, begun) {
                    self.refuse(content, &failure);
                }
            }
            Completion::Finished { content, result } => self.on_finished(content, result),
            Completion::RackShareMade { content, placement, made } => cx.on_rack_share_made(content, placement, made),
            Completion::WholeDropped { content, kept_bytes } => {
                if kept_bytes.is_ok() {
                    self.contents.forget_small(&content);
                }
                cx.on_whole_dropped(content, kept_bytes);
            }
            Completion::RestReserved { content, evicted } => match evicted {
                Ok(evicted) => cx.forget_evicted(evicted),
                Err(failure) => self.refuse(content, &failure),
            },
            Completion::Activated { announcement, result } => self.activations.on_activated(cx, &announcement, result),
            Completion::FeedPlaced { announcement, result } => self.feeds.on_placed(cx, &announcement, result),
            Completion::SmallContentRead { announcement, small } => {
                let inline = self.contents.on_small_read(announcement.content, small);
                self.announce_own(announcement, inline);
            }
        }
    }

    /// Handles a complete content: makes it durable, or gives a feed's version to readers.
    pub fn finish(&mut self, content: ContentId) {
        self.cx.endpoint.expect_no_shards(&content);
        // A seeder's contents are durable before it announces them.
        if self.cx.role != Role::Peer {
            return;
        }
        if let Some(announcement) = self.feeds.version_of(&self.cx, &content) {
            self.feeds.place(&mut self.cx, announcement);
            return;
        }
        let (store, class) = (self.cx.store.clone(), self.cx.jobs.class_of(&content));
        self.cx.pool.run(WorkKind::Store, class, move || {
            let result = store.finish(&content);
            Completion::Finished { content, result }
        });
    }

    fn on_finished(&mut self, content: ContentId, result: Result<(), FinishError>) {
        match result {
            Ok(()) => {
                self.cx.report_progress(&content);
                self.cx.report_pushes(&content, HostState::Has, "");
                self.activations.on_complete(&mut self.cx, &content);
            }
            Err(error) => self.on_disk_failed(content, &error.to_string()),
        }
    }

    /// Handles a new job for a content that another job may have brought already.
    pub fn use_stored(&mut self, content: ContentId) {
        let cx = &mut self.cx;
        if cx.tell_if_complete(&content) {
            self.finish(content);
        } else if cx.store.rack_share(&content).is_some() {
            // The core ignores a rack share that it knows.
            if let Some(stored) = cx.store.contents().iter().find(|stored| stored.content == content) {
                cx.tell_rack_share(stored);
            }
        } else if cx.store.manifest(&content).is_some() && cx.progress(&content).total == 0 {
            // The former job was forgotten before the content was complete.
            match cx.store.read_manifest(&content) {
                Ok(manifest) => {
                    let begin_as = self.feeds.begin_as(cx, &content);
                    self.contents.begin(cx, content, manifest, begin_as);
                }
                Err(error) => tracing::warn!(content = %content.short(), %error, "cannot read a manifest"),
            }
        }
    }

    /// Abandons a content and reports why.
    fn refuse(&mut self, content: ContentId, failure: &Failure) {
        let Failure { reason, detail } = failure;
        tracing::warn!(content = %content.short(), %reason, %detail, "refused a content");
        self.feeds.refuse_content(&self.cx, &content, failure);
        self.cx.tell(Input::ContentRefused { content });
        self.cx.report_pushes(&content, HostState::Failed(*reason), detail);
    }

    /// Abandons a content after a failed write.
    pub fn on_disk_failed(&mut self, content: ContentId, error: &str) {
        self.refuse(content, &Failure::new(Reason::Disk, error));
        self.cx.drop_content(content);
    }
}
