//! What hosts said of jobs, folded.
//!
//! Invariant: a host's row only advances in the reports' order, so reports may come late, twice or out of order.

use shoal_proto::announcement::Announcement;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::control::{AttemptSet, HostLine, JobRollup, JobStates, RackRollup};
use shoal_proto::ids::{HostIndex, JobId};
use shoal_proto::limits;
use shoal_proto::membership::Presence;
use shoal_proto::report::{HostReport, HostState, JobFlush, StateSet, TierBytes};
use shoal_swarm::membership::Membership;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Lines of a rollup.
const LINES_MAX: usize = 256;

/// A job.
#[derive(Debug)]
pub struct Job {
    /// Its announcement; `None` while only reports of it were heard.
    pub announcement: Option<Arc<Announcement>>,
    /// The signed announcement's bytes.
    pub envelope: Vec<u8>,
    rows: BTreeMap<HostIndex, HostReport>,
    /// States changed since the hub was last told.
    pub changed: bool,
    /// Every targeted host that is up was final when the hub was last told.
    pub told_final: bool,
}

/// All jobs.
#[derive(Debug, Default)]
pub struct Jobs {
    rows: BTreeMap<JobId, Job>,
    max: usize,
}

impl Jobs {
    /// At most `max` of them.
    pub fn new(max: usize) -> Self {
        Self { rows: BTreeMap::new(), max }
    }

    fn row(&mut self, job: JobId) -> &mut Job {
        self.rows.entry(job).or_insert_with(|| Job {
            announcement: None,
            envelope: Vec::new(),
            rows: BTreeMap::new(),
            changed: false,
            told_final: false,
        })
    }

    /// Opens a job; gives those that had to go for it: the oldest that have ended, else the oldest.
    pub fn open(&mut self, announcement: Announcement, envelope: Vec<u8>) -> Vec<JobId> {
        let opened = announcement.job;
        let row = self.row(opened);
        if row.announcement.is_none() {
            row.changed = true;
            row.envelope = envelope;
            row.announcement = Some(Arc::new(announcement));
        }
        let mut gone = Vec::new();
        while self.rows.len() > self.max {
            let age = |job: &Job| job.announcement.as_ref().map_or(0, |announcement| announcement.created_at);
            let others = self.rows.iter().filter(|(id, _)| **id != opened);
            let oldest = others.min_by_key(|(id, job)| (!job.told_final, age(job), **id)).map(|(id, _)| *id);
            let Some(oldest) = oldest else { break };
            self.rows.remove(&oldest);
            gone.push(oldest);
        }
        gone
    }

    /// A host's report; true when its state advanced.
    pub fn report(&mut self, host: HostIndex, report: HostReport) -> bool {
        if !self.rows.contains_key(&report.job) && self.rows.len() >= self.max {
            return false;
        }
        let job = self.row(report.job);
        match job.rows.get_mut(&host) {
            None => {
                let advanced = report.state != HostState::Unknown;
                job.changed |= advanced;
                job.rows.insert(host, report);
                advanced
            }
            Some(row) if report.rank() < row.rank() => false,
            Some(row) => {
                let advanced = report.rank() > row.rank();
                job.changed |= advanced;
                *row = report;
                advanced
            }
        }
    }

    /// A job.
    pub fn get(&self, job: &JobId) -> Option<&Job> {
        self.rows.get(job)
    }

    /// Jobs in order of id.
    pub fn iter(&self) -> impl Iterator<Item = (&JobId, &Job)> {
        self.rows.iter()
    }

    /// Opened jobs whose states the hub does not know, and whether one of them has just become final.
    pub fn to_tell(&self, members: &Membership) -> (Vec<JobId>, bool) {
        let changed: Vec<JobId> =
            self.rows.iter().filter(|(_, job)| job.changed && job.announcement.is_some()).map(|(id, _)| *id).collect();
        let urgent = changed.iter().any(|id| {
            let job = &self.rows[id];
            !job.told_final && job.is_final(members)
        });
        (changed, urgent)
    }

    /// What the hub is to be told of a job.
    pub fn fold(&self, id: &JobId, members: &Membership) -> Option<JobFlush> {
        self.rows.get(id)?.flush(members)
    }

    /// A job counts as told.
    pub fn told(&mut self, id: &JobId, members: &Membership) {
        if let Some(job) = self.rows.get_mut(id) {
            job.changed = false;
            job.told_final = job.is_final(members);
        }
    }

    /// The hub may have missed anything: all is to be told again.
    pub fn untold(&mut self) {
        self.rows.values_mut().for_each(|job| job.changed = true);
    }
}

impl Job {
    fn targets(&self, members: &Membership) -> Bitmap {
        self.announcement.as_ref().map_or_else(Bitmap::default, |announcement| members.select(&announcement.selector))
    }

    fn state(&self, host: HostIndex) -> HostState {
        self.rows.get(&host).map_or(HostState::Unknown, |row| row.state)
    }

