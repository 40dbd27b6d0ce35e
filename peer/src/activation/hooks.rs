//! Runs a hook: a command with a time limit in a process group of its own.
//!
//! The end of the hook's output becomes part of the report.
//! A service that a hook leaves running keeps the hook's output. The peer reads and drops what the service writes, for
//! as long as the service and the peer run. So the service neither blocks nor dies of a broken pipe.
//! Invariant: when the time limit passes or the caller drops the future, the whole process group is killed. A hook gets
//! nothing of the peer's environment. The umask is the peer's, 077. At most [`SERVICES_MAX`] outputs are read after the
//! end of their hooks.

use minicbor::{Decode, Encode};
use rustix::process::{Pid, Signal, kill_process_group};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Bytes of output that are kept. The last bytes count.
const TAIL_BYTES: usize = 160;
/// How long a hook's report waits for the rest of the output after the hook ended. A service that the hook started may
/// keep the pipe open for ever.
const READ_AFTER_END: Duration = Duration::from_millis(100);
/// Services of hooks whose output is read after the end of the hook. Each takes two open files.
const SERVICES_MAX: usize = 64;

/// The places of services whose output is read.
static SERVICES: Semaphore = Semaphore::const_new(SERVICES_MAX);

/// The environment of every hook, before the caller's variables. `docs/operations/rollouts.md` lists all variables.
const ENVIRONMENT: [(&str, &str); 3] =
    [("HOME", "/"), ("LANG", "C.UTF-8"), ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")];

/// Why a hook failed. `tail` is the end of its output.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("the command cannot be run")]
    Start(#[from] std::io::Error),
    #[error("the command was killed after {limit:?}{tail}")]
    Timeout { limit: Duration, tail: String },
    #[error("the command ended with {status}{tail}")]
    Exit { status: std::process::ExitStatus, tail: String },
}

/// Kills the process group when dropped, unless the leader was waited for.
struct GroupGuard(Option<Pid>);

impl Drop for GroupGuard {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // The kernel cannot reuse the leader's number before the leader is waited for.
            let _ = kill_process_group(leader, Signal::KILL); // the group may have ended
        }
    }
}

/// The process of a running hook. The start time tells the process from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Leader {
    #[n(0)]
    pid: i32,
    /// Start time in clock ticks since the machine booted.
    #[n(1)]
    started_ticks: u64,
}

impl Leader {
    fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in brackets and may contain brackets and spaces. The start time is field 20 after it.
        let started_ticks = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, started_ticks })
    }

    /// Kills the process group of a hook that outlived its peer.
    pub(crate) fn kill_left_over(self) {
        let same = u32::try_from(self.pid).ok().and_then(Self::of) == Some(self);
        if let Some(leader) = Pid::from_raw(self.pid).filter(|_| same) {
            tracing::warn!(pid = self.pid, "kills a hook that outlived its peer");
            let _ = kill_process_group(leader, Signal::KILL); // the group may have ended
        }
    }
}

/// Runs `argv` to its end. An empty `argv` succeeds at once.
///
/// `on_start` gets the process before this function waits for anything.
pub(crate) async fn run(
    argv: &[String],
    limit: Duration,
    env: &[(&str, String)],
    on_start: impl FnOnce(Leader),
) -> Result<(), HookError> {
    let Some((program, arguments)) = argv.split_first() else { return Ok(()) };
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .env_clear()
        .envs(ENVIRONMENT)
        .envs(env.iter().map(|(key, value)| (*key, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = GroupGuard(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    if let Some(leader) = child.id().and_then(Leader::of) {
        on_start(leader);
    }
    let tail = Tail::default();
    let mut reading = read_both(child.stdout.take(), child.stderr.take(), tail.clone());
    let ended = tokio::time::timeout(limit, child.wait()).await;
    let Ok(status) = ended else {
        drop(group);
        let _ = child.wait().await; // only reaps the killed process
        keep_reading(reading, program);
        return Err(HookError::Timeout { limit, tail: tail_text(&tail) });
    };
    group.0 = None;
    if tokio::time::timeout(READ_AFTER_END, &mut reading).await.is_err() {
        keep_reading(reading, program);
    }
    let status = status?;
    if status.success() { Ok(()) } else { Err(HookError::Exit { status, tail: tail_text(&tail) }) }
}

/// The last bytes of a hook's output.
type Tail = Arc<Mutex<Vec<u8>>>;

/// Reads both outputs to their ends, in a task that outlives its hook.
fn read_both(
    out: Option<impl AsyncRead + Unpin + Send + 'static>,
    err: Option<impl AsyncRead + Unpin + Send + 'static>,
    tail: Tail,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        tokio::join!(drain(out, &tail), drain(err, &tail));
    })
}

/// Goes on reading the output of a service that a hook left running, if there is a place for it.
fn keep_reading(reading: JoinHandle<()>, program: &str) {
    let Ok(place) = SERVICES.try_acquire() else {
        tracing::warn!(
            program,
            services_max = SERVICES_MAX,
            "closed the output of a service of a hook: too many have one"
        );
        return reading.abort();
    };
    drop(tokio::spawn(async move {
        let _ = reading.await; // ends with the service
        drop(place);
    }));
}

/// Reads to the end and keeps the last [`TAIL_BYTES`].
async fn drain(from: Option<impl AsyncRead + Unpin>, tail: &Mutex<Vec<u8>>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(&buffer[..read]);
        let surplus = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..surplus);
    }
}

