//! What desired states ask of this host: which version each name should be on, when it may switch, and what came of it.
//!
//! Invariant: a host begins to switch at most once an attempt, and never while the name is being switched otherwise.

use super::Driver;
use super::image_activation::wish_of;
use crate::activation::journal::Journal;
use crate::activation::probe;
use crate::activation::record::{InstalledVersion, SwitchRecord, SwitchStep};
use crate::activation::settings::{Activations, settings_for};
use crate::activation::switch::Switch;
use shoal_api::rollouts::PeerRollout;
use shoal_proto::announcement::Kind;
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::desired::{Desired, Rule, Target, name_of};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::membership::Member;
use shoal_proto::report::{HostState, Reason};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::{AbortHandle, JoinSet};

/// Names under a desired state; documents for more are refused.
const NAMES_MAX: usize = 256;

/// What ended.
pub(super) enum Ended {
    /// A switch of a name.
    Switch(String, SwitchRecord),
    /// A name's watch: this attempt's version is ill, and why.
    Watch(String, JobId, u16, String),
}

#[derive(Default)]
struct Row {
    /// The document's place among those of the name.
    sequence: u64,
    desired: Option<Arc<Desired>>,
    record: Option<SwitchRecord>,
    /// A switch is under way.
    busy: bool,
    watch: Option<AbortHandle>,
    /// The content that is kept from eviction.
    pinned: Option<ContentId>,
    /// The image that is being warmed, by its wish.
    wish: Option<JobId>,
}

/// All names under desired states.
pub(super) struct Rollouts {
    rows: BTreeMap<String, Row>,
    activations: Activations,
    journal: Journal,
    work: JoinSet<Ended>,
}

fn desired_key(name: &str) -> String {
    format!("desired/{name}")
}

impl Rollouts {
    pub(super) fn new(activations: Activations, journal: Journal) -> Self {
        Self { rows: BTreeMap::new(), activations, journal, work: JoinSet::new() }
    }

    /// The name whose desired state asks for a content, or may switch back to it.
    pub(super) fn needs(&self, content: &ContentId) -> Option<&str> {
        let needs = |row: &Row| {
            let asked =
                row.desired.iter().flat_map(|desired| &desired.rules).any(|rule| rule.target.content == *content);
            let back = |record: &SwitchRecord| record.versions().any(|on| on.content == *content);
            asked || (row.desired.is_some() && row.record.as_ref().is_some_and(back))
        };
        self.rows.iter().find(|(_, row)| needs(row)).map(|(name, _)| name.as_str())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.work.is_empty()
    }

    pub(super) fn desired(&self, name: &str) -> Option<Arc<Desired>> {
        self.rows.get(name)?.desired.clone()
    }

    pub(super) fn wish(&self, name: &str) -> Option<JobId> {
        self.rows.get(name)?.wish
    }

    pub(super) fn set_wish(&mut self, name: &str, wish: Option<JobId>) {
        self.rows.entry(name.to_string()).or_default().wish = wish;
    }

    /// The name whose present attempt this wish is.
    pub(super) fn wishing(&self, wish: &JobId) -> Option<String> {
        let present = |row: &Row| {
            let desired = row.desired.as_ref()?;
            (row.wish == Some(*wish)).then(|| wish_of(&desired.rollout, desired.attempt) == *wish)
        };
        self.rows.iter().find(|(_, row)| present(row) == Some(true)).map(|(name, _)| name.clone())
    }

    /// Wishes whose images are to be kept warm.
    pub(super) fn wishes(&self) -> impl Iterator<Item = JobId> {
        self.rows.values().flat_map(|row| {
            let desired = row.desired.as_ref().map(|desired| wish_of(&desired.rollout, desired.attempt));
            let done = row.record.as_ref().map(|record| wish_of(&record.rollout, record.attempt));
            [desired, done].into_iter().flatten()
        })
    }

    /// What ended next. Cancel-safe. `None` when nothing is under way.
    pub(super) async fn next(&mut self) -> Option<Ended> {
        while let Some(ended) = self.work.join_next().await {
            match ended {
                Ok(ended) => return Some(ended),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_called_off) => {}
            }
        }
        None
    }

    /// Cuts what is under way; it goes on at the next start.
    pub(super) async fn stop(&mut self) {
        self.work.shutdown().await;
    }
}

