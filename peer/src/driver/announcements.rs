//! Announcements: checks and keeps received ones, and encodes those to send.
//!
//! Invariant: an announcement reaches the core only if a trusted publisher signed it and it has not expired. Of refused
//! announcements only expired ones reach a report, because their signature is good. No job that this host still works
//! on is forgotten without a line in the log.

use super::accounting::{Event, Level};
use super::contents::Contents;
use super::{Context, Driver};
use crate::handle::SmallContent;
use bytes::Bytes;
use shoal_net::admission::Admission;
use shoal_net::links::{FeedKey, OutFrame, encode_announce};
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::Document;
use shoal_proto::frame::AnnounceFrame;
use shoal_proto::ids::{HostIndex, JobId};
use shoal_proto::report::{HostState, Reason};
use shoal_proto::trust::{Envelope, TrustError};
use shoal_service::units::Span;
use shoal_swarm::io::{Input, Via};
use shoal_swarm::node::bounds::JOBS_MAX;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Expired jobs on which this host reports. The oldest report goes when another comes.
const EXPIRED_MAX: usize = 64;

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

/// The publishers' keys, what a change of them made void, and the announcement that was sent last.
pub struct Announcements {
    admission: Admission,
    /// Feeds whose newest version a former publisher signed, with the sequence of that version. Readers keep the
    /// version, and no other host gets it.
    void_feeds: BTreeMap<JobId, u64>,
    /// Pushes of former publishers. Their reports stay until the next change.
    void_pushes: Vec<JobId>,
    /// Jobs that expired before their contents were here, the oldest first. Their reports say so.
    expired: VecDeque<JobId>,
    last_encoded: Option<EncodedFrame>,
}

impl Announcements {
    pub fn new(admission: Admission) -> Self {
        let (void_feeds, void_pushes, expired) = (BTreeMap::new(), Vec::new(), VecDeque::new());
        Self { admission, void_feeds, void_pushes, expired, last_encoded: None }
    }

    /// Opens a signed announcement that has arrived now.
    ///
    /// # Errors
    /// Fails if no trusted publisher signed it, or its time or its trust epoch is ahead.
    pub fn open(&self, envelope: &[u8]) -> Result<Announcement, TrustError> {
        self.admission.open_announcement(envelope)
    }

    /// Checks an announcement that was accepted before, perhaps under another trust document.
    ///
    /// # Errors
    /// Fails if its signer may not publish it now.
    pub fn check_again(&self, envelope: &[u8]) -> Result<Announcement, TrustError> {
        self.admission.trust().open_published(&Envelope::from_bytes(envelope)?)
    }

    /// Notes that no other host may get the versions of a feed up to `sequence`.
    pub fn void_feed(&mut self, feed: JobId, sequence: u64) {
        self.void_feeds.insert(feed, sequence);
    }

