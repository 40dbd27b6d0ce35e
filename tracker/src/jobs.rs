//! Hosts' reports by job, and what is folded from them: for seeders, for the HTTP API and for the hub.
//!
//! Invariant: a host's report is only replaced by one of the same or a higher rank. Reports may therefore arrive late,
//! twice or out of order. A report makes no job: reports of jobs that no seeder opened wait aside.

use crate::aside::Aside;
use shoal_proto::announcement::Announcement;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::control::{AttemptSet, HostLine, JobRollup, JobStates, RackRollup};
use shoal_proto::ids::{HostIndex, JobId};
use shoal_proto::limits;
use shoal_proto::membership::Presence;
use shoal_proto::report::{HostReport, HostState, JobFlush, StateSet, TierBytes};
use shoal_swarm::membership::Membership;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Host lines of a rollup.
const LINES_MAX: usize = 256;
/// Reports of jobs that no seeder has opened, of one host and of all hosts.
const ASIDE_PER_HOST_MAX: usize = 16;
const ASIDE_MAX: usize = 16 * 1024;

/// A job and its hosts' reports.
#[derive(Debug)]
pub struct Job {
    announcement: Arc<Announcement>,
    reports: BTreeMap<HostIndex, HostReport>,
    /// A host's state changed after the last flush of this job.
    changed: bool,
    /// Every targeted host that is up was finished in the last flush of this job.
    flushed_final: bool,
}

/// The jobs whose next flush is due.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DueFlush {
    /// Jobs that changed after their last flush.
    pub jobs: Vec<JobId>,
    /// One of the jobs finished, so the hub should know at once.
    pub urgent: bool,
}

/// What the opening of a job changed.
#[derive(Debug, Default)]
pub struct OpenedJob {
    /// The jobs that it replaces: the oldest finished ones, or the oldest if none is finished.
    pub dropped: Vec<JobId>,
    /// Reports that had arrived before.
    pub reports: Vec<(HostIndex, HostReport)>,
}

/// All jobs of the region.
#[derive(Debug)]
pub struct JobTable {
    jobs: BTreeMap<JobId, Job>,
    aside: Aside<JobId, HostReport>,
    jobs_max: usize,
    /// Jobs that made room for others before they were finished.
    dropped_unfinished: u64,
}

impl JobTable {
    /// Returns an empty table of at most `jobs_max` jobs.
    pub fn new(jobs_max: usize) -> Self {
        let aside = Aside::new(ASIDE_PER_HOST_MAX, ASIDE_MAX);
        Self { jobs: BTreeMap::new(), aside, jobs_max, dropped_unfinished: 0 }
    }

    /// Opens a job, with the reports that wait for it.
    pub fn open(&mut self, announcement: Announcement) -> OpenedJob {
        let opened = announcement.job;
        if self.jobs.contains_key(&opened) {
            return OpenedJob::default();
        }
        let reports = self.aside.take(&opened);
        let announcement = Arc::new(announcement);
        let job = Job { announcement, reports: reports.iter().cloned().collect(), changed: true, flushed_final: false };
        self.jobs.insert(opened, job);
        let mut dropped = Vec::new();
        while self.jobs.len() > self.jobs_max {
            let others = self.jobs.iter().filter(|(id, _)| **id != opened);
            let age = |id: &JobId, job: &Job| (!job.flushed_final, job.announcement.created_at, *id);
            let Some(oldest) = others.min_by_key(|(id, job)| age(id, job)).map(|(id, _)| *id) else { break };
            if self.jobs.remove(&oldest).is_some_and(|job| !job.flushed_final) {
                self.dropped_unfinished += 1;
                tracing::warn!(job = %oldest, "forgot a job that is not finished: raise the key `bounds.jobs`");
            }
            dropped.push(oldest);
        }
        OpenedJob { dropped, reports }
    }

    /// Adds a host's report. Returns whether the host's state in an opened job advanced.
    pub fn report(&mut self, host: HostIndex, report: HostReport) -> bool {
        let Some(job) = self.jobs.get_mut(&report.job) else {
            if self.aside.get(host, &report.job).is_none_or(|former| report.rank() >= former.rank()) {
                self.aside.put(host, report.job, report);
            }
            return false;
        };
        let advanced = match job.reports.get(&host) {
            None => report.state != HostState::Unknown,
            Some(former) if report.rank() < former.rank() => return false,
            Some(former) => report.rank() > former.rank(),
        };
        // A report of the same rank brings newer counts.
        job.reports.insert(host, report);
        job.changed |= advanced;
        advanced
    }

