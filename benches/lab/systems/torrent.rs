//! What both BitTorrent clients need: the torrent, and a tracker for it.

use crate::lab::content::FILE;
use crate::lab::measure::Stage;
use crate::lab::namespaces::Place;
use crate::lab::processes::until;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a client may take to come up.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

const TRACKER: &str = include_str!("tracker.py");
const MAKE: &str = include_str!("make_torrent.py");
const PORT: &str = "6969";

/// The torrent's path.
pub(super) fn path(stage: &Stage) -> PathBuf {
    stage.dir.path().join("content.torrent")
}

/// A Python program given as text.
pub(super) fn python(stage: &Stage, place: Place, text: &str) -> Command {
    let mut command = stage.racks.command(place, Path::new("python3"));
    command.arg("-c").arg(text);
    command
}

fn announced(stage: &Stage) -> PathBuf {
    stage.dir.path().join("announced")
}

/// Makes the torrent and starts the tracker.
pub(super) fn prepare(stage: &mut Stage) -> anyhow::Result<()> {
    let mut make = Command::new("python3");
    make.arg("-W").arg("ignore").arg("-c").arg(MAKE).arg(&stage.content.path).arg(path(stage));
    make.arg(format!("http://{}:{PORT}/announce", Place::Tracker.addr()));
    let made = make.stdin(Stdio::null()).output().context("cannot start python3")?;
    if !made.status.success() {
        bail!("cannot make the torrent: {}", String::from_utf8_lossy(&made.stderr));
    }
    let mut tracker = python(stage, Place::Tracker, TRACKER);
    tracker.arg(Place::Tracker.addr()).arg(PORT).arg(announced(stage));
    stage.processes.start(Place::Tracker, &mut tracker)?;
    let ready = announced(stage);
    until("the torrent tracker listens", PATIENCE, || ready.exists().then_some(()))
}

/// Waits until the tracker has heard of the seeder.
pub(super) fn wait_announced(stage: &Stage) -> anyhow::Result<()> {
    let heard = announced(stage);
    until("the torrent's seeder is announced", PATIENCE, || {
        heard.metadata().is_ok_and(|meta| meta.len() > 0).then_some(())
    })
}

/// A host's copy.
pub(super) fn copy(stage: &Stage, host: Place) -> PathBuf {
    stage.dir.path().join(host.to_string()).join(FILE)
}

/// What a host makes when it is done.
pub(super) fn done(stage: &Stage, host: Place) -> PathBuf {
    stage.dir.path().join(host.to_string()).join("done")
}
