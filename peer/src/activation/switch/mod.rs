//! One switch from the record's step to its end.
//!
//! Invariant: `current` points at a whole version at any moment. Within an attempt each hook is begun once; one that was cut
//! in its middle by a kill is begun again.

use super::journal::{Entry, Journal, now_ms};
use super::record::{InstalledVersion, SwitchRecord, SwitchStep};
use super::settings::ActivationSettings;
use super::{hooks, probe};
use crate::activation::content_dir::ContentDir;
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::report::{HostState, Reason};
use shoal_store::Store;
use std::time::Duration;

/// What a switch works with.
#[derive(Clone)]
pub(crate) struct Switch {
    pub(crate) store: Store,
    pub(crate) folder: ContentDir,
    pub(crate) journal: Journal,
    pub(crate) settings: ActivationSettings,
    pub(crate) name: String,
    /// Versions that must stay in the content folder.
    pub(crate) needed: Vec<String>,
}

fn label(version: Option<&InstalledVersion>) -> &str {
    version.map_or("", |on| on.version.as_str())
}

impl Switch {
    /// Goes on from the record's step until it is done; the record says how it ended.
    pub(crate) async fn run(&self, mut record: SwitchRecord) -> SwitchRecord {
        match record.step {
            SwitchStep::Prepare => self.note(&record, "begin"),
            _ => self.kill_left_over(),
        }
        while record.step != SwitchStep::Done {
            match self.step(&mut record).await {
                Ok(next) => record.step = next,
                Err(why) => self.fail(&mut record, why),
            }
            if let Err(error) = self.keep(&record).await {
                tracing::error!(name = self.name, %error, "cannot keep how far a switch is");
                if record.step <= SwitchStep::PreStop {
                    // Nothing has happened yet, and after a kill nobody would know what had.
                    record.end(HostState::Failed(Reason::Disk), error);
                }
            }
        }
        self.note(&record, "end");
        let (folder, name, needed) = (self.folder.clone(), self.name.clone(), self.needed.clone());
        let _pruned = tokio::task::spawn_blocking(move || folder.prune(&name, &needed)).await;
        record
    }

    /// Does the record's step; gives the next.
    async fn step(&self, record: &mut SwitchRecord) -> Result<SwitchStep, String> {
        let settings = &self.settings;
        match record.step {
            SwitchStep::Prepare => {
                if let Some(to) = record.to.clone() {
                    let (store, folder, name) = (self.store.clone(), self.folder.clone(), self.name.clone());
                    let made = blocking(move || folder.prepare(&store, &to.content, &name, &to.version)).await;
                    made.map_err(|error| format!("cannot make the folder: {error}"))?;
                }
                Ok(SwitchStep::PreStop)
            }
            SwitchStep::PreStop => {
                self.hook("pre_stop", &settings.pre_stop, settings.pre_stop_timeout.0, record, false).await?;
                Ok(SwitchStep::Switch)
            }
            SwitchStep::Switch => {
                self.point(record.to.as_ref()).await?;
                self.note(record, "switched");
                Ok(SwitchStep::PostStart)
            }
            SwitchStep::PostStart => {
                self.hook("post_start", &settings.post_start, settings.post_start_timeout.0, record, false).await?;
                Ok(SwitchStep::Verify)
            }
            SwitchStep::Verify => {
                if let Some(probe) = &settings.probe {
                    probe::until_well(probe).await?;
                }
                self.hook("check", &settings.check, settings.check_timeout.0, record, false).await?;
                let version = label(record.to.as_ref()).to_string();
                match record.back {
                    true => record.end(HostState::Failed(Reason::RolledBack), format!("on `{version}` again")),
                    false => record.end(HostState::Active, ""),
                }
                Ok(SwitchStep::Done)
            }
            SwitchStep::Undo => {
                self.point(record.from.as_ref()).await?;
                self.note(record, "undone");
                Ok(SwitchStep::UndoStart)
            }
            SwitchStep::UndoStart => {
                self.hook("post_start", &settings.post_start, settings.post_start_timeout.0, record, true).await?;
                let (why, version) = (record.detail.clone(), label(record.from.as_ref()).to_string());
                record.end(HostState::Failed(Reason::Activation), format!("{why}; back on `{version}`"));
                Ok(SwitchStep::Done)
            }
            SwitchStep::Done => Ok(SwitchStep::Done),
        }
    }

