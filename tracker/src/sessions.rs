//! The tracker's state, and what each request does to it.
//!
//! Invariant: a node that has not joined with a valid credential on its present connection changes nothing.

use crate::config::TrackerConfig;
use crate::jobs::{Jobs, Told};
use crate::roster::{Roster, RosterError};
use crate::spool::{Spool, SpoolError};
use crate::versions::Versions;
use shoal_net::admission::Admission;
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::control::{CurrentVersion, Join, Request, Response};
use shoal_proto::ids::{Epoch, HostIndex, JobId, NodeId};
use shoal_proto::limits;
use shoal_proto::membership::{Member, Presence};
use shoal_proto::report::{HostReport, HubFlush, HubSubmission};
use shoal_proto::trust::{Envelope, Keypair, Role};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Bytes of a flush, but for its envelope: well within what the hub takes in one request.
const FLUSH_BYTES: usize = limits::HUB_BODY_BYTES_MAX / 2;
/// Beats a host may miss before it counts as away.
const BEATS_MISSED: u32 = 3;
/// How long after its start a tracker waits for hosts that were up before: longer than their longest wait between two
/// attempts to reach it.
const REJOIN: Duration = Duration::from_secs(20);

/// Why the state could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error(transparent)]
    Roster(#[from] RosterError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("the tracker's records: {0}")]
    Db(#[from] sled::Error),
}

/// A host that has joined.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) index: HostIndex,
    role: Role,
    pub(crate) heard: Instant,
    /// The membership epoch it has, as far as we know.
    pub(crate) known: Epoch,
    /// A push to it is under way.
    pub(crate) pushing: bool,
}

pub(crate) struct State {
    config: TrackerConfig,
    admission: Admission,
    keys: Keypair,
    region: String,
    pub(crate) roster: Roster,
    pub(crate) jobs: Jobs,
    pub(crate) spool: Spool,
    pub(crate) sessions: HashMap<NodeId, Session>,
    /// Since when hosts are away.
    pub(crate) away: HashMap<HostIndex, Instant>,
    /// Until when hosts that were up before this tracker's start count as up; `None` once that is over.
    expected_until: Option<Instant>,
    told: Told,
    versions: Versions,
    kept: sled::Tree,
    reports: sled::Tree,
    flushed_at: Option<Instant>,
    pub(crate) beats: u64,
    pub(crate) flushes: u64,
}

impl State {
    pub(crate) fn open(
        config: TrackerConfig,
        admission: Admission,
        keys: Keypair,
        region: String,
        db: &sled::Db,
    ) -> Result<Self, StateError> {
        let roster = Roster::open(db)?;
        let now = Instant::now();
        let members = roster.members().iter();
        let away =
            members.filter(|member| member.presence == Presence::Away).map(|member| (member.index, now)).collect();
        let mut state = Self {
            jobs: Jobs::new(config.limits.jobs),
            config,
            admission,
            keys,
            region,
            roster,
            spool: Spool::open(db)?,
            sessions: HashMap::new(),
            away,
            expected_until: Some(now + REJOIN),
            told: Told::default(),
            versions: Versions::open(db)?,
            kept: db.open_tree("jobs")?,
            reports: db.open_tree("reports")?,
            flushed_at: None,
            beats: 0,
            flushes: 0,
        };
        state.load()?;
        Ok(state)
    }

    fn load(&mut self) -> Result<(), StateError> {
        for row in &self.kept {
            let (_, bytes) = row?;
            let opened = Envelope::from_bytes(&bytes).ok().and_then(|envelope| envelope.open::<Announcement>().ok());
            if let Some(announcement) = opened {
                self.jobs.open(announcement, bytes.to_vec());
            }
        }
        for row in &self.reports {
            let (key, bytes) = row?;
            let host = key.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
            if let (Some(host), Ok(report)) = (host, decode_exact::<HostReport>(&bytes)) {
                self.jobs.report(HostIndex(host), report);
            }
        }
        Ok(())
    }

