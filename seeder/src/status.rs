//! A push as asked for, and a job as the API shows it.

use serde::{Deserialize, Serialize};
use shoal_proto::announcement::{Announcement, Kind, Order};
use shoal_proto::control::{JobRollup, RackRollup};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::report::TierBytes;
use std::path::PathBuf;

/// A push, as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushRequest {
    /// File or directory on the seeder's machine, absolute. Of an image that is pulled: empty.
    #[serde(default)]
    pub path: PathBuf,
    /// Name of the content. Of an image, when empty, made from its own name.
    #[serde(default)]
    pub name: String,
    /// Its version; the same.
    #[serde(default)]
    pub version: String,
    /// What it is for.
    pub kind: Kind,
    /// Selectors, each an alternative.
    pub to: Vec<String>,
    /// Only store it on the hosts: a rollout switches it in.
    #[serde(default)]
    pub staged: bool,
    /// Of an image: which, and from where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRequest>,
}

/// Which image, and from where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageRequest {
    /// Its name, as containerd will ask for it. Of files: which of the images in them; may be left out if there is one.
    pub reference: Option<String>,
    /// `os/arch`, `os/arch/variant` or `all`. Default: Linux on the seeder's processor.
    pub platform: Option<String>,
    /// It is pulled from its registry; otherwise it is in the files at the push's path.
    pub pull: bool,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Being pulled from a registry.
    Pulling,
    /// Being read, cut and hashed.
    Ingesting,
    /// Of an image: waiting until another that shares layers with it has reached the hosts.
    Waiting,
    /// On its way to the hosts.
    Distributing,
    /// Every host that is there has it or has failed.
    Done,
    /// It did not get as far as the hosts.
    Failed,
}

/// A host worth a line of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLine {
    /// Its locality.
    pub host: String,
    /// How far it is, in words.
    pub state: String,
    /// Pieces verified.
    pub pieces: u32,
    /// Whether the tracker sees it.
    pub away: bool,
    /// Why, in words.
    pub detail: String,
}

/// A job as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job.
    pub job: JobId,
    /// The push.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is for.
    pub kind: Kind,
    /// For which hosts.
    pub to: String,
    /// How far.
    pub phase: Phase,
    /// Why it failed.
    pub error: String,
    /// The content; absent while it is taken in.
    pub content: Option<ContentId>,
    /// Payload bytes pulled or read, while it is taken in.
    pub ingested: u64,
    /// Payload bytes.
    pub size: u64,
    /// Pieces.
    pub pieces: u32,
    /// Payload bytes this seeder sent.
    pub seeder_sent: u64,
    /// Payload bytes by source, over all hosts.
    pub tiers: TierBytes,
    /// Racks in order of name.
    pub racks: Vec<RackRollup>,
    /// Hosts that failed, are away or are behind.
    pub lines: Vec<HostLine>,
    /// Seconds since the hosts were told; until the end, once there is one.
    pub elapsed_s: f64,
    /// Seconds to go, when it can be told.
    pub eta_s: Option<f64>,
    /// When it was pushed, Unix seconds.
    pub created_at: u64,
    /// What it orders of a content that was pushed before; absent for a push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The newest word on its content is that hosts keep only their shares of it.
    #[serde(default)]
    pub demoted: bool,
    /// Hosts only store it.
    #[serde(default)]
    pub staged: bool,
    /// Not a push: a rollout, which hosts report on as on a job.
    #[serde(default)]
    pub rollout: bool,
}

impl JobStatus {
    /// Hosts in all, that have it, that switched it in, that failed, that are away.
    pub fn hosts(&self) -> (u32, u32, u32, u32, u32) {
        self.racks.iter().fold((0, 0, 0, 0, 0), |sum, rack| {
            (sum.0 + rack.hosts, sum.1 + rack.has, sum.2 + rack.active, sum.3 + rack.failed, sum.4 + rack.away)
        })
    }

