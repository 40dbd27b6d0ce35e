//! libtorrent, driven by a small Python program on each machine.

use super::{System, torrent};
use crate::clock::time_of_day;
use crate::clock::until;
use crate::namespaces::Place;
use crate::stage::Stage;
use std::path::PathBuf;
use std::time::Duration;

const NODE: &str = include_str!("libtorrent_node.py");

pub(crate) struct Libtorrent;

fn start(stage: &mut Stage, place: Place, mode: &str) -> anyhow::Result<()> {
    let folder = stage.processes.folder(place)?;
    let mut command = torrent::python(stage, place, NODE);
    command.arg(mode).arg(torrent::path(stage)).arg(&folder).arg(place.addr()).arg(stage.dir.path());
    stage.processes.start(place, &mut command)
}

fn wait_ready(stage: &mut Stage, place: Place) -> anyhow::Result<()> {
    let ready = stage.processes.folder(place)?.join("ready");
    until(&format!("libtorrent on {place} comes up"), torrent::PATIENCE, || ready.exists().then_some(()))
}

impl System for Libtorrent {
    fn prepare(&mut self, stage: &mut Stage, hosts: &[Place]) -> anyhow::Result<()> {
        torrent::prepare(stage)?;
        start(stage, Place::Seeder, "seed")?;
        hosts.iter().try_for_each(|host| start(stage, *host, "leech"))?;
        wait_ready(stage, Place::Seeder)?;
        hosts.iter().try_for_each(|host| wait_ready(stage, *host))?;
        stage.processes.write_line(Place::Seeder, "go\n")?;
        torrent::wait_announced(stage)
    }

    fn begin(&mut self, stage: &mut Stage, hosts: &[Place]) -> anyhow::Result<Duration> {
        let began = time_of_day();
        hosts.iter().try_for_each(|host| stage.processes.write_line(*host, "go\n"))?;
        Ok(began)
    }

    fn start_host(&mut self, stage: &mut Stage, host: Place) -> anyhow::Result<()> {
        start(stage, host, "leech")?;
        stage.processes.write_line(host, "go\n")
    }

    fn done(&self, stage: &Stage, host: Place) -> PathBuf {
        torrent::done(stage, host)
    }

    fn copy(&self, stage: &Stage, host: Place) -> PathBuf {
        torrent::copy(stage, host)
    }
}
