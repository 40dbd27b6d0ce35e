//! The processes of one run: started on machines of the lab, measured, ended.
//!
//! Invariant: every process leads a process group, so its children are measured and ended with it.

use crate::clock::LOOK;
use crate::namespaces::Place;
use crate::output::tail;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to stop before the lab kills it.
const STOP: Duration = Duration::from_secs(5);

struct Process {
    place: Place,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

/// All processes of a run.
pub(crate) struct Processes {
    dir: PathBuf,
    all: Vec<Process>,
    peaks: Peaks,
}

/// Peak memory of the largest process on each kind of machine, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Peaks {
    pub(crate) host: u64,
    pub(crate) seeder: u64,
}

impl Processes {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), all: Vec::new(), peaks: Peaks::default() }
    }

    /// The folder of a machine's files. Makes it when it is missing.
    pub(crate) fn folder(&self, place: Place) -> anyhow::Result<PathBuf> {
        let folder = self.dir.join(place.to_string());
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// Starts a program on a machine. Its input stays open; its output goes to a log.
    pub(crate) fn start(&mut self, place: Place, command: &mut Command) -> anyhow::Result<()> {
        let log = self.folder(place)?.join("log");
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        self.all.push(Process { place, child, log, ended: None });
        Ok(())
    }

    /// Whether a process runs on a machine.
    pub(crate) fn is_running(&mut self, place: Place) -> bool {
        self.all.iter_mut().any(|process| process.place == place && process.status().is_none())
    }

    /// Writes a line to the input of the newest process on a machine.
    pub(crate) fn write_line(&mut self, place: Place, text: &str) -> anyhow::Result<()> {
        use std::io::Write;
        let process = self.all.iter_mut().rfind(|process| process.place == place);
        let input = process.and_then(|process| process.child.stdin.as_mut());
        let input = input.with_context(|| format!("no process on {place} reads its input"))?;
        input.write_all(text.as_bytes()).with_context(|| format!("the process on {place} has closed its input"))
    }

    /// Sends SIGKILL to all processes on a machine.
    pub(crate) fn kill(&mut self, place: Place) {
        self.all.iter_mut().filter(|process| process.place == place).for_each(Process::kill);
        self.all.retain(|process| process.place != place);
    }

    /// Fails when a process has ended with an error.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for process in &mut self.all {
            if let Some(status) = process.status().filter(|status| !status.success()) {
                bail!("{} ended ({status}):\n{}", process.place, process.log_tail());
            }
        }
        Ok(())
    }

    /// The last lines of the log of the newest process on a machine.
    pub(crate) fn log_tail(&self, place: Place) -> String {
        let process = self.all.iter().rfind(|process| process.place == place);
        process.map_or_else(String::new, Process::log_tail)
    }

    /// CPU time of all processes so far, seconds, including those that have ended. Also records their peak memory.
    pub(crate) fn look(&mut self) -> f64 {
        let places: BTreeMap<u32, Place> = self.all.iter().map(|process| (process.child.id(), process.place)).collect();
        let mut ticks = own_children();
        for (id, stat) in all_stats() {
            let Some(place) = places.get(&stat.group) else { continue };
            ticks += stat.ticks;
            let peak = peak(id);
            match place {
                Place::Host { .. } => self.peaks.host = self.peaks.host.max(peak),
                Place::Seeder => self.peaks.seeder = self.peaks.seeder.max(peak),
                Place::Tracker | Place::Hub => {}
            }
        }
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    pub(crate) fn peaks(&self) -> Peaks {
        self.peaks
    }

    /// Ends all processes: first by the end of their input and SIGTERM, after [`STOP`] by SIGKILL.
    fn stop(&mut self) {
        for process in &mut self.all {
            drop(process.child.stdin.take());
            process.signal(Signal::TERM);
        }
        let end = Instant::now() + STOP;
        while self.all.iter_mut().any(|process| process.status().is_none()) && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        self.all.iter_mut().for_each(Process::kill);
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Process {
    fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process_group(group, signal); // The group may be empty already.
        }
    }

    fn kill(&mut self) {
        // Also when the process has ended, because its children may still run.
        self.signal(Signal::KILL);
        if self.status().is_none() {
            let _ = self.child.wait(); // Only a child that was waited for cannot be waited for.
        }
    }

    fn log_tail(&self) -> String {
        tail(&fs::read_to_string(&self.log).unwrap_or_default())
    }
}

/// A line of `/proc/*/stat`.
struct Stat {
    group: u32,
    /// CPU time of the process and of children that it waited for.
    ticks: u64,
}

fn parse(stat: &str) -> Option<Stat> {
    // The name stands in brackets and may hold spaces and brackets.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Stat { group: fields.get(2)?.parse().ok()?, ticks })
}

/// All processes of this machine, with their ids.
fn all_stats() -> Vec<(u32, Stat)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(|id| Some((id, parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?))).collect()
}

/// CPU time of the lab's children that have ended.
fn own_children() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    fields.get(13..15).map_or(0, |fields| fields.iter().filter_map(|field| field.parse::<u64>().ok()).sum())
}

fn peak(id: u32) -> u64 {
    shoal_service::metrics::peak_rss(&id.to_string())
}

/// Writes an executable file.
pub(crate) fn script(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    Ok(())
}