impl Driver {
    /// Reads what is on the disk, and goes on with switches that were cut.
    pub(super) fn load_rollouts(&mut self) {
        if self.content_dir.is_none() {
            return;
        }
        for (key, bytes) in self.store.scan_state("desired/").unwrap_or_default() {
            let name = key["desired/".len()..].to_string();
            let kept = decode_exact::<(u64, minicbor::bytes::ByteVec)>(&bytes).map_err(|error| error.to_string());
            match kept
                .and_then(|(sequence, bytes)| Ok((sequence, Desired::from_bytes(&bytes).map_err(|e| e.to_string())?)))
            {
                Ok((sequence, desired)) => {
                    let row = self.rollouts.rows.entry(name).or_default();
                    (row.sequence, row.desired) = (sequence, Some(Arc::new(desired)));
                }
                Err(error) => tracing::error!(name, %error, "cannot read a desired state"),
            }
        }
        let mut cut = Vec::new();
        for (name, record) in SwitchRecord::load(&self.store) {
            if record.step != SwitchStep::Done {
                cut.push((name.clone(), record.clone()));
            }
            self.rollouts.rows.entry(name.clone()).or_default().record = Some(record);
        }
        self.rollouts_cut = cut;
        // A kill may have come between the feed's own record and ours.
        let feeds = self.envelopes.values().map(|(row, _)| row.clone());
        let feeds: Vec<_> = feeds.filter(|row| row.feed.is_some() && name_of(&row.name).is_some()).collect();
        for row in feeds {
            if let Some(held) = self.feeds.held(&row.job).filter(|held| held.sequence == row.sequence) {
                let data = held.data.clone();
                self.take_desired(&row.name, row.sequence, &data);
            }
        }
    }

    /// Goes on with switches that a kill cut.
    pub(super) fn resume_rollouts(&mut self) {
        for (name, record) in std::mem::take(&mut self.rollouts_cut) {
            tracing::info!(name, step = ?record.step, "going on with a switch that was cut");
            self.begin_switch(&name, record);
        }
    }

    /// A feed that carries desired states has a new version.
    pub(super) fn take_desired(&mut self, feed: &str, sequence: u64, bytes: &[u8]) {
        let Some(name) = name_of(feed) else { return };
        if self.content_dir.is_none() {
            return;
        }
        let desired = match Desired::from_bytes(bytes) {
            Ok(desired) if desired.name == name => desired,
            Ok(desired) => {
                tracing::warn!(name, other = desired.name, "refused a desired state: it is of another name");
                return;
            }
            Err(error) => {
                tracing::warn!(name, %error, "refused a desired state");
                return;
            }
        };
        if self.rollouts.rows.len() >= NAMES_MAX && !self.rollouts.rows.contains_key(name) {
            tracing::warn!(name, "refused a desired state: too many names have one");
            return;
        }
        let row = self.rollouts.rows.entry(name.to_string()).or_default();
        if sequence <= row.sequence {
            tracing::debug!(name, sequence, "refused a desired state: a newer one is here");
            return;
        }
        let kept = encode(&(sequence, minicbor::bytes::ByteVec::from(bytes.to_vec())));
        if let Err(error) = self.store.put_state(&desired_key(name), Some(kept)) {
            tracing::error!(name, %error, "cannot keep a desired state");
        }
        let desired = Arc::new(desired);
        let former = row.desired.replace(desired.clone());
        row.sequence = sequence;
        if let Some(former) = former.filter(|former| former.rollout != desired.rollout) {
            self.shared.reports().forget(&former.rollout);
            let still = |rule: &&Rule| desired.rules.iter().any(|other| other.target.content == rule.target.content);
            former.rules.iter().filter(|rule| !still(rule)).for_each(|rule| self.pin(&rule.target, false));
        }
        let name = name.to_string();
        self.judge(&name);
    }

    /// What a desired state names is not evicted before it is switched in.
    fn pin(&self, target: &Target, pinned: bool) {
        if let Err(error) = self.store.pin(&target.content, pinned) {
            tracing::warn!(content = %target.content.short(), %error, "cannot pin a content");
        }
    }

    /// Judges every name anew.
    pub(super) fn judge_all(&mut self) {
        let names: Vec<String> = self.rollouts.rows.keys().cloned().collect();
        names.iter().for_each(|name| self.judge(name));
    }