/// Returns the tail on one line, after a colon, or nothing.
fn tail_text(tail: &Tail) -> String {
    let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&tail);
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() { String::new() } else { format!(": {}", words.join(" ")) }
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
    async fn a_failed_hook_reports_the_end_of_its_output() {
        run(&[], LONG, &[], drop).await.unwrap();
        let env = [("SHOAL_NAME", "edge/a".to_string())];
        run(&shell("test \"$SHOAL_NAME\" = edge/a"), LONG, &env, drop).await.unwrap();
        let error = run(&shell("echo no  room >&2; exit 3"), LONG, &[], drop).await.unwrap_err().to_string();
        assert!(error.contains('3') && error.ends_with("no room"), "{error}");
        let error = run(&["/no/such/program".into()], LONG, &[], drop).await.unwrap_err();
        assert!(error.to_string().contains("cannot be run"), "{error}");
        let flood = run(&shell("yes word | head -c 1000000; exit 1"), LONG, &[], drop).await.unwrap_err();
        assert!(flood.to_string().len() < 2 * TAIL_BYTES);
    }

    #[tokio::test]
    async fn a_hook_that_starts_a_service_ends_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}", file.display());
        run(&shell(&script), LONG, &[], drop).await.unwrap();
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).expect("the service still runs");
    }

    #[tokio::test]
    async fn a_service_of_a_hook_keeps_a_working_output() {
        let dir = tempfile::tempdir().unwrap();
        let (pid, count) = (dir.path().join("pid"), dir.path().join("count"));
        // More than a pipe holds. The service counts only writes that succeeded.
        let line = "x".repeat(2000);
        let service = format!(
            "while echo serving {line} && echo failing {line} >&2; do echo >> {}; sleep 0.01; done",
            count.display()
        );
        let script = format!("({service}) & echo $! > {}; echo started", pid.display());
        let began = std::time::Instant::now();
        run(&shell(&script), LONG, &[], drop).await.unwrap();
        assert!(began.elapsed() < LONG / 2, "the hook's end waited for its service");
        let written = || std::fs::read(&count).map_or(0, |text| text.len());
        let end = std::time::Instant::now() + LONG;
        while written() < 100 {
            assert!(std::time::Instant::now() < end, "the service wrote {} times", written());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).expect("the service still runs");
    }

    #[tokio::test]
    async fn what_a_service_writes_later_is_not_the_hooks_output() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("(sleep 30; echo late) & echo $! > {}; echo early; exit 4", pid.display());
        let error = run(&shell(&script), LONG, &[], drop).await.unwrap_err().to_string();
        assert!(error.ends_with(": early"), "{error}");
        let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn a_hook_that_outlived_its_peer_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let leader = Leader::of(child.id()).unwrap();
        Leader { started_ticks: leader.started_ticks + 1, ..leader }.kill_left_over();
        assert!(child.try_wait().unwrap().is_none(), "another process with that number lives on");
        leader.kill_left_over();
        assert!(!child.wait().unwrap().success());
    }

    #[tokio::test]
    async fn the_whole_group_is_killed_at_the_time_limit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let error = run(&shell(&script), Duration::from_millis(500), &[], drop).await.unwrap_err();
        assert!(matches!(error, HookError::Timeout { .. }), "{error}");
        let pid: u32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        // A killed process is gone, or a zombie until init reaps it.
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
            stat.is_none_or(|stat| stat.contains(") Z") || stat.contains(") X"))
        };
        while !gone() {
            tokio::task::yield_now().await;
        }
    }
}
