//! What a rollout remembers: all of it is stored, and nothing else survives a restart.
//!
//! Invariant: CBOR indices never change, so a newer seeder continues a rollout of an older one.

use minicbor::{Decode, Encode};
use shoal_api::rollouts::{HostFailure, HostTally, RolloutEvent, RolloutPhase};
use shoal_proto::bitmap::Bitmap;
use std::collections::BTreeMap;

/// A rollout's state. Times are Unix milliseconds; sets of hosts are by roster index.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct State {
    #[n(0)]
    pub(crate) phase: RolloutPhase,
    /// The attempt that hosts are asked for. Always odd: the even number after it is a host's own, for a failure
    /// after its switch.
    #[n(1)]
    pub(crate) attempt: u16,
    /// Hosts that may switch in the present attempt.
    #[n(2)]
    pub(crate) open: Bitmap,
    /// When each open host that has not reported was opened.
    #[n(3)]
    pub(crate) opened_at: BTreeMap<u32, u64>,
    /// Hosts that were open in any attempt, so they may have switched.
    #[n(4)]
    pub(crate) ever_opened: Bitmap,
    /// Failures that an operator accepted when resuming. They do not count against `max_failures`.
    #[n(5)]
    pub(crate) tolerated_failures: Bitmap,
    /// The present batch, counted from 0.
    #[n(6)]
    pub(crate) batch: u32,
    /// When the present phase began.
    #[n(7)]
    pub(crate) since_ms: u64,
    /// When the present soak time began. A gate without an answer begins it again.
    #[n(8)]
    pub(crate) healthy_since_ms: u64,
    /// The gates passed at least once in the present soak time.
    #[n(9)]
    pub(crate) gate_passed: bool,
    /// An operator paused the rollout.
    #[n(10)]
    pub(crate) paused: bool,
    /// Why the rollout does not continue as planned. Empty otherwise.
    #[n(11)]
    pub(crate) why: String,
    /// When the rollout was created.
    #[n(12)]
    pub(crate) began_ms: u64,
    /// Oldest first.
    #[n(13)]
    pub(crate) events: Vec<RolloutEvent>,
    /// Hosts that had failed at the last observation.
    #[n(14)]
    pub(crate) failed: Bitmap,
    /// Counts of the last observation.
    #[n(15)]
    pub(crate) tally: HostTally,
    /// The first hosts that failed. Nothing removes them.
    #[n(16)]
    #[cbor(default)]
    pub(crate) failures: Vec<HostFailure>,
    /// A plain push or a promotion of the name took over.
    #[n(17)]
    #[cbor(default)]
    pub(crate) retired: bool,
    /// Hosts that failed since the rollout began or was retried after a rollback. A rollback counts them as failed.
    #[n(18)]
    #[cbor(default)]
    pub(crate) ever_failed: Bitmap,
}

impl State {
    pub(super) fn new(now: u64) -> Self {
        Self {
            phase: RolloutPhase::Preparing,
            attempt: 1,
            open: Bitmap::default(),
            opened_at: BTreeMap::new(),
            ever_opened: Bitmap::default(),
            tolerated_failures: Bitmap::default(),
            batch: 0,
            since_ms: now,
            healthy_since_ms: now,
            gate_passed: false,
            paused: false,
            why: String::new(),
            began_ms: now,
            events: Vec::new(),
            failed: Bitmap::default(),
            tally: HostTally::default(),
            failures: Vec::new(),
            retired: false,
            ever_failed: Bitmap::default(),
        }
    }
}
