//! The torrent and its tracker, for both BitTorrent clients.

use crate::clock::until;
use crate::content::FILE;
use crate::namespaces::Place;
use crate::stage::Stage;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a client may take to come up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const TRACKER: &str = include_str!("tracker.py");
const MAKE: &str = include_str!("make_torrent.py");
const PORT: &str = "6969";

/// The path of the torrent.
pub(crate) fn path(stage: &Stage) -> PathBuf {
    stage.dir.path().join("content.torrent")
}

/// A command that runs a Python program.
pub(crate) fn python(stage: &Stage, place: Place, text: &str) -> Command {
    let mut command = stage.racks.command(place, Path::new("python3"));
    command.arg("-c").arg(text);
    command
}

fn announced(stage: &Stage) -> PathBuf {
    stage.dir.path().join("announced")
}

/// Makes the torrent and starts the tracker.
pub(crate) fn prepare(stage: &mut Stage) -> anyhow::Result<()> {
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

/// Waits until the seeder has announced itself to the tracker.
pub(crate) fn wait_announced(stage: &Stage) -> anyhow::Result<()> {
    let announced = announced(stage);
    until("the torrent's seeder is announced", PATIENCE, || {
        announced.metadata().is_ok_and(|meta| meta.len() > 0).then_some(())
    })
}

/// A host's copy of the content.
pub(crate) fn copy(stage: &Stage, host: Place) -> PathBuf {
    stage.dir.path().join(host.to_string()).join(FILE)
}

/// The file that a host makes when it is done.
pub(crate) fn done(stage: &Stage, host: Place) -> PathBuf {
    stage.dir.path().join(host.to_string()).join("done")
}
