//! Where a node gets its plans from. Plans depend on nothing but their inputs, so they can be cached and shared.

use crate::membership::Membership;
use crate::plan::{Plan, PlanRequest, Shape};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{Epoch, HostIndex};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Makes plans. The daemon's caches a few; the simulator's is shared by all its nodes.
pub trait Planner: Send {
    /// The plan for a request on a membership.
    fn plan(&mut self, membership: &Membership, request: &PlanRequest<'_>) -> Arc<Plan>;
}

/// What a cached plan was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    epoch: Epoch,
    targets: Bitmap,
    root: Option<HostIndex>,
    avoid: BTreeSet<HostIndex>,
    lanes: u8,
    shape: Shape,
}

/// Plans kept: contents in flight mostly share their targets.
const KEPT: usize = 8;

/// Plans, the latest first.
type Kept = VecDeque<(Key, Arc<Plan>)>;

/// A planner that keeps the last few plans. Its clones share them.
#[derive(Clone, Debug)]
pub struct CachingPlanner {
    plans: Arc<Mutex<Kept>>,
    kept: usize,
}

impl CachingPlanner {
    /// Keeps `kept` plans.
    pub fn new(kept: usize) -> Self {
        Self { plans: Arc::default(), kept }
    }
}

impl Default for CachingPlanner {
    fn default() -> Self {
        Self::new(KEPT)
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
        if let Some((_, plan)) = plans.iter().find(|(key, _)| fits(key)) {
            return plan.clone();
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
        plans.push_front((key, plan.clone()));
        plans.truncate(self.kept);
        plan
    }
}
