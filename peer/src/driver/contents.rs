//! A content's way here: from its announcement and manifest to being whole and durable.

use super::Driver;
use super::blocking_pool::Sort;
use super::demotion::Refusal;
use bytes::Bytes;
use shoal_proto::announcement::{Announcement, Class};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::Document;
use shoal_proto::ids::{ContentId, HostIndex, PieceIndex, ShardIndex};
use shoal_proto::manifest::Manifest;
use shoal_proto::rack_placement::RackPlacement;
use shoal_proto::report::{HostState, Reason};
use shoal_proto::trust::{Envelope, Role};
use shoal_store::{BeginError, Begun, Store};
use shoal_swarm::io::{Input, Via};
use std::collections::VecDeque;
use std::sync::Arc;

/// Small contents kept in memory to send along with announcements.
const INLINED_MAX: usize = 64;

/// What an effect that ran elsewhere brought.
pub(super) enum Done {
    /// Nothing to tell.
    Nothing,
    /// Payload to send.
    Read { to: HostIndex, content: ContentId, shard: Option<ShardIndex>, class: Class, read: Result<Bytes, String> },
    /// A manifest that came was hashed: it is here if it is the one announced.
    Checked { content: ContentId, from: HostIndex, manifest: Option<Bytes> },
    /// A content's space was reserved.
    Begun { content: ContentId, begun: Result<Begun, Refusal> },
    /// A content is durable, or not.
    Finished { content: ContentId, result: Result<(), String> },
    /// Our share of a placement is durable, or not.
    ShareMade { content: ContentId, placement: RackPlacement, made: Result<(), Refusal> },
    /// Only shares of a content are left, this many bytes, or it is whole still.
    Shed { content: ContentId, left: Result<u64, Refusal> },
    /// Room was made for the rest of a content, or not.
    Regrown { content: ContentId, evicted: Result<Vec<ContentId>, Refusal> },
    /// A version was switched in, or not.
    Activated { announcement: Arc<Announcement>, result: Result<(), String> },
    /// A feed's large version was given to readers, or not.
    Placed { announcement: Arc<Announcement>, result: Result<Arc<std::fs::File>, String> },
    /// A small content's manifest and data were read, to be sent along with its announcement.
    Small { small: Option<(Bytes, Bytes)>, announcement: Arc<Announcement> },
}

/// Manifests and data of small contents, newest first.
#[derive(Default)]
pub(super) struct Inlined {
    rows: VecDeque<(ContentId, Bytes, Bytes)>,
}

impl Inlined {
    pub(super) fn has(&self, content: &ContentId) -> bool {
        self.rows.iter().any(|(id, _, _)| id == content)
    }

    pub(super) fn get(&self, content: &ContentId) -> Option<(Bytes, Bytes)> {
        let row = self.rows.iter().find(|(id, _, _)| id == content)?;
        Some((row.1.clone(), row.2.clone()))
    }

    pub(super) fn forget(&mut self, content: &ContentId) {
        self.rows.retain(|(id, _, _)| id != content);
    }

    fn put(&mut self, content: ContentId, manifest: Bytes, data: Bytes) {
        self.forget(&content);
        self.rows.push_front((content, manifest, data));
        self.rows.truncate(INLINED_MAX);
    }
}

impl Driver {
    pub(super) fn class_of(&self, content: &ContentId) -> Class {
        let jobs = self.envelopes.values().filter(|(row, _)| row.content == *content);
        jobs.map(|(row, _)| Class::from(row.kind)).min().unwrap_or(Class::Bulk)
    }

    /// A seeder's own publication.
    pub(super) fn publish(&mut self, envelope: &Envelope, announcement: Arc<Announcement>) {
        self.keep_job(announcement.clone(), envelope.to_bytes().into());
        if !announcement.is_small() {
            self.announce_own(announcement, false);
            return;
        }
        let store = self.store.clone();
        self.done.run(Sort::Read, Class::from(announcement.kind) as u8, move || {
            let small = read_small(&store, &announcement.content);
            Done::Small { small, announcement }
        });
    }

    fn announce_own(&mut self, announcement: Arc<Announcement>, inline: bool) {
        let content = announcement.content;
        self.tell(Input::Announced { from: None, via: Via::Lane(0), announcement, inline });
        self.ready_if_whole(&content);
    }

    /// Tells the brain of a content that is whole on the disk. It ignores what it knows already.
    fn ready_if_whole(&mut self, content: &ContentId) -> bool {
        let geometry = self.store.manifest(content).and_then(|manifest| manifest.geometry(content).ok());
        let Some(geometry) = geometry.filter(|_| self.store.is_complete(content)) else { return false };
        let have = Bitmap::full(geometry.piece_count());
        self.tell(Input::ContentReady { content: *content, geometry, have });
        true
    }

