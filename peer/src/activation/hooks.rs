//! Runs a hook: a command with a time limit, in a process group of its own, its output kept as far as a report takes it.
//!
//! Invariant: when a hook's time is over, or nobody waits for it any more, its whole group is killed.

use minicbor::{Decode, Encode};
use rustix::process::{Pid, Signal, kill_process_group};
use std::pin::pin;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Output kept, bytes, the last of it.
const TAIL: usize = 160;
/// How long a hook that has ended is listened to: a service it started may hold its pipe for ever.
const LINGER: Duration = Duration::from_millis(100);

/// Why a hook failed, in words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    /// It cannot be run.
    #[error("cannot be run: {0}")]
    Start(#[from] std::io::Error),
    /// It took too long and was killed.
    #[error("was killed after {limit:?}{tail}")]
    Late {
        /// Its time limit.
        limit: Duration,
        /// What it said last.
        tail: String,
    },
    /// It said no.
    #[error("ended with {status}{tail}")]
    Failed {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said last.
        tail: String,
    },
}

/// Kills the group unless told that the leader was waited for.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // The leader was not waited for, so its number is still its own.
            let _gone = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// A hook that runs: its process, and when that began, so that it is not taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Leader {
    #[n(0)]
    pid: i32,
    /// In the kernel's ticks since it was started.
    #[n(1)]
    began: u64,
}

impl Leader {
    fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in brackets and may hold anything; the times come after it.
        let began = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, began })
    }

    /// Kills what is left of a hook whose peer was killed.
    pub(crate) fn kill_left_over(self) {
        let same = u32::try_from(self.pid).ok().and_then(Self::of) == Some(self);
        if let Some(leader) = Pid::from_raw(self.pid).filter(|_| same) {
            tracing::warn!(pid = self.pid, "killing a hook that outlived its peer");
            let _gone = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Runs `argv` to its end; an empty one does nothing. `began` hears of the process before anything else happens.
pub(crate) async fn run(
    argv: &[String],
    limit: Duration,
    env: &[(&str, String)],
    began: impl FnOnce(Leader),
) -> Result<(), HookError> {
    let Some((program, arguments)) = argv.split_first() else { return Ok(()) };
    let mut child = Command::new(program)
        .args(arguments)
        .envs(env.iter().map(|(key, value)| (*key, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    if let Some(leader) = child.id().and_then(Leader::of) {
        began(leader);
    }
    let tail = Mutex::new(Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let ended = {
        let mut reading = pin!(async { tokio::join!(drain(out, &tail), drain(err, &tail)) });
        tokio::time::timeout(limit, async {
            let status = tokio::select! {
                status = child.wait() => status?,
                _ = &mut reading => return child.wait().await,
            };
            let _still_open = tokio::time::timeout(LINGER, &mut reading).await;
            Ok(status)
        })
        .await
    };
    let Ok(status) = ended else {
        drop(group);
        let _reaped = child.wait().await;
        return Err(HookError::Late { limit, tail: words(&tail) });
    };
    group.0 = None;
    let status = status?;
    if status.success() { Ok(()) } else { Err(HookError::Failed { status, tail: words(&tail) }) }
}

async fn drain(from: Option<impl AsyncRead + Unpin>, tail: &Mutex<Vec<u8>>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(&buffer[..read]);
        let surplus = tail.len().saturating_sub(TAIL);
        tail.drain(..surplus);
    }
}

fn words(tail: &Mutex<Vec<u8>>) -> String {
    let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&tail);
    let text: Vec<&str> = text.split_whitespace().collect();
    if text.is_empty() { String::new() } else { format!(": {}", text.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(String::from).to_vec()
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn hooks_succeed_fail_and_say_why() {
        run(&[], LONG, &[], drop).await.unwrap();
        let env = [("SHOAL_NAME", "edge/a".to_string())];
        run(&shell("test \"$SHOAL_NAME\" = edge/a"), LONG, &env, drop).await.unwrap();
        let error = run(&shell("echo no  room >&2; exit 3"), LONG, &[], drop).await.unwrap_err().to_string();
        assert!(error.contains('3') && error.ends_with("no room"), "{error}");
        let error = run(&["/no/such/program".into()], LONG, &[], drop).await.unwrap_err().to_string();
        assert!(error.contains("cannot be run"), "{error}");
        let flood = run(&shell("yes word | head -c 1000000; exit 1"), LONG, &[], drop).await.unwrap_err();
        assert!(flood.to_string().len() < 2 * TAIL);
    }

    #[tokio::test]
    async fn a_service_it_leaves_behind_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}", file.display());
        run(&shell(&script), LONG, &[], drop).await.unwrap();
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).expect("it goes on");
    }

    #[tokio::test]
    async fn what_outlived_its_peer_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let leader = Leader::of(child.id()).unwrap();
        Leader { began: leader.began + 1, ..leader }.kill_left_over();
        assert!(child.try_wait().unwrap().is_none(), "another process of that number is left alone");
        leader.kill_left_over();
        assert!(!child.wait().unwrap().success());
    }

    #[tokio::test]
    async fn the_whole_group_is_killed_when_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let error = run(&shell(&script), Duration::from_millis(500), &[], drop).await.unwrap_err();
        assert!(matches!(error, HookError::Late { .. }), "{error}");
        let pid: u32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        // Killed, it is gone or waits for init to reap it.
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
            stat.is_none_or(|stat| stat.contains(") Z") || stat.contains(") X"))
        };
        while !gone() {
            tokio::task::yield_now().await;
        }
    }
}
