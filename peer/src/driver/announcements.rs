//! Announcements: checks and keeps received ones, and encodes those to send.
//!
//! Invariant: an announcement reaches the core only if a trusted publisher signed it and it has not expired.

use super::accounting::{Event, Level};
use super::contents::Contents;
use super::{Context, Driver};
use crate::handle::SmallContent;
use bytes::Bytes;
use shoal_net::links::{FeedKey, OutFrame, encode_announce};
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::Document;
use shoal_proto::frame::AnnounceFrame;
use shoal_proto::ids::{HostIndex, JobId};
use shoal_proto::report::{HostState, Reason};
use shoal_proto::trust::{Envelope, Trust, TrustError};
use shoal_swarm::io::{Input, Via};
use shoal_swarm::node::bounds::JOBS_MAX;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Jobs of untrusted publishers that this host reports on. Further ones are only counted.
const UNTRUSTED_JOBS_MAX: usize = 16;

/// What a received announcement of a push or a demotion means for this host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// It is known, or it does not select this host. This host only spreads it.
    Spread,
    /// A newer version of its name is active here.
    Stale,
    /// Manifest and data came with it and are correct.
    WithData,
    /// A new push that selects this host.
    NewPush,
    /// A new demotion that selects this host.
    NewDemotion,
}

/// Which frame an encoded announcement is. The same frame goes to all children of a lane.
#[derive(PartialEq, Eq)]
struct FrameKey {
    job: JobId,
    sequence: u64,
    lane: u8,
    has_data: bool,
}

struct EncodedFrame {
    key: FrameKey,
    bytes: Bytes,
}

/// The publishers' keys, and the announcement that was sent last.
pub struct Announcements {
    trust: Arc<Trust>,
    /// Jobs of untrusted publishers that this host reported on.
    untrusted: BTreeSet<JobId>,
    last_encoded: Option<EncodedFrame>,
}

impl Announcements {
    pub fn new(trust: Arc<Trust>) -> Self {
        Self { trust, untrusted: BTreeSet::new(), last_encoded: None }
    }

    /// Opens a signed announcement.
    ///
    /// # Errors
    /// Fails if no trusted publisher signed it.
    pub fn open(&self, envelope: &[u8]) -> Result<Announcement, TrustError> {
        self.trust.open_published(&Envelope::from_bytes(envelope)?)
    }

    /// Reports a job whose publisher the trust document does not name. The operator may have forgotten the publisher.
    /// [`UNTRUSTED_JOBS_MAX`] keeps forged announcements from filling the reports.
    fn report_untrusted(&mut self, cx: &Context, announcement: &Announcement, error: &TrustError) {
        let job = announcement.job;
        let is_new = self.untrusted.len() < UNTRUSTED_JOBS_MAX && cx.jobs.get(&job).is_none();
        if is_new && cx.region.is_selected(announcement) && self.untrusted.insert(job) {
            cx.reporter.open(job);
            cx.reporter.reach(&job, HostState::Failed(Reason::Untrusted), &error.to_string());
        }
    }

    /// Encodes an announcement, or takes the frame that was sent last.
    fn encode(&mut self, key: FrameKey, envelope: &Bytes, small: Option<&SmallContent>) -> Bytes {
        if let Some(last) = self.last_encoded.as_ref().filter(|last| last.key == key) {
            return last.bytes.clone();
        }
        let (manifest, data) = small.map(|small| (small.manifest.to_vec(), small.data.to_vec())).unzip();
        let bytes = encode_announce(&AnnounceFrame { envelope: envelope.to_vec(), lane: key.lane, manifest, data });
        self.last_encoded = Some(EncodedFrame { key, bytes: bytes.clone() });
        bytes
    }
}

/// Reads the jobs that the store keeps.
pub fn load_jobs(cx: &mut Context, announcements: &Announcements) {
    let jobs = cx.store.jobs().unwrap_or_else(|error| {
        tracing::error!(%error, "cannot read the stored jobs");
        Vec::new()
    });
    for (job, bytes) in jobs {
        match announcements.open(&bytes) {
            Ok(announcement) => {
                cx.jobs.insert(Arc::new(announcement), bytes.into());
            }
            Err(error) => {
                tracing::warn!(%job, %error, "dropped a stored announcement");
                let _ = cx.store.forget_job(&job); // the next restart drops it again
            }
        }
    }
    cx.accounting.set(Level::Jobs(cx.jobs.len()));
}