    /// A step failed: back to what was, unless that is what failed or nothing has changed.
    fn fail(&self, record: &mut SwitchRecord, why: String) {
        tracing::warn!(name = self.name, step = ?record.step, %why, "a switch failed");
        match record.step {
            SwitchStep::Switch | SwitchStep::PostStart | SwitchStep::Verify if !record.back => {
                record.detail = why;
                record.step = SwitchStep::Undo;
            }
            SwitchStep::Undo | SwitchStep::UndoStart => {
                let why = format!("{}; and going back: {why}", record.detail);
                record.end(HostState::Failed(Reason::Activation), why);
            }
            _ => record.end(HostState::Failed(Reason::Activation), why),
        }
    }

    async fn point(&self, to: Option<&InstalledVersion>) -> Result<(), String> {
        let (folder, name) = (self.folder.clone(), self.name.clone());
        let version = to.map(|on| on.version.clone());
        blocking(move || folder.switch_to(&name, version.as_deref())).await.map_err(|error| error.to_string())
    }

    async fn keep(&self, record: &SwitchRecord) -> Result<(), String> {
        let (store, name, record) = (self.store.clone(), self.name.clone(), record.clone());
        blocking(move || record.keep(&store, &name)).await.map_err(|error| error.to_string())
    }

    async fn hook(
        &self,
        what: &str,
        argv: &[String],
        limit: Duration,
        record: &SwitchRecord,
        undo: bool,
    ) -> Result<(), String> {
        let (to, from) = if undo { (&record.from, &record.to) } else { (&record.to, &record.from) };
        let (to, from) = (label(to.as_ref()), label(from.as_ref()));
        let folder = self.folder.folder(&self.name);
        let phase = match (undo, record.back) {
            (true, _) => "undo",
            (false, true) => "back",
            (false, false) => "forward",
        };
        let env = [
            ("SHOAL_HOOK", what.to_string()),
            ("SHOAL_PHASE", phase.to_string()),
            ("SHOAL_NAME", self.name.clone()),
            ("SHOAL_VERSION", to.to_string()),
            ("SHOAL_PREVIOUS", from.to_string()),
            ("SHOAL_PATH", if to.is_empty() { String::new() } else { folder.join(to).display().to_string() }),
            ("SHOAL_CURRENT", folder.join("current").display().to_string()),
            ("SHOAL_ROLLOUT", record.rollout.to_string()),
            ("SHOAL_ATTEMPT", record.attempt.to_string()),
        ];
        // Within reach of the next start, should this process be killed.
        let (store, key) = (self.store.clone(), self.hook_key());
        let began = move |leader: hooks::Leader| {
            // Beside the hook, which need not wait for the disk.
            drop(tokio::task::spawn_blocking(move || {
                let kept = store.put_state(&key, Some(encode(&leader))).and_then(|()| store.sync());
                if let Err(error) = kept {
                    tracing::warn!(%error, "cannot keep which hook runs");
                }
            }));
        };
        hooks::run(argv, limit, &env, began).await.map_err(|error| format!("{what} {error}"))
    }

    fn hook_key(&self) -> String {
        format!("hook/{}", self.name)
    }

    /// A kill of this program does not kill the hook that ran; it must not run beside its own repetition.
    fn kill_left_over(&self) {
        let kept = self.store.get_state(&self.hook_key()).ok().flatten();
        if let Some(leader) = kept.and_then(|bytes| decode_exact::<hooks::Leader>(&bytes).ok()) {
            leader.kill_left_over();
        }
    }

    /// Writes a line into the journal.
    pub(crate) fn note(&self, record: &SwitchRecord, event: &str) {
        self.journal.add(&Entry {
            at_ms: now_ms(),
            name: &self.name,
            rollout: record.rollout.to_string(),
            attempt: record.attempt,
            event,
            from: label(record.from.as_ref()),
            to: label(record.to.as_ref()),
            state: record.state.to_string(),
            detail: &record.detail,
        });
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

#[cfg(test)]
mod tests;
