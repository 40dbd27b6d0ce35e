//! The driver: one task that owns the core, carries out its outputs and reports results as inputs.
//!
//! [`Driver`] only waits for events and dispatches them. Parts with private state do the work:
//! - [`region`] holds the membership and this host's place in it. [`rack_recovery`] finds the rack without a tracker.
//! - [`job_table`] holds the signed announcements. [`announcements`] checks, keeps and sends them.
//! - [`contents`] brings a content from its manifest to the store.
//! - [`payload`] moves shards between links and the store.
//! - [`demotion`] replaces a content by a rack share.
//! - [`feeds`] follows the newest versions of feeds.
//! - [`activation`] switches versions after a push, as desired states ask, and has images unpacked.
//! - [`reporting`] says how far this host is in each job, [`accounting`] counts bytes.
//!
//! Every part works with the [`Context`]. [`blocking_pool`] runs what blocks, and its results return to the driver as a
//! [`Completion`]. Events enter in [`link_events`], [`membership_events`] and [`completions`]. The core's outputs leave
//! in [`outputs`].
//!
//! Invariant: the core receives the result of every output that asks for one, also after a failure.

#![allow(unreachable_pub, reason = "the parts are private modules, and `pub` marks a part's interface to the driver")]

mod accounting;
mod activation;
mod announcements;
mod blocking_pool;
mod completions;
mod contents;
mod demotion;
mod feeds;
mod job_table;
mod link_events;
mod membership_events;
mod outputs;
mod payload;
mod rack_recovery;
mod region;
mod reporting;
pub mod setup;

pub use rack_recovery::remembered_rack_peers;

pub use accounting::NodeMetrics;

use crate::activation::content_dir::ContentDir;
use crate::activation::journal::Journal;
use crate::activation::settings;
use crate::arrivals::Arrivals;
use crate::feeds::{FeedFiles, FeedWriter, LatestVersions};
use crate::handle::{DriverCommand, NodeHandle};
use crate::prewarm::PrewarmRequests;
use crate::row_check::RowCheck;
use crate::tracker_client::{SharedReports, TrackerEvent};
use accounting::Accounting;
use activation::Activations;
use announcements::Announcements;
use blocking_pool::{BlockingPool, WorkKind};
use completions::Completion;
use contents::Contents;
use feeds::Feeds;
use job_table::JobTable;
use payload::Payload;
use rack_recovery::RackRecovery;
use region::Region;
use reporting::Reporter;
use shoal_api::contents::{ContentName, ContentStatus};
use shoal_net::admission::Admission;
use shoal_net::links::{LinkEndpoint, LinkEvent, LinkEvents};
use shoal_net::log_limit::LogLimit;
use shoal_proto::announcement::{Announcement, Class};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, NodeId};
use shoal_proto::locality::Locality;
use shoal_proto::report::HostState;
use shoal_proto::trust::{Role, Trust};
use shoal_store::{Store, StoreEvent};
use shoal_swarm::io::Input;
use shoal_swarm::node::{Node, Progress};
use shoal_swarm::time::Instant;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Lines per second that other hosts can cause.
const WARNINGS_LOGGED: u32 = 8;
/// How often the driver looks for expired announcements.
const HOUSEKEEPING: Duration = Duration::from_secs(30);
/// How often counts and the membership go to the disk. A kill loses this much of them.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// Events of one source that the driver handles before it looks at the others.
const BATCH: usize = 32;
/// Commands in the driver's channel.
const COMMANDS_MAX: usize = 64;

/// What the driver is made of.
struct Parts {
    /// This node's key.
    node: NodeId,
    /// Peer or seeder.
    role: Role,
    /// This node's locality, from its credential.
    locality: Locality,
    /// The store's folder.
    store_dir: PathBuf,
    /// The trust document, with the publishers whose announcements count.
    admission: Admission,
    /// The node's store.
    store: Store,
    /// Events of `store`.
    store_events: mpsc::Receiver<StoreEvent>,
    /// Signals for tasks that wait for data of a content.
    arrivals: Arrivals,
    /// The node's links.
    endpoint: LinkEndpoint,
    /// Events of the links, without announcements.
    link_events: LinkEvents,
    /// Received announcements. They have their own channel, so payload does not delay a feed.
    announcements: LinkEvents,
    /// Events of the tracker's client.
    tracker_events: mpsc::Receiver<TrackerEvent>,
    /// State that the driver shares with the tracker's client.
    shared: Arc<SharedReports>,
    /// The folder of active versions. Only peers have one.
    content_dir: Option<ContentDir>,
    /// Hooks and probes around a switch. Only peers have some.
    activations: settings::Activations,
    /// Folder of the journal of switches.
    journal_dir: PathBuf,
    /// The newest versions of feeds, for readers.
    latest_feeds: LatestVersions,
    /// The feeds' files.
    feed_files: FeedFiles,
    /// The thread that writes feeds.
    feed_writer: FeedWriter,
    /// Requests to the prewarm task. Only peers with a containerd have one.
    prewarm: Option<Arc<PrewarmRequests>>,
    /// The check of membership rows, which the tracker's client shares.
    rows: Arc<Mutex<RowCheck>>,
    /// The node's counters.
    metrics: NodeMetrics,
}