impl Driver {
    /// Handles a received announcement of a push, a demotion or a feed.
    pub fn on_announce(&mut self, from: HostIndex, mut frame: AnnounceFrame) {
        if let Some(delivery) = self.feeds.on_known_announcement(&mut self.cx, from, &mut frame) {
            self.deliver_feed(delivery);
            return;
        }
        let announcement = match self.announcements.open(&frame.envelope) {
            Ok(announcement) => announcement,
            Err(error) => return self.refuse_announcement(from, &frame.envelope, &error),
        };
        if announcement.expires_at <= shoal_net::admission::system_clock() {
            self.cx.accounting.count(Event::AnnouncementRefused);
            return;
        }
        if announcement.feed.is_some() {
            let delivery = self.feeds.on_new_announcement(&mut self.cx, from, frame, announcement);
            return self.deliver_feed(delivery);
        }
        let announcement = Arc::new(announcement);
        if let (Some(tier), Some(data)) = (self.cx.region.tier_of(from), &frame.data) {
            self.cx.accounting.received(announcement.content, Some(tier), data.len() as u64);
        }
        let via = Via::from_wire(frame.lane);
        let arrival = self.take_announcement(&announcement, frame);
        // The core must know stale jobs too. Otherwise anti-entropy would bring them again and again.
        let inline = arrival == Arrival::WithData;
        self.cx.tell(Input::Announced { from: Some(from), via, announcement: announcement.clone(), inline });
        match arrival {
            Arrival::Spread | Arrival::WithData => {}
            Arrival::Stale => self.activations.refuse_stale(&mut self.cx, &announcement),
            Arrival::NewPush => self.use_stored(announcement.content),
            Arrival::NewDemotion => {
                self.use_stored(announcement.content);
                self.settle_empty_demotion(&announcement);
            }
        }
    }

    /// Keeps a new announcement and its data, and says what it means.
    fn take_announcement(&mut self, announcement: &Arc<Announcement>, frame: AnnounceFrame) -> Arrival {
        let is_new = self.cx.jobs.get(&announcement.job).is_none();
        if is_new {
            self.keep_job(announcement.clone(), frame.envelope.into());
        }
        if !self.cx.region.is_selected(announcement) {
            return Arrival::Spread;
        }
        if !announcement.demotes() && self.activations.is_stale(announcement) {
            return Arrival::Stale;
        }
        if let (Some(manifest), Some(data)) = (frame.manifest, frame.data) {
            let small = SmallContent { manifest: manifest.into(), data: data.into() };
            if self.contents.take_inline(&mut self.cx, announcement, small) {
                return Arrival::WithData;
            }
        }
        match (is_new, announcement.demotes()) {
            (false, _) => Arrival::Spread,
            (true, false) => Arrival::NewPush,
            (true, true) => Arrival::NewDemotion,
        }
    }

    /// A demotion is complete at once where nothing of its content is stored.
    fn settle_empty_demotion(&mut self, announcement: &Announcement) {
        let content = announcement.content;
        if self.cx.store.manifest(&content).is_none() && !self.contents.is_beginning(&content) {
            self.cx.reporter.reach(&announcement.job, HostState::Active, "nothing of the content is here");
        }
    }

    fn refuse_announcement(&mut self, from: HostIndex, envelope: &[u8], error: &TrustError) {
        self.cx.accounting.count(Event::AnnouncementRefused);
        tracing::warn!(%from, %error, "refused an announcement");
        let TrustError::UntrustedSigner(_) = error else { return };
        let opened = Envelope::from_bytes(envelope).map_err(TrustError::from);
        let Ok(announcement) = opened.and_then(|envelope| envelope.open::<Announcement>()) else { return };
        if announcement.feed.is_some() {
            self.feeds.refuse_untrusted(&announcement, error);
        } else {
            self.announcements.report_untrusted(&self.cx, &announcement, error);
        }
    }

