//! The driver: one task that tells the brain what happened and carries out what it wishes.
//!
//! Owns the brain, the maps between its words and ours (host index and key, job and signed announcement), and what is
//! under way for it. Split by meaning: [`link_events`] takes what links bring, [`job_table`] keeps announcements and says how far
//! their jobs are, [`contents`] takes contents from manifest to completion, [`demotion`] demotes them, [`rack_recovery`] finds the rack
//! again, [`feeds`] keeps to the latest versions of feeds, [`activation`] has versions switched in, [`rollouts`] does what
//! desired states ask for, [`image_activation`] has images prewarmed, [`outputs`] carries wishes
//! out, [`blocking_pool`] runs those that block, [`accounting`] counts.
//! Invariant: the brain hears of every effect it wished for, also when it failed.

mod accounting;
mod activation;
mod blocking_pool;
mod contents;
mod demotion;
mod feeds;
mod image_activation;
mod job_table;
mod link_events;
mod outputs;
mod rack_recovery;
mod rollouts;
pub mod setup;

pub use accounting::NodeMetrics;

use crate::activation::content_dir::ContentDir;
use crate::activation::journal::Journal;
use crate::activation::record::SwitchRecord;
use crate::activation::settings::Activations;
use crate::feeds::{FeedFiles, FeedWriter, LatestVersions};
use crate::handle::{DriverCommand, NodeHandle};
use crate::prewarm::PrewarmRequests;
use crate::tracker_client::{SharedReports, TrackerEvent};
use accounting::Book;
use blocking_pool::{Pool, Sort};
use bytes::Bytes;
use contents::{Done, Inlined};
use rack_recovery::Mates;
use rollouts::Rollouts;
use shoal_api::contents::{ContentName, ContentStatus};
use shoal_net::links::{LinkEndpoint, LinkEvent};
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::ids::{ContentId, HostIndex, JobId, NodeId};
use shoal_proto::locality::Locality;
use shoal_proto::membership::MembershipUpdate;
use shoal_proto::trust::{Role, Trust};
use shoal_store::{Store, StoreEvent};
use shoal_swarm::io::{Input, Via};
use shoal_swarm::membership::Membership;
use shoal_swarm::node::{CachingPlanner, Node, NodeConfig, Progress, Tuning};
use shoal_swarm::time::Instant;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Shards in the store's queue at a time; links are not read beyond it. Below the store's own bound.
const PUTS_MAX: usize = shoal_store::SUBMIT_QUEUE_MAX / 2;
/// Lanes of plans for which no manifest says otherwise.
const LANES: u8 = 64;
/// How often expired announcements are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(30);
/// How often counts and membership go to the disk: what a kill may cost of them.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// How soon progress goes into the reports: they are told once a second, shards arrive by the thousand.
const PROGRESS_AFTER: Duration = Duration::from_millis(100);
/// Events of one source handled before the others are looked at.
const BATCH: usize = 32;

/// What the driver is made of.
pub struct Parts {
    /// Our key.
    pub node: NodeId,
    /// Peer or seeder.
    pub role: Role,
    /// Where we are.
    pub locality: Locality,
    /// The store's folder.
    pub store_dir: PathBuf,
    /// Whose announcements count.
    pub trust: Arc<Trust>,
    /// The store.
    pub store: Store,
    /// Its events.
    pub store_events: mpsc::Receiver<StoreEvent>,
    /// Bulk links.
    pub endpoint: LinkEndpoint,
    /// Their events.
    pub link_events: mpsc::Receiver<LinkEvent>,
    /// Announcements, apart from the rest.
    pub announcements: mpsc::Receiver<LinkEvent>,
    /// From the tracker's client.
    pub tracker_events: mpsc::Receiver<TrackerEvent>,
    /// SharedReports with it.
    pub shared: Arc<SharedReports>,
    /// Where contents are activated; peers only.
    pub content_dir: Option<ContentDir>,
    /// What is done around a switch; peers only.
    pub activations: Activations,
    /// Where the journal of switches is written.
    pub journal_dir: PathBuf,
    /// The newest versions of feeds.
    pub(crate) shelf: LatestVersions,
    /// Where they are kept.
    pub(crate) feed_files: FeedFiles,
    /// Who writes them there.
    pub(crate) keeper: FeedWriter,
    /// Where wishes for warm images go; peers with a container runtime only.
    pub warming: Option<Arc<PrewarmRequests>>,
    /// Counters.
    pub metrics: NodeMetrics,
}

