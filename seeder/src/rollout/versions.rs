//! Which host is on which version of a name, and on which it should be.

use super::machine::Phase;
use super::{Rollouts, targets};
use serde::{Deserialize, Serialize};
use shoal_proto::control::{JobStates, Request, Response, VersionSet};
use shoal_proto::ids::HostIndex;
use shoal_proto::locality::Selector;
use shoal_swarm::membership::Membership;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A host's version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostVersion {
    /// Its locality.
    pub host: String,
    /// The version it should be on; absent when nothing says so, or when that is whatever it was on before a rollout that
    /// was taken back.
    pub desired: Option<String>,
    /// The version it is on; absent when it has none or has not said.
    pub actual: Option<String>,
    /// What it last said of the rollout, in words.
    pub state: String,
    /// Whether it is away.
    pub away: bool,
}

impl Rollouts {
    /// Every host that has a version of the name or should have one.
    pub async fn versions(&self, name: &str) -> Result<Vec<HostVersion>, String> {
        let tracker = self.jobs.tracker().ok_or("no tracker can be reached")?;
        let request = Request::Versions { name: name.to_string() };
        let sets = match self.jobs.control().request(tracker, request).await.map_err(|error| error.to_string())? {
            Response::Versions { sets } => sets,
            Response::Refused { why } => return Err(why),
            other => return Err(format!("unexpected answer {other:?}")),
        };
        let newest = self.find(name).ok().filter(|id| self.rows().get(id).is_some_and(|row| !row.superseded));
        let states = match newest {
            Some(job) => match self.jobs.control().request(tracker, Request::HostStates { job }).await {
                Ok(Response::States(states)) => states,
                _ => JobStates::default(),
            },
            None => JobStates::default(),
        };
        Ok(self.rows_of(name, &self.membership(), &sets, &states))
    }

    fn rows_of(
        &self,
        name: &str,
        members: &Arc<Membership>,
        sets: &[VersionSet],
        states: &JobStates,
    ) -> Vec<HostVersion> {
        let mut rows: BTreeMap<u32, HostVersion> = BTreeMap::new();
        let row = |host: u32| {
            let member = members.get(HostIndex(host))?;
            let (host, away) = (member.locality.to_string(), !members.is_up(member.index));
            Some(HostVersion { host, desired: None, actual: None, state: String::new(), away })
        };
        let mut put = |host: u32, change: &dyn Fn(&mut HostVersion)| {
            if let Some(fresh) = row(host) {
                change(rows.entry(host).or_insert(fresh));
            }
        };
        for (host, desired) in self.desired_of(name, members) {
            put(host, &|row| row.desired.clone_from(&desired));
        }
        for set in sets {
            let actual = (!set.version.is_empty()).then(|| set.version.clone());
            set.hosts.iter().for_each(|host| put(host, &|row| row.actual.clone_from(&actual)));
        }
        for set in &states.sets {
            set.hosts.iter().for_each(|host| put(host, &|row| row.state = set.state.to_string()));
        }
        let mut rows: Vec<HostVersion> = rows.into_values().collect();
        rows.sort_by(|a, b| a.host.cmp(&b.host));
        rows
    }

    /// What hosts should be on: as the newest rollout says, else as the newest push does.
    fn desired_of(&self, name: &str, members: &Membership) -> Vec<(u32, Option<String>)> {
        let rows = self.rows();
        let current = rows.values().filter(|row| row.machine.spec().name == name && !row.superseded);
        let begun = current.filter(|row| !matches!(row.machine.state().phase, Phase::Failed | Phase::Preparing));
        if let Some(row) = begun.max_by_key(|row| row.machine.state().began_ms) {
            let spec = row.machine.spec();
            let rules = spec.rules().unwrap_or_default();
            let version = |host: u32| {
                let member = members.get(HostIndex(host)).filter(|_| !row.machine.is_rolling_back())?;
                rules.iter().find(|(hosts, _)| hosts.has(name, member)).map(|(_, version)| version.clone())
            };
            return targets(spec, members).iter().map(|host| (host, version(host))).collect();
        }
        drop(rows);
        let mut found = BTreeMap::new();
        let jobs = self.jobs.all();
        // The newest first: what it says counts.
        for job in jobs.iter().filter(|job| job.name == name && !job.staged && !job.rollout && job.content.is_some()) {
            let Ok(to) = Selector::parse(&[&job.to]) else { continue };
            for host in members.select(&to).iter() {
                found.entry(host).or_insert_with(|| Some(job.version.clone()));
            }
        }
        found.into_iter().collect()
    }
}
