//! Feeds in the driver: checks a version, passes it on, and gives it to readers from memory. The disk is last.
//!
//! A small version travels inside its announcement. A large version is a content in the store, see [`large`].
//! Invariant: readers have every version that the disk has. After a restart they have it at once, and anti-entropy
//! brings what came later.

mod large;

pub use large::PlaceError;

use super::announcements::Announcements;
use super::contents::Contents;
use super::{Context, Driver};
use crate::feeds::{FeedData, FeedFiles, FeedVersion, FeedWriteError, FeedWriter, LatestVersions, PendingWrite};
use crate::handle::{Failure, FeedPublication, SmallContent};
use bytes::Bytes;
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::Document;
use shoal_proto::frame::AnnounceFrame;
use shoal_proto::ids::{ContentId, Hash, HostIndex, JobId};
use shoal_proto::message::Message;
use shoal_proto::trust::{Envelope, Role, TrustError};
use shoal_swarm::io::{Input, Via};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A small version of a feed.
#[derive(Clone)]
pub struct SmallVersion {
    pub sequence: u64,
    /// The signed announcement.
    pub envelope: Bytes,
    pub small: SmallContent,
}

impl SmallVersion {
    fn new(announcement: &Announcement, envelope: &Bytes, small: SmallContent) -> Self {
        Self { sequence: announcement.sequence, envelope: envelope.clone(), small }
    }
}

/// A feed, beside its newest announcement in the job table.
struct Feed {
    /// Hash of the newest signed announcement.
    newest_envelope: Hash,
    /// The newest small version with data here. It may be older than the announcement.
    small: Option<SmallVersion>,
    /// The large version that readers have.
    shown: Option<ContentId>,
}

/// The work that remains for a version after the core's outputs for it are carried out.
pub struct Delivery {
    version: DeliveredVersion,
    /// The announcement that the version replaced.
    superseded: Option<Arc<Announcement>>,
}

enum DeliveredVersion {
    /// No data came.
    None,
    /// Readers get a small version from another host.
    Small { announcement: Arc<Announcement>, version: SmallVersion },
    /// A large version was announced. The store may have it already.
    Large(ContentId),
    /// Readers get a seeder's own version.
    Own { feed: JobId, pending: PendingWrite },
}

impl Delivery {
    const NOTHING: Self = Self { version: DeliveredVersion::None, superseded: None };
}

/// A small version that may be a desired state.
pub struct SmallDelivered {
    pub announcement: Arc<Announcement>,
    pub data: Bytes,
}

/// The feeds of this host.
pub struct Feeds {
    latest: LatestVersions,
    files: FeedFiles,
    writer: FeedWriter,
    feeds: BTreeMap<JobId, Feed>,
    /// Newest versions by the hash of the signed announcement. The same one comes down several lanes.
    by_envelope: HashMap<Hash, JobId>,
}

