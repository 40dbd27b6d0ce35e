//! Stopping: a level-triggered token, the signals that set it, and tasks that are waited for.
//!
//! Invariant: no task outlives [`Tasks::stop`]; what does not end by the deadline is aborted.

use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
pub use tokio_util::sync::CancellationToken;

/// How long a role may take to stop.
pub const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at once.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = token.clone();
    // Lives as long as the process: there is nothing to wait for.
    tokio::spawn(async move {
        for turn in 0.. {
            let code = tokio::select! {
                _ = term.recv() => 143,
                _ = int.recv() => 130,
            };
            if turn > 0 {
                std::process::exit(code);
            }
            tracing::info!("stopping");
            cancelled.cancel();
        }
    });
    Ok(token)
}

/// Named tasks of a role. A task that panics, or ends while the role runs, stops the role.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<&'static str>,
    token: CancellationToken,
}

impl Tasks {
    /// Tasks that end when `token` is cancelled.
    pub fn new(token: CancellationToken) -> Self {
        Self { set: JoinSet::new(), token }
    }

    /// The token tasks watch.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until the token is cancelled or a task ends before that, which is a fault; gives its name.
    pub async fn run(&mut self) -> Result<(), String> {
        let ended = tokio::select! {
            biased;
            () = self.token.cancelled() => return Ok(()),
            ended = self.set.join_next() => ended,
        };
        self.token.cancel();
        match ended {
            None => Ok(()),
            Some(Ok(name)) => Err(format!("task `{name}` ended")),
            Some(Err(error)) => Err(format!("a task failed: {error}")),
        }
    }

    /// Cancels, waits for all tasks, aborts what is left at the deadline.
    pub async fn stop(mut self, deadline: Duration) {
        self.token.cancel();
        let drained = tokio::time::timeout(deadline, async { while self.set.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(left = self.set.len(), "tasks did not end in time");
            self.set.shutdown().await;
        }
    }
}
