//! The tracker's state, and what each request does to it.
//!
//! Invariant: a node that has not joined with a valid credential on its present connection changes nothing.

use crate::config::TrackerConfig;
use crate::hub_flush::{self, HubFlusher};
use crate::jobs::JobTable;
use crate::roster::{Roster, RosterError};
use crate::spool::{Spool, SpooledFlush};
use crate::tables::{ANNOUNCEMENTS, REPORTS};
use crate::versions::RunningVersions;
use shoal_kv::{Change, Database, KvError, Table};
use shoal_net::admission::Admission;
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::control::{CurrentVersion, Join, Request, Response};
use shoal_proto::ids::{Epoch, HostIndex, JobId, NodeId};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::report::{HostReport, HubFlush};
use shoal_proto::trust::{Admitted, Envelope, Keypair, Role, Trust, TrustError};
use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Beats that a host may miss before it is away.
const BEATS_MISSED: u32 = 3;
/// How long after its start a tracker waits for hosts that were up before. Longer than the longest pause between two
/// attempts of a host to reach a tracker.
const REJOIN: Duration = Duration::from_secs(20);

/// Why the tracker's records cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "transparent")]
pub enum StateError {
    #[error(transparent)]
    Roster(#[from] RosterError),
    #[error(transparent)]
    Database(#[from] KvError),
}

/// A host that has joined on its present connection.
#[derive(Debug)]
struct Session {
    index: HostIndex,
    role: Role,
    /// Checked again while the session lasts.
    credential: Admitted,
    last_beat: Instant,
    /// The newest membership epoch that the host is known to have.
    epoch: Epoch,
    /// A membership update is on its way to the host.
    updating: bool,
    /// The version of the host's trust document, 0 before its first beat.
    trust: u64,
    /// A trust document is on its way to the host.
    trusting: bool,
}

/// A membership update that a host needs.
#[derive(Debug)]
pub(crate) struct DueUpdate {
    pub(crate) node: NodeId,
    pub(crate) update: MembershipUpdate,
}

/// The trust document that some hosts lack.
#[derive(Debug)]
pub(crate) struct DueTrust {
    pub(crate) hosts: Vec<NodeId>,
    pub(crate) trust: Arc<Trust>,
}

/// Why a request for an image is not forwarded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageRequestError {
    #[error("join first")]
    NotJoined,
    #[error("no seeder is connected")]
    NoSeeder,
}

/// Who must answer a host's request for an image.
#[derive(Debug)]
pub(crate) struct ImageRequest {
    pub(crate) seeder: NodeId,
    pub(crate) asker: HostIndex,
}

/// Hosts now, for the metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) hosts_up: usize,
    pub(crate) hosts_away: usize,
    pub(crate) beats: u64,
    pub(crate) flushes: u64,
    pub(crate) spooled_flushes: usize,
}

/// Everything a tracker knows. A mutex around it makes each request one step.
pub(crate) struct TrackerState {
    config: TrackerConfig,
    admission: Admission,
    keys: Keypair,
    region: String,
    roster: Roster,
    jobs: JobTable,
    spool: Spool,
    versions: RunningVersions,
    announcements: Table,
    reports: Table,
    flusher: HubFlusher,
    sessions: HashMap<NodeId, Session>,
    /// When each away host went away, or when this process started.
    away_since: HashMap<HostIndex, Instant>,
    /// Until when hosts that were up before this start count as up. `None` afterwards.
    rejoin_until: Option<Instant>,
    beats: u64,
}

fn refused(why: impl Into<String>) -> Response {
    Response::Refused { why: why.into() }
}