    /// Returns how many jobs made room for others before they were finished, since the start.
    pub(crate) fn dropped_unfinished(&self) -> u64 {
        self.dropped_unfinished
    }

    /// Drops the reports of a host on jobs that no seeder has opened.
    pub(crate) fn remove_host(&mut self, host: HostIndex) {
        self.aside.remove_host(host);
    }

    /// Returns the hosts by attempt and state, newest attempt first. A job that no seeder has opened includes every
    /// host that reported. `None` if there is no report either.
    pub fn states(&self, id: &JobId, members: &Membership) -> Option<JobStates> {
        if let Some(job) = self.jobs.get(id) {
            return Some(states(&job.targets(members), job.reports.iter().map(|(host, report)| (*host, report))));
        }
        let mut reports = self.aside.of(id).peekable();
        reports.peek()?;
        Some(states(&Bitmap::full(members.index_space()), reports))
    }

    /// Returns an opened job.
    pub fn get(&self, job: &JobId) -> Option<&Job> {
        self.jobs.get(job)
    }

    /// Returns all jobs in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&JobId, &Job)> {
        self.jobs.iter()
    }

    /// Returns the opened jobs that changed after their last flush.
    pub fn due_flush(&self, members: &Membership) -> DueFlush {
        let due = || self.jobs.iter().filter(|(_, job)| job.changed);
        DueFlush {
            jobs: due().map(|(id, _)| *id).collect(),
            urgent: due().any(|(_, job)| !job.flushed_final && job.is_final(members)),
        }
    }

    /// Returns what a flush says of a job. `None` if no seeder has opened the job.
    pub fn fold(&self, id: &JobId, members: &Membership) -> Option<JobFlush> {
        Some(self.jobs.get(id)?.fold(members))
    }

    /// Notes that a flush has the job's present state.
    pub fn mark_flushed(&mut self, id: &JobId, members: &Membership) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.changed = false;
            job.flushed_final = job.is_final(members);
        }
    }

    /// Makes every job due again, because the hub may have missed any flush.
    pub fn mark_all_changed(&mut self) {
        self.jobs.values_mut().for_each(|job| job.changed = true);
    }
}

impl Job {
    /// Returns the announcement.
    pub fn announcement(&self) -> &Arc<Announcement> {
        &self.announcement
    }

    fn targets(&self, members: &Membership) -> Bitmap {
        members.select(&self.announcement.selector)
    }

    /// Returns a host's counts, which the size of the job bounds. A host may claim any number.
    fn tiers(&self, report: &HostReport) -> TierBytes {
        report.tiers.capped(TierBytes::most_of(self.announcement.size))
    }

    fn state(&self, host: HostIndex) -> HostState {
        self.reports.get(&host).map_or(HostState::Unknown, |report| report.state)
    }

    /// Returns whether every targeted host that is up is finished. A job without targets is never final.
    pub fn is_final(&self, members: &Membership) -> bool {
        let targets = self.targets(members);
        let mut hosts = targets.iter().map(HostIndex);
        !targets.none() && hosts.all(|host| !members.is_up(host) || self.is_done(self.state(host)))
    }

    /// Returns whether a host has nothing left to do in this job. A staged job ends when the host has every piece.
    fn is_done(&self, state: HostState) -> bool {
        state.is_final() || (self.announcement.staged && state == HostState::Has)
    }

    fn fold(&self, members: &Membership) -> JobFlush {
        let announcement = &self.announcement;
        let targets = self.targets(members);
        let mut sets: BTreeMap<HostState, Bitmap> = BTreeMap::new();
        let mut tiers = TierBytes::default();
        for (host, report) in self.reports.iter().filter(|(host, _)| targets.get(host.0)) {
            tiers.add(&self.tiers(report));
            if report.state != HostState::Unknown {
                sets.entry(report.state).or_insert_with(|| Bitmap::new(targets.len())).set(host.0);
            }
        }
        JobFlush {
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
        }
    }

