//! The tracker's state, and what each request does to it.
//!
//! Invariant: a node that has not joined with a valid credential on its present connection changes nothing.

use crate::config::TrackerConfig;
use crate::credential_answers::CredentialAnswers;
use crate::hub_flush::{self, HubFlusher};
use crate::issuing::{IssueError, Issuing};
use crate::jobs::JobTable;
use crate::kubeedge::KubeEdge;
use crate::roster::{Roster, RosterError, replace_unspecified};
use crate::sessions::{Session, Sessions};
use crate::spool::{Spool, SpooledFlush};
use crate::tables::{ANNOUNCEMENTS, REPORTS};
use crate::versions::RunningVersions;
use shoal_kv::{Change, Database, KvError, Table};
use shoal_net::admission::Admission;
use shoal_net::control::ConnectionId;
use shoal_net::log_limit::LogLimit;
use shoal_net::node_certificate::Proof;
use shoal_proto::announcement::Announcement;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::control::{CurrentVersion, Join, Request, Response};
use shoal_proto::ids::{Epoch, HostIndex, JobId, NodeId};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::report::{HostReport, HubFlush};
use shoal_proto::trust::{Envelope, Keypair, Role, Trust, TrustError};
use shoal_service::audit::now_ms;
use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Beats that a host may miss before it is away.
const BEATS_MISSED: u32 = 3;
/// How often the credentials of joined hosts are checked again.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Refusals in the log per second.
const REFUSALS_LOGGED: u32 = 5;
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