impl TrackerState {
    /// Continues from the disk.
    pub(crate) fn open(
        config: TrackerConfig,
        admission: Admission,
        keys: Keypair,
        region: String,
        database: &Arc<dyn Database>,
    ) -> Result<Self, StateError> {
        let roster = Roster::open(database)?;
        let now = Instant::now();
        let away = roster.members().iter().filter(|member| member.presence == Presence::Away);
        let away_since = away.map(|member| (member.index, now)).collect();
        let mut state = Self {
            jobs: JobTable::new(config.bounds.jobs),
            config,
            admission,
            keys,
            region,
            roster,
            spool: Spool::open(database)?,
            versions: RunningVersions::open(database)?,
            announcements: Table::new(database, ANNOUNCEMENTS),
            reports: Table::new(database, REPORTS),
            flusher: HubFlusher::default(),
            sessions: HashMap::new(),
            away_since,
            rejoin_until: Some(now + REJOIN),
            beats: 0,
        };
        state.load_jobs()?;
        Ok(state)
    }

    fn load_jobs(&mut self) -> Result<(), StateError> {
        for row in self.announcements.scan([])? {
            let envelope = Envelope::from_bytes(&row.value).ok();
            if let Some(announcement) = envelope.and_then(|envelope| envelope.open::<Announcement>().ok()) {
                self.jobs.open(announcement);
            }
        }
        let jobs = &mut self.jobs;
        self.reports.visit([], |key, value| {
            let host = key.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
            if let (Some(host), Ok(report)) = (host, decode_exact::<HostReport>(value)) {
                jobs.report(HostIndex(host), report);
            }
        })?;
        Ok(())
    }

    pub(crate) fn roster(&self) -> &Roster {
        &self.roster
    }

    pub(crate) fn jobs(&self) -> &JobTable {
        &self.jobs
    }

    pub(crate) fn counts(&self) -> Counts {
        let members = self.roster.members();
        let hosts_up = members.iter().filter(|member| members.is_up(member.index)).count();
        Counts {
            hosts_up,
            hosts_away: members.len() - hosts_up,
            beats: self.beats,
            flushes: self.flusher.flushes(),
            spooled_flushes: self.spool.len(),
        }
    }

    /// Returns how long ago a connected host sent its last beat.
    pub(crate) fn silence(&self, host: HostIndex) -> Option<Duration> {
        self.sessions.values().find(|session| session.index == host).map(|session| session.last_beat.elapsed())
    }
}

