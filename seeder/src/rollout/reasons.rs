//! Why hosts failed, and what a rollout waits for: what an operator reads instead of the seeder's and the hosts' logs.
//!
//! Invariant: a host's reason is in the record before the machine reacts to the failure.

use super::Rollouts;
use super::driver::PushState;
use super::machine::{FAILURES_MAX, FailedHost, FailureCause, Input, ObservedHost};
use super::now_ms;
use shoal_api::rollouts::{HostFailure, RolloutPhase};
use shoal_api::units::Span;
use shoal_proto::control::HostLine;
use shoal_proto::ids::{HostIndex, JobId, NodeId};
use shoal_proto::report::{HostState, Reason};

/// What a rollout without a tracker waits for.
pub(crate) const NO_TRACKER: &str = "the seeder has no connection to a tracker";
/// How long staging waits for a host that has the content, if the seeder does not have it, milliseconds. A host that
/// has it says so within seconds.
const GONE_AFTER_MS: u64 = 15_000;

/// A failure that is not in the record yet.
struct FreshFailure {
    /// The host's locality.
    host: String,
    failed: FailedHost,
}

/// What hosts say about the rollout and about the pushes of its versions.
struct Words {
    rollout: Vec<HostLine>,
    pushes: Vec<HostLine>,
}

/// What a host that failed says: its reason and its words.
fn words_of(host: &str, lines: &[HostLine]) -> Option<(Reason, String)> {
    let line = lines.iter().find(|line| line.host == host && line.state.has_failed())?;
    match line.state {
        HostState::Failed(reason) => Some((reason, line.detail.clone())),
        _ => None,
    }
}

fn explain(fresh: FreshFailure, words: &Words, switch_timeout: Span) -> HostFailure {
    let FreshFailure { host, failed } = fresh;
    let (reason, detail) = match failed.cause {
        FailureCause::Reported(reason) => {
            let (reason, detail) = words_of(&host, &words.rollout).unwrap_or((reason, String::new()));
            (reason.to_string(), detail)
        }
        FailureCause::Push => match words_of(&host, &words.pushes) {
            Some((reason, detail)) => (reason.to_string(), detail),
            None => ("push".into(), "the push of the version failed on the host".into()),
        },
        FailureCause::Late => {
            let detail = format!("the host was asked to switch and has not reported for {switch_timeout}");
            (Reason::Timeout.to_string(), detail)
        }
    };
    HostFailure { host, attempt: failed.attempt, reason, detail, at_ms: now_ms() }
}

impl Rollouts {
    /// Says what keeps a rollout from its next step. Empty if nothing does.
    pub(crate) fn set_trouble(&self, id: &JobId, trouble: String) {
        if let Some(rollout) = self.rows().get_mut(id) {
            // A text may change with every look, as that of staging does.
            let is_new = rollout.trouble.is_empty() && !trouble.is_empty();
            if is_new && !rollout.machine.state().phase.is_final() {
                tracing::warn!(rollout = %id, name = rollout.machine.spec().name, why = trouble, "a rollout waits");
            }
            rollout.trouble = trouble;
        }
    }

    /// Why the hosts of a rollout are not known now.
    pub(crate) fn why_unobserved(&self, id: &JobId) -> String {
        let refused = self.jobs.status(id).map(|job| job.error).filter(|error| !error.is_empty());
        refused.unwrap_or_else(|| "the tracker does not answer".into())
    }

    /// Why a rollout has no desired state, if it should have one.
    pub(crate) fn why_undesired(&self, id: &JobId) -> Option<String> {
        let phase = self.rows().get(id)?.machine.state().phase;
        let should_have = phase != RolloutPhase::Preparing && !phase.is_final();
        let forgotten = self.pushes(id).into_iter().find(|state| state.push.is_none()).filter(|_| should_have);
        forgotten.map(|PushState { version, .. }| {
            format!("the seeder no longer knows the push of {version}; begin a new rollout with its path")
        })
    }

    /// Records the hosts that have failed since the last look, with their own words.
    pub(crate) async fn note_failures(&self, tracker: NodeId, id: JobId, hosts: &[ObservedHost]) {
        let fresh = self.fresh_failures(&id, hosts);
        if fresh.is_empty() {
            return;
        }
        let mut words = Words { rollout: self.tracker.host_lines(tracker, id).await, pushes: Vec::new() };
        if fresh.iter().any(|fresh| fresh.failed.cause == FailureCause::Push) {
            for push in self.pushes(&id).into_iter().filter_map(|state| state.push) {
                words.pushes.extend(self.tracker.host_lines(tracker, push.job).await);
            }
        }
        let Some(switch_timeout) = self.rows().get(&id).map(|rollout| rollout.machine.spec().switch_timeout) else {
            return;
        };
        let failures: Vec<HostFailure> =
            fresh.into_iter().map(|fresh| explain(fresh, &words, switch_timeout)).collect();
        for HostFailure { host, attempt, reason, detail, .. } in &failures {
            tracing::warn!(rollout = %id, host, attempt, reason, detail, "a host failed");
        }
        self.tell(id, Input::Failures(&failures));
        let kept = self.rows().get(&id).map(|rollout| rollout.machine.state().failures.clone());
        self.jobs.set_failures(&id, kept.unwrap_or_default());
    }