    /// Returns the job's counts by rack and one line for each unfinished host. Failed hosts come first, then hosts that
    /// went back, then hosts that are away, then hosts with the fewest pieces.
    pub fn rollup(&self, members: &Membership) -> JobRollup {
        let mut racks: BTreeMap<String, RackRollup> = BTreeMap::new();
        let mut lines = Vec::new();
        let mut pieces_totals: BTreeMap<u32, usize> = BTreeMap::new();
        for host in self.targets(members).iter().map(HostIndex) {
            let Some(member) = members.get(host) else { continue };
            let path = member.locality.rack_path();
            let rack = racks.entry(path.clone()).or_insert_with(|| RackRollup { rack: path, ..RackRollup::default() });
            let (report, state) = (self.reports.get(&host), self.state(host));
            let away = member.presence == Presence::Away && !self.is_done(state);
            rack.hosts += 1;
            rack.has += u32::from(state.has_all());
            rack.stored += u32::from(state == HostState::Stored);
            rack.active += u32::from(state == HostState::Active);
            rack.failed += u32::from(state.has_failed());
            rack.rolled_back += u32::from(state.is_rolled_back());
            rack.away += u32::from(away);
            if let Some(report) = report {
                rack.pieces += u64::from(report.pieces_have.min(report.pieces_total));
                rack.tiers.add(&self.tiers(report));
                *pieces_totals.entry(report.pieces_total).or_default() += usize::from(report.pieces_total > 0);
            }
            if matches!(state, HostState::Failed(_)) || !self.is_done(state) {
                lines.push(HostLine {
                    host: member.locality.to_string(),
                    state,
                    pieces_have: report.map_or(0, |report| report.pieces_have),
                    away,
                    detail: report.map_or_else(String::new, |report| report.detail.clone()),
                });
            }
        }
        lines.sort_by_key(|line| {
            let (failed, went_back) = (line.state.has_failed(), line.state.is_rolled_back());
            (!failed, !went_back, !line.away, line.pieces_have, line.host.clone())
        });
        lines.truncate(LINES_MAX);
        // The number that most hosts report, because one host may claim any number.
        let most = pieces_totals.iter().max_by_key(|(_, hosts)| **hosts);
        let pieces_total = most.map_or(0, |(pieces, _)| *pieces);
        JobRollup { racks: racks.into_values().collect(), pieces_total, lines, seeder_sent: 0 }
    }
}

