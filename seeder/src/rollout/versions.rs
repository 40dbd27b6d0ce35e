//! Which version of a name each host has and should have.
//!
//! Invariant: a host appears if it has a version of the name or should have one.

use super::spec::rules;
use super::targets::targets;
use super::{Rollout, Rollouts};
use shoal_api::jobs::JobStatus;
use shoal_api::rollouts::{HostVersion, RolloutPhase};
use shoal_net::control::RequestError;
use shoal_proto::announcement::Order;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::control::{JobStates, Request, Response, VersionSet};
use shoal_proto::ids::HostIndex;
use shoal_proto::locality::Selector;
use shoal_swarm::membership::Membership;
use std::collections::BTreeMap;

/// Why the versions are not known now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VersionsError {
    #[error("the seeder has no connection to a tracker")]
    NoTracker,
    #[error("cannot ask the tracker: {0}")]
    Request(#[from] RequestError),
    #[error("the tracker refuses: {0}")]
    Refused(String),
    #[error("the tracker sent an unexpected answer")]
    Unexpected,
}

/// The version that a host should have. `None` in a rollback: the seeder does not know the former version.
struct DesiredVersion {
    host: u32,
    version: Option<String>,
}

impl Rollouts {
    /// Returns the hosts in whose place another host tried to join.
    pub(crate) async fn duplicates(&self) -> Bitmap {
        self.tracker.duplicates().await
    }

    /// Returns every host that has a version of the name or should have one, in order of locality.
    ///
    /// # Errors
    /// Returns an error if the tracker does not answer.
    pub(crate) async fn versions(&self, name: &str) -> Result<Vec<HostVersion>, VersionsError> {
        let tracker = self.tracker.current().ok_or(VersionsError::NoTracker)?;
        let request = Request::Versions { name: name.to_string() };
        let sets = match self.tracker.request(tracker, request).await? {
            Response::Versions { sets } => sets,
            Response::Refused { why } => return Err(VersionsError::Refused(why)),
            _ => return Err(VersionsError::Unexpected),
        };
        let is_in_force = |row: &Rollout| !row.superseded && !row.machine.state().retired;
        let newest = self.find(name).ok().filter(|id| self.rows().get(id).is_some_and(is_in_force));
        let states = match newest {
            Some(job) => self.tracker.host_states(tracker, job).await.unwrap_or_default(),
            None => JobStates::default(),
        };
        Ok(self.host_versions(name, &self.membership(), &sets, &states))
    }

    fn host_versions(
        &self,
        name: &str,
        members: &Membership,
        sets: &[VersionSet],
        states: &JobStates,
    ) -> Vec<HostVersion> {
        let mut rows: BTreeMap<u32, HostVersion> = BTreeMap::new();
        let empty = |host: u32| {
            let member = members.get(HostIndex(host))?;
            let (host, away) = (member.locality.to_string(), !members.is_up(member.index));
            Some(HostVersion { host, desired: None, actual: None, state: String::new(), away })
        };
        let mut change = |host: u32, change: &dyn Fn(&mut HostVersion)| {
            if let Some(empty) = empty(host) {
                change(rows.entry(host).or_insert(empty));
            }
        };
        for desired in self.desired_versions(name, members) {
            change(desired.host, &|row| row.desired.clone_from(&desired.version));
        }
        for set in sets {
            let actual = (!set.version.is_empty()).then(|| set.version.clone());
            set.hosts.iter().for_each(|host| change(host, &|row| row.actual.clone_from(&actual)));
        }
        for set in &states.sets {
            set.hosts.iter().for_each(|host| change(host, &|row| row.state = set.state.to_string()));
        }
        let mut rows: Vec<HostVersion> = rows.into_values().collect();
        rows.sort_by(|a, b| a.host.cmp(&b.host));
        rows
    }

    /// Returns what the newest rollout of the name says. Without a rollout, the newest pushes decide.
    fn desired_versions(&self, name: &str, members: &Membership) -> Vec<DesiredVersion> {
        let rows = self.rows();
        // A push or a promotion that replaced a rollout decides instead.
        let current = rows.values().filter(|row| row.is_current_of(name) && !row.machine.state().retired);
        let begun =
            current.filter(|row| !matches!(row.machine.state().phase, RolloutPhase::Failed | RolloutPhase::Preparing));
        if let Some(row) = begun.max_by_key(|row| row.machine.state().began_ms) {
            let spec = row.machine.spec();
            let rules = rules(spec).unwrap_or_default();
            let version = |host: u32| {
                let member = members.get(HostIndex(host)).filter(|_| !row.machine.is_rolling_back())?;
                rules.iter().find(|rule| rule.hosts.has(name, member)).map(|rule| rule.version.clone())
            };
            let targets = targets(spec, members);
            return targets.iter().map(|host| DesiredVersion { host, version: version(host) }).collect();
        }
        drop(rows);
        let mut found = BTreeMap::new();
        let jobs = self.jobs.all();
        // Newest first, so the first push that selects a host decides.
        let brings = |job: &&JobStatus| {
            let is_demotion = job.order == Some(Order::Demote);
            job.name == name && !job.staged && !job.rollout && !is_demotion && job.content.is_some()
        };
        for job in jobs.iter().filter(brings) {
            let Ok(to) = Selector::parse(&[&job.to]) else { continue };
            for host in members.select(&to).iter() {
                found.entry(host).or_insert_with(|| Some(job.version.clone()));
            }
        }
        found.into_iter().map(|(host, version)| DesiredVersion { host, version }).collect()
    }
}