/// The channels that the driver reads.
struct Inbox {
    trust: watch::Receiver<Arc<Trust>>,
    store_events: mpsc::Receiver<StoreEvent>,
    link_events: LinkEvents,
    announcements: LinkEvents,
    tracker_events: mpsc::Receiver<TrackerEvent>,
    commands: mpsc::Receiver<DriverCommand>,
}

/// What every part works with: the core, the region, the jobs, and the ways to act.
struct Context {
    node: NodeId,
    role: Role,
    /// Zero of the core's clock.
    started: std::time::Instant,
    /// `None` until a membership confirms our roster index.
    core: Option<Node>,
    region: Region,
    jobs: JobTable,
    store: Store,
    arrivals: Arrivals,
    content_dir: Option<ContentDir>,
    endpoint: LinkEndpoint,
    pool: BlockingPool<Completion>,
    reporter: Reporter,
    accounting: Accounting,
    /// The limit of log lines that other hosts can cause.
    warnings: LogLimit,
}

impl Context {
    fn now(&self) -> Instant {
        Instant(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Hands an input to the core, if the core runs.
    fn tell(&mut self, input: Input) {
        let now = self.now();
        if let Some(core) = &mut self.core {
            core.handle(now, input);
        }
    }

    fn progress(&self, content: &ContentId) -> Progress {
        self.core.as_ref().and_then(|core| core.progress(content)).unwrap_or_default()
    }

    /// Tells the core about a content that is complete on disk. The core ignores a content that it knows.
    fn tell_if_complete(&mut self, content: &ContentId) -> bool {
        let geometry = self.store.manifest(content).and_then(|manifest| manifest.geometry(content).ok());
        let Some(geometry) = geometry.filter(|_| self.store.is_complete(content)) else { return false };
        let have = Bitmap::full(geometry.piece_count());
        self.tell(Input::ContentReady { content: *content, geometry, have });
        true
    }

    /// Begins to report on a job, if it selects this host. Nothing reports on feeds.
    fn open_report(&self, announcement: &Announcement) {
        if announcement.feed.is_none() && self.region.is_selected(announcement) {
            self.reporter.open(announcement.job);
        }
    }

    /// Reports a state on all pushes of a content.
    fn report_pushes(&self, content: &ContentId, state: HostState, detail: &str) {
        for announcement in self.jobs.pushes_of(content) {
            self.reporter.reach(&announcement.job, state, detail);
        }
    }

    /// Puts a content's progress into its reports a moment later.
    fn note_progress(&mut self, content: ContentId) {
        let now = self.now();
        self.reporter.note_progress(content, now);
    }

    /// Puts a content's progress into its reports now.
    fn report_progress(&self, content: &ContentId) {
        let progress = self.progress(content);
        let mut is_reported = false;
        for announcement in self.jobs.pushes_of(content) {
            let counts = self.accounting.of_job(&announcement.job, content);
            is_reported |= self.reporter.progress(announcement.job, progress, counts.received, counts.sent);
        }
        if is_reported {
            self.reporter.send_soon();
        }
    }

    /// Deletes a content from the store.
    fn drop_content(&mut self, content: ContentId) {
        self.accounting.forget(&content);
        let (store, arrivals) = (self.store.clone(), self.arrivals.clone());
        self.pool.run(WorkKind::Store, Class::Bulk, move || {
            if let Err(error) = store.remove(&content) {
                tracing::error!(content = %content.short(), %error, "cannot remove a content");
            }
            arrivals.on_change(&content);
            Completion::Nothing
        });
    }

    /// Forgets contents that the store evicted.
    fn forget_evicted(&mut self, evicted: Vec<ContentId>) {
        for content in evicted {
            tracing::info!(content = %content.short(), "evicted");
            self.accounting.forget(&content);
            self.tell(Input::Removed { content });
        }
    }
}

/// The task that owns the core and all parts.
struct Driver {
    inbox: Inbox,
    cx: Context,
    announcements: Announcements,
    contents: Contents,
    payload: Payload,
    feeds: Feeds,
    activations: Activations,
}

impl Driver {
    /// Builds the driver from what the disk keeps.
    fn new(parts: Parts) -> (Self, NodeHandle) {
        let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
        let recovery = RackRecovery::new(parts.role, &parts.store_dir, parts.locality);
        let mut cx = Context {
            node: parts.node,
            role: parts.role,
            started: std::time::Instant::now(),
            core: None,
            region: Region::load(parts.node, &parts.store, recovery, parts.rows),
            jobs: JobTable::default(),
            content_dir: parts.content_dir,
            endpoint: parts.endpoint,
            pool: BlockingPool::new(),
            reporter: Reporter::new(parts.shared.clone(), parts.store.clone()),
            accounting: Accounting::load(parts.metrics, &parts.store),
            warnings: LogLimit::new(WARNINGS_LOGGED, Duration::from_secs(1)),
            store: parts.store,
            arrivals: parts.arrivals.clone(),
        };
        let handle = NodeHandle {
            commands: commands_in,
            membership: cx.region.subscribe(),
            shared: parts.shared,
            store: cx.store.clone(),
            feeds: parts.latest_feeds.clone(),
            arrivals: parts.arrivals,
        };
        let trust = parts.admission.changes();
        let mut announcements = Announcements::new(parts.admission);
        announcements::load_jobs(&mut cx, &announcements);
        let feeds = Feeds::load(&mut cx, &mut announcements, parts.latest_feeds, parts.feed_files, parts.feed_writer);
        let mut activations = Activations::new(parts.activations, Journal::new(&parts.journal_dir), parts.prewarm);
        activations.load(&cx);
        activations.load_rollouts(&cx);
        let inbox = Inbox {
            trust,
            store_events: parts.store_events,
            link_events: parts.link_events,
            announcements: parts.announcements,
            tracker_events: parts.tracker_events,
            commands,
        };
        let (contents, payload) = (Contents::default(), Payload::default());
        let mut driver = Self { inbox, cx, announcements, contents, payload, feeds, activations };
        driver.retake_desired();
        driver.activations.update_known_jobs(&driver.cx);
        let membership = driver.cx.region.membership();
        driver.cx.endpoint.know(membership.iter().flat_map(|member| &member.addrs).map(SocketAddr::ip));
        driver.cx.reporter.set_epoch((!membership.is_empty()).then(|| membership.epoch()));
        driver.start_core();
        (driver, handle)
    }

    /// Takes desired states from the feeds' files. A kill may have come before their own rows were written.
    fn retake_desired(&mut self) {
        for feed in self.activations.desired_feeds(&self.cx) {
            let version = self.feeds.small_version(&feed.job).filter(|version| version.sequence == feed.sequence);
            if let Some(data) = version.map(|version| version.small.data.clone()) {
                self.activations.take_desired(&mut self.cx, &feed.name, feed.sequence, &data);
            }
        }
    }

    /// Runs until the token is cancelled.
    async fn run(mut self, token: CancellationToken) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut saving = tokio::time::interval(SAVE_EVERY);
        saving.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.activations.resume_interrupted(&self.cx);
        self.carry_out();
        loop {
            let wait = self.next_deadline();
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                // Before announcements, because the next ones may need the new document.
                Ok(()) = self.inbox.trust.changed() => self.on_new_trust(),
                // First, because a host relays a feed's version the moment it arrives.
                Some(event) = self.inbox.announcements.recv() => self.on_announcement_events(event),
                Some(event) = self.inbox.store_events.recv() => self.on_store_events(event),
                done = self.cx.pool.next(), if !self.cx.pool.is_idle() => match done {
                    Some(completion) => self.on_completion(completion),
                    None => tracing::error!("blocking work panicked"),
                },
                Some(event) = self.activations.next(), if !self.activations.is_idle() =>
                    self.activations.on_rollout_event(&mut self.cx, event),
                Some(event) = self.inbox.tracker_events.recv() => self.on_tracker_event(event),
                Some(command) = self.inbox.commands.recv() => self.on_command(command),
                () = tokio::time::sleep(wait) => self.on_deadline(),
                _ = housekeeping.tick() => self.on_housekeeping(),
                _ = saving.tick() => self.save(),
                Some(event) = self.inbox.link_events.recv(), if !self.payload.is_full() => self.on_link_events(event),
            }
            self.carry_out();
        }
        self.stop().await;
    }

