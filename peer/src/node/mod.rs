//! The driver: one task that tells the brain what happened and carries out what it wishes.
//!
//! Owns the brain, the maps between its words and ours (host index and key, job and signed announcement), and what is
//! under way for it. Split by meaning: [`network`] takes what links bring, [`effects`] carries wishes out, [`contents`]
//! takes contents from manifest to activation, [`book`] counts.
//! Invariant: the brain hears of every effect it wished for, also when it failed.

mod book;
mod contents;
mod effects;
mod network;
pub mod setup;

pub use book::NodeMetrics;

use crate::activate::ContentDir;
use crate::tracker::{Shared, TrackerEvent};
use book::Book;
use bytes::Bytes;
use contents::{Done, Inlined};
use shoal_net::bulk::{BulkEndpoint, BulkEvent};
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::codec::Document;
use shoal_proto::ids::{ContentId, HostIndex, JobId, NodeId};
use shoal_proto::membership::MembershipUpdate;
use shoal_proto::report::{HostReport, TierBytes};
use shoal_proto::trust::{Envelope, Role, Trust};
use shoal_store::{Store, StoreEvent};
use shoal_swarm::io::Input;
use shoal_swarm::membership::Membership;
use shoal_swarm::node::{CachingPlanner, Node, NodeConfig, Progress};
use shoal_swarm::time::Instant;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Shards in the store's queue at a time; links are not read beyond it. Below the store's own bound.
const PUTS_MAX: usize = shoal_store::store::QUEUE / 2;
/// Lanes of plans for which no manifest says otherwise.
const LANES: u8 = 64;
/// How often expired announcements are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// A content as the API shows it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ContentStatus {
    /// The content.
    pub content: ContentId,
    /// Pieces verified here, and in all.
    pub have: u32,
    /// Pieces in all; 0 while the manifest is not known.
    pub total: u32,
    /// Payload bytes.
    pub size: u64,
    /// Jobs that named it: name, version, kind.
    pub names: Vec<(String, String, Kind)>,
    /// Payload bytes received, by source.
    pub tiers: TierBytes,
    /// Payload bytes sent.
    pub sent: u64,
}

/// What others ask of the driver.
#[derive(Debug)]
pub enum Command {
    /// A seeder has taken a content in and signed its announcement.
    Publish {
        /// The signed announcement.
        envelope: Envelope,
        /// The same, opened.
        announcement: Arc<Announcement>,
    },
    /// What is here?
    Contents(oneshot::Sender<Vec<ContentStatus>>),
    /// Payload bytes sent for a content.
    Sent(ContentId, oneshot::Sender<u64>),
}

/// How others reach the driver.
#[derive(Clone)]
pub struct NodeHandle {
    /// Commands.
    pub commands: mpsc::Sender<Command>,
    /// The membership, as it changes.
    pub membership: watch::Receiver<Arc<Membership>>,
    /// Reports of this host.
    pub shared: Arc<Shared>,
    /// The store.
    pub store: Store,
}

impl NodeHandle {
    /// What is here.
    pub async fn contents(&self) -> Vec<ContentStatus> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Contents(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Payload bytes sent for a content.
    pub async fn sent(&self, content: ContentId) -> u64 {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Sent(content, reply)).await;
        answer.await.unwrap_or_default()
    }

    /// This host's own reports.
    pub fn reports(&self) -> Vec<HostReport> {
        self.shared.reports().all().cloned().collect()
    }
}

/// What the driver is made of.
pub struct Parts {
    /// Our key.
    pub node: NodeId,
    /// Peer or seeder.
    pub role: Role,
    /// Whose announcements count.
    pub trust: Arc<Trust>,
    /// The store.
    pub store: Store,
    /// Its events.
    pub store_events: mpsc::Receiver<StoreEvent>,
    /// Bulk links.
    pub endpoint: BulkEndpoint,
    /// Their events.
    pub link_events: mpsc::Receiver<BulkEvent>,
    /// From the tracker's client.
    pub tracker_events: mpsc::Receiver<TrackerEvent>,
    /// Shared with it.
    pub shared: Arc<Shared>,
    /// Where contents are activated; peers only.
    pub content_dir: Option<ContentDir>,
    /// Counters.
    pub metrics: NodeMetrics,
}

/// A link that came up before membership told us of its other end.
struct Stranger {
    since: Instant,
    /// What it said meanwhile.
    said: Vec<BulkEvent>,
}