/// Returns the targeted hosts by attempt and state, newest attempt first.
fn states<'a>(targets: &Bitmap, reports: impl Iterator<Item = (HostIndex, &'a HostReport)>) -> JobStates {
    let mut sets: BTreeMap<(u16, HostState), Bitmap> = BTreeMap::new();
    for (host, report) in reports.filter(|(host, _)| targets.get(host.0)) {
        if report.state != HostState::Unknown {
            sets.entry((report.attempt, report.state)).or_insert_with(|| Bitmap::new(targets.len())).set(host.0);
        }
    }
    let sets = sets.into_iter().rev().take(limits::STATE_SETS_MAX);
    JobStates { sets: sets.map(|((attempt, state), hosts)| AttemptSet { attempt, state, hosts }).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::announcement::Kind;
    use shoal_proto::ids::{ContentId, Epoch, NodeId};
    use shoal_proto::locality::{Locality, Selector};
    use shoal_proto::membership::{Member, MembershipUpdate};
    use shoal_proto::report::Reason;
    use shoal_proto::trust::Role;

    fn members(count: u32) -> Membership {
        let member = |index: u32| Member {
            index: HostIndex(index),
            node: NodeId([index as u8 + 1; 32]),
            role: Role::Peer,
            locality: Locality::new("r", "s", &format!("k{}", index % 2), &format!("h{index}")).unwrap(),
            labels: Default::default(),
            addrs: Vec::new(),
            weight: 100,
            uplink_mbit: 0,
            presence: if index == 3 { Presence::Away } else { Presence::Up },
            credential: Default::default(),
        };
        let mut members = Membership::default();
        let upserts = (0..count).map(member).collect();
        members.apply(MembershipUpdate { epoch: Epoch(1), base: None, upserts, removed: Vec::new() }).unwrap();
        members
    }

    fn announcement(job: u8, created_at: u64, staged: bool) -> Announcement {
        Announcement {
            job: JobId([job; 16]),
            content: ContentId([9; 32]),
            kind: Kind::Config,
            name: "edge".into(),
            version: job.to_string(),
            sequence: u64::from(job),
            selector: Selector::all(),
            origin: NodeId([7; 32]),
            manifest_bytes: 1,
            size: 1,
            created_at,
            expires_at: u64::MAX,
            feed: None,
            staged,
            order: None,
        }
    }

    fn report(job: u8, attempt: u16, state: HostState) -> HostReport {
        HostReport {
            job: JobId([job; 16]),
            attempt,
            state,
            detail: String::new(),
            pieces_have: 1,
            pieces_total: 1,
            tiers: TierBytes::default(),
            sent: 0,
        }
    }

    const FAILED: HostState = HostState::Failed(Reason::NoSpace);

    #[test]
    fn late_and_repeated_reports_change_no_state() {
        let mut jobs = JobTable::new(10);
        let (host, members) = (HostIndex(0), members(1));
        jobs.open(announcement(1, 1, false));
        assert!(!jobs.report(host, report(1, 0, HostState::Unknown)), "an unknown state is not an advance");
        assert!(jobs.report(host, report(1, 0, HostState::Active)));
        assert!(!jobs.report(host, report(1, 0, HostState::Active)));
        assert!(!jobs.report(host, report(1, 0, HostState::Has)));
        assert_eq!(jobs.get(&JobId([1; 16])).unwrap().state(host), HostState::Active);
        assert_eq!(jobs.states(&JobId([1; 16]), &members).unwrap().sets.len(), 1);
        assert!(jobs.report(host, report(1, 1, HostState::Has)), "a new attempt begins again");
        assert!(!jobs.report(host, report(1, 0, FAILED)));
        assert_eq!(jobs.get(&JobId([1; 16])).unwrap().state(host), HostState::Has);
    }

    #[test]
    fn a_job_is_final_without_the_hosts_that_are_away() {
        let members = members(4);
        let mut jobs = JobTable::new(10);
        jobs.open(announcement(1, 1, false));
        assert_eq!(jobs.due_flush(&members), DueFlush { jobs: vec![JobId([1; 16])], urgent: false });
        jobs.mark_flushed(&JobId([1; 16]), &members);
        assert_eq!(jobs.due_flush(&members), DueFlush::default());
        for (host, state) in [(0, HostState::Active), (1, FAILED), (2, HostState::Has)] {
            jobs.report(HostIndex(host), report(1, 0, state));
        }
        assert!(!jobs.due_flush(&members).urgent, "one host has not switched");
        jobs.report(HostIndex(2), report(1, 0, HostState::Active));
        assert!(jobs.due_flush(&members).urgent);
        let flush = jobs.fold(&JobId([1; 16]), &members).unwrap();
        let active = flush.states.iter().find(|set| set.state == HostState::Active).unwrap();
        assert_eq!(active.hosts.iter().collect::<Vec<_>>(), [0, 2]);
        jobs.mark_flushed(&JobId([1; 16]), &members);
        assert_eq!(jobs.due_flush(&members), DueFlush::default());
        jobs.mark_all_changed();
        assert_eq!(jobs.due_flush(&members), DueFlush { jobs: vec![JobId([1; 16])], urgent: false });
    }

    #[test]
    fn a_staged_job_ends_when_every_host_has_every_piece() {
        let members = members(2);
        let mut jobs = JobTable::new(10);
        jobs.open(announcement(1, 1, true));
        for host in 0..2 {
            jobs.report(HostIndex(host), report(1, 0, HostState::Has));
        }
        assert!(jobs.get(&JobId([1; 16])).unwrap().is_final(&members));
    }

    #[test]
    fn a_new_job_replaces_the_oldest_finished_one() {
        let members = members(1);
        let mut jobs = JobTable::new(2);
        jobs.open(announcement(1, 1, false));
        jobs.open(announcement(2, 2, false));
        jobs.report(HostIndex(0), report(2, 0, HostState::Active));
        jobs.mark_flushed(&JobId([2; 16]), &members);
        assert_eq!(jobs.open(announcement(3, 3, false)).dropped, [JobId([2; 16])], "the older job is not finished");
        assert_eq!(jobs.dropped_unfinished(), 0);
        assert_eq!(jobs.open(announcement(4, 4, false)).dropped, [JobId([1; 16])], "no job is finished");
        assert_eq!(jobs.dropped_unfinished(), 1);
    }

    #[test]
    fn reports_of_unknown_jobs_wait_aside_and_replace_no_job() {
        let members = members(2);
        let mut jobs = JobTable::new(2);
        jobs.open(announcement(1, 1, false));
        assert!(!jobs.report(HostIndex(1), report(2, 0, HostState::Has)));
        for fake in 3..=200 {
            assert!(!jobs.report(HostIndex(0), report(fake, 0, HostState::Active)));
        }
        assert!(jobs.get(&JobId([1; 16])).is_some() && jobs.get(&JobId([200; 16])).is_none());
        let early = jobs.states(&JobId([2; 16]), &members).unwrap();
        assert_eq!(early.sets[0].hosts.iter().collect::<Vec<_>>(), [1]);
        let opened = jobs.open(announcement(2, 2, false));
        assert_eq!((opened.dropped.len(), opened.reports.len()), (0, 1));
        assert_eq!(jobs.get(&JobId([2; 16])).unwrap().state(HostIndex(1)), HostState::Has);
    }

    #[test]
    fn no_host_counts_more_than_its_job_can_be() {
        let members = members(3);
        let mut jobs = JobTable::new(2);
        jobs.open(announcement(1, 1, false));
        let lie = TierBytes { rack: u64::MAX, site: u64::MAX, region: u64::MAX, seeder: u64::MAX, local: u64::MAX };
        let lying =
            HostReport { tiers: lie, pieces_total: 1 << 20, pieces_have: 1 << 20, ..report(1, 0, HostState::Has) };
        jobs.report(HostIndex(0), lying);
        for host in 1..3 {
            jobs.report(HostIndex(host), HostReport { pieces_total: 7, ..report(1, 0, HostState::Has) });
        }
        let (job, most) = (jobs.get(&JobId([1; 16])).unwrap(), TierBytes::most_of(1));
        assert_eq!(job.fold(&members).tiers.rack, most);
        let rollup = job.rollup(&members);
        assert_eq!(rollup.racks.iter().map(|rack| rack.tiers.seeder).sum::<u64>(), most);
        assert_eq!(rollup.pieces_total, 7);
    }

    #[test]
    fn a_rollup_lists_failed_hosts_first_and_counts_by_rack() {
        let members = members(4);
        let mut jobs = JobTable::new(10);
        jobs.open(announcement(1, 1, false));
        jobs.report(HostIndex(0), report(1, 0, HostState::Active));
        jobs.report(HostIndex(2), report(1, 0, FAILED));
        let rollup = jobs.get(&JobId([1; 16])).unwrap().rollup(&members);
        let lines: Vec<&str> = rollup.lines.iter().map(|line| line.host.as_str()).collect();
        assert_eq!(lines, ["r/s/k0/h2", "r/s/k1/h3", "r/s/k1/h1"]);
        let racks: Vec<(u32, u32, u32, u32)> =
            rollup.racks.iter().map(|rack| (rack.hosts, rack.active, rack.failed, rack.away)).collect();
        assert_eq!(racks, [(2, 1, 1, 0), (2, 0, 0, 1)]);
    }

    #[test]
    fn a_host_that_only_went_back_is_not_counted_as_failed() {
        let members = members(3);
        let mut jobs = JobTable::new(10);
        jobs.open(announcement(1, 1, false));
        let back = HostState::Failed(Reason::RolledBack);
        for (host, state) in [(0, back), (1, back), (2, FAILED)] {
            jobs.report(HostIndex(host), report(1, 3, state));
        }
        let job = jobs.get(&JobId([1; 16])).unwrap();
        let rollup = job.rollup(&members);
        let racks: Vec<(u32, u32)> = rollup.racks.iter().map(|rack| (rack.failed, rack.rolled_back)).collect();
        assert_eq!(racks, [(1, 1), (0, 1)]);
        assert_eq!(rollup.lines[0].host, "r/s/k0/h2", "the culprit comes first");
        assert!(job.is_final(&members));
    }
}
