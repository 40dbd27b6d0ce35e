//! `shoal hub | tracker | seeder | peer`: runs a role until a signal or the end of standard input stops it.
//!
//! Invariant: the ready file appears only after the role listens on all its addresses.

use super::Outcome;
use super::config::{Role, read};
use anyhow::Context;
use serde_json::{Value, json};
use shoal_service::logs::{self, LogFormat};
use shoal_service::shutdown::{CancellationToken, STOP_DEADLINE, Tasks, end_in_time, on_signals};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

/// How long the end of a role waits for the reader of its last log lines.
const LAST_LINES: Duration = Duration::from_millis(500);
/// How long the end of a role waits for calls that block.
const LAST_CALLS: Duration = Duration::from_millis(500);

pub(crate) const HUB_EXAMPLES: &str = "Examples:\n  shoal hub --config /etc/shoal/hub.toml";
pub(crate) const TRACKER_EXAMPLES: &str = "Examples:\n  shoal tracker --config /etc/shoal/tracker.toml";
pub(crate) const SEEDER_EXAMPLES: &str = "Examples:\n  shoal seeder --config /etc/shoal/seeder.toml --log-format json";
pub(crate) const PEER_EXAMPLES: &str = "\
Examples:
  shoal peer --config /etc/shoal/peer.toml
  shoal peer --config /etc/shoal/peer.toml --set 'quota=\"50 GiB\"' --log info,shoal_net=debug";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// TOML configuration file. Environment variables `SHOAL_<ROLE>_<KEY>` and --set take precedence
    #[arg(long)]
    config: Option<PathBuf>,
    /// Set one configuration key. Dots separate tables, as in node.min_free=0
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Format of log lines
    #[arg(long, default_value = "text", env = "SHOAL_LOG_FORMAT")]
    log_format: LogFormat,
    /// Log level, or a list of levels by module such as info,shoal_net=debug
    #[arg(long, default_value = "info", env = "SHOAL_LOG")]
    log: String,
    /// File to which the role writes its addresses as JSON once it listens on them
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Stop when standard input ends, so that the process does not outlive its parent
    #[arg(long)]
    exit_with_stdin: bool,
}

pub(crate) fn run(role: Role, args: &Args) -> anyhow::Result<Outcome> {
    // Before the first thread and the first file. State, sockets and spools are for the role's own user only.
    shoal_service::folders::restrict_new_files();
    logs::init(args.log_format, &args.log)?;
    let ended = run_logged(role, args);
    if let Err(error) = &ended {
        // Not as other commands do: standard error may be a pipe that is full for ever.
        logs::line(&format!("shoal: {error:#}"));
    }
    logs::flush(LAST_LINES);
    Ok(if ended.is_ok() { Outcome::Ok } else { Outcome::Failed })
}

/// Runs a role until it stops. Only the logs write to standard error.
fn run_logged(role: Role, args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Half of the cores. The other half is for hashing, disk IO and the host's own service.
        .worker_threads(std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).clamp(1, 8)))
        .max_blocking_threads(24)
        .thread_stack_size(1024 * 1024)
        .build()?;
    let ended = runtime.block_on(async {
        let token = on_signals().context("cannot install handlers for SIGINT and SIGTERM")?;
        end_in_time(token.clone());
        if args.exit_with_stdin {
            watch_stdin(token.clone());
        }
        let (ended, addrs) = start(role, args, token).await?;
        if let Some(path) = &args.ready_file {
            write_ready(path, &addrs)
                .with_context(|| format!("cannot write the ready file {}; check --ready-file", path.display()))?;
        }
        ended.await?;
        tracing::info!("stopped");
        anyhow::Ok(())
    });
    runtime.shutdown_timeout(LAST_CALLS);
    ended
}

/// Completes when the role has stopped.
type Ended = Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

fn until_stopped(mut tasks: Tasks) -> Ended {
    Box::pin(async move {
        let ended = tasks.run().await;
        tasks.stop(STOP_DEADLINE).await;
        Ok(ended?)
    })
}

/// Starts a role. Returns a future that completes with the role, and the addresses in use.
async fn start(role: Role, args: &Args, token: CancellationToken) -> anyhow::Result<(Ended, Value)> {
    let (file, set) = (args.config.as_ref(), &args.set[..]);
    Ok(match role {
        Role::Hub => {
            let started = shoal_hub::start(&read(role, file, set)?, token).await?;
            (until_stopped(started.tasks), json!({ "http": started.http }))
        }
        Role::Tracker => {
            let started = shoal_tracker::start(read(role, file, set)?, token).await?;
            let addrs = json!({ "http": started.http_addr, "control": started.control_addrs });
            (Box::pin(async { Ok(started.wait().await?) }), addrs)
        }
        Role::Seeder => {
            let started = shoal_seeder::start(&read(role, file, set)?, token).await?;
            (until_stopped(started.tasks), json!({ "http": started.http, "bulk": started.bulk }))
        }
        Role::Peer => {
            let started = shoal_peer::start(&read(role, file, set)?, token).await?;
            let addrs = json!({ "http": started.http, "bulk": started.bulk, "mirror": started.mirror });
            (until_stopped(started.tasks), addrs)
        }
    })
}

/// Writes the file with a rename, so that a reader never sees half of it.
fn write_ready(path: &Path, addrs: &Value) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, addrs.to_string())?;
    fs::rename(&temporary, path)
}

/// Cancels the token when standard input ends. A thread reads, because a blocked read delays the end of a runtime.
fn watch_stdin(token: CancellationToken) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0u8; 64];
        while matches!(stdin.read(&mut buffer), Ok(1..)) {}
        token.cancel();
    });
}