    /// Whether nothing more will happen.
    pub fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Failed)
    }

    /// Whether its content is still to be taken in.
    pub(crate) fn is_coming(&self) -> bool {
        matches!(self.phase, Phase::Pulling | Phase::Ingesting | Phase::Waiting)
    }

    /// Whether hosts may still do something: it is under way, or it is done but for hosts that were away then.
    pub(crate) fn may_change(&self) -> bool {
        self.phase == Phase::Distributing || self.rollout || (self.phase == Phase::Done && self.owing() > 0)
    }

    /// Hosts that neither have what the job brings nor failed, whether they are away or not.
    fn owing(&self) -> u32 {
        let (hosts, has, active, failed, _) = self.hosts();
        let held: u32 = self.racks.iter().map(|rack| rack.held).sum();
        let done = if self.staged { has } else { active + held };
        hosts.saturating_sub(done + failed)
    }

    /// Of a job that is still to be taken in.
    pub(crate) fn new(job: JobId, request: &PushRequest, to: String, created_at: u64) -> Self {
        Self {
            job,
            name: request.name.clone(),
            version: request.version.clone(),
            kind: request.kind,
            to,
            phase: if request.image.as_ref().is_some_and(|image| image.pull) {
                Phase::Pulling
            } else {
                Phase::Ingesting
            },
            error: String::new(),
            content: None,
            ingested: 0,
            size: 0,
            pieces: 0,
            seeder_sent: 0,
            tiers: TierBytes::default(),
            racks: Vec::new(),
            lines: Vec::new(),
            elapsed_s: 0.0,
            eta_s: None,
            created_at,
            order: None,
            demoted: false,
            staged: request.staged,
            rollout: false,
        }
    }

    /// Of an order that is about to be told.
    pub(crate) fn of_order(announcement: &Announcement, to: String, pieces: u32) -> Self {
        let request = PushRequest {
            path: PathBuf::new(),
            name: announcement.name.clone(),
            version: announcement.version.clone(),
            kind: announcement.kind,
            to: Vec::new(),
            staged: false,
            image: None,
        };
        let mut status = Self::new(announcement.job, &request, to, announcement.created_at);
        status.announced(announcement, pieces);
        status.order = announcement.order;
        status
    }

    /// Its content is here and its hosts are being told.
    pub(crate) fn announced(&mut self, announcement: &Announcement, pieces: u32) {
        self.phase = Phase::Distributing;
        self.content = Some(announcement.content);
        (self.ingested, self.size, self.pieces) = (announcement.size, announcement.size, pieces);
    }

    /// Takes in what the tracker says. Done when every host that is there has it or has failed.
    pub(crate) fn fold(&mut self, rollup: JobRollup, sent: u64, elapsed_s: f64) {
        self.seeder_sent = self.seeder_sent.max(sent);
        self.tiers = TierBytes::default();
        for rack in &rollup.racks {
            self.tiers.add(&rack.tiers);
        }
        self.racks = rollup.racks;
        self.lines = rollup
            .lines
            .into_iter()
            .map(|line| HostLine {
                host: line.host,
                state: line.state.to_string(),
                pieces: line.pieces_have,
                away: line.away,
                detail: line.detail,
            })
            .collect();
        if !self.is_final() {
            self.elapsed_s = elapsed_s;
        }
        let (hosts, _, _, failed, away) = self.hosts();
        let have = self.racks.iter().map(|rack| rack.pieces).sum::<u64>() as f64;
        let all = f64::from(self.pieces) * f64::from(hosts.saturating_sub(failed));
        self.eta_s = (have > 0.0 && all > have).then(|| elapsed_s * (all - have) / have);
        // Of a rollout, its controller knows when it has ended.
        let owing = self.owing();
        if owing <= away && owing < hosts && !self.rollout {
            self.phase = Phase::Done;
            self.eta_s = None;
        }
    }

    /// It ended before every host was done.
    pub(crate) fn fail(&mut self, why: impl Into<String>) {
        self.phase = Phase::Failed;
        self.error = why.into();
        self.eta_s = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollup(active: u32, away: u32) -> JobRollup {
        JobRollup {
            racks: vec![RackRollup { hosts: 3, active, away, ..RackRollup::default() }],
            ..JobRollup::default()
        }
    }

    #[test]
    fn a_host_that_is_back_and_not_yet_done_is_waited_for() {
        let request = PushRequest {
            path: PathBuf::new(),
            name: "big".into(),
            version: "1".into(),
            kind: Kind::Blob,
            to: vec!["all".into()],
            staged: false,
            image: None,
        };
        let mut status = JobStatus::new(JobId([1; 16]), &request, "all".into(), 0);
        status.phase = Phase::Distributing;
        status.fold(rollup(0, 3), 0, 1.0);
        assert_eq!(status.phase, Phase::Distributing, "nobody is done");
        status.fold(rollup(2, 1), 0, 1.0);
        assert_eq!((status.phase, status.may_change()), (Phase::Done, true), "who is away may come back");
        status.fold(rollup(2, 0), 0, 2.0);
        assert_eq!((status.phase, status.may_change()), (Phase::Done, true), "it is back, and at it");
        status.fold(rollup(3, 0), 0, 3.0);
        assert_eq!((status.phase, status.may_change()), (Phase::Done, false));
    }
}