/// A link that came up before membership told us of its other end.
struct Stranger {
    since: Instant,
    /// What it said meanwhile.
    said: Vec<LinkEvent>,
}

/// The driver.
pub struct Driver {
    node: NodeId,
    role: Role,
    trust: Arc<Trust>,
    store: Store,
    store_events: mpsc::Receiver<StoreEvent>,
    endpoint: LinkEndpoint,
    link_events: mpsc::Receiver<LinkEvent>,
    announcements: mpsc::Receiver<LinkEvent>,
    tracker_events: mpsc::Receiver<TrackerEvent>,
    commands: mpsc::Receiver<DriverCommand>,
    shared: Arc<SharedReports>,
    content_dir: Option<ContentDir>,
    warming: Option<Arc<PrewarmRequests>>,
    started: std::time::Instant,
    /// `None` until our place in the roster and a membership that has us are known.
    brain: Option<Node>,
    me: Option<HostIndex>,
    membership: Arc<Membership>,
    membership_out: watch::Sender<Arc<Membership>>,
    strangers: HashMap<NodeId, Stranger>,
    /// Links that are up, also before the brain runs.
    linked: HashSet<NodeId>,
    /// Signed announcements, encoded.
    envelopes: BTreeMap<JobId, (Arc<Announcement>, Bytes)>,
    /// Jobs of publishers we do not trust that we reported on.
    untrusted: BTreeSet<JobId>,
    feeds: feeds::Feeds,
    /// Small contents' manifests and data, to send along with announcements.
    inlined: Inlined,
    /// The announcement sent last, encoded: by job, sequence, lane and whether data is in it.
    encoded: Option<((JobId, u64, u8, bool), Bytes)>,
    /// Contents that are being begun, with their manifests where these are right.
    beginning: HashMap<ContentId, Option<Bytes>>,
    /// The newest sequence switched in, by kind and name.
    activated: HashMap<(Kind, String), u64>,
    /// Names that are being switched, and what waits for them.
    switching: HashSet<String>,
    to_switch: VecDeque<Arc<Announcement>>,
    rollouts: Rollouts,
    /// Switches that a kill cut, until they go on.
    rollouts_cut: Vec<(String, SwitchRecord)>,
    puts: usize,
    done: Pool<Done>,
    book: Book,
    /// Contents whose progress is not in the reports yet, and when it goes there.
    progressed: BTreeSet<ContentId>,
    progress_at: Option<Instant>,
    membership_saved: bool,
    mates: Mates,
}