/// Requests of hosts and seeders.
impl TrackerState {
    /// Carries out a request and returns its answer.
    pub(crate) fn answer(&mut self, from: NodeId, remote: SocketAddr, request: Request) -> Response {
        if !self.sessions.contains_key(&from) && !matches!(request, Request::Join(_)) {
            return refused("join first");
        }
        let answered = match request {
            Request::Join(join) => self.join(from, remote, join),
            Request::Beat { known, reports, versions, trust } => {
                self.note_trust(&from, trust);
                self.beat(from, known, reports, versions)
            }
            Request::Trust { document } => Ok(self.take_trust(&from, &document)),
            Request::OpenJob { envelope } => self.open_job(from, envelope),
            Request::JobStatus { job } => Ok(match self.jobs.get(&job) {
                Some(job) => Response::Rollup(job.rollup(self.roster.members())),
                None => refused(format!("the tracker does not know job {job}")),
            }),
            Request::HostStates { job } => Ok(match self.jobs.get(&job) {
                Some(job) => Response::States(job.states(self.roster.members())),
                None => refused(format!("the tracker does not know job {job}")),
            }),
            Request::Versions { name } => Ok(Response::Versions { sets: self.versions.sets(&name) }),
            Request::Leave => self.on_disconnected(&from).map(|()| Response::Done),
            // Never reached: the task that reads requests forwards these to a seeder.
            Request::WantImage { .. } => Ok(refused("no seeder is connected")),
            Request::Membership(_) => Ok(refused("only a tracker sends a membership")),
        };
        answered.unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn Error, "cannot answer a request");
            refused("the tracker cannot write its records: see the tracker's log")
        })
    }

    /// Returns the seeder that answers requests for images, and the index of the asking host. All requests go to the
    /// seeder with the lowest key, so that one seeder sees all requests for one image.
    pub(crate) fn image_request(&self, from: &NodeId) -> Result<ImageRequest, ImageRequestError> {
        let asker = self.sessions.get(from).filter(|session| session.role == Role::Peer);
        let asker = asker.ok_or(ImageRequestError::NotJoined)?;
        let seeders = self.sessions.iter().filter(|(_, session)| session.role == Role::Seeder);
        let seeder = seeders.map(|(node, _)| *node).min().ok_or(ImageRequestError::NoSeeder)?;
        Ok(ImageRequest { seeder, asker: asker.index })
    }

    fn join(&mut self, from: NodeId, remote: SocketAddr, join: Join) -> Result<Response, StateError> {
        let credential = match self.admission.admit(&join.credential, from) {
            Ok(credential) => credential,
            Err(error) => {
                tracing::warn!(node = %from.short(), %remote, %error, "refused a host");
                return Ok(refused(error.to_string()));
            }
        };
        if !matches!(credential.role, Role::Peer | Role::Seeder) || credential.locality.region != self.region {
            let (role, region) = (credential.role, &credential.locality.region);
            return Ok(refused(format!(
                "a {role} of region {region} may not join: peers and seeders of region {} may",
                self.region
            )));
        }
        let addrs: Vec<SocketAddr> = join.addrs.into_iter().map(|addr| replace_unspecified(addr, remote)).collect();
        if let Err(error) = credential.check_claims(join.weight, &addrs) {
            tracing::warn!(node = %from.short(), %remote, %error, "refused the claims of a host");
            return Ok(refused(error.to_string()));
        }
        let index = self.roster.index_of(&from)?;
        let member = Member {
            index,
            node: from,
            role: credential.role,
            locality: credential.locality.clone(),
            labels: credential.labels.clone(),
            addrs,
            weight: join.weight,
            uplink_mbit: join.uplink_mbit,
            presence: Presence::Up,
            credential: join.credential.into(),
        };
        self.roster.admit(member)?;
        self.away_since.remove(&index);
        let update = self.roster.log().update_since(join.known);
        let epoch = self.roster.members().epoch();
        let session = Session {
            index,
            role: credential.role,
            credential,
            last_beat: Instant::now(),
            epoch,
            updating: false,
            trust: 0,
            trusting: false,
        };
        self.sessions.insert(from, session);
        let beat_ms = self.config.beat.0.as_millis() as u32;
        Ok(Response::Joined { index, update, beat_ms })
    }

    fn beat(
        &mut self,
        from: NodeId,
        known: Epoch,
        reports: Vec<HostReport>,
        versions: Vec<CurrentVersion>,
    ) -> Result<Response, StateError> {
        self.beats += 1;
        let Some(session) = self.sessions.get_mut(&from) else {
            return Ok(refused("join first"));
        };
        session.last_beat = Instant::now();
        session.epoch = known;
        let index = session.index;
        if self.away_since.remove(&index).is_some() {
            self.roster.set_presence(&[index], Presence::Up)?;
        }
        for report in reports {
            let key = [&report.job.0[..], &index.0.to_be_bytes()].concat();
            let bytes = encode(&report);
            if self.jobs.report(index, report) {
                self.reports.put(key, bytes)?;
            }
        }
        for current in versions {
            self.versions.set(index, current)?;
        }
        let update = self.roster.log().update_since(Some(known));
        if let Some(session) = self.sessions.get_mut(&from) {
            session.epoch = self.roster.members().epoch();
        }
        Ok(Response::Heard { update, trust: self.admission.trust().version() })
    }

    fn open_job(&mut self, from: NodeId, envelope: Vec<u8>) -> Result<Response, StateError> {
        if self.sessions.get(&from).is_none_or(|session| session.role != Role::Seeder) {
            return Ok(refused("only a seeder opens jobs"));
        }
        let announcement = match self.open_announcement(&envelope) {
            Ok(announcement) => announcement,
            Err(error) => return Ok(refused(error.to_string())),
        };
        self.announcements.put(announcement.job.0, envelope)?;
        for dropped in self.jobs.open(announcement) {
            self.forget_job(&dropped)?;
        }
        Ok(Response::Done)
    }

    fn open_announcement(&self, envelope: &[u8]) -> Result<Announcement, TrustError> {
        self.admission.open_announcement(envelope)
    }

    fn forget_job(&self, job: &JobId) -> Result<(), StateError> {
        self.announcements.delete(job.0)?;
        let rows = self.reports.scan(job.0)?;
        self.reports.apply(&rows.into_iter().map(|row| Change::Delete { key: row.key }).collect::<Vec<_>>())?;
        Ok(())
    }
}

