//! The tracker's side of membership: the rows, and which of them changed when.
//!
//! Invariant: a delta from an epoch holds every row that changed since, once, as it is now.

use super::{ApplyError, Membership};
use shoal_proto::ids::{Epoch, HostIndex};
use shoal_proto::membership::{Member, MembershipUpdate};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Rows whose last change the log remembers. A host further behind gets everything.
pub const HISTORY_ROWS_MAX: usize = 65_536;

/// Membership as its author keeps it.
///
/// A log that starts without its former rows must not start at an epoch that hosts may already have: start it from
/// the wall clock (seconds), say, with [`MembershipLog::starting_at`].
#[derive(Clone, Debug, Default)]
pub struct MembershipLog {
    current: Arc<Membership>,
    /// Each changed row once, under the epoch of its last change.
    history: BTreeSet<(Epoch, HostIndex)>,
    /// Epoch of each row's last change, by roster index; `Epoch(0)` when it is not in `history`.
    changed_at: Vec<Epoch>,
    /// Deltas reach back to here.
    reach: Epoch,
}

impl MembershipLog {
    /// Goes on from rows kept on disk. A host behind their epoch gets everything once.
    pub fn new(current: Membership) -> Self {
        let reach = current.epoch();
        Self { current: Arc::new(current), reach, ..Self::default() }
    }

    /// Starts without rows at `epoch`.
    pub fn starting_at(epoch: Epoch) -> Self {
        Self::new(Membership { epoch, ..Membership::default() })
    }

    /// The rows now. Shared: holding on to it costs the next change a copy of the table (not of the rows).
    pub fn current(&self) -> &Arc<Membership> {
        &self.current
    }

    /// Applies a change and moves to the next epoch. Rows that are as they were do not count; without any other the
    /// epoch stays. On an error nothing has changed.
    pub fn change(&mut self, mut upserts: Vec<Member>, mut removed: Vec<HostIndex>) -> Result<Epoch, ApplyError> {
        upserts.retain(|row| self.current.get(row.index) != Some(row));
        removed.retain(|host| self.current.get(*host).is_some());
        let base = self.current.epoch();
        if upserts.is_empty() && removed.is_empty() {
            return Ok(base);
        }
        let epoch = Epoch(base.0 + 1);
        let touched: Vec<HostIndex> = upserts.iter().map(|row| row.index).chain(removed.iter().copied()).collect();
        let update = MembershipUpdate { epoch, base: Some(base), upserts, removed };
        Arc::make_mut(&mut self.current).apply(update)?;
        for host in touched {
            self.note(epoch, host);
        }
        Ok(epoch)
    }

    fn note(&mut self, epoch: Epoch, host: HostIndex) {
        if self.changed_at.len() <= host.index() {
            self.changed_at.resize(host.index() + 1, Epoch(0));
        }
        let before = std::mem::replace(&mut self.changed_at[host.index()], epoch);
        self.history.remove(&(before, host));
        self.history.insert((epoch, host));
        while self.history.len() > HISTORY_ROWS_MAX {
            if let Some((dropped, _)) = self.history.pop_first() {
                self.reach = dropped;
            }
        }
    }

    /// What a host at `known` lacks; `None` when it is up to date. Everything when `known` is unknown, older than the
    /// history or, after a restart of the log, ahead of it.
    pub fn update_since(&self, known: Option<Epoch>) -> Option<MembershipUpdate> {
        let epoch = self.current.epoch();
        let Some(known) = known.filter(|known| (self.reach..=epoch).contains(known)) else {
            return Some(self.current.to_update());
        };
        if known == epoch {
            return None;
        }
        let (mut upserts, mut removed) = (Vec::new(), Vec::new());
        let mut changed: Vec<HostIndex> =
            self.history.range((Epoch(known.0 + 1), HostIndex(0))..).map(|(_, host)| *host).collect();
        changed.sort_unstable();
        for host in changed {
            match self.current.get(host) {
                Some(row) => upserts.push(row.clone()),
                None => removed.push(host),
            }
        }
        Some(MembershipUpdate { epoch, base: Some(known), upserts, removed })
    }
}