    /// Does what the desired state of a name asks of this host now.
    pub(super) fn judge(&mut self, name: &str) {
        let Some(me) = self.me.and_then(|me| self.membership.get(me)).cloned() else { return };
        let Some(row) = self.rollouts.rows.get(name).filter(|row| !row.busy) else { return };
        let Some(desired) = row.desired.clone() else { return };
        let Some(target) = desired.target(&me).cloned() else { return };
        let record = row.record.clone().filter(|record| record.rollout == desired.rollout);
        let rollout = desired.rollout;
        let held = self.is_held(name, &target);
        if self.store.is_complete(&target.content) && row.pinned != Some(target.content) {
            self.pin(&target, true);
            self.rollouts.rows.entry(name.to_string()).or_default().pinned = Some(target.content);
        }
        {
            let mut reports = self.shared.reports();
            reports.open(rollout);
            if held {
                reports.reach(rollout, HostState::Has, "");
            }
            if let Some(record) = &record {
                reports.reach_in(rollout, record.attempt, record.state, &record.detail);
            }
        }
        self.shared.tell_soon();
        if record.as_ref().is_some_and(|record| record.attempt >= desired.attempt) {
            self.keep_watch(name, &desired);
            return;
        }
        if self.holds_image(&target.content) {
            self.judge_image(name, &desired, &me, &target);
            return;
        }
        if let Some(next) = self.next_switch(name, &desired, &me, &target, record, held) {
            match next.step {
                SwitchStep::Done => self.conclude(name, next),
                _ => self.begin_switch(name, next),
            }
        }
    }

    /// The switch to begin now, or a finished record when there is nothing to switch; `None` when it is not time.
    fn next_switch(
        &self,
        name: &str,
        desired: &Desired,
        me: &Member,
        target: &Target,
        record: Option<SwitchRecord>,
        held: bool,
    ) -> Option<SwitchRecord> {
        let current = self.on_disk(name);
        let to =
            InstalledVersion { version: target.version.clone(), content: target.content, sequence: target.sequence };
        let is_on = |version: &InstalledVersion| {
            current.as_ref().is_some_and(|on| (&on.version, on.content) == (&version.version, version.content))
        };
        let before = record.as_ref().map_or_else(|| current.clone(), |record| record.before.clone());
        let mut next = SwitchRecord {
            rollout: desired.rollout,
            attempt: desired.attempt,
            step: SwitchStep::Prepare,
            from: current.clone(),
            to: Some(to.clone()),
            before,
            back: desired.back,
            state: HostState::Has,
            detail: String::new(),
        };
        if desired.back {
            if !desired.may_switch(me) {
                return None;
            }
            next.to = next.before.clone();
            let stays = match &next.before {
                None => current.is_none(),
                Some(before) => is_on(before),
            };
            if record.is_none() || stays {
                let version = current.as_ref().map_or("", |on| on.version.as_str());
                next.end(HostState::Failed(Reason::RolledBack), format!("still on `{version}`"));
            }
            return Some(next);
        }
        let was_ill = record.is_some_and(|record| matches!(record.state, HostState::Failed(_)));
        if is_on(&to) && !was_ill {
            next.end(HostState::Active, "");
            return Some(next);
        }
        if is_on(&to) {
            // It was found ill here: should it fail again, it goes back to what it was on before.
            next.from = next.before.clone();
        }
        (held && desired.may_switch(me)).then_some(next)
    }

    /// Whether all of a version is on this host.
    fn is_held(&self, name: &str, target: &Target) -> bool {
        let folder = self.content_dir.as_ref();
        self.store.is_complete(&target.content)
            || folder.is_some_and(|folder| folder.content_of(name, &target.version) == Some(target.content))
    }

    /// What is switched in.
    fn on_disk(&self, name: &str) -> Option<InstalledVersion> {
        let folder = self.content_dir.as_ref()?;
        let version = folder.current(name)?;
        let content = folder.content_of(name, &version)?;
        let known = self.envelopes.values().map(|(row, _)| row).find(|row| row.content == content && row.name == name);
        let record = self.rollouts.rows.get(name).and_then(|row| row.record.as_ref());
        let recorded = record.and_then(|record| record.versions().find(|on| on.content == content));
        let sequence = known.map(|row| row.sequence).or(recorded.map(|on| on.sequence)).unwrap_or(0);
        Some(InstalledVersion { version, content, sequence })
    }

    fn context(&self, name: &str, record: &SwitchRecord) -> Option<Switch> {
        let mut needed: Vec<String> = record.versions().map(|on| on.version.clone()).collect();
        let desired = self.rollouts.rows.get(name).and_then(|row| row.desired.as_ref());
        needed.extend(desired.iter().flat_map(|desired| &desired.rules).map(|rule| rule.target.version.clone()));
        Some(Switch {
            store: self.store.clone(),
            folder: self.content_dir.clone()?,
            journal: self.rollouts.journal.clone(),
            settings: settings_for(&self.rollouts.activations, name),
            name: name.to_string(),
            needed,
        })
    }

    fn begin_switch(&mut self, name: &str, record: SwitchRecord) {
        let Some(context) = self.context(name, &record) else { return };
        // Otherwise it is judged again when that switch is done.
        if !self.switching.insert(name.to_string()) {
            return;
        }
        let row = self.rollouts.rows.entry(name.to_string()).or_default();
        row.busy = true;
        if let Some(watch) = row.watch.take() {
            watch.abort();
        }
        tracing::info!(name, attempt = record.attempt, back = record.back, "switching");
        let name = name.to_string();
        self.rollouts.work.spawn(async move { Ended::Switch(name, context.run(record).await) });
    }

