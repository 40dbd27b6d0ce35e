//! The systems that are compared, each tuned to do its best on this work.

mod aria2;
mod http;
mod libtorrent;
mod shoal;
mod torrent;

use super::measure::Stage;
use super::namespaces::Place;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where shoal's seeder takes versions of feeds, on its own machine.
pub(super) const FEED_API: &str = "127.0.0.1:7721";
/// Where readers of feeds ask shoal's peer, on the peer's machine.
pub(super) const READ_API: &str = "127.0.0.1:7701";

/// A system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Shoal,
    Libtorrent,
    Aria2,
    Http,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shoal => "shoal",
            Self::Libtorrent => "libtorrent",
            Self::Aria2 => "aria2",
            Self::Http => "http",
        })
    }
}

/// What the lab asks of a system.
pub(super) trait System {
    /// Starts everything but the distribution: the seeder with the content before it, and these hosts, empty.
    fn prepare(&mut self, stage: &mut Stage, hosts: &[Place]) -> anyhow::Result<()>;

    /// Starts the distribution to these hosts; gives the time of day at which they could begin.
    fn begin(&mut self, stage: &mut Stage, hosts: &[Place]) -> anyhow::Result<Duration>;

    /// Starts a host while the distribution is under way, anew or for the first time.
    fn start_host(&mut self, stage: &mut Stage, host: Place) -> anyhow::Result<()>;

    /// What appears on a host at the moment it is done.
    fn done(&self, stage: &Stage, host: Place) -> PathBuf;

    /// Its copy.
    fn copy(&self, stage: &Stage, host: Place) -> PathBuf;

    /// Whether every piece has left the seeder.
    fn all_out(&mut self, _: &mut Stage) -> anyhow::Result<bool> {
        anyhow::bail!("only shoal's seeder says when every piece has left it")
    }

    /// What lets one publish feeds at [`FEED_API`].
    fn feed_token(&self, _: &Stage) -> anyhow::Result<String> {
        anyhow::bail!("only shoal has feeds")
    }

    /// Has every host keep only its share of the content; all have let go when it returns.
    fn demote(&mut self, _: &mut Stage) -> anyhow::Result<()> {
        anyhow::bail!("only shoal demotes")
    }

    /// Has every host have the content whole again.
    fn promote(&mut self, _: &Stage) -> anyhow::Result<()> {
        anyhow::bail!("only shoal promotes")
    }

    /// When a host had it whole again, time of day.
    fn restored(&self, _: &Stage, _: Place) -> Option<Duration> {
        None
    }

    /// How long the seeder took to take the content in, before the start, seconds.
    fn take_in_s(&self) -> f64 {
        0.0
    }

    /// Pieces of the content; 0 when that is not known.
    fn pieces(&self) -> u32 {
        0
    }
}

impl Kind {
    /// The system, not started.
    pub(super) fn make(self) -> Box<dyn System> {
        match self {
            Self::Shoal => Box::new(shoal::Shoal::default()),
            Self::Libtorrent => Box::new(libtorrent::Libtorrent),
            Self::Aria2 => Box::new(aria2::Aria2),
            Self::Http => Box::new(http::Http),
        }
    }

    /// How to install what is missing for it, if something is.
    pub(super) fn missing(self) -> Option<&'static str> {
        let works = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let python = || works("python3", &["-c", "import libtorrent"]);
        match self {
            Self::Shoal => None,
            Self::Libtorrent => (!python()).then_some("pip install libtorrent"),
            // Its torrent is made with libtorrent.
            Self::Aria2 => {
                let found = works("aria2c", &["--version"]) && python();
                (!found).then_some("apt-get install aria2; pip install libtorrent")
            }
            Self::Http => {
                let found = works("nginx", &["-v"]) && works("curl", &["--version"]);
                (!found).then_some("apt-get install nginx-light curl")
            }
        }
    }
}
