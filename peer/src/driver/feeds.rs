//! Feeds in the driver: a version is checked, passed on and shown from memory; the disk hears of it last.
//!
//! Invariant: what is kept on the disk of a feed is what readers have, so a restart serves that at once and asks
//! neighbours for what came after.

use super::Driver;
use super::blocking_pool::Sort;
use super::contents::{Done, pieces_fit};
use crate::feeds::{FeedData, FeedFiles, FeedVersion, FeedWriter, LatestVersions, PendingWrite};
use crate::handle::FeedPublication;
use bytes::Bytes;
use shoal_proto::announcement::{Announcement, Class};
use shoal_proto::codec::Document;
use shoal_proto::frame::AnnounceFrame;
use shoal_proto::ids::{ContentId, Hash, HostIndex, JobId};
use shoal_proto::manifest::Manifest;
use shoal_proto::message::Message;
use shoal_proto::trust::{Role, TrustError};
use shoal_store::Store;
use shoal_swarm::io::{Input, Via};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;

/// What the driver knows of a feed's newest version, beside its announcement, which is among the envelopes.
struct Row {
    envelope: Hash,
    /// The newest small version that is here; it may be older.
    held: Option<Held>,
    /// The content that readers have, when it is in the store.
    shown: Option<ContentId>,
}

/// A small version, whole.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) sequence: u64,
    /// Its signed announcement.
    pub(super) envelope: Bytes,
    pub(super) manifest: Bytes,
    pub(super) data: Bytes,
}

impl Held {
    fn new(announcement: &Announcement, envelope: &Bytes, (manifest, data): (Bytes, Bytes)) -> Self {
        Self { sequence: announcement.sequence, envelope: envelope.clone(), manifest, data }
    }
}

/// The driver's feeds.
pub(super) struct Feeds {
    pub(super) shelf: LatestVersions,
    files: FeedFiles,
    keeper: FeedWriter,
    rows: BTreeMap<JobId, Row>,
    /// Newest versions by the hash of their signed announcement: the same one comes down several lanes.
    known: HashMap<Hash, JobId>,
}

impl Feeds {
    pub(super) fn new(shelf: LatestVersions, files: FeedFiles, keeper: FeedWriter) -> Self {
        Self { shelf, files, keeper, rows: BTreeMap::new(), known: HashMap::new() }
    }

    /// The newest small version that is here, whatever was announced since.
    pub(super) fn held(&self, feed: &JobId) -> Option<&Held> {
        self.rows.get(feed)?.held.as_ref()
    }

    /// A version becomes the newest, with its data when it is small and here.
    fn put(&mut self, feed: JobId, envelope: Hash, held: Option<Held>) {
        let former = self.rows.remove(&feed);
        if let Some(former) = &former {
            self.known.remove(&former.envelope);
        }
        self.known.insert(envelope, feed);
        let (former, shown) = former.map(|row| (row.held, row.shown)).unwrap_or_default();
        self.rows.insert(feed, Row { envelope, held: held.or(former), shown });
    }
}

impl Driver {
    /// Whether a feed's version is to be had here.
    fn wants_feed(&self, announcement: &Announcement) -> bool {
        announcement.origin == self.node || self.is_for_us(announcement)
    }