    /// Answers a request.
    pub(crate) fn answer(&mut self, from: NodeId, remote: SocketAddr, request: Request) -> Response {
        let answered = match request {
            Request::Join(join) => self.join(from, remote, join),
            other if !self.sessions.contains_key(&from) => {
                let _ = other;
                return Response::Refused { why: "join first".into() };
            }
            Request::Beat { known, reports, versions } => self.beat(from, known, reports, versions),
            Request::OpenJob { envelope } => self.open_job(from, envelope),
            Request::JobStatus { job } => Ok(match self.jobs.get(&job) {
                Some(job) => Response::Rollup(job.rollup(self.roster.members())),
                None => Response::Refused { why: format!("no job {job} here") },
            }),
            Request::HostStates { job } => Ok(match self.jobs.get(&job) {
                Some(job) => Response::States(job.states(self.roster.members())),
                None => Response::Refused { why: format!("no job {job} here") },
            }),
            Request::Versions { name } => Ok(Response::Versions { sets: self.versions.sets(&name) }),
            Request::Leave => self.gone(&from).map(|()| Response::Done),
            Request::WantImage { .. } => Ok(Response::Refused { why: "no seeder was asked".into() }),
            Request::Membership(_) => Ok(Response::Refused { why: "membership comes from the tracker".into() }),
        };
        answered.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot answer");
            Response::Refused { why: "the tracker cannot keep its records".into() }
        })
    }

    /// Who asks for an image, and the seeder to ask for it: each region's first, so that one of them sees all that is wanted.
    pub(crate) fn image_wanted(&self, from: &NodeId) -> Result<(NodeId, HostIndex), &'static str> {
        let asker = self.sessions.get(from).filter(|session| session.role == Role::Peer).ok_or("join first")?;
        let seeders = self.sessions.iter().filter(|(_, session)| session.role == Role::Seeder);
        let seeder = seeders.map(|(node, _)| *node).min().ok_or("no seeder is here")?;
        Ok((seeder, asker.index))
    }

    fn join(&mut self, from: NodeId, remote: SocketAddr, join: Join) -> Result<Response, StateError> {
        let credential = match self.admission.admit(&join.credential, from) {
            Ok(credential) => credential,
            Err(error) => {
                tracing::warn!(node = %from.short(), %remote, %error, "refused a host");
                return Ok(Response::Refused { why: error.to_string() });
            }
        };
        if !matches!(credential.role, Role::Peer | Role::Seeder) || credential.locality.region != self.region {
            let why = format!("a {} of {} has no place here", credential.role, credential.locality.region);
            return Ok(Response::Refused { why });
        }
        let index = self.roster.index_of(&from)?;
        let addrs = join.addrs.into_iter().map(|addr| seen_from(addr, remote)).collect();
        let member = Member {
            index,
            node: from,
            role: credential.role,
            locality: credential.locality,
            labels: join.labels,
            addrs,
            weight: join.weight,
            uplink_mbit: join.uplink_mbit,
            presence: Presence::Up,
        };
        self.roster.admit(member)?;
        self.away.remove(&index);
        let update = self.roster.log().update_since(join.known);
        let known = self.roster.members().epoch();
        let session = Session { index, role: credential.role, heard: Instant::now(), known, pushing: false };
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
            return Ok(Response::Refused { why: "join first".into() });
        };
        session.heard = Instant::now();
        session.known = known;
        let index = session.index;
        if self.away.remove(&index).is_some() {
            self.roster.set_presence(&[index], Presence::Up)?;
        }
        for report in reports {
            let key = [&report.job.0[..], &index.0.to_be_bytes()].concat();
            let bytes = encode(&report);
            if self.jobs.report(index, report) {
                self.reports.insert(key, bytes)?;
            }
        }
        for told in versions {
            self.versions.take(index, told)?;
        }
        let update = self.roster.log().update_since(Some(known));
        if let Some(session) = self.sessions.get_mut(&from) {
            session.known = self.roster.members().epoch();
        }
        Ok(Response::Heard { update })
    }

    fn open_job(&mut self, from: NodeId, envelope: Vec<u8>) -> Result<Response, StateError> {
        if self.sessions.get(&from).is_none_or(|session| session.role != Role::Seeder) {
            return Ok(Response::Refused { why: "only a seeder opens jobs".into() });
        }
        let opened = Envelope::from_bytes(&envelope)
            .map_err(Into::into)
            .and_then(|sealed| self.admission.trust().open_published::<Announcement>(&sealed));
        let announcement = match opened {
            Ok(announcement) => announcement,
            Err(error) => return Ok(Response::Refused { why: error.to_string() }),
        };
        self.kept.insert(announcement.job.0, envelope.as_slice())?;
        for gone in self.jobs.open(announcement, envelope) {
            self.forget(&gone)?;
        }
        Ok(Response::Done)
    }

    fn forget(&self, job: &JobId) -> Result<(), StateError> {
        self.kept.remove(job.0)?;
        let keys: Vec<_> = self.reports.scan_prefix(job.0).keys().filter_map(Result::ok).collect();
        for key in keys {
            self.reports.remove(key)?;
        }
        Ok(())
    }

    /// A host's connection is gone, or it left.
    pub(crate) fn gone(&mut self, node: &NodeId) -> Result<(), StateError> {
        let Some(session) = self.sessions.remove(node) else { return Ok(()) };
        self.away.insert(session.index, Instant::now());
        self.roster.set_presence(&[session.index], Presence::Away)?;
        Ok(())
    }

    /// Hosts that fell silent are away; those away for long are forgotten.
    pub(crate) fn sweep(&mut self) -> Result<(), StateError> {
        let patience = self.config.beat.0 * BEATS_MISSED;
        let silent: Vec<NodeId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.heard.elapsed() > patience)
            .map(|(node, _)| *node)
            .collect();
        for node in silent {
            self.gone(&node)?;
        }
        if self.expected_until.is_some_and(|until| until <= Instant::now()) {
            self.expected_until = None;
            let joined: HashSet<HostIndex> = self.sessions.values().map(|session| session.index).collect();
            let members = self.roster.members();
            let missing: Vec<HostIndex> = members
                .iter()
                .map(|member| member.index)
                .filter(|host| members.is_up(*host) && !joined.contains(host))
                .collect();
            self.away.extend(missing.iter().map(|host| (*host, Instant::now())));
            self.roster.set_presence(&missing, Presence::Away)?;
        }
        let grace = self.config.grace.0;
        let over: Vec<HostIndex> =
            self.away.iter().filter(|(_, since)| since.elapsed() > grace).map(|(host, _)| *host).collect();
        for host in &over {
            self.away.remove(host);
            self.versions.forget(*host)?;
        }
        self.roster.evict(over)?;
        Ok(())
    }

    /// Writes a flush for the hub when it is time; true when one is there to be sent.
    pub(crate) fn flush(&mut self) -> Result<bool, StateError> {
        if self.config.hub.is_none() {
            return Ok(false);
        }
        let (changed, urgent) = self.jobs.to_tell(self.roster.members());
        let due = self.flushed_at.is_none_or(|at| at.elapsed() >= self.config.flush.0);
        if changed.is_empty() || !(due || urgent) {
            return Ok(false);
        }
        if self.spool.len() >= self.config.limits.spool {
            // Every flush says all of its jobs: the old ones are not missed.
            self.spool.clear()?;
            self.told.forget();
            self.jobs.untold();
        }
        let members = self.roster.members().clone();
        let roster = self.told.fresh(&members);
        // What does not fit stays changed, and goes with the next flush; so do all jobs while there is more of the roster.
        let most = if roster.len() < limits::FLUSH_ROSTER_MAX { limits::FLUSH_JOBS_MAX } else { 0 };
        let mut room = FLUSH_BYTES.saturating_sub(encode(&roster).len());
        let mut jobs = Vec::new();
        for job in changed.iter().take(most) {
            let Some(row) = self.jobs.fold(job, &members) else { continue };
            let bytes = encode(&row).len();
            if bytes > room && !jobs.is_empty() {
                break;
            }
            room = room.saturating_sub(bytes);
            self.jobs.told(job, &members);
            jobs.push(row);
        }
        let flush = HubFlush {
            tracker: self.keys.node(),
            region: self.region.clone(),
            sequence: self.spool.next_sequence(),
            epoch: members.epoch(),
            roster,
            jobs,
        };
        let submission = HubSubmission {
            credential: self.admission.credential().to_vec(),
            flush: Envelope::seal(&flush, &self.keys).to_bytes(),
        };
        self.spool.push(&encode(&submission))?;
        self.flushed_at = Some(Instant::now());
        self.flushes += 1;
        Ok(true)
    }

    /// A flush as it is sent: with the credential of now, which may be newer than the flush.
    pub(crate) fn submission(&self, spooled: &[u8]) -> Vec<u8> {
        let credential = self.admission.credential().to_vec();
        match decode_exact::<HubSubmission>(spooled) {
            Ok(submission) => encode(&HubSubmission { credential, ..submission }),
            Err(_) => spooled.to_vec(),
        }
    }

    /// The hub will never take this flush: what it said is said anew.
    pub(crate) fn give_up(&mut self, sequence: u64) -> Result<(), StateError> {
        self.spool.done(sequence)?;
        self.told.forget();
        self.jobs.untold();
        Ok(())
    }

    /// Hosts that do not have the membership of now and are not being told it: node and what they have.
    pub(crate) fn behind(&mut self, most: usize) -> Vec<(NodeId, Epoch)> {
        let epoch = self.roster.members().epoch();
        let due = self.sessions.iter_mut().filter(|(_, session)| session.known < epoch && !session.pushing);
        due.take(most)
            .map(|(node, session)| {
                session.pushing = true;
                (*node, session.known)
            })
            .collect()
    }

    /// How long a host has been silent.
    pub(crate) fn silence(&self, host: HostIndex) -> Option<Duration> {
        self.sessions.values().find(|session| session.index == host).map(|session| session.heard.elapsed())
    }
}

/// An address that says "wherever you see me" gets the address we see.
fn seen_from(addr: SocketAddr, remote: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() { SocketAddr::new(remote.ip(), addr.port()) } else { addr }
}
