//! The tracker's side of membership: the rows, and when each last changed.
//!
//! Owns: the current membership and the epoch of each row's last change.
//! Invariant: a delta from an epoch has every row that changed since then, once, as the row is now. A row has its
//! credential only if the credential changed since then.

use super::{ApplyError, Membership};
use shoal_proto::ids::{Epoch, HostIndex};
use shoal_proto::membership::{Member, MembershipUpdate};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Rows whose last change the log remembers. A host that is further behind gets a full update.
pub const HISTORY_ROWS_MAX: usize = 65_536;

/// The membership, as the tracker keeps it.
///
/// A log that starts without its former rows must not start at an epoch that hosts may already have. The wall clock in
/// seconds is a safe start for [`MembershipLog::starting_at`].
#[derive(Clone, Debug, Default)]
pub struct MembershipLog {
    current: Arc<Membership>,
    /// Each changed row once, at the epoch of its last change.
    history: BTreeSet<(Epoch, HostIndex)>,
    /// Epoch of each row's last change, by roster index; `Epoch(0)` when it is not in `history`.
    changed_at: Vec<Epoch>,
    /// Epoch of the last change of each row's credential, by roster index.
    credential_at: Vec<Epoch>,
    /// The oldest epoch that a delta can begin at.
    reach: Epoch,
}

impl MembershipLog {
    /// Continues from rows on disk. A host behind their epoch gets one full update.
    pub fn new(current: Membership) -> Self {
        let reach = current.epoch();
        Self { current: Arc::new(current), reach, ..Self::default() }
    }

    /// Starts without rows, at `epoch`.
    pub fn starting_at(epoch: Epoch) -> Self {
        Self::new(Membership { epoch, ..Membership::default() })
    }

    /// Returns the current rows. While a caller keeps them, the next change copies the table, but not the rows.
    pub fn current(&self) -> &Arc<Membership> {
        &self.current
    }

    /// Applies a change and moves to the next epoch. Without any row that differs, the epoch stays.
    ///
    /// # Errors
    ///
    /// Fails if a node or an index would have two rows. Nothing has changed then.
    pub fn change(&mut self, mut upserts: Vec<Member>, mut removed: Vec<HostIndex>) -> Result<Epoch, ApplyError> {
        upserts.retain(|row| self.current.get(row.index) != Some(row));
        removed.retain(|host| self.current.get(*host).is_some());
        let base = self.current.epoch();
        if upserts.is_empty() && removed.is_empty() {
            return Ok(base);
        }
        let epoch = Epoch(base.0 + 1);
        let has_new_credential = |row: &&Member| {
            self.current
                .get(row.index)
                .is_none_or(|former| former.node != row.node || former.credential != row.credential)
        };
        let fresh: Vec<HostIndex> = upserts.iter().filter(has_new_credential).map(|row| row.index).collect();
        let touched: Vec<HostIndex> = upserts.iter().map(|row| row.index).chain(removed.iter().copied()).collect();
        let update = MembershipUpdate { epoch, base: Some(base), upserts, removed };
        Arc::make_mut(&mut self.current).apply(update)?;
        for host in touched {
            self.note(epoch, host);
        }
        for host in fresh {
            if self.credential_at.len() <= host.index() {
                self.credential_at.resize(host.index() + 1, Epoch(0));
            }
            self.credential_at[host.index()] = epoch;
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

    /// Returns what a host at the epoch `known` lacks; `None` when it is up to date.
    ///
    /// The update is full when `known` is `None`, older than the history, or ahead of the log after a restart.
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
                Some(row) if self.credential_at.get(host.index()).is_none_or(|at| *at <= known) => {
                    upserts.push(Member { credential: Arc::default(), ..row.clone() });
                }
                Some(row) => upserts.push(row.clone()),
                None => removed.push(host),
            }
        }
        Some(MembershipUpdate { epoch, base: Some(known), upserts, removed })
    }
}