    /// Whether every targeted host that is up has ended.
    pub fn is_final(&self, members: &Membership) -> bool {
        let targets = self.targets(members);
        let mut hosts = targets.iter().map(HostIndex);
        !targets.none() && hosts.all(|host| !members.is_up(host) || self.is_done(self.state(host)))
    }

    /// Whether a host's state is all that this job is about: of what is staged, that it is there.
    fn is_done(&self, state: HostState) -> bool {
        let staged = self.announcement.as_ref().is_some_and(|announcement| announcement.staged);
        state.is_final() || (staged && state == HostState::Has)
    }

    /// The targeted hosts by attempt and state, the newest attempts first; of a job only heard of in reports, all that did.
    pub fn states(&self, members: &Membership) -> JobStates {
        let targets = match &self.announcement {
            Some(_) => self.targets(members),
            None => Bitmap::full(members.index_space()),
        };
        let mut sets: BTreeMap<(u16, HostState), Bitmap> = BTreeMap::new();
        for (host, row) in self.rows.iter().filter(|(host, _)| targets.get(host.0)) {
            if row.state != HostState::Unknown {
                sets.entry((row.attempt, row.state)).or_insert_with(|| Bitmap::new(targets.len())).set(host.0);
            }
        }
        let sets = sets.into_iter().rev().take(limits::STATE_SETS_MAX);
        JobStates { sets: sets.map(|((attempt, state), hosts)| AttemptSet { attempt, state, hosts }).collect() }
    }

    fn flush(&self, members: &Membership) -> Option<JobFlush> {
        let announcement = self.announcement.as_ref()?;
        let targets = self.targets(members);
        let mut sets: BTreeMap<HostState, Bitmap> = BTreeMap::new();
        let mut tiers = TierBytes::default();
        for (host, row) in self.rows.iter().filter(|(host, _)| targets.get(host.0)) {
            tiers.add(&row.tiers);
            if row.state != HostState::Unknown {
                sets.entry(row.state).or_insert_with(|| Bitmap::new(targets.len())).set(host.0);
            }
        }
        Some(JobFlush {
            job: announcement.job,
            content: announcement.content,
            kind: announcement.kind,
            name: announcement.name.clone(),
            version: announcement.version.clone(),
            size: announcement.size,
            created_at: announcement.created_at,
            targets,
            states: sets.into_iter().map(|(state, hosts)| StateSet { state, hosts }).collect(),
            tiers,
        })
    }

    /// The job by rack, and the hosts worth a line: failed, away, then those furthest behind.
    pub fn rollup(&self, members: &Membership) -> JobRollup {
        let mut racks: BTreeMap<String, RackRollup> = BTreeMap::new();
        let mut lines = Vec::new();
        let mut pieces_total = 0;
        for host in self.targets(members).iter().map(HostIndex) {
            let Some(member) = members.get(host) else { continue };
            let path = member.locality.rack_path();
            let rack = racks.entry(path.clone()).or_insert_with(|| RackRollup { rack: path, ..RackRollup::default() });
            let (row, state) = (self.rows.get(&host), self.state(host));
            let away = member.presence == Presence::Away && !self.is_done(state);
            rack.hosts += 1;
            rack.has += u32::from(state.has_all());
            rack.held += u32::from(state == HostState::Stored);
            rack.active += u32::from(state == HostState::Active);
            rack.failed += u32::from(matches!(state, HostState::Failed(_)));
            rack.away += u32::from(away);
            if let Some(row) = row {
                rack.pieces += u64::from(row.pieces_have);
                rack.tiers.add(&row.tiers);
                pieces_total = pieces_total.max(row.pieces_total);
            }
            if matches!(state, HostState::Failed(_)) || !self.is_done(state) {
                lines.push(HostLine {
                    host: member.locality.to_string(),
                    state,
                    pieces_have: row.map_or(0, |row| row.pieces_have),
                    away,
                    detail: row.map_or_else(String::new, |row| row.detail.clone()),
                });
            }
        }
        lines.sort_by_key(|line| {
            (!matches!(line.state, HostState::Failed(_)), !line.away, line.pieces_have, line.host.clone())
        });
        lines.truncate(LINES_MAX);
        JobRollup { racks: racks.into_values().collect(), pieces_total, lines, seeder_sent: 0 }
    }
}

/// Which hosts' localities the hub has been told.
#[derive(Debug, Default)]
pub struct Told {
    hosts: BTreeSet<HostIndex>,
}

impl Told {
    /// Rows the hub does not know, as many as a flush takes; they count as told.
    pub fn fresh(&mut self, members: &Membership) -> Vec<shoal_proto::report::RosterRow> {
        let fresh: Vec<_> = members
            .iter()
            .filter(|member| member.role == shoal_proto::trust::Role::Peer && !self.hosts.contains(&member.index))
            .take(limits::FLUSH_ROSTER_MAX)
            .map(|member| shoal_proto::report::RosterRow { index: member.index, locality: member.locality.clone() })
            .collect();
        self.hosts.extend(fresh.iter().map(|row| row.index));
        fresh
    }

    /// The hub may have missed anything.
    pub fn forget(&mut self) {
        self.hosts.clear();
    }
}
