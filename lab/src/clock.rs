//! Time in the lab: the time of day, pauses and waits. All of them end early when the lab is interrupted.

use crate::interrupt;
use anyhow::bail;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two looks at something that cannot be waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(10);

/// The time of day since the Unix epoch, comparable with the times of files.
pub(crate) fn time_of_day() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// When a file or link was made or last changed; `None` while it does not exist.
pub(crate) fn made_at(path: &Path) -> Option<Duration> {
    let meta = fs::symlink_metadata(path).ok()?;
    Some(Duration::new(u64::try_from(meta.ctime()).ok()?, meta.ctime_nsec() as u32))
}

/// Lets time pass.
pub(crate) fn pause(span: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        interrupt::check()?;
        std::thread::sleep(LOOK.min(span));
    }
    Ok(())
}

/// Calls `look` until it returns a value, for at most `patience`.
pub(crate) fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
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