    pub(super) fn on_rollout(&mut self, ended: Ended) {
        match ended {
            Ended::Switch(name, record) => {
                tracing::info!(name, state = %record.state, detail = record.detail, "switched");
                if let (HostState::Active, Some(to)) = (record.state, &record.to) {
                    let mut rows = self.envelopes.values().filter(|(row, _)| row.name == name);
                    let kind = rows.next().map_or(Kind::Config, |(row, _)| row.kind);
                    self.save_activated(kind, &name, to.sequence);
                }
                self.rollouts.rows.entry(name.clone()).or_default().busy = false;
                self.told(&name, record);
                self.turn_over(&name);
                self.judge(&name);
            }
            Ended::Watch(name, rollout, attempt, why) => {
                let row = self.rollouts.rows.entry(name.clone()).or_default();
                let same = |record: &&SwitchRecord| (record.rollout, record.attempt) == (rollout, attempt);
                let Some(mut record) = row.record.as_ref().filter(same).filter(|_| !row.busy).cloned() else { return };
                row.watch = None;
                tracing::warn!(name, %why, "ill after the switch");
                record.attempt += 1;
                record.end(HostState::Failed(Reason::Unhealthy), why);
                if let Some(context) = self.context(&name, &record) {
                    context.note(&record, "unhealthy");
                }
                self.conclude(&name, record);
            }
        }
    }

    /// A record that needs no switch.
    pub(super) fn conclude(&mut self, name: &str, record: SwitchRecord) {
        // Should a kill lose it, the same is found again.
        if let Err(error) = record.keep(&self.store, name) {
            tracing::error!(name, %error, "cannot keep what was found");
        }
        self.told(name, record);
        let desired = self.rollouts.rows.get(name).and_then(|row| row.desired.clone());
        if let Some(desired) = desired {
            self.keep_watch(name, &desired);
        }
    }

    /// Says what came of an attempt.
    fn told(&mut self, name: &str, record: SwitchRecord) {
        let image = record.to.as_ref().filter(|to| self.holds_image(&to.content));
        let current = match image {
            Some(image) => Some(image.version.clone()).filter(|_| record.state == HostState::Active),
            None => self.content_dir.as_ref().and_then(|folder| folder.current(name)),
        };
        {
            let mut reports = self.shared.reports();
            reports.current(name, current.as_deref().unwrap_or_default());
            reports.reach_in(record.rollout, record.attempt, record.state, &record.detail);
        }
        self.shared.tell_soon();
        self.rollouts.rows.entry(name.to_string()).or_default().record = Some(record);
    }

    /// Keeps an eye on a version that was switched in, while the rollout asks for it.
    fn keep_watch(&mut self, name: &str, desired: &Desired) {
        let settings = settings_for(&self.rollouts.activations, name);
        let image = desired.rules.iter().any(|rule| self.holds_image(&rule.target.content));
        let Some(row) = self.rollouts.rows.get_mut(name) else { return };
        let active = |record: &&SwitchRecord| record.rollout == desired.rollout && record.state == HostState::Active;
        let record = row.record.as_ref().filter(active).filter(|_| desired.watch && !desired.back && !image);
        let (Some(record), Some(asked)) = (record, settings.probe) else {
            if let Some(watch) = row.watch.take() {
                watch.abort();
            }
            return;
        };
        if row.watch.is_some() {
            return;
        }
        let (name, rollout, attempt) = (name.to_string(), record.rollout, record.attempt);
        row.watch = Some(
            self.rollouts
                .work
                .spawn(async move { Ended::Watch(name, rollout, attempt, probe::until_ill(&asked).await) }),
        );
    }

    pub(super) fn rollout_statuses(&self) -> Vec<PeerRollout> {
        let me = self.me.and_then(|me| self.membership.get(me));
        let rows = self.rollouts.rows.iter().filter_map(|(name, row)| {
            let desired = row.desired.as_ref()?;
            let record = row.record.as_ref().filter(|record| record.rollout == desired.rollout);
            Some(PeerRollout {
                name: name.clone(),
                rollout: desired.rollout,
                attempt: desired.attempt,
                desired: me.and_then(|me| desired.target(me)).map(|target| target.version.clone()),
                current: self.content_dir.as_ref().and_then(|folder| folder.current(name)),
                switching: row.busy,
                state: record.map_or(HostState::Unknown, |record| record.state).to_string(),
                detail: record.map_or_else(String::new, |record| record.detail.clone()),
            })
        });
        rows.collect()
    }
}