    /// Keeps a job's signed announcement, also on disk. The oldest push makes room for it.
    fn keep_job(&mut self, announcement: Arc<Announcement>, envelope: Bytes) {
        let job = announcement.job;
        if self.cx.jobs.len() >= JOBS_MAX {
            let pushes = self.cx.jobs.announcements().filter(|announcement| announcement.feed.is_none());
            let oldest = pushes.map(|announcement| (announcement.created_at, announcement.job)).min();
            if let Some((_, oldest)) = oldest {
                self.forget_job(oldest);
            }
        }
        let cx = &mut self.cx;
        if let Err(error) = cx.store.save_job(&job, &envelope) {
            tracing::error!(%job, %error, "cannot save an announcement");
        }
        cx.accounting.begin_job(job, &announcement.content, &cx.store);
        cx.open_report(&announcement);
        cx.jobs.insert(announcement, envelope);
        cx.accounting.set(Level::Jobs(cx.jobs.len()));
    }

    /// Forgets a job. Its content stays.
    fn forget_job(&mut self, job: JobId) {
        let cx = &mut self.cx;
        if cx.jobs.remove(&job).is_some_and(|announcement| announcement.feed.is_some()) {
            self.feeds.forget(cx, &job);
        } else {
            cx.reporter.forget(&job);
            if let Err(error) = cx.store.forget_job(&job) {
                tracing::warn!(%job, %error, "cannot delete a job");
            }
            cx.accounting.end_job(&job, &cx.store);
            self.activations.update_known_jobs(cx);
        }
        self.cx.tell(Input::Forgotten { job });
    }

    /// Forgets the jobs whose time is over.
    pub fn forget_expired_jobs(&mut self) {
        let now = shoal_net::admission::system_clock();
        let expired = self.cx.jobs.announcements().filter(|announcement| announcement.expires_at <= now);
        let expired: Vec<JobId> = expired.map(|announcement| announcement.job).collect();
        for job in expired {
            self.forget_job(job);
        }
        self.cx.accounting.set(Level::Jobs(self.cx.jobs.len()));
        self.activations.update_known_jobs(&self.cx);
    }

    /// Announces a seeder's own push.
    pub fn publish(&mut self, envelope: &Envelope, announcement: Arc<Announcement>) {
        self.keep_job(announcement.clone(), envelope.to_bytes().into());
        if announcement.is_small() {
            Contents::read_small(&mut self.cx, announcement);
        } else {
            self.announce_own(announcement, false);
        }
    }

    /// Sends a seeder's own push down announcement lane 0.
    pub fn announce_own(&mut self, announcement: Arc<Announcement>, inline: bool) {
        let content = announcement.content;
        self.cx.tell(Input::Announced { from: None, via: Via::Lane(0), announcement, inline });
        self.cx.tell_if_complete(&content);
    }

    /// Sends a job's announcement to a host, with manifest and data if `inline` and if this host has them.
    pub fn send_announce(&mut self, to: HostIndex, job: JobId, lane: u8, inline: bool) {
        let cx = &mut self.cx;
        let Some(node) = cx.region.member(to).map(|member| member.node) else { return };
        let Some(row) = cx.jobs.get(&job) else { return };
        let (content, is_feed) = (row.announcement.content, row.announcement.feed.is_some());
        // Of a feed the newest version with data goes out, even if a newer one was announced since.
        let version = self.feeds.small_version(&job).filter(|_| inline && is_feed);
        let (sequence, envelope, small) = match version {
            Some(version) => (version.sequence, &version.envelope, Some(&version.small)),
            None if inline && !is_feed => (row.announcement.sequence, &row.envelope, self.contents.small(&content)),
            None => (row.announcement.sequence, &row.envelope, None),
        };
        let bytes = small.map_or(0, |small| small.data.len() as u64);
        let key = FrameKey { job, sequence, lane, has_data: small.is_some() };
        let frame = self.announcements.encode(key, envelope, small);
        let frame = if is_feed {
            OutFrame::Latest { key: FeedKey { job, lane }, body: frame }
        } else {
            OutFrame::Announce(frame)
        };
        // Without a link or with a full queue, anti-entropy brings the announcement later.
        if cx.endpoint.send(node, frame).is_ok() {
            if is_feed {
                cx.accounting.count(Event::FeedSentBytes(bytes));
            } else {
                cx.accounting.sent(content, bytes);
            }
        }
    }
}
