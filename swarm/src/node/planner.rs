//! Where a node gets its plans from.
//!
//! Owns: the cache of recent plans.
//! Invariant: a plan depends on nothing but its inputs, so it can be cached and shared.

use crate::membership::Membership;
use crate::plan::{Plan, PlanRequest, Shape};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{Epoch, HostIndex};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Computes plans. The daemon's planner caches a few. All nodes of a simulation share one planner.
pub trait Planner: Send {
    /// Returns the plan for a request on a membership.
    fn plan(&mut self, membership: &Membership, request: &PlanRequest<'_>) -> Arc<Plan>;
}

/// What a cached plan was computed for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    epoch: Epoch,
    targets: Bitmap,
    root: Option<HostIndex>,
    avoid: BTreeSet<HostIndex>,
    lanes: u8,
    shape: Shape,
}

/// Plans in the cache. Contents in flight mostly share their targets, so few suffice.
const CACHED_MAX: usize = 8;

/// A cached plan with what it was computed for.
#[derive(Clone, Debug)]
struct Cached {
    key: Key,
    plan: Arc<Plan>,
}

/// A planner that keeps the last few plans. Its clones share the cache.
#[derive(Clone, Debug)]
pub struct CachingPlanner {
    /// The latest plan is first.
    plans: Arc<Mutex<VecDeque<Cached>>>,
    max: usize,
}

impl CachingPlanner {
    /// Creates a planner that keeps `max` plans.
    pub fn new(max: usize) -> Self {
        Self { plans: Arc::default(), max }
    }
}

impl Default for CachingPlanner {
    fn default() -> Self {
        Self::new(CACHED_MAX)
    }
}

impl Planner for CachingPlanner {
    fn plan(&mut self, membership: &Membership, request: &PlanRequest<'_>) -> Arc<Plan> {
        let fits = |key: &Key| {
            key.epoch == membership.epoch()
                && key.root == request.root
                && key.lanes == request.lanes
                && key.shape == request.shape
                && key.avoid == *request.avoid
                && key.targets == *request.targets
        };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = plans.iter().find(|cached| fits(&cached.key)) {
            return cached.plan.clone();
        }
        let plan = Arc::new(Plan::new(membership, request));
        let key = Key {
            epoch: membership.epoch(),
            targets: request.targets.clone(),
            root: request.root,
            avoid: request.avoid.clone(),
            lanes: request.lanes,
            shape: request.shape,
        };
        plans.push_front(Cached { key, plan: plan.clone() });
        plans.truncate(self.max);
        plan
    }
}