/// Liveness, and the updates that keep hosts' memberships current.
impl TrackerState {
    /// Marks a host as away at once: its connection ended, or it left.
    pub(crate) fn on_disconnected(&mut self, node: &NodeId) -> Result<(), StateError> {
        let Some(session) = self.sessions.remove(node) else { return Ok(()) };
        self.away_since.insert(session.index, Instant::now());
        self.roster.set_presence(&[session.index], Presence::Away)?;
        Ok(())
    }

    /// Marks silent hosts as away, and removes hosts that were away for longer than the grace period.
    pub(crate) fn sweep(&mut self) -> Result<(), StateError> {
        let patience = self.config.beat.0 * BEATS_MISSED;
        let silent: Vec<NodeId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.last_beat.elapsed() > patience)
            .map(|(node, _)| *node)
            .collect();
        for node in silent {
            self.on_disconnected(&node)?;
        }
        if self.rejoin_until.is_some_and(|until| until <= Instant::now()) {
            self.rejoin_until = None;
            self.mark_missing_away()?;
        }
        let grace = self.config.grace.0;
        let expired: Vec<HostIndex> =
            self.away_since.iter().filter(|(_, since)| since.elapsed() > grace).map(|(host, _)| *host).collect();
        for host in &expired {
            self.away_since.remove(host);
            self.versions.remove_host(*host)?;
        }
        self.roster.evict(expired)?;
        Ok(())
    }

    /// Removes hosts whose credentials have ended or are revoked from the membership. Returns their nodes, whose
    /// connections must end.
    pub(crate) fn sweep_credentials(&mut self) -> Result<Vec<NodeId>, StateError> {
        let mut ended = Vec::new();
        for (node, session) in &self.sessions {
            if let Err(error) = self.admission.check_again(&session.credential) {
                tracing::warn!(node = %node.short(), %error, "ended a session");
                ended.push(*node);
            }
        }
        for node in &ended {
            if let Some(session) = self.sessions.remove(node) {
                self.versions.remove_host(session.index)?;
                self.roster.evict(vec![session.index])?;
            }
        }
        Ok(ended)
    }

    /// Marks every host as away that was up before this start and has not joined again.
    fn mark_missing_away(&mut self) -> Result<(), StateError> {
        let joined: HashSet<HostIndex> = self.sessions.values().map(|session| session.index).collect();
        let members = self.roster.members();
        let missing: Vec<HostIndex> = members
            .iter()
            .map(|member| member.index)
            .filter(|host| members.is_up(*host) && !joined.contains(host))
            .collect();
        self.away_since.extend(missing.iter().map(|host| (*host, Instant::now())));
        self.roster.set_presence(&missing, Presence::Away)?;
        Ok(())
    }

    /// Returns updates for at most `updates_max` hosts with an old membership and no update on its way.
    pub(crate) fn due_updates(&mut self, updates_max: usize) -> Vec<DueUpdate> {
        let epoch = self.roster.members().epoch();
        let due = self.sessions.iter_mut().filter(|(_, session)| session.epoch < epoch && !session.updating);
        due.take(updates_max)
            .filter_map(|(node, session)| {
                let update = self.roster.log().update_since(Some(session.epoch))?;
                session.updating = true;
                Some(DueUpdate { node: *node, update })
            })
            .collect()
    }

    /// Notes that an update arrived, with its epoch, or failed. The host's next beat makes a failed update due again.
    pub(crate) fn on_update_sent(&mut self, node: &NodeId, arrived: Option<Epoch>) {
        if let Some(session) = self.sessions.get_mut(node) {
            session.updating = false;
            session.epoch = arrived.map_or(session.epoch, |epoch| session.epoch.max(epoch));
        }
    }
}