    fn is_void(&self, feed: &JobId, sequence: u64) -> bool {
        self.void_feeds.get(feed).is_some_and(|void| sequence <= *void)
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
        match announcements.check_again(&bytes) {
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
        // Its announcements that wait in the queue cost no check.
        if self.cx.region.member(from).is_none_or(|member| self.cx.endpoint.is_banned(&member.node)) {
            return;
        }
        if let Some(delivery) = self.feeds.on_known_announcement(&mut self.cx, from, &mut frame) {
            self.deliver_feed(delivery);
            return;
        }
        let announcement = match self.announcements.open(&frame.envelope) {
            Ok(announcement) => announcement,
            Err(error) => return self.refuse_announcement(from, &frame, &error),
        };
        let now = shoal_net::admission::system_clock();
        if announcement.expires_at <= now {
            return self.refuse_expired(from, &announcement, now - announcement.expires_at);
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

    /// Nothing in a refused announcement is verified, so nothing in it becomes a report.
    fn refuse_announcement(&mut self, from: HostIndex, frame: &AnnounceFrame, error: &TrustError) {
        self.cx.accounting.count(Event::AnnouncementRefused);
        if let Some(skipped) = self.cx.warnings.pass() {
            tracing::warn!(%from, %error, skipped, "refused an announcement");
        }
        // No honest host passes on what it cannot verify. It may know a publisher, or a later form of announcements,
        // that this host does not know yet.
        if matches!(error, TrustError::BadSignature(_)) || Envelope::from_bytes(&frame.envelope).is_err() {
            self.cx.tell(Input::AnnouncementCorrupt { from });
        }
    }

    /// Refuses a publisher's announcement that expired `ago_s` seconds ago by this host's clock.
    ///
    /// A neighbour may mention a job for a moment after its end, which is no news. A host that lacks the content of a
    /// job for it has missed the job, or has a wrong clock, and says so.
    fn refuse_expired(&mut self, from: HostIndex, announcement: &Announcement, ago_s: u64) {
        let cx = &mut self.cx;
        cx.accounting.count(Event::AnnouncementRefused);
        let Announcement { job, content, name, version, .. } = announcement;
        let ago = Span::seconds(ago_s);
        let is_here = cx.store.is_complete(content) || cx.store.rack_share(content).is_some();
        let is_missed = announcement.feed.is_none() && !announcement.demotes() && !is_here;
        if !is_missed || !cx.region.is_selected(announcement) {
            tracing::debug!(%from, %job, name, version, %ago, "refused an expired announcement");
            return;
        }
        if let Some(skipped) = cx.warnings.pass() {
            let remedy = "compare this host's clock with the tracker's";
            tracing::warn!(%from, %job, name, version, %ago, skipped, remedy, "refused an expired announcement");
        }
        // Hosts that subscribed here look elsewhere at once.
        if !cx.jobs.is_named(content) {
            cx.tell(Input::ContentRefused { content: *content });
        }
        self.report_expired(*job, &format!("the announcement expired {ago} ago by this host's clock; check the clock"));
    }

    /// Reports that a job ended before its content was here. The report outlives the job.
    fn report_expired(&mut self, job: JobId, detail: &str) {
        let (reporter, expired) = (&self.cx.reporter, &mut self.announcements.expired);
        if !expired.contains(&job) {
            expired.push_back(job);
        }
        reporter.open(job);
        reporter.reach(&job, HostState::Failed(Reason::Deadline), detail);
        if expired.len() > EXPIRED_MAX
            && let Some(oldest) = expired.pop_front()
        {
            reporter.forget(&oldest);
        }
    }

    /// Whether this host still works on a job for it: it fetches the content, or has not switched to it.
    fn is_unfinished(&self, job: &JobId) -> bool {
        let Some(row) = self.cx.jobs.get(job) else { return false };
        match self.cx.reporter.state(job) {
            Some(HostState::Unknown) => true,
            Some(HostState::Has) => !row.announcement.staged,
            _ => false,
        }
    }

    /// Notes that this host forgets a job on which it still works.
    fn note_dropped(&self, announcement: &Announcement, why: &'static str) {
        let Announcement { job, name, version, .. } = announcement;
        self.cx.accounting.count(Event::JobDropped);
        tracing::warn!(%job, name, version, why, "forgot a job before it was complete here");
    }

    /// Ends what publishers announced that the trust document in force does not name. Active versions stay.
    pub fn on_new_trust(&mut self) {
        for job in std::mem::take(&mut self.announcements.void_pushes) {
            self.cx.reporter.forget(&job);
        }
        for job in self.cx.jobs.ids() {
            let Some(row) = self.cx.jobs.get(&job) else { continue };
            let Err(error) = self.announcements.check_again(&row.envelope) else { continue };
            if row.announcement.feed.is_some() {
                self.announcements.void_feed(job, row.announcement.sequence);
                continue;
            }
            tracing::warn!(%job, name = row.announcement.name, %error, "ended a job of a former publisher");
            let is_selected = self.cx.region.is_selected(&row.announcement);
            self.forget_job(job);
            if is_selected {
                self.cx.reporter.reach(&job, HostState::Failed(Reason::Untrusted), &error.to_string());
                self.announcements.void_pushes.push(job);
            }
        }
    }

    /// Keeps a job's signed announcement, also on disk. The oldest push makes room for it.
    fn keep_job(&mut self, announcement: Arc<Announcement>, envelope: Bytes) {
        let job = announcement.job;
        if self.cx.jobs.len() >= JOBS_MAX {
            let pushes = self.cx.jobs.announcements().filter(|announcement| announcement.feed.is_none());
            let oldest = pushes.min_by_key(|announcement| (announcement.created_at, announcement.job)).cloned();
            if let Some(oldest) = oldest {
                if self.is_unfinished(&oldest.job) {
                    self.note_dropped(&oldest, "too many newer jobs");
                }
                self.forget_job(oldest.job);
            }
        }
        let cx = &mut self.cx;
        if self.announcements.expired.contains(&job) {
            // The clock was corrected. The report begins again.
            self.announcements.expired.retain(|expired| *expired != job);
            cx.reporter.forget(&job);
        }
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
        let expired: Vec<Arc<Announcement>> = expired.cloned().collect();
        for announcement in expired {
            let is_unfinished = self.is_unfinished(&announcement.job);
            self.forget_job(announcement.job);
            if is_unfinished {
                self.note_dropped(&announcement, "its lifetime has ended");
                let detail = "the lifetime of the job ended before it was complete here; push the version again";
                self.report_expired(announcement.job, detail);
            }
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
        let version = version.filter(|version| !self.announcements.is_void(&job, version.sequence));
        let (sequence, envelope, small) = match version {
            Some(version) => (version.sequence, &version.envelope, Some(&version.small)),
            None if inline && !is_feed => (row.announcement.sequence, &row.envelope, self.contents.small(&content)),
            None => (row.announcement.sequence, &row.envelope, None),
        };
        if self.announcements.is_void(&job, sequence) {
            return;
        }
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
