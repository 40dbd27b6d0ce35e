//! Orders about contents that hosts have already: keep only a share of it, have it whole again.
//!
//! Invariant: the version of a name that is the latest, and what is still on its way, is never demoted.

use crate::jobs::{Job, Jobs};
use crate::status::{JobStatus, Phase};
use serde::{Deserialize, Serialize};
use shoal_net::admission::system_clock;
use shoal_peer::handle::DriverCommand;
use shoal_proto::announcement::{Announcement, Kind, Order};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::limits;
use shoal_proto::locality::Selector;
use shoal_proto::trust::Envelope;
use std::sync::Arc;
use std::time::Instant;

/// An order, as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderRequest {
    /// `NAME@VERSION`, or the id of a content.
    pub target: String,
    /// Selectors, each an alternative; the hosts it was pushed to when there are none.
    #[serde(default)]
    pub to: Vec<String>,
}

/// Why an order is not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Nothing was pushed that is called so.
    #[error("no push of `{0}` is remembered here")]
    Unknown(String),
    /// The selector cannot be read.
    #[error("{0}")]
    Selector(String),
    /// It selects nobody.
    #[error("no host of the region is `{0}`")]
    NoHosts(String),
    /// It is what hosts run.
    #[error("{name}@{version} is the latest version of its name")]
    Latest {
        /// Its name.
        name: String,
        /// Its version.
        version: String,
    },
    /// Hosts are still fetching it.
    #[error("job {0} is still bringing it to hosts")]
    UnderWay(JobId),
    /// It travels with its announcement.
    #[error("it has {0} bytes: too few to keep shares of")]
    Small(u64),
    /// The seeder's disk is at fault.
    #[error("cannot keep the job: {0}")]
    Store(String),
}

/// A push that is remembered.
struct Former {
    announcement: Announcement,
    status: JobStatus,
}

impl Jobs {
    /// Gives an order; returns its job.
    pub async fn order(&self, order: Order, request: &OrderRequest) -> Result<JobId, OrderError> {
        let formers = self.formers(&request.target);
        let Some(former) = formers.iter().max_by_key(|former| former.announcement.sequence) else {
            return Err(OrderError::Unknown(request.target.clone()));
        };
        let content = former.announcement.content;
        if order == Order::Demote {
            self.check_demotion(&former.announcement)?;
        }
        let selector = if request.to.is_empty() {
            let pushes = formers.iter().map(|former| &former.announcement).filter(|row| row.content == content);
            let selectors: Vec<&Selector> = pushes.map(|row| &row.selector).collect();
            if selectors.iter().any(|selector| selector.any.is_empty()) {
                Selector::all()
            } else {
                let mut any: Vec<_> = selectors.into_iter().flat_map(|selector| selector.any.clone()).collect();
                any.dedup();
                Selector { any }
            }
        } else {
            Selector::parse(&request.to).map_err(|error| OrderError::Selector(error.to_string()))?
        };
        if !selector.is_valid() {
            return Err(OrderError::Selector("too many alternatives: say which hosts with --to".into()));
        }
        let membership = self.node().membership.borrow().clone();
        if !membership.is_empty() && membership.select(&selector).none() {
            return Err(OrderError::NoHosts(selector.to_string()));
        }
        let mut id = [0u8; 16];
        getrandom::fill(&mut id).map_err(|error| OrderError::Store(error.to_string()))?;
        self.announce_order(JobId(id), order, former, selector).await
    }

    /// Pushes of a content, by name and version or by id.
    fn formers(&self, target: &str) -> Vec<Former> {
        let by_id: Option<ContentId> = target.parse().ok();
        let named = target.rsplit_once('@');
        let rows = self.rows();
        let formers = rows.values().filter_map(|row| {
            let announcement: Announcement = row.envelope.as_ref()?.open().ok()?;
            let is_named = named == Some((announcement.name.as_str(), announcement.version.as_str()));
            let fits = is_named || by_id == Some(announcement.content);
            (fits && !announcement.demotes()).then(|| Former { announcement, status: row.status.clone() })
        });
        formers.collect()
    }

    fn check_demotion(&self, former: &Announcement) -> Result<(), OrderError> {
        let content = former.content;
        if former.kind == Kind::Gslb || former.size <= limits::INLINE_DATA_BYTES_MAX {
            return Err(OrderError::Small(former.size));
        }
        let latest = self.latest().into_iter().find(|(_, latest)| *latest == content);
        if let Some(((_, name), _)) = latest {
            let rows = self.rows();
            let row = rows.values().find(|row| row.status.name == name && row.status.content == Some(content));
            let version = row.map_or_else(|| former.version.clone(), |row| row.status.version.clone());
            return Err(OrderError::Latest { name, version });
        }
        let busy = |row: &&Job| row.status.content == Some(content) && row.status.phase == Phase::Distributing;
        match self.rows().values().find(busy) {
            Some(row) => Err(OrderError::UnderWay(row.status.job)),
            None => Ok(()),
        }
    }

    async fn announce_order(
        &self,
        job: JobId,
        order: Order,
        former: &Former,
        selector: Selector,
    ) -> Result<JobId, OrderError> {
        let now = system_clock();
        let to = selector.to_string();
        let Former { announcement, status } = former;
        let announcement = Announcement {
            job,
            sequence: self.next_sequence_of(announcement.kind, &announcement.name).map_err(OrderError::Store)?,
            selector,
            origin: self.me,
            created_at: now,
            expires_at: now + self.config.job_lifetime.0.as_secs(),
            order: Some(order),
            ..announcement.clone()
        };
        let envelope = Envelope::seal(&announcement, &self.publisher);
        let mut row = Job::new(JobStatus::of_order(&announcement, to, status.pieces), None);
        row.sequence = Some(announcement.sequence);
        row.envelope = Some(envelope.clone());
        row.announced = Instant::now();
        row.expires_at = announcement.expires_at;
        self.insert(row).map_err(OrderError::Store)?;
        self.try_keep(&job).map_err(OrderError::Store)?;
        self.pin_needed().map_err(OrderError::Store)?;
        self.node().store.sync().map_err(|error| OrderError::Store(error.to_string()))?;
        if let Some(tracker) = self.tracker() {
            self.open_at(tracker, job).await;
        }
        tracing::info!(%job, name = announcement.name, version = announcement.version, ?order, "ordered");
        let command = DriverCommand::Publish { envelope, announcement: Arc::new(announcement) };
        self.node().commands.send(command).await.map_err(|_| OrderError::Store("the node is stopping".into()))?;
        Ok(job)
    }
}