/// The trust document, between the tracker and its hosts.
impl TrackerState {
    fn note_trust(&mut self, from: &NodeId, version: u64) {
        if let Some(session) = self.sessions.get_mut(from) {
            session.trust = version;
        }
    }

    fn take_trust(&mut self, from: &NodeId, document: &[u8]) -> Response {
        match self.admission.offer(document) {
            Ok(_) => {
                self.note_trust(from, self.admission.trust().version());
                Response::Done
            }
            Err(error) => refused(error.to_string()),
        }
    }

    /// Returns the trust document in force, and at most `max` hosts with an older one.
    pub(crate) fn due_trust(&mut self, max: usize) -> DueTrust {
        let trust = self.admission.trust();
        let is_due = |session: &Session| (1..trust.version()).contains(&session.trust) && !session.trusting;
        let due = self.sessions.iter_mut().filter(|(_, session)| is_due(session)).take(max);
        let hosts = due.map(|(node, session)| {
            session.trusting = true;
            *node
        });
        DueTrust { hosts: hosts.collect(), trust }
    }

    /// Notes that a trust document arrived, with its version, or failed. The host's next beat makes it due again.
    pub(crate) fn on_trust_sent(&mut self, node: &NodeId, arrived: Option<u64>) {
        if let Some(session) = self.sessions.get_mut(node) {
            session.trusting = false;
            session.trust = arrived.unwrap_or(0);
        }
    }
}

/// Flushes to the hub.
impl TrackerState {
    /// Writes a flush to the spool if one is due. Returns whether it wrote one.
    pub(crate) fn flush(&mut self) -> Result<bool, StateError> {
        if self.config.hub.is_none() {
            return Ok(false);
        }
        let due = self.jobs.due_flush(self.roster.members());
        if due.jobs.is_empty() || !(due.urgent || self.flusher.is_due(self.config.flush.0)) {
            return Ok(false);
        }
        if self.spool.len() >= self.config.bounds.spooled_flushes {
            // Each flush has the whole state of its jobs, so new flushes replace the old ones.
            self.spool.clear()?;
            self.report_all_again();
        }
        let members = self.roster.members().clone();
        let roster = self.flusher.take_roster(&members);
        let jobs = hub_flush::take_jobs(&mut self.jobs, &due.jobs, &members, &roster);
        let flush = HubFlush {
            tracker: self.keys.node(),
            region: self.region.clone(),
            sequence: self.spool.next_sequence(),
            epoch: members.epoch(),
            roster,
            jobs,
        };
        self.spool.push(&hub_flush::seal(&flush, &self.keys, self.admission.credential()))?;
        self.flusher.on_written();
        Ok(true)
    }

    fn report_all_again(&mut self) {
        self.flusher.resend_hosts();
        self.jobs.mark_all_changed();
    }

    /// Returns the oldest spooled flush, ready to be sent.
    pub(crate) fn next_submission(&self) -> Result<Option<SpooledFlush>, KvError> {
        let next = self.spool.first()?;
        Ok(next.map(|flush| SpooledFlush {
            bytes: hub_flush::with_credential(&flush.bytes, self.admission.credential()),
            ..flush
        }))
    }

    /// Drops a flush that the hub has.
    pub(crate) fn on_acknowledged(&mut self, sequence: u64) -> Result<(), KvError> {
        self.spool.remove(sequence)
    }

    /// Drops a flush that the hub never accepts, and makes its jobs due again.
    pub(crate) fn on_rejected(&mut self, sequence: u64) -> Result<(), KvError> {
        self.spool.remove(sequence)?;
        self.report_all_again();
        Ok(())
    }
}

/// Returns `addr` with the IP address of `remote` if `addr` has none of its own.
fn replace_unspecified(addr: SocketAddr, remote: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() { SocketAddr::new(remote.ip(), addr.port()) } else { addr }
}
