//! Follows desired states: which version each name must have here, when this host may switch, and with which result.
//!
//! Invariant: a host begins at most one switch for each attempt.

use super::{Activations, InterruptedSwitch, KindAndName, ManagedName, RolloutEvent, images};
use crate::activation::probe;
use crate::activation::record::{InstalledVersion, SwitchRecord, SwitchStep};
use crate::activation::settings::settings_for;
use crate::activation::switch::{Switch, named};
use crate::driver::Context;
use crate::driver::accounting::Event;
use crate::error_chain::ErrorChain;
use minicbor::bytes::ByteVec;
use shoal_api::rollouts::PeerRollout;
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::codec::{DecodeError, Document, decode_exact, encode};
use shoal_proto::desired::{Desired, Rule, Target, name_of};
use shoal_proto::ids::ContentId;
use shoal_proto::report::{HostState, Reason};
use std::sync::Arc;

/// Names under desired states. This host refuses documents for further names.
const NAMES_MAX: usize = 256;
/// Prefix of the keys that keep desired states.
const DESIRED_PREFIX: &str = "desired/";

/// Reads a desired state and its sequence as the store keeps them.
fn read_desired(bytes: &[u8]) -> Result<(u64, Desired), DecodeError> {
    let (sequence, document) = decode_exact::<(u64, ByteVec)>(bytes)?;
    Ok((sequence, Desired::from_bytes(&document)?))
}

/// Whether all of a version is on this host, in the store or in the content folder.
fn is_stored(cx: &Context, name: &str, target: &Target) -> bool {
    let folder = cx.content_dir.as_ref();
    cx.store.is_complete(&target.content)
        || folder.is_some_and(|folder| folder.content_of(name, &target.version) == Some(target.content))
}

/// Protects a content from eviction before its switch, or ends that.
fn pin(cx: &Context, content: &ContentId, pinned: bool) {
    if let Err(error) = cx.store.pin(content, pinned) {
        tracing::warn!(content = %content.short(), %error, "cannot pin a content");
    }
}

/// What a rolled back host says of its failure in the attempt before, because its report covers that one.
fn failure_before(last: Option<&SwitchRecord>) -> String {
    match last {
        Some(record) if record.state.has_failed() => format!("; {}", record.detail),
        _ => String::new(),
    }
}

/// The attempt to begin now, or a finished one if there is nothing to switch. `None` if it is too early.
///
/// `current` is the active version and `last` this rollout's last attempt here.
fn next_attempt(
    desired: &Desired,
    target: &Target,
    current: Option<InstalledVersion>,
    last: Option<SwitchRecord>,
    may_switch: bool,
    is_stored: bool,
) -> Option<SwitchRecord> {
    let to = InstalledVersion { version: target.version.clone(), content: target.content, sequence: target.sequence };
    let is_current = |version: &InstalledVersion| {
        current.as_ref().is_some_and(|on| (&on.version, on.content) == (&version.version, version.content))
    };
    let mut next = SwitchRecord {
        rollout: desired.rollout,
        attempt: desired.attempt,
        step: SwitchStep::Prepare,
        from: current.clone(),
        to: Some(to.clone()),
        before: last.as_ref().map_or_else(|| current.clone(), |record| record.before.clone()),
        back: desired.back,
        state: HostState::Has,
        detail: String::new(),
    };
    if desired.back {
        if !may_switch {
            return None;
        }
        next.to = next.before.clone();
        let stays = next.before.as_ref().map_or(current.is_none(), is_current);
        if last.is_none() || stays {
            let detail = format!("still on {}{}", named(current.as_ref()), failure_before(last.as_ref()));
            next.end(HostState::Failed(Reason::RolledBack), detail);
        }
        return Some(next);
    }
    let has_failed = last.is_some_and(|record| matches!(record.state, HostState::Failed(_)));
    if is_current(&to) {
        if !has_failed {
            next.end(HostState::Active, "");
            return Some(next);
        }
        // The version is active but was unhealthy here. If it fails again, the host returns to the one before it.
        next.from = next.before.clone();
    }
    (is_stored && may_switch).then_some(next)
}

