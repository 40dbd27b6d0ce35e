//! nginx on the seeder and curl on every host: the naive way.

use super::{System, torrent};
use crate::clock::time_of_day;
use crate::clock::until;
use crate::content::FILE;
use crate::namespaces::Place;
use crate::stage::Stage;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) struct Http;

impl System for Http {
    fn prepare(&mut self, stage: &mut Stage, _: &[Place]) -> anyhow::Result<()> {
        let folder = stage.processes.folder(Place::Seeder)?;
        let (conf, id) = (folder.join("nginx.conf"), folder.join("nginx.pid"));
        let text = format!(
            "user root; worker_processes 2; daemon off; pid {}; error_log stderr; events {{ worker_connections 4096; }}
             http {{ access_log off; sendfile on; tcp_nopush on;
             server {{ listen {}:80; root {}; }} }}",
            id.display(),
            Place::Seeder.addr(),
            stage.dir.path().display(),
        );
        std::fs::write(&conf, text)?;
        let mut nginx = stage.racks.command(Place::Seeder, Path::new("nginx"));
        nginx.args(["-e", "stderr", "-c"]).arg(&conf);
        stage.processes.start(Place::Seeder, &mut nginx)?;
        until("nginx listens", torrent::PATIENCE, || id.metadata().is_ok_and(|meta| meta.len() > 0).then_some(()))
    }

    fn begin(&mut self, stage: &mut Stage, hosts: &[Place]) -> anyhow::Result<Duration> {
        let began = time_of_day();
        hosts.iter().try_for_each(|host| self.start_host(stage, *host))?;
        Ok(began)
    }

    fn start_host(&mut self, stage: &mut Stage, host: Place) -> anyhow::Result<()> {
        stage.processes.folder(host)?;
        let (copy, done) = (self.copy(stage, host), self.done(stage, host));
        let mut shell = stage.racks.command(host, Path::new("sh"));
        shell.args(["-c", "curl -sS --retry 5 -C - -o \"$0\" \"$1\" && : > \"$2\""]);
        shell.arg(copy).arg(format!("http://{}/{FILE}", Place::Seeder.addr())).arg(done);
        stage.processes.start(host, &mut shell)
    }

    fn done(&self, stage: &Stage, host: Place) -> PathBuf {
        torrent::done(stage, host)
    }

    fn copy(&self, stage: &Stage, host: Place) -> PathBuf {
        torrent::copy(stage, host)
    }
}
