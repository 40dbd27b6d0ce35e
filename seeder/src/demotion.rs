//! Demotion and promotion of contents that were pushed before.
//!
//! Invariant: the newest version of a name, and a content that hosts still fetch, are never demoted. A promotion
//! switches hosts, so it never begins beside a rollout of its name, and it ends what a finished rollout still does.

use crate::errors::StateError;
use crate::jobs::{Job, Jobs, PushError, new_id};
use crate::publisher::Publisher;
use crate::rollout::{RolloutError, Rollouts};
use shoal_api::jobs::{JobPhase, OrderRequest};
use shoal_proto::announcement::{Announcement, Kind, Order};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::limits;
use shoal_proto::locality::{ParseLocalityError, Selector};
use shoal_service::access::{Caller, Denied};
use shoal_store::Store;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why a demotion or promotion is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    #[error("this seeder remembers no push of `{0}`")]
    Unknown(String),
    #[error(transparent)]
    Selector(#[from] ParseLocalityError),
    #[error("the pushes of this content have too many selectors together; name the hosts with --to")]
    TooManySelectors,
    #[error(transparent)]
    Push(#[from] PushError),
    #[error("{name}@{version} is the newest version of its name")]
    Newest { name: String, version: String },
    #[error("hosts still fetch the content for job {0}")]
    UnderWay(JobId),
    #[error("the content has {0} bytes, which is too small for rack shares")]
    TooSmall(u64),
    #[error("the seeder no longer has the content of {name}@{version}, and no rack has shares of it")]
    Gone { name: String, version: String },
    #[error(transparent)]
    Rollout(RolloutError),
    #[error("cannot store the job")]
    Store(#[from] StateError),
    #[error(transparent)]
    Denied(#[from] Denied),
}

/// A push that the seeder remembers.
struct FormerPush {
    announcement: Announcement,
    pieces: u32,
}

/// Orders demotions and promotions.
pub(crate) struct Demotions {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) rollouts: Arc<Rollouts>,
    pub(crate) store: Store,
}

impl Demotions {
    /// Announces an order and returns its job.
    ///
    /// # Errors
    /// Returns why the order is refused.
    pub(crate) async fn order(
        &self,
        order: Order,
        request: &OrderRequest,
        caller: &Caller,
    ) -> Result<JobId, OrderError> {
        let pushes = self.pushes(&request.target);
        let Some(newest) = pushes.iter().max_by_key(|push| push.announcement.sequence) else {
            return Err(OrderError::Unknown(request.target.clone()));
        };
        // The order is about the content, so it concerns every name that has the content.
        self.names_of(newest.announcement.content).iter().try_for_each(|name| caller.check_name(name))?;
        match order {
            Order::Demote => self.check_demotion(&newest.announcement)?,
            Order::Promote => self.check_promotion(&newest.announcement)?,
        }
        let selector = if request.to.is_empty() {
            union_of(pushes.iter().map(|push| &push.announcement), newest.announcement.content)?
        } else {
            Selector::parse(&request.to)?
        };
        caller.check_hosts(&selector)?;
        self.jobs.select_hosts(&selector)?;
        if order == Order::Promote {
            self.retire_rollout(&newest.announcement.name, caller).await?;
        }
        let job = new_id().map_err(StateError::from)?;
        self.announce(job, order, newest, selector).await
    }

    /// Ends what a finished rollout of the name still does for hosts that return or are new.
    async fn retire_rollout(&self, name: &str, caller: &Caller) -> Result<(), OrderError> {
        let (rollouts, name, caller) = (self.rollouts.clone(), name.to_string(), caller.clone());
        let retired = tokio::task::spawn_blocking(move || rollouts.retire(&name, &caller)).await;
        let retired = retired.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        retired.map_err(|error| match error {
            RolloutError::Denied(denied) => OrderError::Denied(denied),
            error => OrderError::Rollout(error),
        })
    }

    /// Only a demotion leaves rack shares on hosts. Without them the content must come from the seeder.
    fn check_promotion(&self, former: &Announcement) -> Result<(), OrderError> {
        let was_demoted =
            |job: &Job| job.status().content == Some(former.content) && job.status().order == Some(Order::Demote);
        if self.store.is_complete(&former.content) || !self.jobs.filter(was_demoted).is_empty() {
            return Ok(());
        }
        Err(OrderError::Gone { name: former.name.clone(), version: former.version.clone() })
    }

    /// Returns the pushes of a content, by `NAME@VERSION` or by the content's id.
    fn pushes(&self, target: &str) -> Vec<FormerPush> {
        let by_id: Option<ContentId> = target.parse().ok();
        let named = target.rsplit_once('@');
        let push = |job: &Job| {
            let announcement = job.announcement()?;
            let is_named = named == Some((announcement.name.as_str(), announcement.version.as_str()));
            let is_target = is_named || by_id == Some(announcement.content);
            let pieces = job.status().pieces;
            (is_target && !announcement.demotes()).then_some(FormerPush { announcement, pieces })
        };
        self.jobs.filter(|_| true).iter().filter_map(push).collect()
    }

    /// Returns the names under which a content was pushed.
    fn names_of(&self, content: ContentId) -> BTreeSet<String> {
        let jobs = self.jobs.filter(|job| job.status().content == Some(content));
        jobs.into_iter().map(|job| job.status().name.clone()).collect()
    }

    fn check_demotion(&self, former: &Announcement) -> Result<(), OrderError> {
        let content = former.content;
        // A feed's version is replaced by the next one, and an inline content has no pieces to share.
        if former.kind == Kind::Gslb || former.size <= limits::INLINE_DATA_BYTES_MAX {
            return Err(OrderError::TooSmall(former.size));
        }
        let newest = self.jobs.newest_contents().into_iter().find(|(_, newest)| *newest == content);
        if let Some((versioned, _)) = newest {
            let is_it = |job: &Job| job.status().name == versioned.name && job.status().content == Some(content);
            let job = self.jobs.filter(is_it).into_iter().next();
            let version = job.map_or_else(|| former.version.clone(), |job| job.status().version.clone());
            return Err(OrderError::Newest { name: versioned.name, version });
        }
        let is_fetched =
            |job: &Job| job.status().content == Some(content) && job.status().phase == JobPhase::Distributing;
        match self.jobs.filter(is_fetched).first() {
            Some(job) => Err(OrderError::UnderWay(job.status().job)),
            None => Ok(()),
        }
    }

    async fn announce(
        &self,
        job: JobId,
        order: Order,
        push: &FormerPush,
        selector: Selector,
    ) -> Result<JobId, OrderError> {
        let to = selector.to_string();
        let FormerPush { announcement, pieces } = push;
        let times = self.publisher.times();
        let announcement = Announcement {
            job,
            sequence: self.jobs.next_sequence(announcement.kind, &announcement.name)?,
            selector,
            origin: self.publisher.me(),
            created_at: times.created_at,
            expires_at: times.expires_at,
            order: Some(order),
            // A promotion switches hosts, also to a version that was staged.
            staged: announcement.staged && order == Order::Demote,
            ..announcement.clone()
        };
        let envelope = self.publisher.seal(&announcement).map_err(StateError::from)?;
        self.jobs.insert(Job::of_order(&announcement, envelope.clone(), to, *pieces))?;
        self.publisher.publish(announcement, envelope).await?;
        Ok(job)
    }
}

/// Returns a selector for every host to which a content was pushed.
fn union_of<'a>(pushes: impl Iterator<Item = &'a Announcement>, content: ContentId) -> Result<Selector, OrderError> {
    let selectors: Vec<&Selector> = pushes.filter(|push| push.content == content).map(|push| &push.selector).collect();
    // A selector without alternatives matches every host.
    if selectors.iter().any(|selector| selector.any.is_empty()) {
        return Ok(Selector::all());
    }
    let mut any: Vec<_> = selectors.into_iter().flat_map(|selector| selector.any.clone()).collect();
    any.dedup();
    let selector = Selector { any };
    if selector.is_valid() { Ok(selector) } else { Err(OrderError::TooManySelectors) }
}