    /// Closes the links, ends tasks and flushes the store.
    async fn stop(mut self) {
        self.cx.endpoint.shutdown(Duration::from_secs(3)).await;
        self.activations.stop().await;
        self.cx.pool.stop().await;
        let cx = &mut self.cx;
        cx.accounting.save(&cx.store);
        if let Some(membership) = cx.region.take_unsaved() {
            region::save_membership(&cx.store, &membership);
        }
        if let Err(error) = cx.store.sync() {
            tracing::error!(%error, "cannot flush the index");
        }
    }

    /// Time until the core's timer or the next progress report.
    fn next_deadline(&self) -> Duration {
        let core = self.cx.core.as_ref().and_then(Node::poll_timeout);
        let next = [core, self.cx.reporter.progress_due()].into_iter().flatten().min();
        next.map_or(Duration::from_secs(3600), |at| at.since(self.cx.now()))
    }

    fn on_deadline(&mut self) {
        let now = self.cx.now();
        for content in self.cx.reporter.take_progressed(now) {
            self.cx.report_progress(&content);
        }
        self.cx.tell(Input::Tick);
    }

    /// Handles all announcements that are here, then one event each of the sources that they would starve.
    fn on_announcement_events(&mut self, first: LinkEvent) {
        self.on_link_event(first);
        for _ in 1..BATCH {
            self.carry_out();
            let Ok(event) = self.inbox.announcements.try_recv() else { return };
            self.on_link_event(event);
        }
        if let Ok(event) = self.inbox.store_events.try_recv() {
            self.carry_out();
            self.on_store_events(event);
        }
        if !self.payload.is_full()
            && let Ok(event) = self.inbox.link_events.try_recv()
        {
            self.carry_out();
            self.on_link_events(event);
        }
    }

