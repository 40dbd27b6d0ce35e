//! Runs one switch from its record's step to its end.
//!
//! Invariant: `current` points at a whole version at any moment. An attempt starts each hook once. Only a hook that a
//! kill interrupted starts again.

use super::content_dir::{ContentDir, ContentDirError};
use super::hooks::{HookError, Leader};
use super::journal::{Entry, Journal};
use super::probe::ProbeError;
use super::record::{InstalledVersion, SwitchRecord, SwitchStep};
use super::settings::ActivationSettings;
use super::{hooks, probe};
use crate::clock::unix_ms;
use crate::error_chain::ErrorChain;
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::report::{HostState, Reason};
use shoal_store::{KvError, Store};
use std::time::Duration;

/// Why a step failed. The text becomes the detail of the report.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("cannot build the version's folder")]
    Prepare(#[source] ContentDirError),
    #[error("cannot switch")]
    Point(#[source] ContentDirError),
    #[error("{hook} failed")]
    Hook {
        hook: &'static str,
        #[source]
        source: HookError,
    },
    #[error("the new version is unhealthy")]
    Probe(#[from] ProbeError),
}

/// A hook of the settings.
struct Hook<'a> {
    name: &'static str,
    argv: &'a [String],
    limit: Duration,
    /// True for the hook after an undo.
    undo: bool,
}

/// A switch of one name, with everything its steps need.
#[derive(Clone)]
pub(crate) struct Switch {
    pub(crate) store: Store,
    pub(crate) folder: ContentDir,
    pub(crate) journal: Journal,
    pub(crate) settings: ActivationSettings,
    pub(crate) name: String,
    /// Versions that the switch must not remove from the content folder.
    pub(crate) needed: Vec<String>,
}

/// A version in words.
pub(crate) fn named(version: Option<&InstalledVersion>) -> String {
    version.map_or_else(|| "no version".to_string(), |installed| format!("`{}`", installed.version))
}

fn label(version: Option<&InstalledVersion>) -> &str {
    version.map_or("", |installed| installed.version.as_str())
}

impl Switch {
    /// Runs the remaining steps of a record. Returns the record with its result.
    pub(crate) async fn run(&self, mut record: SwitchRecord) -> SwitchRecord {
        match record.step {
            SwitchStep::Prepare => self.note(&record, "begin"),
            _ => self.kill_left_over(),
        }
        while record.step != SwitchStep::Done {
            match self.step(&mut record).await {
                Ok(next) => record.step = next,
                Err(error) => self.on_failure(&mut record, &error),
            }
            if let Err(error) = self.save(&record).await {
                tracing::error!(name = self.name, %error, "cannot save the step of a switch");
                if record.step <= SwitchStep::PreStop {
                    // `current` has not changed yet. Without the record, a restart could not tell what a kill
                    // interrupted.
                    record.end(HostState::Failed(Reason::Disk), ErrorChain(&error).to_string());
                }
            }
        }
        self.note(&record, "end");
        let (folder, name, needed) = (self.folder.clone(), self.name.clone(), self.needed.clone());
        blocking(move || folder.prune(&name, &needed)).await;
        record
    }

    /// Runs the record's step. Returns the next step.
    async fn step(&self, record: &mut SwitchRecord) -> Result<SwitchStep, StepError> {
        let settings = &self.settings;
        match record.step {
            SwitchStep::Prepare => {
                if let Some(to) = record.to.clone() {
                    let (store, folder, name) = (self.store.clone(), self.folder.clone(), self.name.clone());
                    let built = blocking(move || folder.prepare(&store, &to.content, &name, &to.version)).await;
                    built.map_err(StepError::Prepare)?;
                }
                Ok(SwitchStep::PreStop)
            }
            SwitchStep::PreStop => {
                let (argv, limit) = (&settings.pre_stop, settings.pre_stop_timeout.0);
                self.run_hook(Hook { name: "pre_stop", argv, limit, undo: false }, record).await?;
                Ok(SwitchStep::Switch)
            }
            SwitchStep::Switch => {
                self.point(record.to.as_ref()).await?;
                self.note(record, "switched");
                Ok(SwitchStep::PostStart)
            }
            SwitchStep::PostStart => {
                self.run_hook(self.post_start(false), record).await?;
                Ok(SwitchStep::Verify)
            }
            SwitchStep::Verify => {
                if let Some(probe) = &settings.probe {
                    probe::until_healthy(probe).await?;
                }
                let (argv, limit) = (&settings.check, settings.check_timeout.0);
                self.run_hook(Hook { name: "check", argv, limit, undo: false }, record).await?;
                match record.back {
                    true => {
                        let detail = format!("rolled back to {}", named(record.to.as_ref()));
                        record.end(HostState::Failed(Reason::RolledBack), detail);
                    }
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
                self.run_hook(self.post_start(true), record).await?;
                let (failure, version) = (record.detail.clone(), named(record.from.as_ref()));
                let detail = format!("{failure}; the host returned to {version}");
                record.end(HostState::Failed(Reason::Activation), detail);
                Ok(SwitchStep::Done)
            }
            SwitchStep::Done => Ok(SwitchStep::Done),
        }
    }

    fn post_start(&self, undo: bool) -> Hook<'_> {
        let (argv, limit) = (&self.settings.post_start, self.settings.post_start_timeout.0);
        Hook { name: "post_start", argv, limit, undo }
    }

    /// Sets the record's next step after a failure.
    ///
    /// A failure after the switch leads to an undo. A failure before the switch, of the undo or of a rollback ends the
    /// attempt, because another switch would not help.
    fn on_failure(&self, record: &mut SwitchRecord, error: &StepError) {
        let failure = ErrorChain(error).to_string();
        tracing::warn!(name = self.name, step = ?record.step, %failure, "a switch failed");
        match record.step {
            SwitchStep::Switch | SwitchStep::PostStart | SwitchStep::Verify if !record.back => {
                record.detail = failure;
                record.step = SwitchStep::Undo;
            }
            SwitchStep::Undo | SwitchStep::UndoStart => {
                let detail = format!("{}; the return to the former version failed too: {failure}", record.detail);
                record.end(HostState::Failed(Reason::Activation), detail);
            }
            _ => record.end(HostState::Failed(Reason::Activation), failure),
        }
    }

    async fn point(&self, to: Option<&InstalledVersion>) -> Result<(), StepError> {
        let (folder, name) = (self.folder.clone(), self.name.clone());
        let version = to.map(|installed| installed.version.clone());
        blocking(move || folder.switch_to(&name, version.as_deref())).await.map_err(StepError::Point)
    }

    async fn save(&self, record: &SwitchRecord) -> Result<(), KvError> {
        let (store, name, record) = (self.store.clone(), self.name.clone(), record.clone());
        blocking(move || record.save(&store, &name)).await
    }

    async fn run_hook(&self, hook: Hook<'_>, record: &SwitchRecord) -> Result<(), StepError> {
        let (to, from) = if hook.undo { (&record.from, &record.to) } else { (&record.to, &record.from) };
        let (to, from) = (label(to.as_ref()), label(from.as_ref()));
        let folder = self.folder.folder(&self.name);
        let phase = match (hook.undo, record.back) {
            (true, _) => "undo",
            (false, true) => "back",
            (false, false) => "forward",
        };
        let env = [
            ("SHOAL_HOOK", hook.name.to_string()),
            ("SHOAL_PHASE", phase.to_string()),
            ("SHOAL_NAME", self.name.clone()),
            ("SHOAL_VERSION", to.to_string()),
            ("SHOAL_PREVIOUS", from.to_string()),
            ("SHOAL_PATH", if to.is_empty() { String::new() } else { folder.join(to).display().to_string() }),
            ("SHOAL_CURRENT", folder.join("current").display().to_string()),
            ("SHOAL_ROLLOUT", record.rollout.to_string()),
            ("SHOAL_ATTEMPT", record.attempt.to_string()),
        ];
        let (store, key) = (self.store.clone(), self.hook_key());
        // The next start of the peer finds the hook's process under this key.
        let on_start = move |leader: Leader| {
            // The hook runs meanwhile. Its start must not wait for the disk.
            drop(tokio::task::spawn_blocking(move || {
                let saved = store.put_state(&key, Some(encode(&leader))).and_then(|()| store.sync());
                if let Err(error) = saved {
                    tracing::warn!(%error, "cannot save the process of a hook");
                }
            }));
        };
        let ended = hooks::run(hook.argv, hook.limit, &env, on_start).await;
        ended.map_err(|source| StepError::Hook { hook: hook.name, source })
    }

    fn hook_key(&self) -> String {
        format!("hook/{}", self.name)
    }

    /// Kills a hook that outlived a killed peer, so that the hook never runs beside its repetition.
    fn kill_left_over(&self) {
        let saved = self.store.get_state(&self.hook_key()).ok().flatten();
        if let Some(leader) = saved.and_then(|bytes| decode_exact::<Leader>(&bytes).ok()) {
            leader.kill_left_over();
        }
    }

    /// Writes a line to the journal.
    pub(crate) fn note(&self, record: &SwitchRecord, event: &str) {
        self.journal.add(&Entry {
            at_ms: unix_ms(),
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

/// Runs `work` on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

#[cfg(test)]
mod tests;