/// Hosts now, for the metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) hosts_up: usize,
    pub(crate) hosts_away: usize,
    pub(crate) beats: u64,
    pub(crate) flushes: u64,
    pub(crate) spooled_flushes: usize,
    pub(crate) duplicates: u64,
    pub(crate) dropped_jobs: u64,
    pub(crate) unplaced_names: u64,
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
    credentials: CredentialAnswers,
    announcements: Table,
    reports: Table,
    flusher: HubFlusher,
    sessions: Sessions,
    /// Connections to close, because their session ended.
    ended: Vec<ConnectionId>,
    /// When the credentials were checked last.
    checked: Instant,
    /// The version of the trust document whose revoked hosts are removed.
    swept_trust: u64,
    /// When each away host went away, or when this process started.
    away_since: HashMap<HostIndex, Instant>,
    /// Until when hosts that were up before this start count as up. `None` afterwards.
    rejoin_until: Option<Instant>,
    beats: u64,
    refusals: LogLimit,
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
        issuer: Option<Keypair>,
        kubeedge: Option<KubeEdge>,
        region: String,
        database: &Arc<dyn Database>,
    ) -> Result<Self, StateError> {
        let roster = Roster::open(database)?;
        let now = Instant::now();
        let away = roster.members().iter().filter(|member| member.presence == Presence::Away);
        let away_since = away.map(|member| (member.index, now)).collect();
        let issuing = Issuing::open(database, issuer, admission.now())?;
        let credentials = CredentialAnswers::new(issuing, kubeedge, region.clone(), admission.clone());
        let mut state = Self {
            jobs: JobTable::new(config.bounds.jobs),
            config,
            admission,
            keys,
            region,
            roster,
            spool: Spool::open(database)?,
            versions: RunningVersions::open(database)?,
            credentials,
            announcements: Table::new(database, ANNOUNCEMENTS),
            reports: Table::new(database, REPORTS),
            flusher: HubFlusher::default(),
            sessions: Sessions::default(),
            ended: Vec::new(),
            checked: now,
            swept_trust: 0,
            away_since,
            rejoin_until: Some(now + REJOIN),
            beats: 0,
            refusals: LogLimit::new(REFUSALS_LOGGED, Duration::from_secs(1)),
        };
        state.load_jobs()?;
        Ok(state)
    }

    fn load_jobs(&mut self) -> Result<(), StateError> {
        for row in self.announcements.scan([])? {
            let opened = Envelope::from_bytes(&row.value).map_err(TrustError::from);
            match opened.and_then(|envelope| envelope.open::<Announcement>()) {
                Ok(announcement) => {
                    self.versions.announce(&announcement.name)?;
                    self.jobs.open(announcement);
                }
                Err(error) => tracing::warn!(%error, "skipped a stored job that cannot be read"),
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

    pub(crate) fn credentials(&self) -> &CredentialAnswers {
        &self.credentials
    }

    pub(crate) fn key(&self) -> NodeId {
        self.keys.node()
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub(crate) fn sessions_mut(&mut self) -> &mut Sessions {
        &mut self.sessions
    }

    /// Takes the connections to close.
    pub(crate) fn take_ended(&mut self) -> Vec<ConnectionId> {
        std::mem::take(&mut self.ended)
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
            duplicates: self.sessions.refused_duplicates(),
            dropped_jobs: self.jobs.dropped_unfinished(),
            unplaced_names: self.versions.unplaced(),
        }
    }

    /// Returns how long ago a connected host sent its last beat.
    pub(crate) fn silence(&self, host: HostIndex) -> Option<Duration> {
        let node = self.roster.members().get(host)?.node;
        Some(self.sessions.get(&node)?.last_beat.elapsed())
    }
}

/// Requests of hosts and seeders.
impl TrackerState {
    /// Carries out a request and returns its answer.
    pub(crate) fn answer(
        &mut self,
        from: NodeId,
        connection: ConnectionId,
        remote: SocketAddr,
        request: Request,
    ) -> Response {
        if matches!(request, Request::Clock) {
            return Response::Clock { unix_ms: now_ms() };
        }
        if matches!(request, Request::Join(_) | Request::Enrol { .. } | Request::EnrolNode { .. }) {
            // Before any signature is checked and before anything waits for the disk.
            if !self.sessions.may_ask_to_join(&from) {
                return refused("too many requests to join with this key: try again later");
            }
        } else {
            let Some(session) = self.sessions.on(&from, connection) else { return refused("join first") };
            if !session.may_request() {
                return refused("too many requests: wait between requests");
            }
            if session.role != Role::Seeder && is_of_seeders(&request) {
                return refused("only a seeder may ask this");
            }
        }
        let answered = match request {
            Request::Join(join) => self.join(from, connection, remote, join),
            Request::Enrol { token, claim } => {
                Ok(self.credentials.enrol(self.roster.members(), from, remote, &token, &claim))
            }
            Request::EnrolNode { at, chain, scheme, signature } => {
                let chain = chain.into_iter().map(Into::into).collect();
                let proof = Proof { at, chain, scheme, signature };
                Ok(self.credentials.enrol_node(self.roster.members(), from, remote, &proof))
            }
            Request::Renew => self.renew(from),
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
            Request::HostStates { job } => Ok(match self.jobs.states(&job, self.roster.members()) {
                Some(states) => Response::States(states),
                None => refused(format!("the tracker does not know job {job}")),
            }),
            Request::Versions { name } => Ok(Response::Versions { sets: self.versions.sets(&name) }),
            Request::Duplicates => Ok(Response::Duplicates { hosts: self.duplicates() }),
            Request::Leave => self.leave(&from, connection),
            // Never reached: the task that reads requests forwards these to a seeder.
            Request::WantImage { .. } => Ok(refused("no seeder is connected")),
            Request::Membership(_) => Ok(refused("only a tracker sends a membership")),
            // Never reached: answered above.
            Request::Clock => Ok(Response::Clock { unix_ms: now_ms() }),
        };
        answered.unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn Error, "cannot answer a request");
            refused("the tracker cannot write its records: see the tracker's log")
        })
    }

    /// Ends a session, and its connection after the answer. A connection without a session would outlive the
    /// credential.
    fn leave(&mut self, from: &NodeId, connection: ConnectionId) -> Result<Response, StateError> {
        self.on_disconnected(from, connection)?;
        self.ended.push(connection);
        Ok(Response::Done)
    }

    /// Returns the hosts in whose place another host tried to join.
    fn duplicates(&self) -> Bitmap {
        let mut hosts = Bitmap::new(self.roster.members().index_space());
        for host in self.sessions.duplicates().filter(|host| host.0 < self.roster.members().index_space()) {
            hosts.set(host.0);
        }
        hosts
    }

    fn join(
        &mut self,
        from: NodeId,
        connection: ConnectionId,
        remote: SocketAddr,
        join: Join,
    ) -> Result<Response, StateError> {
        let credential = match self.admission.admit(&join.credential, from) {
            Ok(credential) => credential,
            Err(error) => {
                if let Some(skipped) = self.refusals.pass() {
                    tracing::warn!(node = %from.short(), %remote, %error, skipped, "refused a host");
                }
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
        if let Err(refusal) = self.sessions.may_join(&credential, connection) {
            return Ok(refused(refusal.to_string()));
        }
        let addrs: Vec<SocketAddr> = join.addrs.into_iter().map(|addr| replace_unspecified(addr, remote)).collect();
        if let Err(error) = credential.check_claims(join.weight, &addrs) {
            if let Some(skipped) = self.refusals.pass() {
                tracing::warn!(node = %from.short(), %remote, %error, skipped, "refused the claims of a host");
            }
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
        self.sessions.begin(Session::new(index, connection, credential, epoch));
        let beat_ms = self.config.beat.0.as_millis() as u32;
        Ok(Response::Joined { index, update, beat_ms, tracker: self.admission.credential().to_vec() })
    }

    /// Answers a member whose credential ends soon, and tells the region its new one.
    fn renew(&mut self, from: NodeId) -> Result<Response, StateError> {
        let Some(session) = self.sessions.get(&from) else { return Ok(refused("join first")) };
        let Some(row) = self.roster.members().get(session.index).cloned() else { return Ok(refused("join first")) };
        match self.credentials.renew(&row.credential, from) {
            Ok(credential) => {
                tracing::info!(host = %row.locality, "renewed a credential");
                self.roster.admit(Member { credential: credential.as_slice().into(), ..row })?;
                // The session would end with the former credential.
                if let (Some(session), Ok(admitted)) =
                    (self.sessions.get_mut(&from), self.admission.admit(&credential, from))
                {
                    session.credential = admitted;
                }
                Ok(Response::Renewed { credential })
            }
            // The issuer cannot sign for longer than the present credential lasts. The host asks again later.
            Err(IssueError::NotDue) => Ok(Response::Done),
            Err(error) => Ok(self.credentials.refuse(from, &error)),
        }
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
        let may_update = session.on_known(known, self.roster.members().epoch());
        let index = session.index;
        if self.away_since.remove(&index).is_some() {
            self.roster.set_presence(&[index], Presence::Up)?;
        }
        for report in reports {
            let (key, bytes) = (report_key(index, &report), encode(&report));
            if self.jobs.report(index, report) {
                self.reports.put(key, bytes)?;
            }
        }
        for current in versions {
            self.versions.set(index, current)?;
        }
        if !may_update {
            return Ok(Response::Heard { update: None, trust: self.admission.trust().version() });
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
        self.versions.announce(&announcement.name)?;
        let opened = self.jobs.open(announcement);
        for (host, report) in opened.reports {
            self.reports.put(report_key(host, &report), encode(&report))?;
        }
        for dropped in opened.dropped {
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
    /// Marks a host as away at once: its connection ended, or it left. Another connection with its key changes nothing.
    pub(crate) fn on_disconnected(&mut self, node: &NodeId, connection: ConnectionId) -> Result<(), StateError> {
        if self.sessions.on(node, connection).is_none() {
            return Ok(());
        }
        let Some(session) = self.sessions.end(node) else { return Ok(()) };
        self.away_since.insert(session.index, Instant::now());
        self.roster.set_presence(&[session.index], Presence::Away)?;
        Ok(())
    }

    /// Ends the sessions of hosts that are silent, or whose credential is no longer valid.
    fn end_sessions(&mut self) -> Result<(), StateError> {
        let patience = self.config.beat.0 * BEATS_MISSED;
        let is_due = self.checked.elapsed() >= CHECK_EVERY;
        let mut ended = Vec::new();
        for (node, session) in self.sessions.iter() {
            let invalid = if is_due { self.admission.check_again(&session.credential).err() } else { None };
            if let Some(error) = &invalid {
                tracing::info!(node = %node.short(), %error, "ended the session of a host that is no longer admitted");
            }
            if invalid.is_some() || session.last_beat.elapsed() > patience {
                ended.push((*node, session.connection));
            }
        }
        for (node, connection) in ended {
            self.on_disconnected(&node, connection)?;
            self.ended.push(connection);
        }
        if is_due {
            self.checked = Instant::now();
            self.sessions.sweep();
            self.evict_revoked()?;
        }
        Ok(())
    }

    /// Marks silent hosts as away, and removes hosts that were away for longer than the grace period.
    pub(crate) fn sweep(&mut self) -> Result<(), StateError> {
        self.end_sessions()?;
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
            self.jobs.remove_host(*host);
        }
        self.roster.evict(expired)?;
        Ok(())
    }

    /// Removes revoked hosts from the membership, also those that are away.
    fn evict_revoked(&mut self) -> Result<(), StateError> {
        let trust = self.admission.trust();
        if std::mem::replace(&mut self.swept_trust, trust.version()) == trust.version() {
            return Ok(());
        }
        let revoked: HashSet<NodeId> = trust.document().revoked.iter().map(|row| row.node).collect();
        let members = self.roster.members().iter().filter(|member| revoked.contains(&member.node));
        let revoked: Vec<HostIndex> = members.map(|member| member.index).collect();
        for host in &revoked {
            self.away_since.remove(host);
            self.versions.remove_host(*host)?;
        }
        self.roster.evict(revoked)?;
        Ok(())
    }

    /// Marks every host as away that was up before this start and has not joined again.
    fn mark_missing_away(&mut self) -> Result<(), StateError> {
        let joined: HashSet<HostIndex> = self.sessions.iter().map(|(_, session)| session.index).collect();
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
        self.spool.push(&hub_flush::seal(&flush, &self.keys, &self.admission.credential()))?;
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
            bytes: hub_flush::with_credential(&flush.bytes, &self.admission.credential()),
            ..flush
        }))
    }

    /// Returns what the check of a receipt needs: the trust document in force, and this tracker's key.
    pub(crate) fn trust_and_key(&self) -> (Arc<Trust>, NodeId) {
        (self.admission.trust(), self.keys.node())
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

/// Job first, so that all reports of one job have a common prefix.
fn report_key(host: HostIndex, report: &HostReport) -> Vec<u8> {
    [&report.job.0[..], &host.0.to_be_bytes()].concat()
}

/// Whether a request makes the tracker look at all hosts, or changes its jobs.
fn is_of_seeders(request: &Request) -> bool {
    matches!(
        request,
        Request::JobStatus { .. }
            | Request::HostStates { .. }
            | Request::Versions { .. }
            | Request::Duplicates
            | Request::OpenJob { .. }
    )
}