impl Driver {
    /// Sets the driver up from what is on disk.
    pub fn new(parts: Parts) -> (Self, NodeHandle) {
        let (commands_in, commands) = mpsc::channel(64);
        let mut membership = Membership::default();
        if let Ok(Some(bytes)) = parts.store.get_state("membership")
            && let Ok(update) = shoal_proto::codec::decode_exact::<MembershipUpdate>(&bytes)
            && update.validate().is_ok()
        {
            let _ = membership.apply(update);
        }
        let me = parts.store.get_state("host-index").ok().flatten();
        let me = me.and_then(|bytes| bytes.try_into().ok()).map(|bytes| HostIndex(u32::from_be_bytes(bytes)));
        let membership = Arc::new(membership);
        let (membership_out, membership_in) = watch::channel(membership.clone());
        let handle = NodeHandle {
            commands: commands_in,
            membership: membership_in,
            shared: parts.shared.clone(),
            store: parts.store.clone(),
            feeds: parts.shelf.clone(),
        };
        let mut driver = Self {
            node: parts.node,
            role: parts.role,
            trust: parts.trust,
            store: parts.store,
            store_events: parts.store_events,
            endpoint: parts.endpoint,
            link_events: parts.link_events,
            announcements: parts.announcements,
            tracker_events: parts.tracker_events,
            commands,
            shared: parts.shared,
            content_dir: parts.content_dir,
            warming: parts.warming,
            started: std::time::Instant::now(),
            brain: None,
            me,
            membership,
            membership_out,
            strangers: HashMap::new(),
            linked: HashSet::new(),
            envelopes: BTreeMap::new(),
            untrusted: BTreeSet::new(),
            feeds: feeds::Feeds::new(parts.shelf, parts.feed_files, parts.keeper),
            inlined: Inlined::default(),
            encoded: None,
            beginning: HashMap::new(),
            activated: HashMap::new(),
            switching: HashSet::new(),
            to_switch: VecDeque::new(),
            rollouts_cut: Vec::new(),
            rollouts: Rollouts::new(parts.activations, Journal::new(&parts.journal_dir)),
            puts: 0,
            done: Pool::new(),
            book: Book::new(parts.metrics),
            progressed: BTreeSet::new(),
            progress_at: None,
            membership_saved: true,
            mates: Mates::new(parts.role, &parts.store_dir, parts.locality),
        };
        driver.book.load(&driver.store);
        driver.load_jobs();
        driver.load_feeds();
        driver.load_activated();
        driver.load_rollouts();
        driver.tell_known_jobs();
        driver.shared.set_known((!driver.membership.is_empty()).then(|| driver.membership.epoch()));
        driver.start_brain();
        (driver, handle)
    }

    fn now(&self) -> Instant {
        Instant(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Runs until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut saving = tokio::time::interval(SAVE_EVERY);
        saving.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.resume_rollouts();
        self.carry_out();
        loop {
            let wait = self.next_deadline();
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                // Before anything that waits on the disk: a feed's version is relayed the moment it comes.
                Some(event) = self.announcements.recv() => self.on_announcements(event),
                Some(event) = self.store_events.recv() => self.on_store_events(event),
                done = self.done.next(), if !self.done.is_idle() => match done {
                    Some(done) => self.on_done(done),
                    None => tracing::error!("an effect panicked"),
                },
                Some(ended) = self.rollouts.next(), if !self.rollouts.is_idle() => self.on_rollout(ended),
                Some(event) = self.tracker_events.recv() => self.on_tracker(event),
                Some(command) = self.commands.recv() => self.on_command(command),
                () = tokio::time::sleep(wait) => self.on_time(),
                _ = housekeeping.tick() => self.keep_house(),
                _ = saving.tick() => self.save(),
                Some(event) = self.link_events.recv(), if self.puts < PUTS_MAX => self.on_link_events(event),
            }
            self.carry_out();
        }
        self.endpoint.shutdown(Duration::from_secs(3)).await;
        self.rollouts.stop().await;
        self.done.stop().await;
        self.save_now();
        if let Err(error) = self.store.sync() {
            tracing::error!(%error, "cannot flush the index");
        }
    }

    /// How long until the brain or the reports want to be looked at.
    fn next_deadline(&self) -> Duration {
        let brain = self.brain.as_ref().and_then(Node::poll_timeout);
        let next = [brain, self.progress_at].into_iter().flatten().min();
        next.map_or(Duration::from_secs(3600), |at| at.since(self.now()))
    }

    fn on_time(&mut self) {
        let now = self.now();
        if self.progress_at.is_some_and(|at| at <= now) {
            self.flush_progress();
        }
        self.tell(Input::Tick);
    }

    /// Announcements that are here, then one of what they would otherwise keep waiting.
    fn on_announcements(&mut self, first: LinkEvent) {
        self.on_link_event(first);
        for _ in 1..BATCH {
            self.carry_out();
            let Ok(event) = self.announcements.try_recv() else { return };
            self.on_link_event(event);
        }
        if let Ok(event) = self.store_events.try_recv() {
            self.carry_out();
            self.on_store_events(event);
        }
        if self.puts < PUTS_MAX
            && let Ok(event) = self.link_events.try_recv()
        {
            self.carry_out();
            self.on_link_events(event);
        }
    }