    /// Takes over what was kept before the restart; readers have it at once.
    pub(super) fn load_feeds(&mut self) {
        let kept = self.feeds.files.load().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the feeds kept");
            Vec::new()
        });
        for (id, kept) in kept {
            let envelope = Bytes::from(kept.envelope);
            let announcement = match self.open_announcement(&envelope) {
                Ok(announcement) if announcement.job == id && announcement.feed.is_some() => Arc::new(announcement),
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!(feed = %id, %error, "dropped a kept feed");
                    self.feeds.files.forget(&id);
                    continue;
                }
            };
            let small = kept.manifest.zip(kept.data);
            let small = small.map(|(manifest, data)| (Bytes::from(manifest), Bytes::from(data)));
            let small = small.filter(|(manifest, data)| fits(&announcement, manifest, data));
            if announcement.is_small() && small.is_none() {
                self.feeds.files.forget(&id);
                continue;
            }
            self.feeds.shelf.announce(&announcement, false);
            let data = match &small {
                Some((_, data)) => Some(FeedData::Memory(data.clone())),
                None if self.role == Role::Seeder => Some(FeedData::Store),
                None => {
                    let placed = self.feeds.files.placed(&announcement.name);
                    placed
                        .filter(|(said, _)| said.sequence == announcement.sequence)
                        .map(|(_, file)| FeedData::File(file))
                }
            };
            let in_store = small.is_none() && self.store.manifest(&announcement.content).is_some();
            let held = small.map(|small| Held::new(&announcement, &envelope, small));
            self.feeds.put(id, Hash::of(&envelope), held);
            if let Some(row) = self.feeds.rows.get_mut(&id).filter(|_| in_store) {
                row.shown = Some(announcement.content);
            }
            if let Some(data) = data {
                self.feeds.shelf.show(&id, Arc::new(FeedVersion::new(&announcement, data)));
            }
            self.envelopes.insert(id, (announcement, envelope));
        }
    }

    /// Announces a seeder's own version: at once when it is small, else once the disk has it.
    pub(super) fn publish_feed(&mut self, publication: FeedPublication) {
        let FeedPublication { envelope, announcement, small, kept } = publication;
        let (id, content) = (announcement.job, announcement.content);
        if self.newest_of(&id).is_some_and(|newest| newest >= announcement.sequence) {
            // A newer one overtook it: nobody is to hear of this one.
            let _ = kept.send(Ok(()));
            if small.is_none() && !self.is_named(&content) {
                self.drop_content(content);
            }
            return;
        }
        if !self.feeds.shelf.announce(&announcement, false) {
            let _ = kept.send(Err("there are too many feeds".into()));
            return;
        }
        let envelope = Bytes::from(envelope.to_bytes());
        let data = small.as_ref().map_or(FeedData::Store, |(_, data)| FeedData::Memory(data.clone()));
        let inline = small.is_some();
        let manifest = small.as_ref().map(|(manifest, _)| manifest.clone());
        let former = self.remember_feed(announcement.clone(), envelope.clone(), small);
        self.tell(Input::Announced { from: None, via: Via::Lane(0), announcement: announcement.clone(), inline });
        if !inline {
            self.feed_is_whole(&content);
            self.shown(id, content);
        }
        self.carry_out();
        self.drop_superseded(former);
        let version = Arc::new(FeedVersion::new(&announcement, data));
        self.feeds.shelf.show(&id, version.clone());
        self.feeds.keeper.put(id, PendingWrite { version, envelope, manifest, done: Some(kept) });
    }

    /// Whether the newest version is small and here.
    pub(super) fn holds_feed(&self, feed: &JobId) -> bool {
        self.feeds.held(feed).is_some_and(|held| self.newest_of(feed) == Some(held.sequence))
    }

    fn newest_of(&self, feed: &JobId) -> Option<u64> {
        self.envelopes.get(feed).map(|(row, _)| row.sequence)
    }

    /// The newest version is this one from now on. Gives the former announcement.
    fn remember_feed(
        &mut self,
        announcement: Arc<Announcement>,
        envelope: Bytes,
        small: Option<(Bytes, Bytes)>,
    ) -> Option<Arc<Announcement>> {
        let id = announcement.job;
        let held = small.map(|small| Held::new(&announcement, &envelope, small));
        self.feeds.put(id, Hash::of(&envelope), held);
        self.envelopes.insert(id, (announcement, envelope)).map(|(former, _)| former)
    }

    /// A version that was left half-way is told by the brain. One that is whole is dropped here, unless readers have it.
    fn drop_superseded(&mut self, former: Option<Arc<Announcement>>) {
        let Some(former) = former.filter(|former| !former.is_small()) else { return };
        let content = former.content;
        let shown = self.feeds.rows.get(&former.job).and_then(|row| row.shown) == Some(content);
        if !shown && !self.is_named(&content) && self.store.manifest(&content).is_some() {
            self.drop_content(content);
        }
    }

    /// A neighbour's announcement that is, or says it is, the very one we have; true when nothing is left to do.
    pub(super) fn is_known_feed(&mut self, from: HostIndex, frame: &mut AnnounceFrame) -> bool {
        let Some(id) = self.feeds.known.get(&Hash::of(&frame.envelope)).copied() else { return false };
        self.feeds.shelf.heard(&id);
        let Some((announcement, envelope)) = self.envelopes.get(&id) else { return true };
        let (announcement, envelope) = (announcement.clone(), envelope.clone());
        if let (Some(me), Some(data)) = (self.me, &frame.data) {
            self.book.received_feed(self.membership.tier(me, from), data.len() as u64);
        }
        if self.holds_feed(&id) {
            // Which way it comes, also when another was faster, says where the next one will.
            if frame.data.is_some() {
                self.tell(Input::Announced {
                    from: Some(from),
                    via: Via::from_wire(frame.lane),
                    announcement,
                    inline: true,
                });
            }
            return true;
        }
        if self.wants_feed(&announcement) {
            self.take_feed(from, frame, announcement, &envelope);
        }
        true
    }

    /// A version of a feed that we did not know, signed by a publisher.
    pub(super) fn on_feed_announce(&mut self, from: HostIndex, mut frame: AnnounceFrame, announcement: Announcement) {
        let id = announcement.job;
        if let (Some(me), Some(data)) = (self.me, &frame.data) {
            self.book.received_feed(self.membership.tier(me, from), data.len() as u64);
        }
        if self.newest_of(&id).is_some_and(|newest| newest >= announcement.sequence) {
            self.feeds.shelf.heard(&id);
            let shown = self.feeds.shelf.newest(&id).map(|version| version.sequence);
            if shown < Some(announcement.sequence)
                && frame.data.is_some()
                && announcement.is_small()
                && self.wants_feed(&announcement)
            {
                // Word of a newer one came first; this one goes before it.
                let envelope = Bytes::from(std::mem::take(&mut frame.envelope));
                self.take_feed(from, &mut frame, Arc::new(announcement), &envelope);
            } else {
                self.feeds.shelf.refuse_stale();
            }
            return;
        }
        if !self.feeds.shelf.announce(&announcement, true) {
            let why = "there are too many feeds already".to_string();
            self.feeds.shelf.refuse(&announcement.name, announcement.sequence, "too-many", why);
            return;
        }
        let announcement = Arc::new(announcement);
        let envelope = Bytes::from(std::mem::take(&mut frame.envelope));
        let former = self.remember_feed(announcement.clone(), envelope.clone(), None);
        if self.wants_feed(&announcement) {
            self.take_feed(from, &mut frame, announcement.clone(), &envelope);
        } else {
            self.tell(Input::Announced {
                from: Some(from),
                via: Via::from_wire(frame.lane),
                announcement,
                inline: false,
            });
        }
        self.drop_superseded(former);
    }

    /// Takes what came with the announcement of our newest version, or of one before it: children first, then local readers,
    /// then the disk.
    fn take_feed(
        &mut self,
        from: HostIndex,
        frame: &mut AnnounceFrame,
        announcement: Arc<Announcement>,
        envelope: &Bytes,
    ) {
        let (id, via) = (announcement.job, Via::from_wire(frame.lane));
        let mut held = None;
        if let (true, Some(manifest), Some(data)) = (announcement.is_small(), frame.manifest.take(), frame.data.take())
        {
            if fits(&announcement, &manifest, &data) {
                held = Some(Held::new(&announcement, envelope, (Bytes::from(manifest), Bytes::from(data))));
            } else {
                self.book.metrics.corrupt.inc();
                let why = "its data is not what was signed".to_string();
                self.feeds.shelf.refuse(&announcement.name, announcement.sequence, "corrupt", why);
                self.tell(Input::ManifestCorrupt { content: announcement.content, from });
            }
        }
        if let Some(row) = self.feeds.rows.get_mut(&id).filter(|_| held.is_some()) {
            row.held.clone_from(&held);
        }
        let inline = held.is_some();
        self.tell(Input::Announced { from: Some(from), via, announcement: announcement.clone(), inline });
        self.carry_out();
        match held {
            Some(held) => self.keep_small(&announcement, held),
            None if !announcement.is_small() => self.use_held_version(announcement.content),
            None => {}
        }
    }

    fn keep_small(&mut self, announcement: &Announcement, held: Held) {
        let Held { envelope, manifest, data, .. } = held;
        let id = announcement.job;
        let version = Arc::new(FeedVersion::new(announcement, FeedData::Memory(data.clone())));
        self.feeds.shelf.show(&id, version.clone());
        self.take_desired(&announcement.name, announcement.sequence, &data);
        self.feeds.keeper.put(id, PendingWrite { version, envelope, manifest: Some(manifest), done: None });
        // A large version may have gone before.
        if let Some(former) = self.feeds.rows.get_mut(&id).and_then(|row| row.shown.take()) {
            self.drop_unnamed(former);
        }
    }

    /// A large version that is in the store already: the feed went back to what it was.
    fn use_held_version(&mut self, content: ContentId) {
        if self.progress(&content).total == 0
            && self.store.is_whole(&content)
            && let Ok(manifest) = self.store.read_manifest(&content)
        {
            self.begin(content, manifest);
        }
    }

    /// Tells the brain of a version that is whole in the store.
    fn feed_is_whole(&mut self, content: &ContentId) {
        let geometry = self.store.manifest(content).and_then(|manifest| manifest.geometry(content).ok());
        let Some(geometry) = geometry.filter(|_| self.store.is_whole(content)) else { return };
        let have = shoal_proto::bitmap::Bitmap::full(geometry.piece_count());
        self.tell(Input::ContentReady { content: *content, geometry, have });
    }

    /// The version of a feed that a content is, if it is a feed's newest; and what readers have of that feed in the store.
    pub(super) fn feed_of(&self, content: &ContentId) -> Option<(Arc<Announcement>, Option<ContentId>)> {
        self.feeds.rows.iter().find_map(|(id, row)| {
            let (announcement, _) = self.envelopes.get(id)?;
            (announcement.content == *content).then(|| (announcement.clone(), row.shown))
        })
    }

    /// A large version is whole: readers get it.
    pub(super) fn show_version(&mut self, announcement: Arc<Announcement>) {
        let (store, files) = (self.store.clone(), self.feeds.files.clone());
        let urgency = Class::from(announcement.kind) as u8;
        self.done.run(Sort::Activate, urgency, move || {
            let result = place(&store, &files, &announcement);
            Done::Placed { announcement, result }
        });
    }

    pub(super) fn on_placed(&mut self, announcement: &Announcement, result: Result<Arc<File>, String>) {
        let (id, content) = (announcement.job, announcement.content);
        let file = match result {
            Ok(file) => file,
            Err(error) => {
                self.feeds.shelf.refuse(&announcement.name, announcement.sequence, "disk", error);
                self.tell(Input::Removed { content });
                self.drop_unnamed_but(content, announcement);
                return;
            }
        };
        let version = Arc::new(FeedVersion::new(announcement, FeedData::File(file)));
        if !self.feeds.shelf.show(&id, version.clone()) {
            self.drop_unnamed(content);
            return;
        }
        self.shown(id, content);
        // Its announcement is no longer there when a newer one came meanwhile; that one will be kept.
        if let Some((row, envelope)) = self.envelopes.get(&id)
            && row.sequence == announcement.sequence
        {
            let envelope = envelope.clone();
            self.feeds.keeper.put(id, PendingWrite { version, envelope, manifest: None, done: None });
        }
    }

    /// Readers have this content of a feed; what they had before is let go.
    fn shown(&mut self, feed: JobId, content: ContentId) {
        let Some(row) = self.feeds.rows.get_mut(&feed) else { return };
        let former = row.shown.replace(content);
        if let Some(former) = former.filter(|former| *former != content) {
            self.drop_unnamed(former);
        }
    }

    fn drop_unnamed(&mut self, content: ContentId) {
        let shown = self.feeds.rows.values().any(|row| row.shown == Some(content));
        if !shown && !self.is_named(&content) {
            self.tell(Input::Removed { content });
            self.drop_content(content);
        }
    }

    /// The same for a content that failed here: nobody but the feed itself may hold it.
    fn drop_unnamed_but(&mut self, content: ContentId, feed: &Announcement) {
        let others = self.jobs_of(&content).iter().any(|job| job.job != feed.job);
        if !others {
            self.drop_content(content);
        }
    }

    /// A neighbour says which versions it knows: that is news of these feeds, whatever it says.
    pub(super) fn hear_of_feeds(&self, message: &Message) {
        if let Message::Feeds { rows } = message {
            rows.iter().for_each(|row| self.feeds.shelf.heard(&row.feed));
        }
    }

    /// An announcement that nobody trusted signed calls itself a feed's.
    pub(super) fn refuse_feed(&self, announcement: &Announcement, error: &TrustError) {
        self.feeds.shelf.refuse(&announcement.name, announcement.sequence, "untrusted", error.to_string());
    }

    /// A feed's time is over.
    pub(super) fn forget_feed(&mut self, id: &JobId) {
        let Some(row) = self.feeds.rows.remove(id) else { return };
        self.feeds.known.remove(&row.envelope);
        self.feeds.files.forget(id);
        self.feeds.shelf.forget(id);
        if let Some(content) = row.shown {
            self.drop_unnamed(content);
        }
    }

    /// The lane of what is told at a restart.
    pub(super) fn tell_feed_again(&mut self, announcement: Arc<Announcement>) {
        let inline = self.holds_feed(&announcement.job);
        self.tell(Input::Announced { from: None, via: Via::AntiEntropy, announcement, inline });
    }
}

/// Whether these are a small version's manifest and data.
fn fits(announcement: &Announcement, manifest: &[u8], data: &[u8]) -> bool {
    data.len() as u64 == announcement.size
        && Manifest::id(manifest) == announcement.content
        && Manifest::from_bytes(manifest)
            .is_ok_and(|decoded| decoded.size() == data.len() as u64 && pieces_fit(&decoded, data))
}

fn place(store: &Store, files: &FeedFiles, announcement: &Announcement) -> Result<Arc<File>, String> {
    store.finish_version(&announcement.content).map_err(|error| error.to_string())?;
    let stream = store.stream_path(&announcement.content, 0);
    let version = FeedVersion::new(announcement, FeedData::Store);
    let placed = files.place(&version, Some(&stream)).map_err(|error| error.to_string())?;
    placed.ok_or_else(|| "this node has no readers".to_string())
}