    /// A new job names a content that may be here already, from another job.
    pub(super) fn use_held(&mut self, content: ContentId) {
        if self.ready_if_whole(&content) {
            self.complete(content);
        } else if self.store.rack_share(&content).is_some() {
            // Unless the brain knows of it: then this says nothing new.
            let records = self.store.contents();
            if let Some(record) = records.iter().find(|record| record.content == content) {
                self.tell_share(record);
            }
        } else if self.store.manifest(&content).is_some() && self.progress(&content).total == 0 {
            // Its job was forgotten half-way.
            match self.store.read_manifest(&content) {
                Ok(manifest) => self.begin(content, manifest),
                Err(error) => tracing::warn!(content = %content.short(), %error, "cannot read a manifest"),
            }
        }
    }

    /// A small content that came with its announcement. True when it is what was announced and will be here.
    pub(super) fn take_inline(&mut self, announcement: &Announcement, manifest: Vec<u8>, data: Vec<u8>) -> bool {
        let content = announcement.content;
        if self.store.manifest(&content).is_some() && self.inlined.has(&content) {
            return true;
        }
        let decoded = Manifest::from_bytes(&manifest).ok().filter(|_| Manifest::id(&manifest) == content);
        if !decoded.is_some_and(|decoded| decoded.size() == data.len() as u64 && pieces_fit(&decoded, &data)) {
            self.book.metrics.corrupt.inc();
            return false;
        }
        let (manifest, data) = (Bytes::from(manifest), Bytes::from(data));
        if !self.may_begin(content, Some(manifest.clone())) {
            return false;
        }
        self.inlined.put(content, manifest.clone(), data.clone());
        let store = self.store.clone();
        self.done.run(Sort::Store, Class::from(announcement.kind) as u8, move || {
            let begun = store.begin(&manifest).map_err(refusal).and_then(|begun| {
                store.write_all_pieces(&content, &data).map_err(|error| (Reason::Disk, error.to_string()))?;
                Ok(Begun { have: Bitmap::full(begun.geometry.piece_count()), ..begun })
            });
            Done::Begun { content, begun }
        });
        true
    }

    /// Notes that a content is being begun, and its manifest once that is known to be right; false when it is already.
    fn may_begin(&mut self, content: ContentId, manifest: Option<Bytes>) -> bool {
        let fresh = !self.beginning.contains_key(&content);
        if fresh {
            self.beginning.insert(content, manifest);
        }
        fresh
    }

    /// A manifest arrived.
    pub(super) fn manifest_came(&mut self, content: ContentId, manifest: Bytes, from: HostIndex) {
        if self.may_begin(content, None) {
            self.done.run(Sort::Store, self.class_of(&content) as u8, move || {
                let manifest = (Manifest::id(&manifest) == content).then_some(manifest);
                Done::Checked { content, from, manifest }
            });
        }
    }

    /// It goes on to those below us before anything is begun here: reserving space and looking what is there already takes
    /// a while, and would take it again at each step of the trees.
    fn on_checked(&mut self, content: ContentId, from: HostIndex, manifest: Option<Bytes>) {
        match manifest {
            Some(manifest) => {
                self.beginning.insert(content, Some(manifest.clone()));
                self.tell(Input::ManifestVerified { content });
                self.reserve(content, manifest);
            }
            None => {
                self.beginning.remove(&content);
                self.tell(Input::ManifestCorrupt { content, from });
            }
        }
    }

    /// Begins a content whose manifest was in the store.
    pub(super) fn begin(&mut self, content: ContentId, manifest: Bytes) {
        if self.may_begin(content, Some(manifest.clone())) {
            self.reserve(content, manifest);
        }
    }

    fn reserve(&mut self, content: ContentId, manifest: Bytes) {
        let store = self.store.clone();
        let feed = self.feed_of(&content).map(|(_, shown)| shown);
        self.done.run(Sort::Store, self.class_of(&content) as u8, move || {
            let begun = match feed {
                Some(former) => store.begin_version(&manifest, former),
                None => store.begin(&manifest),
            };
            Done::Begun { content, begun: begun.map_err(refusal) }
        });
    }