    fn on_store_events(&mut self, first: StoreEvent) {
        self.on_store(first);
        for _ in 1..BATCH {
            self.carry_out();
            let Ok(event) = self.store_events.try_recv() else { return };
            self.on_store(event);
        }
    }

    fn on_link_events(&mut self, first: LinkEvent) {
        self.on_link_event(first);
        for _ in 1..BATCH {
            self.carry_out();
            if self.puts >= PUTS_MAX {
                return;
            }
            let Ok(event) = self.link_events.try_recv() else { return };
            self.on_link_event(event);
        }
    }

    /// Tells the brain a fact, if there is a brain to tell.
    fn tell(&mut self, input: Input) {
        let now = self.now();
        if let Some(brain) = &mut self.brain {
            brain.handle(now, input);
        }
    }

    /// Starts the brain once we know who we are, and tells it all that is on disk.
    fn start_brain(&mut self) {
        let Some(me) = self.me else { return };
        if self.brain.is_some() || self.membership.get(me).is_none_or(|member| member.node != self.node) {
            return;
        }
        self.brain = Some(Node::new(
            NodeConfig { me, lanes: LANES, tuning: Tuning::default() },
            Box::new(CachingPlanner::default()),
        ));
        self.tell(Input::Membership(self.membership.clone()));
        let mut jobs: Vec<Arc<Announcement>> =
            self.envelopes.values().map(|(announcement, _)| announcement.clone()).collect();
        jobs.sort_by_key(|announcement| announcement.sequence);
        let records = self.store.contents();
        for announcement in jobs {
            if announcement.feed.is_some() {
                self.tell_feed_again(announcement);
                continue;
            }
            let inline = records.iter().any(|record| record.content == announcement.content);
            self.open_report(&announcement);
            self.tell(Input::Announced { from: None, via: Via::AntiEntropy, announcement, inline });
        }
        for record in records {
            let content = record.content;
            if self.tell_share(&record) {
                self.recall_demotion(&record);
                self.report_progress(&content);
                continue;
            }
            if !record.complete && !self.is_named(&content) {
                // Its job is over; nobody would ever finish or evict it.
                self.drop_content(content);
                continue;
            }
            self.tell(Input::ContentReady { content, geometry: record.geometry, have: record.have });
            self.report_progress(&content);
        }
        self.judge_all();
        let linked: Vec<NodeId> = self.linked.iter().copied().collect();
        for node in linked {
            self.link_up(node);
        }
    }

    fn on_tracker(&mut self, event: TrackerEvent) {
        match event {
            TrackerEvent::Joined { index } => {
                if self.me != Some(index) {
                    if let Some(former) = self.me {
                        tracing::warn!(%former, %index, "our place in the roster changed");
                    }
                    self.me = Some(index);
                    self.brain = None;
                    let saved = self.store.put_state("host-index", Some(index.0.to_be_bytes().to_vec()));
                    if let Err(error) = saved {
                        tracing::error!(%error, "cannot keep our place in the roster");
                    }
                }
                self.start_brain();
            }
            TrackerEvent::Update(update) => self.on_update(update),
        }
    }

    fn on_update(&mut self, update: MembershipUpdate) {
        if let Err(error) = update.validate() {
            tracing::warn!(%error, "the tracker sent a bad membership");
            return;
        }
        let mut next = (*self.membership).clone();
        if let Err(error) = next.apply(update) {
            // The next beat asks for everything.
            tracing::debug!(%error, "membership update does not fit");
            self.shared.set_known(None);
            return;
        }
        let known = next.epoch();
        self.mates.hearsay = false;
        let former = std::mem::replace(&mut self.membership, Arc::new(next));
        self.book.metrics.members.set(self.membership.len() as i64);
        self.membership_out.send_replace(self.membership.clone());
        self.shared.set_known(Some(known));
        self.membership_saved = false;
        if self.brain.is_some() {
            self.tell(Input::Membership(self.membership.clone()));
            self.rename_links(&former);
            if self.me.is_some_and(|me| former.get(me) != self.membership.get(me)) {
                self.open_reports();
                self.judge_all();
            }
        } else {
            self.start_brain();
        }
        self.greet_strangers();
    }

