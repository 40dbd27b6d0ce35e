//! The processes of one run: started on machines of the lab, counted, ended.
//!
//! Invariant: every process leads a group of its own, so whatever it starts is counted and ended with it.

use super::namespaces::Place;
use super::{interrupt, measure};
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(5);
/// How often something is looked at that cannot be waited for.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// Waits until `look` gives something.
pub(super) fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        interrupt::check()?;
        if Instant::now() > end {
            bail!("gave up after {} s: {what}", patience.as_secs());
        }
        std::thread::sleep(LOOK);
    }
}

struct Process {
    place: Place,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

/// All processes of a run.
pub(super) struct Processes {
    dir: PathBuf,
    all: Vec<Process>,
    /// Peak memory seen by kind of machine, bytes.
    peaks: Peaks,
}

/// Peak memory of the largest process of each kind, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peaks {
    pub(super) host: u64,
    pub(super) seeder: u64,
}

impl Processes {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), all: Vec::new(), peaks: Peaks::default() }
    }

    /// The folder of a machine's files; made if it is not there.
    pub(super) fn folder(&self, place: Place) -> anyhow::Result<PathBuf> {
        let folder = self.dir.join(place.to_string());
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// Starts a program on a machine. Its input stays open; its output goes to a log.
    pub(super) fn start(&mut self, place: Place, command: &mut Command) -> anyhow::Result<()> {
        let log = self.folder(place)?.join("log");
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        self.all.push(Process { place, child, log, ended: None });
        Ok(())
    }

    /// Whether something runs on a machine.
    pub(super) fn is_running(&mut self, place: Place) -> bool {
        self.all.iter_mut().any(|process| process.place == place && process.status().is_none())
    }

    /// Writes a line to the input of what runs on a machine.
    pub(super) fn tell(&mut self, place: Place, text: &str) -> anyhow::Result<()> {
        use std::io::Write;
        let process = self.all.iter_mut().rfind(|process| process.place == place);
        let input = process.and_then(|process| process.child.stdin.as_mut());
        let input = input.with_context(|| format!("nothing on {place} to be told"))?;
        input.write_all(text.as_bytes()).with_context(|| format!("{place} does not listen"))
    }

    /// Kills what runs on a machine, at once.
    pub(super) fn kill(&mut self, place: Place) {
        self.all.iter_mut().filter(|process| process.place == place).for_each(Process::kill);
        self.all.retain(|process| process.place != place);
    }

    /// Fails when a process ended with an error.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        for process in &mut self.all {
            if let Some(status) = process.status().filter(|status| !status.success()) {
                bail!("{} ended ({status}):\n{}", process.place, process.log_tail());
            }
        }
        Ok(())
    }

    /// The last lines of the log of a machine.
    pub(super) fn log_tail(&self, place: Place) -> String {
        let process = self.all.iter().rfind(|process| process.place == place);
        process.map_or_else(String::new, Process::log_tail)
    }

    /// CPU time of all processes so far, those that ended included, seconds; notes their memory.
    pub(super) fn look(&mut self) -> f64 {
        let places: BTreeMap<u32, Place> = self.all.iter().map(|process| (process.child.id(), process.place)).collect();
        let mut ticks = own_children();
        for (id, row) in rows() {
            let Some(place) = places.get(&row.group) else { continue };
            ticks += row.ticks;
            let peak = peak(id);
            match place {
                Place::Host { .. } => self.peaks.host = self.peaks.host.max(peak),
                Place::Seeder => self.peaks.seeder = self.peaks.seeder.max(peak),
                Place::Tracker | Place::Hub => {}
            }
        }
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    pub(super) fn peaks(&self) -> Peaks {
        self.peaks
    }

    /// Ends all of them: politely by the end of their input and SIGTERM, then not.
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
            let _ = kill_process_group(group, signal);
        }
    }

    fn kill(&mut self) {
        // Also when it has ended: what it started may live on.
        self.signal(Signal::KILL);
        if self.status().is_none() {
            let _ = self.child.wait();
        }
    }

    fn log_tail(&self) -> String {
        measure::tail(&fs::read_to_string(&self.log).unwrap_or_default())
    }
}

/// A process as the kernel shows it.
struct Row {
    group: u32,
    /// CPU time of it and of children it waited for.
    ticks: u64,
}

fn parse(stat: &str) -> Option<Row> {
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Row { group: fields.get(2)?.parse().ok()?, ticks })
}

/// All processes of the machine.
fn rows() -> Vec<(u32, Row)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(|id| Some((id, parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?))).collect()
}

/// CPU time of our children that ended.
fn own_children() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    fields.get(13..15).map_or(0, |fields| fields.iter().filter_map(|field| field.parse::<u64>().ok()).sum())
}

fn peak(id: u32) -> u64 {
    shoal_service::metrics::peak_rss(&id.to_string())
}

/// A file that is not there yet has no time.
pub(super) fn made_at(path: &Path) -> Option<Duration> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::symlink_metadata(path).ok()?;
    Some(Duration::new(u64::try_from(meta.ctime()).ok()?, meta.ctime_nsec() as u32))
}

/// Makes a file that can be run.
pub(super) fn script(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    Ok(())
}
