//! What every part of a node may use: the time, the tuning, the membership, and where outputs go.
//!
//! Owns: the output queue, the counters, and the agenda of contents that need attention.
//! Invariant: `now` never goes backwards, and outputs leave in the order in which they were made.

use super::planner::Planner;
use super::{NodeConfig, Tuning};
use crate::io::{Notice, Output};
use crate::membership::Membership;
use crate::plan::{Plan, PlanRequest};
use crate::time::Instant;
use shoal_proto::ids::{ContentId, HostIndex, ShardIndex};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Totals since the node started, for metrics and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Inputs handled.
    pub inputs: u64,
    /// Shards handed to the driver for sending.
    pub shards_sent: u64,
    /// Shards that arrived and were needed.
    pub shards_taken: u64,
    /// Shards that arrived and were not needed.
    pub shards_surplus: u64,
    /// Shards and manifests that arrived with a wrong hash.
    pub shards_corrupt: u64,
    /// Shards requested outside their lanes.
    pub wants: u64,
    /// Stripes decoded.
    pub rebuilds: u64,
    /// Plans computed for a content.
    pub replans: u64,
}

/// The context that [`super::Node`] hands to its parts.
pub struct Cx {
    pub now: Instant,
    pub me: HostIndex,
    /// Lanes of announcements, and of contents whose manifest is not known.
    pub lanes: u8,
    pub tuning: Tuning,
    pub membership: Arc<Membership>,
    pub counters: Counters,
    pub agenda: Agenda,
    /// Shards that arrived or left while this input was handled. They may have nothing to wait for in memory any more.
    pub touched: Vec<ShardId>,
    planner: Box<dyn Planner>,
    outputs: VecDeque<Output>,
}

impl Cx {
    pub fn new(config: NodeConfig, planner: Box<dyn Planner>) -> Self {
        Self {
            now: Instant::ZERO,
            me: config.me,
            lanes: config.lanes,
            tuning: config.tuning,
            membership: Arc::default(),
            counters: Counters::default(),
            agenda: Agenda::default(),
            touched: Vec::new(),
            planner,
            outputs: VecDeque::new(),
        }
    }

    pub fn advance(&mut self, now: Instant) {
        debug_assert!(now >= self.now, "time goes forwards");
        self.now = self.now.max(now);
    }

    pub fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub fn notice(&mut self, notice: Notice) {
        self.push(Output::Notice(notice));
    }

    pub fn pop_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn plan(&mut self, request: &PlanRequest<'_>) -> Arc<Plan> {
        self.planner.plan(&self.membership, request)
    }
}

/// A shard of some content.
#[derive(Clone, Copy, Debug)]
pub struct ShardId {
    pub content: ContentId,
    pub shard: ShardIndex,
}

/// Contents that need attention at a timer. A content that is in none of the sets costs nothing there.
#[derive(Debug, Default)]
pub struct Agenda {
    /// A manifest or pieces are still to come.
    pub active: BTreeSet<ContentId>,
    /// The rack peers have not agreed on the demotion yet.
    pub demoting: BTreeSet<ContentId>,
    /// The content comes back from rack shares.
    pub promoting: BTreeSet<ContentId>,
    /// This host is the origin, and fairness has paused children.
    pub uneven: BTreeSet<ContentId>,
    /// When parents hear which pieces came from elsewhere.
    pub received_at: Option<Instant>,
}

impl Agenda {
    pub fn active(&self) -> Vec<ContentId> {
        self.active.iter().copied().collect()
    }

    /// Removes the content from all sets but `uneven`, which cleans itself.
    pub fn forget(&mut self, id: &ContentId) {
        self.active.remove(id);
        self.demoting.remove(id);
        self.promoting.remove(id);
    }

    /// Makes sure that parents hear of received pieces by `at`.
    pub fn report_received_by(&mut self, at: Instant) {
        self.received_at = Some(self.received_at.map_or(at, |former| former.min(at)));
    }
}