impl Activations {
    /// Reads desired states and records that the store keeps.
    pub fn load_rollouts(&mut self, cx: &Context) {
        if cx.content_dir.is_none() {
            return;
        }
        let rows = cx.store.scan_state(DESIRED_PREFIX).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the desired states");
            Vec::new()
        });
        for (key, bytes) in rows {
            let name = key[DESIRED_PREFIX.len()..].to_string();
            match read_desired(&bytes) {
                Ok((sequence, desired)) => {
                    let managed = self.names.entry(name).or_default();
                    (managed.sequence, managed.desired) = (sequence, Some(Arc::new(desired)));
                }
                Err(error) => tracing::error!(name, %error, "cannot read a desired state"),
            }
        }
        for (name, record) in SwitchRecord::load(&cx.store) {
            if record.step != SwitchStep::Done {
                self.interrupted.push(InterruptedSwitch { name: name.clone(), record: record.clone() });
            }
            self.names.entry(name).or_default().record = Some(record);
        }
    }

    /// Continues switches that a kill interrupted.
    pub fn resume_interrupted(&mut self, cx: &Context) {
        for InterruptedSwitch { name, record } in std::mem::take(&mut self.interrupted) {
            tracing::info!(name, step = ?record.step, "continuing an interrupted switch");
            self.begin_switch(cx, &name, record);
        }
    }

    /// The name whose desired state asks for a content, or whose rollback may need it.
    pub fn name_that_needs(&self, content: &ContentId) -> Option<&str> {
        let needs = |managed: &ManagedName| {
            let mut rules = managed.desired.iter().flat_map(|desired| &desired.rules);
            let may_return = |record: &SwitchRecord| record.versions().any(|version| version.content == *content);
            rules.any(|rule| rule.target.content == *content)
                || (managed.desired.is_some() && managed.record.as_ref().is_some_and(may_return))
        };
        self.names.iter().find(|(_, managed)| needs(managed)).map(|(name, _)| name.as_str())
    }

    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits for the next event of a rollout. Returns `None` if no task runs. Cancel-safe.
    pub async fn next(&mut self) -> Option<RolloutEvent> {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(event) => return Some(event),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {} // an aborted probe
            }
        }
        None
    }

    /// Aborts all tasks. The next start continues the switches.
    pub async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Takes a new version of a feed that may carry desired states.
    pub fn take_desired(&mut self, cx: &mut Context, feed: &str, sequence: u64, bytes: &[u8]) {
        let Some(name) = name_of(feed) else { return };
        if cx.content_dir.is_none() {
            return;
        }
        let desired = match Desired::from_bytes(bytes) {
            Ok(desired) if desired.name == name => desired,
            Ok(desired) => {
                cx.accounting.count(Event::DesiredRefused);
                tracing::warn!(name, other = desired.name, "refused a desired state: it has another name");
                return;
            }
            Err(error) => {
                cx.accounting.count(Event::DesiredRefused);
                tracing::warn!(name, %error, "refused a desired state");
                return;
            }
        };
        if self.names.len() >= NAMES_MAX && !self.names.contains_key(name) {
            cx.accounting.count(Event::DesiredRefused);
            tracing::warn!(name, "refused a desired state: too many names have one");
            return;
        }
        let managed = self.names.entry(name.to_string()).or_default();
        if sequence <= managed.sequence {
            tracing::debug!(name, sequence, "refused a desired state: a newer one is here");
            return;
        }
        let row = encode(&(sequence, ByteVec::from(bytes.to_vec())));
        if let Err(error) = cx.store.put_state(&format!("{DESIRED_PREFIX}{name}"), Some(row)) {
            tracing::error!(name, %error, "cannot save a desired state");
        }
        let desired = Arc::new(desired);
        let former = managed.desired.replace(desired.clone());
        managed.sequence = sequence;
        if let Some(former) = former.filter(|former| former.rollout != desired.rollout) {
            cx.reporter.forget_rollout(&former.rollout);
            let is_kept = |rule: &&Rule| desired.rules.iter().any(|kept| kept.target.content == rule.target.content);
            former.rules.iter().filter(|rule| !is_kept(rule)).for_each(|rule| pin(cx, &rule.target.content, false));
        }
        self.evaluate(cx, name);
    }

    /// Evaluates all desired states.
    pub fn evaluate_all(&mut self, cx: &mut Context) {
        let names: Vec<String> = self.names.keys().cloned().collect();
        names.iter().for_each(|name| self.evaluate(cx, name));
    }

    /// Does what a name's desired state asks of this host now.
    pub(super) fn evaluate(&mut self, cx: &mut Context, name: &str) {
        let Some(me) = cx.region.own_row().cloned() else { return };
        let Some(managed) = self.names.get_mut(name).filter(|managed| !managed.is_switching) else { return };
        let Some(desired) = managed.desired.clone() else { return };
        let Some(target) = desired.target(&me).cloned() else { return };
        let record = managed.record.clone().filter(|record| record.rollout == desired.rollout);
        let is_stored = is_stored(cx, name, &target);
        if cx.store.is_complete(&target.content) && managed.pinned != Some(target.content) {
            pin(cx, &target.content, true);
            managed.pinned = Some(target.content);
        }
        cx.reporter.open_rollout(desired.rollout);
        if is_stored {
            cx.reporter.reach(&desired.rollout, HostState::Has, "");
        }
        if let Some(record) = &record {
            cx.reporter.reach_attempt(record.rollout, record.attempt, record.state, &record.detail);
        }
        if record.as_ref().is_some_and(|record| record.attempt >= desired.attempt) {
            self.update_probe(cx, name, &desired);
        } else if images::is_image(cx, &target.content) {
            self.evaluate_image(cx, name, &desired, &me, &target);
        } else {
            let (current, may_switch) = (self.current_version(cx, name), desired.may_switch(&me));
            match next_attempt(&desired, &target, current, record, may_switch, is_stored) {
                Some(next) if next.step == SwitchStep::Done => self.conclude(cx, name, next),
                Some(next) => self.begin_switch(cx, name, next),
                None => {}
            }
        }
    }

    /// The version that `current` points at.
    fn current_version(&self, cx: &Context, name: &str) -> Option<InstalledVersion> {
        let folder = cx.content_dir.as_ref()?;
        let version = folder.current(name)?;
        let content = folder.content_of(name, &version)?;
        let pushed = cx.jobs.of_content(&content).find(|announcement| announcement.name == name);
        let record = self.names.get(name).and_then(|managed| managed.record.as_ref());
        let recorded = record.and_then(|record| record.versions().find(|version| version.content == content));
        let sequence = pushed.map(|announcement| announcement.sequence);
        let sequence = sequence.or(recorded.map(|version| version.sequence)).unwrap_or(0);
        Some(InstalledVersion { version, content, sequence })
    }

    fn switch_context(&self, cx: &Context, name: &str, record: &SwitchRecord) -> Option<Switch> {
        let mut needed: Vec<String> = record.versions().map(|version| version.version.clone()).collect();
        let desired = self.names.get(name).and_then(|managed| managed.desired.as_ref());
        needed.extend(desired.iter().flat_map(|desired| &desired.rules).map(|rule| rule.target.version.clone()));
        Some(Switch {
            store: cx.store.clone(),
            folder: cx.content_dir.clone()?,
            journal: self.journal.clone(),
            settings: settings_for(&self.settings, name),
            name: name.to_string(),
            needed,
        })
    }

    /// Begins or continues a switch, unless the name has one already. The end of that one evaluates the name again.
    fn begin_switch(&mut self, cx: &Context, name: &str, record: SwitchRecord) {
        let Some(context) = self.switch_context(cx, name, &record) else { return };
        if !self.switching.insert(name.to_string()) {
            return;
        }
        let managed = self.names.entry(name.to_string()).or_default();
        managed.is_switching = true;
        if let Some(probe) = managed.probe.take() {
            probe.abort();
        }
        tracing::info!(name, attempt = record.attempt, back = record.back, "switching");
        let name = name.to_string();
        self.tasks.spawn(async move { RolloutEvent::Switched { name, record: context.run(record).await } });
    }

    /// Handles the end of a rollout's switch or a failed probe.
    pub fn on_rollout_event(&mut self, cx: &mut Context, event: RolloutEvent) {
        match event {
            RolloutEvent::Switched { name, record } => {
                tracing::info!(name, state = %record.state, detail = record.detail, "switched");
                self.names.entry(name.clone()).or_default().is_switching = false;
                self.record_result(cx, &name, record);
                self.end_switch(cx, &name);
                self.evaluate(cx, &name);
            }
            RolloutEvent::Unhealthy { name, rollout, attempt, why } => {
                let managed = self.names.entry(name.clone()).or_default();
                let is_probed = |record: &&SwitchRecord| (record.rollout, record.attempt) == (rollout, attempt);
                let record = managed.record.as_ref().filter(is_probed).filter(|_| !managed.is_switching);
                let Some(mut record) = record.cloned() else { return };
                managed.probe = None;
                tracing::warn!(name, %why, "unhealthy after the switch");
                record.attempt += 1;
                record.end(HostState::Failed(Reason::Unhealthy), why);
                if let Some(context) = self.switch_context(cx, &name, &record) {
                    context.note(&record, "unhealthy");
                }
                self.conclude(cx, &name, record);
            }
        }
    }

    /// Saves and reports an attempt that needs no switch.
    pub(super) fn conclude(&mut self, cx: &mut Context, name: &str, record: SwitchRecord) {
        // If a kill loses the record, the next evaluation finds the same.
        if let Err(error) = record.save(&cx.store, name) {
            tracing::error!(name, %error, "cannot save the result of an attempt");
        }
        self.record_result(cx, name, record);
        let desired = self.names.get(name).and_then(|managed| managed.desired.clone());
        if let Some(desired) = desired {
            self.update_probe(cx, name, &desired);
        }
    }

    /// Reports an attempt's result and the name's current version.
    fn record_result(&mut self, cx: &Context, name: &str, record: SwitchRecord) {
        let image = record.to.as_ref().filter(|to| images::is_image(cx, &to.content));
        let current = match image {
            Some(image) => Some(image.version.clone()).filter(|_| record.state == HostState::Active),
            None => cx.content_dir.as_ref().and_then(|folder| folder.current(name)),
        };
        if image.is_none() && record.state == HostState::Active {
            self.note_active(cx, name, &record);
        }
        cx.reporter.set_current(name, current.as_deref().unwrap_or_default());
        cx.reporter.reach_attempt(record.rollout, record.attempt, record.state, &record.detail);
        self.names.entry(name.to_string()).or_default().record = Some(record);
    }

    /// Notes that a rollout's version is active here. Pushes that the rollout replaced never replace it, also if they
    /// arrive later or are read again after a restart.
    fn note_active(&mut self, cx: &Context, name: &str, record: &SwitchRecord) {
        let Some(to) = &record.to else { return };
        let desired = self.names.get(name).and_then(|managed| managed.desired.as_ref());
        let replaced =
            desired.filter(|desired| desired.rollout == record.rollout).map_or(0, |desired| desired.replaces);
        let pushed = cx.jobs.announcements().find(|announcement| announcement.name == name);
        let kind = pushed.map_or(Kind::Config, |announcement| announcement.kind);
        let newest = to.sequence.max(if replaced > 0 { replaced.saturating_add(1) } else { 0 });
        self.save_newest(cx, KindAndName { kind, name: name.to_string() }, newest);
    }

    /// Probes an active version while its rollout asks for that, and stops otherwise.
    fn update_probe(&mut self, cx: &Context, name: &str, desired: &Desired) {
        let settings = settings_for(&self.settings, name);
        let is_image = desired.rules.iter().any(|rule| images::is_image(cx, &rule.target.content));
        let Some(managed) = self.names.get_mut(name) else { return };
        let is_active = |record: &&SwitchRecord| record.rollout == desired.rollout && record.state == HostState::Active;
        let record = managed.record.as_ref().filter(is_active).filter(|_| desired.watch && !desired.back && !is_image);
        let (Some(record), Some(settings)) = (record, settings.probe) else {
            if let Some(probe) = managed.probe.take() {
                probe.abort();
            }
            return;
        };
        if managed.probe.is_some() {
            return;
        }
        let (name, rollout, attempt) = (name.to_string(), record.rollout, record.attempt);
        managed.probe = Some(self.tasks.spawn(async move {
            let why = ErrorChain(&probe::until_unhealthy(&settings).await).to_string();
            RolloutEvent::Unhealthy { name, rollout, attempt, why }
        }));
    }

    /// The state of every name under a desired state, for the HTTP API.
    pub fn rollout_statuses(&self, cx: &Context) -> Vec<PeerRollout> {
        let me = cx.region.own_row();
        let statuses = self.names.iter().filter_map(|(name, managed)| {
            let desired = managed.desired.as_ref()?;
            let record = managed.record.as_ref().filter(|record| record.rollout == desired.rollout);
            Some(PeerRollout {
                name: name.clone(),
                rollout: desired.rollout,
                attempt: desired.attempt,
                desired: me.and_then(|me| desired.target(me)).map(|target| target.version.clone()),
                current: cx.content_dir.as_ref().and_then(|folder| folder.current(name)),
                switching: managed.is_switching,
                state: record.map_or(HostState::Unknown, |record| record.state).to_string(),
                detail: record.map_or_else(String::new, |record| record.detail.clone()),
            })
        });
        statuses.collect()
    }

    /// Announcements of the feeds that carry desired states.
    pub fn desired_feeds(&self, cx: &Context) -> Vec<Arc<Announcement>> {
        let feeds = cx.jobs.announcements().filter(|announcement| announcement.feed.is_some());
        feeds.filter(|announcement| name_of(&announcement.name).is_some()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::desired::Hosts;
    use shoal_proto::ids::JobId;

    fn version(label: u8) -> InstalledVersion {
        let content = ContentId([label; 32]);
        InstalledVersion { version: label.to_string(), content, sequence: label.into() }
    }

    fn target(label: u8) -> Target {
        Target { version: label.to_string(), content: ContentId([label; 32]), sequence: label.into() }
    }

    fn desired(back: bool) -> Desired {
        let rollout = JobId([1; 16]);
        let (name, rules, open) = ("name".into(), Vec::new(), Hosts::All);
        Desired { name, rollout, attempt: 1, paused: false, back, watch: false, rules, open, replaces: 0 }
    }

    /// The record of an attempt that brought version 2 in the place of version 1.
    fn attempted(state: HostState) -> SwitchRecord {
        let mut record = next_attempt(&desired(false), &target(2), Some(version(1)), None, true, true).unwrap();
        record.end(state, "");
        record
    }

    #[test]
    fn a_host_switches_once_it_may_and_the_version_is_stored() {
        let next = |may_switch, is_stored| {
            next_attempt(&desired(false), &target(2), Some(version(1)), None, may_switch, is_stored)
        };
        assert!(next(false, true).is_none() && next(true, false).is_none());
        let attempt = next(true, true).unwrap();
        assert_eq!((attempt.step, attempt.from, attempt.to), (SwitchStep::Prepare, Some(version(1)), Some(version(2))));
    }

    #[test]
    fn an_active_version_needs_no_switch() {
        let attempt = next_attempt(&desired(false), &target(2), Some(version(2)), None, false, false).unwrap();
        assert_eq!((attempt.step, attempt.state), (SwitchStep::Done, HostState::Active));
    }

    #[test]
    fn an_unhealthy_version_is_tried_again_and_its_failure_leads_to_the_version_before() {
        let last = attempted(HostState::Failed(Reason::Unhealthy));
        let attempt = next_attempt(&desired(false), &target(2), Some(version(2)), Some(last), true, true).unwrap();
        assert_eq!((attempt.step, attempt.from), (SwitchStep::Prepare, Some(version(1))));
    }

    #[test]
    fn a_rollback_returns_to_the_version_before_or_changes_nothing() {
        let last = attempted(HostState::Active);
        let attempt = next_attempt(&desired(true), &target(2), Some(version(2)), Some(last), true, true).unwrap();
        assert_eq!((attempt.step, attempt.to), (SwitchStep::Prepare, Some(version(1))));
        let untouched = next_attempt(&desired(true), &target(2), Some(version(1)), None, true, true).unwrap();
        assert_eq!((untouched.step, untouched.state), (SwitchStep::Done, HostState::Failed(Reason::RolledBack)));
        assert_eq!(untouched.detail, "still on `1`");
        let never = next_attempt(&desired(true), &target(2), None, None, true, true).unwrap();
        assert_eq!(never.detail, "still on no version");
    }

    #[test]
    fn a_host_that_failed_says_why_after_a_rollback_too() {
        let mut last = attempted(HostState::Failed(Reason::Activation));
        last.detail = "check failed: line 17".into();
        let back = next_attempt(&desired(true), &target(2), Some(version(1)), Some(last), true, true).unwrap();
        assert_eq!(back.state, HostState::Failed(Reason::RolledBack));
        assert_eq!(back.detail, "still on `1`; check failed: line 17");
    }
}
