//! aria2 as a BitTorrent client on each machine.

use super::{System, torrent};
use crate::clock::time_of_day;
use crate::namespaces::Place;
use crate::processes::script;
use crate::stage::Stage;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// No limits, discovery by the tracker and by other clients only, and seeding until the end of the run.
const TUNING: [&str; 13] = [
    "--enable-dht=false",
    "--bt-enable-lpd=false",
    "--enable-peer-exchange=true",
    "--bt-max-peers=0",
    "--bt-request-peer-speed-limit=1024M",
    "--bt-tracker-interval=2",
    "--seed-ratio=0",
    "--seed-time=99",
    "--listen-port=6881",
    "--file-allocation=none",
    "--summary-interval=0",
    "--console-log-level=error",
    "--show-console-readout=false",
];

pub(crate) struct Aria2;

fn command(stage: &Stage, place: Place, dir: &Path) -> Command {
    let mut command = stage.racks.command(place, Path::new("aria2c"));
    command.args(TUNING).arg(format!("--dir={}", dir.display()));
    command
}

impl System for Aria2 {
    fn prepare(&mut self, stage: &mut Stage, _: &[Place]) -> anyhow::Result<()> {
        torrent::prepare(stage)?;
        let mut seed = command(stage, Place::Seeder, stage.dir.path());
        seed.arg("--bt-seed-unverified=true").arg(torrent::path(stage));
        stage.processes.start(Place::Seeder, &mut seed)?;
        torrent::wait_announced(stage)
    }

    fn begin(&mut self, stage: &mut Stage, hosts: &[Place]) -> anyhow::Result<Duration> {
        let began = time_of_day();
        hosts.iter().try_for_each(|host| self.start_host(stage, *host))?;
        Ok(began)
    }

    fn start_host(&mut self, stage: &mut Stage, host: Place) -> anyhow::Result<()> {
        let folder = stage.processes.folder(host)?;
        let hook = folder.join("hook");
        script(&hook, &format!("#!/bin/sh\n: > '{}'\n", torrent::done(stage, host).display()))?;
        let mut leech = command(stage, host, &folder);
        leech.arg(format!("--on-bt-download-complete={}", hook.display())).arg(torrent::path(stage));
        stage.processes.start(host, &mut leech)
    }

    fn done(&self, stage: &Stage, host: Place) -> PathBuf {
        torrent::done(stage, host)
    }

    fn copy(&self, stage: &Stage, host: Place) -> PathBuf {
        torrent::copy(stage, host)
    }
}