impl Feeds {
    /// Reads the feeds that the disk keeps. Readers have them at once.
    pub fn load(
        cx: &mut Context,
        announcements: &mut Announcements,
        latest: LatestVersions,
        files: FeedFiles,
        writer: FeedWriter,
    ) -> Self {
        let mut feeds = Self { latest, files, writer, feeds: BTreeMap::new(), by_envelope: HashMap::new() };
        let kept = feeds.files.load().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the stored feeds");
            Vec::new()
        });
        for (id, kept) in kept {
            let envelope = Bytes::from(kept.envelope);
            // It was accepted before. Readers keep a version of a former publisher until the next version comes.
            let opened = Envelope::from_bytes(&envelope).map_err(TrustError::from);
            let announcement = match opened.and_then(|envelope| envelope.open::<Announcement>()) {
                Ok(announcement) if announcement.job == id && announcement.feed.is_some() => Arc::new(announcement),
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!(feed = %id, %error, "dropped a stored feed");
                    feeds.files.forget(&id);
                    continue;
                }
            };
            if announcements.check_again(&envelope).is_err() {
                announcements.void_feed(id, announcement.sequence);
            }
            let small = kept.manifest.zip(kept.data);
            let small = small.map(|(manifest, data)| SmallContent { manifest: manifest.into(), data: data.into() });
            let small = small.filter(|small| is_announced(&announcement, small));
            if announcement.is_small() && small.is_none() {
                feeds.files.forget(&id);
                continue;
            }
            feeds.restore(cx, announcement, envelope, small);
        }
        feeds
    }

    /// Takes over one version from the disk.
    fn restore(
        &mut self,
        cx: &mut Context,
        announcement: Arc<Announcement>,
        envelope: Bytes,
        small: Option<SmallContent>,
    ) {
        let id = announcement.job;
        self.latest.on_announced(&announcement, false);
        let data = match &small {
            Some(small) => Some(FeedData::Memory(small.data.clone())),
            None if cx.role == Role::Seeder => Some(FeedData::Store),
            None => {
                let placed = self.files.placed(&announcement.name);
                placed
                    .filter(|(on_disk, _)| on_disk.sequence == announcement.sequence)
                    .map(|(_, file)| FeedData::File(file))
            }
        };
        let is_in_store = small.is_none() && cx.store.manifest(&announcement.content).is_some();
        let small = small.map(|small| SmallVersion::new(&announcement, &envelope, small));
        self.put(id, Hash::of(&envelope), small);
        if let Some(feed) = self.feeds.get_mut(&id).filter(|_| is_in_store) {
            feed.shown = Some(announcement.content);
        }
        if let Some(data) = data {
            self.latest.publish(&id, Arc::new(FeedVersion::new(&announcement, data)));
        }
        cx.jobs.insert(announcement, envelope);
    }

    /// The newest small version with data here, whatever was announced since.
    pub fn small_version(&self, feed: &JobId) -> Option<&SmallVersion> {
        self.feeds.get(feed)?.small.as_ref()
    }

    /// Makes a version the newest one, with its data if these are small and here.
    fn put(&mut self, id: JobId, envelope: Hash, small: Option<SmallVersion>) {
        let former = self.feeds.remove(&id);
        if let Some(former) = &former {
            self.by_envelope.remove(&former.newest_envelope);
        }
        self.by_envelope.insert(envelope, id);
        let (former, shown) = former.map(|feed| (feed.small, feed.shown)).unwrap_or_default();
        self.feeds.insert(id, Feed { newest_envelope: envelope, small: small.or(former), shown });
    }

    /// Makes a version the newest one and keeps its announcement. Returns the former announcement.
    fn remember(
        &mut self,
        cx: &mut Context,
        announcement: Arc<Announcement>,
        envelope: Bytes,
        small: Option<SmallContent>,
    ) -> Option<Arc<Announcement>> {
        let small = small.map(|small| SmallVersion::new(&announcement, &envelope, small));
        self.put(announcement.job, Hash::of(&envelope), small);
        cx.jobs.insert(announcement, envelope)
    }

    /// Whether the newest version is small and its data is here.
    fn has_newest_data(&self, cx: &Context, feed: &JobId) -> bool {
        self.small_version(feed).is_some_and(|version| newest_sequence(cx, feed) == Some(version.sequence))
    }

    /// Announces a seeder's own version.
    fn publish(&mut self, cx: &mut Context, publication: FeedPublication) -> Delivery {
        let FeedPublication { envelope, announcement, small, kept } = publication;
        let (id, content) = (announcement.job, announcement.content);
        if newest_sequence(cx, &id).is_some_and(|newest| newest >= announcement.sequence) {
            // A newer version overtook this one, so no host needs it.
            let _ = kept.send(Ok(())); // the request is gone
            if small.is_none() && !cx.jobs.is_named(&content) {
                cx.drop_content(content);
            }
            return Delivery::NOTHING;
        }
        if !self.latest.on_announced(&announcement, false) {
            let _ = kept.send(Err(FeedWriteError::TooManyFeeds)); // the request is gone
            return Delivery::NOTHING;
        }
        let envelope = Bytes::from(envelope.to_bytes());
        let data = small.as_ref().map_or(FeedData::Store, |small| FeedData::Memory(small.data.clone()));
        let manifest = small.as_ref().map(|small| small.manifest.clone());
        let inline = small.is_some();
        let superseded = self.remember(cx, announcement.clone(), envelope.clone(), small);
        cx.tell(Input::Announced { from: None, via: Via::Lane(0), announcement: announcement.clone(), inline });
        if !inline {
            large::tell_if_whole(cx, &content);
            self.set_shown(cx, id, content);
        }
        let version = Arc::new(FeedVersion::new(&announcement, data));
        let pending = PendingWrite { version, envelope, manifest, done: Some(kept) };
        Delivery { version: DeliveredVersion::Own { feed: id, pending }, superseded }
    }

    /// Handles an announcement that is byte for byte a feed's newest one. Returns `None` for any other.
    pub fn on_known_announcement(
        &mut self,
        cx: &mut Context,
        from: HostIndex,
        frame: &mut AnnounceFrame,
    ) -> Option<Delivery> {
        let id = self.by_envelope.get(&Hash::of(&frame.envelope)).copied()?;
        self.latest.on_mention(&id);
        let Some(job) = cx.jobs.get(&id) else { return Some(Delivery::NOTHING) };
        let (announcement, envelope) = (job.announcement.clone(), job.envelope.clone());
        count_received(cx, from, frame);
        if self.has_newest_data(cx, &id) {
            // The core learns from a second copy which lanes work, because the next version may come down that lane.
            if frame.data.is_some() {
                cx.tell(Input::Announced {
                    from: Some(from),
                    via: Via::from_wire(frame.lane),
                    announcement,
                    inline: true,
                });
            }
            return Some(Delivery::NOTHING);
        }
        if !should_take(cx, &announcement) {
            return Some(Delivery::NOTHING);
        }
        Some(Delivery { version: self.take(cx, from, frame, announcement, &envelope), superseded: None })
    }

    /// Handles a publisher's announcement that is not the newest known one of its feed.
    pub fn on_new_announcement(
        &mut self,
        cx: &mut Context,
        from: HostIndex,
        mut frame: AnnounceFrame,
        announcement: Announcement,
    ) -> Delivery {
        let id = announcement.job;
        count_received(cx, from, &frame);
        if newest_sequence(cx, &id).is_some_and(|newest| newest >= announcement.sequence) {
            return self.on_older_announcement(cx, from, frame, announcement);
        }
        if !self.latest.on_announced(&announcement, true) {
            let why = "there are too many feeds already".to_string();
            self.latest.on_refused(&announcement.name, announcement.sequence, "too-many", why);
            return Delivery::NOTHING;
        }
        let announcement = Arc::new(announcement);
        let envelope = Bytes::from(std::mem::take(&mut frame.envelope));
        let superseded = self.remember(cx, announcement.clone(), envelope.clone(), None);
        let version = if should_take(cx, &announcement) {
            self.take(cx, from, &mut frame, announcement, &envelope)
        } else {
            cx.tell(Input::Announced {
                from: Some(from),
                via: Via::from_wire(frame.lane),
                announcement,
                inline: false,
            });
            DeliveredVersion::None
        };
        Delivery { version, superseded }
    }

    /// Takes an older version with data if readers have none as new yet: the newer announcement came without data.
    fn on_older_announcement(
        &mut self,
        cx: &mut Context,
        from: HostIndex,
        mut frame: AnnounceFrame,
        announcement: Announcement,
    ) -> Delivery {
        let id = announcement.job;
        self.latest.on_mention(&id);
        let shown = self.latest.newest(&id).map(|version| version.sequence);
        let is_useful = shown < Some(announcement.sequence) && frame.data.is_some() && announcement.is_small();
        if !is_useful || !should_take(cx, &announcement) {
            self.latest.on_stale();
            return Delivery::NOTHING;
        }
        let envelope = Bytes::from(std::mem::take(&mut frame.envelope));
        let version = self.take(cx, from, &mut frame, Arc::new(announcement), &envelope);
        Delivery { version, superseded: None }
    }

    /// Takes what came with a version's announcement, and tells the core. Children get the version before readers and
    /// the disk.
    fn take(
        &mut self,
        cx: &mut Context,
        from: HostIndex,
        frame: &mut AnnounceFrame,
        announcement: Arc<Announcement>,
        envelope: &Bytes,
    ) -> DeliveredVersion {
        let parts = (announcement.is_small(), frame.manifest.take(), frame.data.take());
        let mut version = None;
        if let (true, Some(manifest), Some(data)) = parts {
            let small = SmallContent { manifest: manifest.into(), data: data.into() };
            if is_announced(&announcement, &small) {
                version = Some(SmallVersion::new(&announcement, envelope, small));
            } else {
                cx.accounting.count(super::accounting::Event::ShardCorrupt);
                let why = "its data differs from the signed hash".to_string();
                self.latest.on_refused(&announcement.name, announcement.sequence, "corrupt", why);
                cx.tell(Input::ManifestCorrupt { content: announcement.content, from });
            }
        }
        if let Some(feed) = self.feeds.get_mut(&announcement.job).filter(|_| version.is_some()) {
            feed.small.clone_from(&version);
        }
        let (via, inline) = (Via::from_wire(frame.lane), version.is_some());
        cx.tell(Input::Announced { from: Some(from), via, announcement: announcement.clone(), inline });
        match version {
            Some(version) => DeliveredVersion::Small { announcement, version },
            None if !announcement.is_small() => DeliveredVersion::Large(announcement.content),
            None => DeliveredVersion::None,
        }
    }

    /// Hands a version to readers and then to the disk. Returns the data of a small version from another host.
    fn deliver(&mut self, cx: &mut Context, contents: &mut Contents, delivery: Delivery) -> Option<SmallDelivered> {
        let mut delivered = None;
        match delivery.version {
            DeliveredVersion::None => {}
            DeliveredVersion::Small { announcement, version } => {
                let data = version.small.data.clone();
                self.show_small(cx, &announcement, version);
                delivered = Some(SmallDelivered { announcement, data });
            }
            DeliveredVersion::Large(content) => self.begin_stored(cx, contents, content),
            DeliveredVersion::Own { feed, pending } => {
                self.latest.publish(&feed, pending.version.clone());
                self.writer.write(feed, pending);
            }
        }
        self.drop_superseded(cx, delivery.superseded);
        delivered
    }

    fn show_small(&mut self, cx: &mut Context, announcement: &Announcement, version: SmallVersion) {
        let SmallVersion { envelope, small: SmallContent { manifest, data }, .. } = version;
        let id = announcement.job;
        let version = Arc::new(FeedVersion::new(announcement, FeedData::Memory(data)));
        self.latest.publish(&id, version.clone());
        self.writer.write(id, PendingWrite { version, envelope, manifest: Some(manifest), done: None });
        // The version before may have been a large one.
        if let Some(former) = self.feeds.get_mut(&id).and_then(|feed| feed.shown.take()) {
            self.drop_unnamed(cx, former);
        }
    }

    /// Notes which feeds a neighbour knows. Readers see from that when a feed was last confirmed.
    pub fn note_neighbour(&self, message: &Message) {
        if let Message::Feeds { rows } = message {
            rows.iter().for_each(|row| self.latest.on_mention(&row.feed));
        }
    }

    /// Notes that the store refused a content, if the content is a feed's version.
    pub fn refuse_content(&self, cx: &Context, content: &ContentId, failure: &Failure) {
        if let Some(version) = self.version_of(cx, content) {
            let why = format!("{}: {}", failure.reason, failure.detail);
            self.latest.on_refused(&version.name, version.sequence, "content", why);
        }
    }

    /// Forgets an expired feed.
    pub fn forget(&mut self, cx: &mut Context, id: &JobId) {
        let Some(feed) = self.feeds.remove(id) else { return };
        self.by_envelope.remove(&feed.newest_envelope);
        self.files.forget(id);
        self.latest.forget(id);
        if let Some(content) = feed.shown {
            self.drop_unnamed(cx, content);
        }
    }

    /// Tells a new core about a feed's newest version.
    pub fn tell_again(&self, cx: &mut Context, announcement: Arc<Announcement>) {
        let inline = self.has_newest_data(cx, &announcement.job);
        cx.tell(Input::Announced { from: None, via: Via::AntiEntropy, announcement, inline });
    }
}