    fn on_store_events(&mut self, first: StoreEvent) {
        self.on_store_event(first);
        for _ in 1..BATCH {
            self.carry_out();
            let Ok(event) = self.inbox.store_events.try_recv() else { return };
            self.on_store_event(event);
        }
    }

    fn on_link_events(&mut self, first: LinkEvent) {
        self.on_link_event(first);
        for _ in 1..BATCH {
            self.carry_out();
            if self.payload.is_full() {
                return;
            }
            let Ok(event) = self.inbox.link_events.try_recv() else { return };
            self.on_link_event(event);
        }
    }

    fn on_housekeeping(&mut self) {
        self.forget_expired_jobs();
        let now = self.cx.now();
        self.cx.region.expire_unknown_links(now);
    }

    /// Writes counts now, and the membership on the blocking pool.
    fn save(&mut self) {
        let cx = &mut self.cx;
        cx.accounting.save(&cx.store);
        self.dial_rack_peers();
        let cx = &mut self.cx;
        if let Some(membership) = cx.region.take_unsaved() {
            let store = cx.store.clone();
            cx.pool.run(WorkKind::Store, Class::Control, move || {
                region::save_membership(&store, &membership);
                Completion::Nothing
            });
        }
    }

    fn on_command(&mut self, command: DriverCommand) {
        match command {
            DriverCommand::Publish { envelope, announcement } => self.publish(&envelope, announcement),
            DriverCommand::PublishFeed(publication) => self.publish_feed(*publication),
            DriverCommand::Contents(reply) => answer(reply, self.content_statuses()),
            DriverCommand::Sent(job, reply) => answer(reply, self.sent_bytes(&job)),
            DriverCommand::Rollouts(reply) => answer(reply, self.activations.rollout_statuses(&self.cx)),
            DriverCommand::Ping(reply) => answer(reply, ()),
            DriverCommand::ImagePrewarmed { job, outcome } => {
                self.activations.on_prewarmed(&mut self.cx, job, outcome);
            }
        }
    }

    /// Payload bytes of a job's content that this host sent since the job began.
    fn sent_bytes(&self, job: &shoal_proto::ids::JobId) -> u64 {
        let content = self.cx.jobs.get(job).map(|row| row.announcement.content);
        content.map_or(0, |content| self.cx.accounting.of_job(job, &content).sent)
    }

    fn content_statuses(&self) -> Vec<ContentStatus> {
        let cx = &self.cx;
        let mut rows: BTreeMap<ContentId, ContentStatus> = BTreeMap::new();
        // Small versions of feeds are not in the store. A job outlives its content, which the store may evict.
        let is_stored = |announcement: &&Arc<Announcement>| {
            let is_small_feed = announcement.feed.is_some() && announcement.is_small();
            !is_small_feed && cx.store.manifest(&announcement.content).is_some()
        };
        for announcement in cx.jobs.announcements().filter(is_stored) {
            let content = announcement.content;
            let row = rows.entry(content).or_insert_with(|| {
                let (progress, counts) = (cx.progress(&content), cx.accounting.of_content(&content));
                ContentStatus {
                    content,
                    have: progress.have,
                    total: progress.total,
                    size: announcement.size,
                    names: Vec::new(),
                    tiers: counts.received,
                    sent: counts.sent,
                    demoted: cx.store.rack_share(&content).is_some_and(|found| found.share.whole_dropped),
                }
            });
            let (name, version) = (announcement.name.clone(), announcement.version.clone());
            let name = ContentName { name, version, kind: announcement.kind };
            // A promotion has the name of its push.
            if !row.names.contains(&name) {
                row.names.push(name);
            }
        }
        rows.into_values().collect()
    }
}

fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    let _ = reply.send(value); // the asker is gone
}