    pub(super) fn on_done(&mut self, done: Done) {
        match done {
            Done::Nothing => {}
            Done::Read { to, content, shard, class, read } => match read {
                Ok(bytes) => self.send_part(to, content, shard, class, bytes),
                Err(error) => {
                    tracing::warn!(content = %content.short(), %error, "cannot read what should be here");
                    self.tell(Input::Sent { to, content, shard });
                    if let Some(shard) = shard {
                        self.tell(Input::PieceLost { content, shard });
                    }
                }
            },
            Done::Checked { content, from, manifest } => self.on_checked(content, from, manifest),
            Done::Begun { content, begun } => self.on_begun(content, begun),
            Done::Finished { content, result: Ok(()) } => {
                self.report_progress(&content);
                self.reach_all(&content, HostState::Has, "");
                self.switch_all(&content);
                self.judge_all();
            }
            Done::Finished { content, result: Err(error) } => self.disk_failed(content, &error),
            Done::ShareMade { content, placement, made } => self.on_share_made(content, placement, made),
            Done::Shed { content, left } => self.on_shed(content, left),
            Done::Regrown { content, evicted } => self.on_regrown(content, evicted),
            Done::Activated { announcement, result } => self.on_activated(&announcement, result),
            Done::Placed { announcement, result } => self.on_placed(&announcement, result),
            Done::Small { small, announcement } => {
                let inline = small.is_some();
                if let Some((manifest, data)) = small {
                    self.inlined.put(announcement.content, manifest, data);
                }
                self.announce_own(announcement, inline);
            }
        }
    }

    fn on_begun(&mut self, content: ContentId, begun: Result<Begun, Refusal>) {
        self.beginning.remove(&content);
        match begun {
            Ok(begun) => {
                self.forget_evicted(begun.evicted);
                self.book.received(content, None, begun.reused);
                self.tell(Input::ContentReady { content, geometry: begun.geometry, have: begun.have });
                if self.brain.as_ref().is_some_and(|brain| brain.progress(&content).is_none()) {
                    // Abandoned meanwhile.
                    self.drop_content(content);
                    return;
                }
                self.report_progress(&content);
            }
            Err((reason, why)) => self.refuse(content, reason, &why),
        }
    }

    pub(super) fn forget_evicted(&mut self, evicted: Vec<ContentId>) {
        for evicted in evicted {
            tracing::info!(content = %evicted.short(), "evicted");
            self.book.forget(&evicted);
            self.tell(Input::Removed { content: evicted });
        }
    }

    /// This host will not have the content.
    pub(super) fn refuse(&mut self, content: ContentId, reason: Reason, why: &str) {
        tracing::warn!(content = %content.short(), %reason, %why, "refused a content");
        if let Some((row, _)) = self.feed_of(&content) {
            self.feeds.shelf.refuse(&row.name, row.sequence, "content", format!("{reason}: {why}"));
        }
        self.tell(Input::ContentRefused { content });
        self.reach_all(&content, HostState::Failed(reason), why);
    }

    pub(super) fn disk_failed(&mut self, content: ContentId, error: &str) {
        self.refuse(content, Reason::Disk, error);
        self.drop_content(content);
    }

    pub(super) fn abandon(&mut self, content: ContentId) {
        self.reach_all(&content, HostState::Failed(Reason::Superseded), "a newer version came first");
        self.drop_content(content);
    }

    /// Deletes a content.
    pub(super) fn drop_content(&mut self, content: ContentId) {
        self.book.forget(&content);
        let store = self.store.clone();
        self.done.run(Sort::Store, Class::Bulk as u8, move || {
            if let Err(error) = store.remove(&content) {
                tracing::error!(content = %content.short(), %error, "cannot remove a content");
            }
            Done::Nothing
        });
    }

    pub(super) fn complete(&mut self, content: ContentId) {
        if self.role != Role::Peer {
            return;
        }
        if let Some((announcement, _)) = self.feed_of(&content) {
            self.show_version(announcement);
            return;
        }
        let store = self.store.clone();
        self.done.run(Sort::Store, self.class_of(&content) as u8, move || Done::Finished {
            content,
            result: store.finish(&content).map_err(|error| error.to_string()),
        });
    }
}

pub(super) fn refusal(error: BeginError) -> Refusal {
    let reason = match &error {
        BeginError::WouldNotFit { .. } => Reason::NoSpace,
        BeginError::Manifest(_) => Reason::BadManifest,
        BeginError::Io(_) | BeginError::Database(_) => Reason::Disk,
    };
    (reason, error.to_string())
}

pub(super) fn pieces_fit(manifest: &Manifest, data: &[u8]) -> bool {
    let mut at = 0;
    manifest.lens().enumerate().all(|(piece, len)| {
        let bytes = &data[at..at + len as usize];
        at += len as usize;
        shoal_proto::ids::Hash::of(bytes) == manifest.piece_hash(PieceIndex(piece as u32))
    })
}

fn read_small(store: &Store, content: &ContentId) -> Option<(Bytes, Bytes)> {
    let manifest = store.manifest(content)?;
    let geometry = manifest.geometry(content).ok()?;
    let mut data = Vec::new();
    for piece in (0..geometry.piece_count()).map(PieceIndex) {
        data.extend_from_slice(&store.read(content, geometry.shard_of(piece)).ok()?);
    }
    Some((store.read_manifest(content).ok()?, data.into()))
}