impl Driver {
    /// Announces a seeder's own version, then gives it to readers and the disk.
    pub fn publish_feed(&mut self, publication: FeedPublication) {
        let delivery = self.feeds.publish(&mut self.cx, publication);
        self.deliver_feed(delivery);
    }

    /// Lets the core send a version to children first. Readers and the disk follow.
    pub fn deliver_feed(&mut self, delivery: Delivery) {
        self.carry_out();
        if let Some(small) = self.feeds.deliver(&mut self.cx, &mut self.contents, delivery) {
            let SmallDelivered { announcement, data } = small;
            self.activations.take_desired(&mut self.cx, &announcement.name, announcement.sequence, &data);
        }
    }
}

/// Whether this host takes a feed's data.
fn should_take(cx: &Context, announcement: &Announcement) -> bool {
    announcement.origin == cx.node || cx.region.is_selected(announcement)
}

fn newest_sequence(cx: &Context, feed: &JobId) -> Option<u64> {
    cx.jobs.get(feed).map(|job| job.announcement.sequence)
}

fn count_received(cx: &Context, from: HostIndex, frame: &AnnounceFrame) {
    if let (Some(tier), Some(data)) = (cx.region.tier_of(from), &frame.data) {
        cx.accounting.received_feed(tier, data.len() as u64);
    }
}

/// Whether this is the announced small version.
fn is_announced(announcement: &Announcement, small: &SmallContent) -> bool {
    small.data.len() as u64 == announcement.size && small.is_content(&announcement.content)
}