/// The driver.
pub struct Driver {
    node: NodeId,
    role: Role,
    trust: Arc<Trust>,
    store: Store,
    store_events: mpsc::Receiver<StoreEvent>,
    endpoint: BulkEndpoint,
    link_events: mpsc::Receiver<BulkEvent>,
    tracker_events: mpsc::Receiver<TrackerEvent>,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    content_dir: Option<ContentDir>,
    started: std::time::Instant,
    /// `None` until our place in the roster and a membership that has us are known.
    brain: Option<Node>,
    me: Option<HostIndex>,
    membership: Arc<Membership>,
    membership_out: watch::Sender<Arc<Membership>>,
    strangers: HashMap<NodeId, Stranger>,
    /// Links that are up, also before the brain runs.
    linked: HashMap<NodeId, ()>,
    /// Signed announcements, encoded.
    envelopes: BTreeMap<JobId, (Arc<Announcement>, Bytes)>,
    /// Small contents' manifests and data, to send along with announcements.
    inlined: Inlined,
    /// The newest sequence activated, by kind and name.
    activated: HashMap<(Kind, String), u64>,
    puts: usize,
    done: JoinSet<Done>,
    book: Book,
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
        };
        let mut driver = Self {
            node: parts.node,
            role: parts.role,
            trust: parts.trust,
            store: parts.store,
            store_events: parts.store_events,
            endpoint: parts.endpoint,
            link_events: parts.link_events,
            tracker_events: parts.tracker_events,
            commands,
            shared: parts.shared,
            content_dir: parts.content_dir,
            started: std::time::Instant::now(),
            brain: None,
            me,
            membership,
            membership_out,
            strangers: HashMap::new(),
            linked: HashMap::new(),
            envelopes: BTreeMap::new(),
            inlined: Inlined::default(),
            activated: HashMap::new(),
            puts: 0,
            done: JoinSet::new(),
            book: Book::new(parts.metrics),
        };
        driver.load_jobs();
        driver.load_activated();
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
        loop {
            let deadline = self.brain.as_ref().and_then(Node::poll_timeout);
            let deadline = deadline.map_or(Duration::from_secs(3600), |at| at.since(self.now()));
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                Some(event) = self.store_events.recv() => self.on_store(event),
                Some(done) = self.done.join_next(), if !self.done.is_empty() => match done {
                    Ok(done) => self.on_done(done),
                    Err(error) => tracing::error!(%error, "an effect panicked"),
                },
                Some(event) = self.tracker_events.recv() => self.on_tracker(event),
                Some(command) = self.commands.recv() => self.on_command(command),
                () = tokio::time::sleep(deadline) => self.tell(Input::Tick),
                _ = housekeeping.tick() => self.keep_house(),
                Some(event) = self.link_events.recv(), if self.puts < PUTS_MAX => self.on_link_event(event),
            }
            self.carry_out();
        }
        self.endpoint.shutdown(Duration::from_secs(3)).await;
        self.done.shutdown().await;
        if let Err(error) = self.store.sync() {
            tracing::error!(%error, "cannot flush the index");
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
        self.brain = Some(Node::new(NodeConfig { me, lanes: LANES }, Box::new(CachingPlanner::default())));
        self.tell(Input::Membership(self.membership.clone()));
        let jobs: Vec<Arc<Announcement>> =
            self.envelopes.values().map(|(announcement, _)| announcement.clone()).collect();
        let records = self.store.records();
        for announcement in jobs {
            let lane = shoal_swarm::node::limits::ENTROPY_LANE;
            let inline = records.iter().any(|record| record.content == announcement.content);
            self.open_report(&announcement);
            self.tell(Input::Announced { from: None, lane, announcement, inline });
        }
        for record in records {
            self.tell(Input::ContentReady { content: record.content, geometry: record.geometry, have: record.have });
        }
        let linked: Vec<NodeId> = self.linked.keys().copied().collect();
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
        self.membership = Arc::new(next);
        self.book.metrics.members.set(self.membership.len() as i64);
        self.membership_out.send_replace(self.membership.clone());
        self.shared.set_known(Some(known));
        let bytes = shoal_proto::codec::encode(&self.membership.to_update());
        if let Err(error) = self.store.put_state("membership", Some(bytes)) {
            tracing::error!(%error, "cannot keep the membership");
        }
        if self.brain.is_some() {
            self.tell(Input::Membership(self.membership.clone()));
        } else {
            self.start_brain();
        }
        self.greet_strangers();
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Publish { envelope, announcement } => self.publish(&envelope, announcement),
            Command::Contents(reply) => {
                let _ = reply.send(self.content_statuses());
            }
            Command::Sent(content, reply) => {
                let _ = reply.send(self.book.sent(&content));
            }
        }
    }

    fn content_statuses(&self) -> Vec<ContentStatus> {
        let mut rows: BTreeMap<ContentId, ContentStatus> = BTreeMap::new();
        for (announcement, _) in self.envelopes.values() {
            let content = announcement.content;
            let row = rows.entry(content).or_insert_with(|| {
                let progress = self.progress(&content);
                ContentStatus {
                    content,
                    have: progress.have,
                    total: progress.total,
                    size: announcement.size,
                    names: Vec::new(),
                    tiers: self.book.tiers(&content),
                    sent: self.book.sent(&content),
                }
            });
            row.names.push((announcement.name.clone(), announcement.version.clone(), announcement.kind));
        }
        rows.into_values().collect()
    }

    fn progress(&self, content: &ContentId) -> Progress {
        self.brain.as_ref().and_then(|brain| brain.progress(content)).unwrap_or_default()
    }

    fn load_jobs(&mut self) {
        let jobs = self.store.jobs().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the jobs kept");
            Vec::new()
        });
        let trust = self.trust.clone();
        for (job, bytes) in jobs {
            let opened = Envelope::from_bytes(&bytes)
                .map_err(|error| error.to_string())
                .and_then(|envelope| trust.open_published::<Announcement>(&envelope).map_err(|e| e.to_string()));
            match opened {
                Ok(announcement) => {
                    self.envelopes.insert(job, (Arc::new(announcement), bytes.into()));
                }
                Err(error) => {
                    tracing::warn!(%job, %error, "dropped a kept announcement");
                    let _ = self.store.forget_job(&job);
                }
            }
        }
    }

    fn keep_house(&mut self) {
        let now = shoal_net::admission::system_clock();
        let expired: Vec<JobId> = self
            .envelopes
            .iter()
            .filter(|(_, (announcement, _))| announcement.expires_at <= now)
            .map(|(job, _)| *job)
            .collect();
        for job in expired {
            self.envelopes.remove(&job);
            self.shared.reports().forget(&job);
            if let Err(error) = self.store.forget_job(&job) {
                tracing::warn!(%job, %error, "cannot forget a job");
            }
            self.tell(Input::Forgotten { job });
        }
        let (now, patience) = (self.now(), Duration::from_secs(30));
        self.strangers.retain(|_, stranger| now.since(stranger.since) < patience);
    }
}
