//! The tracker's state in a backup, and back.
//!
//! Invariant: counters that must never go back are ahead of everything that was handed out when a restored tracker
//! starts, however old the backup is.

use crate::config::TrackerConfig;
use crate::issuing::{Holder, TokenUse};
use crate::roster::Roster;
use crate::tables::{
    self, ANNOUNCEMENTS, EPOCH, INDICES, MEMBERS, META, NEXT_INDEX, PLACES, REPORTS, SEQUENCE, SPOOL, TOKENS, VERSIONS,
};
use shoal_kv::{Database, Table};
use shoal_net::admission::system_clock;
use shoal_proto::announcement::{Announcement, is_version};
use shoal_proto::codec::{Document, decode_exact};
use shoal_proto::limits::HOSTS_MAX;
use shoal_proto::locality::Locality;
use shoal_proto::membership::Member;
use shoal_proto::report::{HostReport, HubSubmission};
use shoal_proto::trust::Envelope;
use shoal_service::backup::{BackupError, Rows, Writer};
use shoal_service::tables as archive;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Membership epochs that a restore skips. No region changes its membership this often after a backup.
const EPOCHS_SKIPPED: u64 = 1 << 32;
/// Roster indices that a restore skips, because hosts that joined after the backup have them.
const INDICES_SKIPPED: u64 = 1024;

/// Writes a running tracker's state. Counters come last, so that no other row is newer than its counter.
pub(crate) fn write(database: &dyn Database, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    archive::write(database, |name| name == META, out)
}

/// Writes the state of a tracker that does not run.
///
/// # Errors
/// [`BackupError`] if the database or `out` fails.
pub fn write_offline(config: &TrackerConfig, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    write(&*tables::open(&config.dir)?, out)
}

/// Returns the receiver of a backup's rows for a new state folder.
///
/// # Errors
/// [`BackupError`] if the folder cannot be used.
pub fn restoring(dir: &Path) -> Result<Box<dyn Rows>, BackupError> {
    Ok(archive::restoring(tables::open(dir)?, check_row, raise_counters))
}

/// The keys are those that the parts of the tracker make.
fn check_row(table: &str, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
    let index = |bytes: &[u8]| match bytes.try_into().map(u32::from_be_bytes) {
        Ok(index) if index < HOSTS_MAX => Ok(index),
        _ => Err("a roster index has another form or is too high"),
    };
    match table {
        META => match archive::counter(value)? {
            next if key == NEXT_INDEX.as_bytes() && next > u64::from(HOSTS_MAX) => Err("the next index is too high"),
            _ => Ok(()),
        },
        INDICES if key.len() == 32 => index(value).map(drop),
        MEMBERS => match decode_exact::<Member>(value) {
            Ok(member) if member.index.0 == index(key)? => Ok(()),
            Ok(_) => Err("a host is stored under the index of another"),
            Err(_) => Err("a host cannot be read"),
        },
        ANNOUNCEMENTS => match Envelope::from_bytes(value).ok().and_then(|sealed| sealed.open::<Announcement>().ok()) {
            Some(announcement) if announcement.job.0[..] == *key => Ok(()),
            Some(_) => Err("a job is stored under the key of another"),
            None => Err("a job cannot be read"),
        },
        REPORTS if key.len() == 20 => {
            index(&key[16..])?;
            decode_exact::<HostReport>(value).map(drop).map_err(|_| "a report cannot be read")
        }
        VERSIONS if key.len() > 4 => {
            index(&key[..4])?;
            let version = decode_exact::<String>(value).map_err(|_| "a version cannot be read")?;
            if version.is_empty() || is_version(&version) { Ok(()) } else { Err("a version is invalid") }
        }
        SPOOL if key.len() == 8 => {
            archive::counter(key)?;
            decode_exact::<HubSubmission>(value).map(drop).map_err(|_| "a report to the hub cannot be read")
        }
        TOKENS if key.len() == 64 => {
            decode_exact::<TokenUse>(value).map(drop).map_err(|_| "a use of a token cannot be read")
        }
        PLACES => match std::str::from_utf8(key).map(str::parse::<Locality>) {
            Ok(Ok(_)) => decode_exact::<Holder>(value).map(drop).map_err(|_| "a holder of a place cannot be read"),
            _ => Err("a place has another form"),
        },
        INDICES | REPORTS | VERSIONS | SPOOL | TOKENS => Err("a key has another form"),
        _ => Err("a tracker has no such table"),
    }
}

/// Moves each counter ahead of every value that the tracker can have handed out after the backup.
fn raise_counters(database: &Arc<dyn Database>) -> Result<(), BackupError> {
    let meta = Table::new(database, META);
    let raise = |key: &str, next: &dyn Fn(u64) -> u64| -> Result<(), BackupError> {
        if let Some(former) = meta.get_u64(key)? {
            meta.put_u64(key, next(former))?;
        }
        Ok(())
    };
    // The sums do not overflow, because `check_row` bounds counters.
    raise(EPOCH, &|epoch| epoch + EPOCHS_SKIPPED)?;
    raise(NEXT_INDEX, &|next| next.max((next + INDICES_SKIPPED).min(u64::from(HOSTS_MAX))))?;
    // The clock in milliseconds is ahead, because a tracker writes less than one flush per millisecond.
    raise(SEQUENCE, &|sequence| sequence.max(system_clock().saturating_mul(1000)))?;
    check_indices(database, meta.get_u64(NEXT_INDEX)?.unwrap_or(0))?;
    // The tracker would refuse at its start what the roster refuses here.
    Roster::open(database).map(drop).map_err(|error| BackupError::State(error.to_string()))
}

/// Checks that no index is free that a node has.
fn check_indices(database: &Arc<dyn Database>, next: u64) -> Result<(), BackupError> {
    let rows = Table::new(database, INDICES).scan([])?;
    let mut indices: Vec<&[u8]> = rows.iter().map(|row| row.value.as_slice()).collect();
    indices.sort_unstable();
    let why = match indices.last().map(|bytes| (*bytes).try_into().map(u32::from_be_bytes)) {
        Some(Ok(highest)) if u64::from(highest) >= next => "the next index is below an index in use",
        _ if indices.windows(2).any(|pair| pair[0] == pair[1]) => "two nodes have one index",
        _ => return Ok(()),
    };
    Err(BackupError::Row { table: INDICES.to_string(), why })
}