    /// A host may have another place in the roster than before, or none for a while, as after a tracker's restore: its
    /// link is the new one's.
    fn rename_links(&mut self, former: &Membership) {
        let linked: Vec<NodeId> = self.linked.iter().copied().collect();
        for node in linked {
            let (old, new) = (former.by_node(&node), self.membership.by_node(&node));
            if old == new {
                continue;
            }
            if let Some(host) = old {
                self.tell(Input::LinkDown { host, reason: None });
            }
            // Strangers are greeted with all they said meanwhile.
            if let Some(host) = new.filter(|_| !self.strangers.contains_key(&node)) {
                self.tell(Input::LinkUp { host });
            }
        }
    }

    /// Writes counts and membership to the disk, beside the driver.
    fn save(&mut self) {
        self.book.save(&self.store);
        self.look_for_mates();
        if self.membership_saved {
            return;
        }
        self.membership_saved = true;
        self.remember_mates();
        let (store, membership) = (self.store.clone(), self.membership.clone());
        self.done.run(Sort::Store, 0, move || {
            save_membership(&store, &membership);
            Done::Nothing
        });
    }

    /// The same, at the end.
    fn save_now(&mut self) {
        self.book.save(&self.store);
        if !self.membership_saved {
            save_membership(&self.store, &self.membership);
        }
    }

    fn on_command(&mut self, command: DriverCommand) {
        match command {
            DriverCommand::Publish { envelope, announcement } => self.publish(&envelope, announcement),
            DriverCommand::Rollouts(reply) => {
                let _ = reply.send(self.rollout_statuses());
            }
            DriverCommand::PublishFeed(publication) => self.publish_feed(*publication),
            DriverCommand::Contents(reply) => {
                let _ = reply.send(self.content_statuses());
            }
            DriverCommand::Sent(job, reply) => {
                let sent = self.envelopes.get(&job).map(|(row, _)| self.book.of_job(&job, &row.content).1);
                let _ = reply.send(sent.unwrap_or(0));
            }
            DriverCommand::Ping(reply) => {
                let _ = reply.send(());
            }
            DriverCommand::ImagePrewarmed { job, outcome } => self.on_prewarmed(job, outcome),
        }
    }

    fn content_statuses(&self) -> Vec<ContentStatus> {
        let mut rows: BTreeMap<ContentId, ContentStatus> = BTreeMap::new();
        let pieced = |row: &Announcement| row.feed.is_none() || !row.is_small();
        for (announcement, _) in self.envelopes.values().filter(|(row, _)| pieced(row)) {
            let content = announcement.content;
            let row = rows.entry(content).or_insert_with(|| {
                let progress = self.progress(&content);
                ContentStatus {
                    content,
                    have: progress.have,
                    total: progress.total,
                    size: announcement.size,
                    names: Vec::new(),
                    tiers: self.book.of(&content).0,
                    sent: self.book.of(&content).1,
                    demoted: self.store.rack_share(&content).is_some_and(|found| found.share.whole_dropped),
                }
            });
            let (name, version) = (announcement.name.clone(), announcement.version.clone());
            row.names.push(ContentName { name, version, kind: announcement.kind });
        }
        rows.into_values().collect()
    }

    fn progress(&self, content: &ContentId) -> Progress {
        self.brain.as_ref().and_then(|brain| brain.progress(content)).unwrap_or_default()
    }
}

fn save_membership(store: &Store, membership: &Membership) {
    let bytes = shoal_proto::codec::encode(&membership.to_update());
    if let Err(error) = store.put_state("membership", Some(bytes)) {
        tracing::error!(%error, "cannot keep the membership");
    }
}