    /// Returns the failures that the record lacks and has room for.
    fn fresh_failures(&self, id: &JobId, hosts: &[ObservedHost]) -> Vec<FreshFailure> {
        let membership = self.membership();
        let rows = self.rows();
        let Some(rollout) = rows.get(id) else { return Vec::new() };
        let kept = &rollout.machine.state().failures;
        let failed = rollout.machine.failed_hosts(now_ms(), hosts).into_iter();
        let fresh = failed.filter_map(|failed| {
            let host = membership.get(HostIndex(failed.index))?.locality.to_string();
            let is_kept = kept.iter().any(|known| known.host == host && known.attempt == failed.attempt);
            (!is_kept).then_some(FreshFailure { host, failed })
        });
        fresh.take(FAILURES_MAX.saturating_sub(kept.len())).collect()
    }

    /// Returns for which hosts staging waits. Ends a rollout whose content is gone everywhere.
    pub(crate) fn look_at_staging(&self, id: JobId, hosts: &[ObservedHost]) -> String {
        let now = now_ms();
        let rows = self.rows();
        let Some(rollout) = rows.get(&id) else { return String::new() };
        let version = rollout.machine.spec().version.clone();
        let wait = rollout.machine.staging_wait(now, hosts);
        drop(rows);
        let Some(wait) = wait else { return String::new() };
        let Some(first) = wait.hosts.first() else { return String::new() };
        // A tracker that has just begun knows of no source for a moment.
        let has_source = wait.has_source || self.has_content(&id, &version);
        let is_gone = self.rows().get_mut(&id).is_some_and(|rollout| {
            rollout.no_source_since = if has_source { None } else { rollout.no_source_since.or(Some(now)) };
            rollout.no_source_since.is_some_and(|since| now.saturating_sub(since) >= GONE_AFTER_MS)
        });
        if is_gone {
            let why = format!(
                "version {version} is not here any more: neither the seeder nor a host has its whole content; \
                 begin a new rollout with its path"
            );
            self.tell(id, Input::Broken(why.clone()));
            self.jobs.fail(id, why);
            return String::new();
        }
        let membership = self.membership();
        let example = membership.get(HostIndex(*first)).map(|member| format!(", e.g. {}", member.locality));
        let (lacking, all) = (wait.hosts.len(), hosts.len());
        format!("{lacking} of {all} hosts do not have the content yet{}", example.unwrap_or_default())
    }

    /// Whether the seeder's store has the whole content of a version of a rollout.
    fn has_content(&self, id: &JobId, version: &str) -> bool {
        let pushes = self.pushes(id).into_iter().filter(|state| state.version == version);
        let mut contents = pushes.filter_map(|state| state.push?.content);
        contents.any(|content| self.node.store.is_complete(&content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(host: &str, state: HostState, detail: &str) -> HostLine {
        HostLine { host: host.into(), state, pieces_have: 1, away: false, detail: detail.into() }
    }

    fn fresh(cause: FailureCause) -> FreshFailure {
        FreshFailure { host: "r/s/k/h".into(), failed: FailedHost { index: 1, attempt: 1, cause } }
    }

    #[test]
    fn a_failure_has_the_words_of_its_host() {
        let failed = HostState::Failed;
        let words = Words {
            rollout: vec![
                line("r/s/k/other", failed(Reason::Disk), "other"),
                line("r/s/k/h", failed(Reason::Activation), "check failed: line 17"),
            ],
            pushes: vec![line("r/s/k/h", failed(Reason::NoSpace), "needs 5 bytes")],
        };
        let explained = |cause| {
            let HostFailure { reason, detail, .. } = explain(fresh(cause), &words, Span::seconds(300));
            (reason, detail)
        };
        let reported = explained(FailureCause::Reported(Reason::Unhealthy));
        assert_eq!(reported, ("activation".into(), "check failed: line 17".into()));
        assert_eq!(explained(FailureCause::Push), ("no-space".into(), "needs 5 bytes".into()));
        let (reason, detail) = explained(FailureCause::Late);
        assert!(reason == "timeout" && detail.contains("5m"), "{reason} {detail}");
    }

    #[test]
    fn without_words_the_reported_reason_stays() {
        // The host went back meanwhile, so its words are about that.
        let gone = vec![line("r/s/k/h", HostState::Failed(Reason::RolledBack), "still on `1`")];
        let words = Words { rollout: gone, pushes: Vec::new() };
        let failure = explain(fresh(FailureCause::Reported(Reason::Activation)), &words, Span::seconds(1));
        assert_eq!((&*failure.reason, &*failure.detail, failure.attempt), ("activation", "", 1));
        assert_eq!(explain(fresh(FailureCause::Push), &words, Span::seconds(1)).reason, "push");
    }
}
