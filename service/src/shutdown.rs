//! Stopping: a token, the signals that cancel it, and tasks that are waited for.
//!
//! Invariant: no task outlives [`Tasks::stop`]. Tasks that still run at the deadline are aborted.

use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
pub use tokio_util::sync::CancellationToken;

/// The time that the tasks of a role may take to stop.
pub const STOP_DEADLINE: Duration = Duration::from_secs(8);
/// The time after which the process of a stopping role ends, whatever still runs. Service managers wait longer.
const END_DEADLINE: Duration = Duration::from_millis(9500);

/// Returns a token that SIGTERM or SIGINT cancels. A second signal ends the process at once.
///
/// # Errors
///
/// Fails if the operating system refuses a signal handler.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = token.clone();
    // The task lives as long as the process, so it is not waited for.
    tokio::spawn(async move {
        for turn in 0.. {
            let code = tokio::select! {
                _ = term.recv() => 143,
                _ = int.recv() => 130,
            };
            if turn > 0 {
                std::process::exit(code);
            }
            // First: nothing that a log line meets may keep the role from stopping.
            cancelled.cancel();
            tracing::info!("stopping");
        }
    });
    Ok(token)
}

/// Ends the process with status 1 if it still runs 9.5 s after the token was cancelled.
///
/// A thread waits, because a blocked call may occupy the runtime.
pub fn end_in_time(token: CancellationToken) {
    // The task lives as long as the process, so it is not waited for.
    tokio::spawn(async move {
        token.cancelled().await;
        std::thread::spawn(|| {
            std::thread::sleep(END_DEADLINE);
            tracing::error!("the role did not stop in time, and its process ends now");
            crate::logs::flush(Duration::from_millis(100));
            std::process::exit(1);
        });
    });
}

/// A task that ended while its role runs.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The task returned.
    #[error("task `{0}` ended while the role runs")]
    Ended(&'static str),
    /// The task panicked.
    #[error("a task failed: {0}")]
    Failed(#[from] JoinError),
}

/// The named tasks of a role. A task that panics, or ends while the role runs, stops the role.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<&'static str>,
    token: CancellationToken,
}

impl Tasks {
    /// Returns an empty set of tasks that end when `token` is cancelled.
    pub fn new(token: CancellationToken) -> Self {
        Self { set: JoinSet::new(), token }
    }

    /// Returns the token that the tasks watch.
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

    /// Waits until the token is cancelled.
    ///
    /// # Errors
    ///
    /// Fails if a task ends before that. The token is cancelled then.
    pub async fn run(&mut self) -> Result<(), TaskError> {
        let ended = tokio::select! {
            biased;
            () = self.token.cancelled() => return Ok(()),
            ended = self.set.join_next() => ended,
        };
        self.token.cancel();
        match ended {
            None => Ok(()),
            Some(Ok(name)) => Err(TaskError::Ended(name)),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Cancels the token, waits for all tasks, and aborts the tasks that still run after `deadline`.
    pub async fn stop(mut self, deadline: Duration) {
        self.token.cancel();
        let drained = tokio::time::timeout(deadline, async { while self.set.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(left = self.set.len(), "tasks did not end in time and are aborted");
            self.set.shutdown().await;
        }
    }
}
