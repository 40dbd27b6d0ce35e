//! The systems that the lab compares, each tuned for this work.

mod aria2;
mod http;
mod libtorrent;
mod shoal;
mod torrent;

use crate::namespaces::Place;
use crate::stage::Stage;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The API where Shoal's seeder accepts versions of feeds, from its own machine.
pub(crate) const FEED_API: &str = "127.0.0.1:7721";
/// The API where Shoal's peer serves feeds, from its own machine.
pub(crate) const READ_API: &str = "127.0.0.1:7701";

/// The name of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
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

/// What the lab needs of a system.
pub(crate) trait System {
    /// Starts the seeder with the content and these hosts without it. The distribution does not start yet.
    fn prepare(&mut self, stage: &mut Stage, hosts: &[Place]) -> anyhow::Result<()>;

    /// Starts the distribution to these hosts. Returns the time of day at which they could begin.
    fn begin(&mut self, stage: &mut Stage, hosts: &[Place]) -> anyhow::Result<Duration>;

    /// Starts a host during the distribution: for the first time or again.
    fn start_host(&mut self, stage: &mut Stage, host: Place) -> anyhow::Result<()>;

    /// The file that appears on a host at the moment when it is done.
    fn done(&self, stage: &Stage, host: Place) -> PathBuf;

    /// The host's copy of the content.
    fn copy(&self, stage: &Stage, host: Place) -> PathBuf;

    /// Whether every piece has left the seeder.
    fn all_out(&mut self, _: &mut Stage) -> anyhow::Result<bool> {
        anyhow::bail!("only Shoal's seeder reports when every piece has left it")
    }

    /// The token with which the lab publishes feeds at [`FEED_API`].
    fn feed_token(&self, _: &Stage) -> anyhow::Result<String> {
        anyhow::bail!("only Shoal has feeds")
    }

    /// Demotes the content. Returns when every host has removed the whole.
    fn demote(&mut self, _: &mut Stage) -> anyhow::Result<()> {
        anyhow::bail!("only Shoal demotes")
    }

    /// Starts the promotion of the content.
    fn promote(&mut self, _: &Stage) -> anyhow::Result<()> {
        anyhow::bail!("only Shoal promotes")
    }

    /// When a host had the whole content again, time of day.
    fn restored(&self, _: &Stage, _: Place) -> Option<Duration> {
        None
    }

    /// How long the seeder ingested the content before the start, seconds.
    fn ingest_s(&self) -> f64 {
        0.0
    }

    /// Pieces of the content; 0 when the system does not report them.
    fn pieces(&self) -> u32 {
        0
    }
}

impl Kind {
    /// Makes the system. It is not started.
    pub(crate) fn make(self) -> Box<dyn System> {
        match self {
            Self::Shoal => Box::new(shoal::Shoal::default()),
            Self::Libtorrent => Box::new(libtorrent::Libtorrent),
            Self::Aria2 => Box::new(aria2::Aria2),
            Self::Http => Box::new(http::Http),
        }
    }

    /// The command that installs the programs that the system lacks, if it lacks any.
    pub(crate) fn missing(self) -> Option<&'static str> {
        let works = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let python = || works("python3", &["-c", "import libtorrent"]);
        match self {
            Self::Shoal => None,
            Self::Libtorrent => (!python()).then_some("pip install libtorrent"),
            // libtorrent makes its torrent.
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
