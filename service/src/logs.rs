//! Structured logs on standard error.
//!
//! Invariant: a process starts its logs once. An event is one line, whatever text from outside its fields hold. No task
//! waits for the reader of the lines, and none fails because the reader has gone.

use crate::log_queue::LogQueue;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use shoal_proto::plain_text;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::TryInitError;

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object in each line.
    Json,
}

/// The reason for which logs cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The format has an unknown name.
    #[error("unknown log format `{0}`: use `text` or `json`")]
    Format(String),
    /// The filter cannot be parsed.
    #[error("invalid log filter `{filter}`: {source}")]
    #[allow(missing_docs, reason = "the names say it")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    /// Logs were started before.
    #[error("logs cannot start: {0}")]
    Start(#[from] TryInitError),
    /// The system starts no thread for them.
    #[error("logs cannot start: {0}")]
    Thread(#[from] io::Error),
}

impl FromStr for LogFormat {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LogError::Format(text.to_string())),
        }
    }
}

/// Libraries that write a line for each connection or stream that breaks their rules. Strangers could fill the log. A
/// filter that names a library brings its lines back.
const QUIET: &str = "yamux=off,libp2p_yamux=off,libp2p_request_response=off,libp2p_swarm=error,libp2p_tcp=error";

/// The lines of this process.
static QUEUE: OnceLock<Arc<LogQueue>> = OnceLock::new();

/// Starts the logs. `filter` is a level or a list such as `info,shoal_net=debug`. Panics are events, too.
///
/// # Errors
///
/// Fails if the filter cannot be parsed or logs were started before.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let parsed = EnvFilter::try_new(format!("{QUIET},{filter}"))
        .map_err(|source| LogError::Filter { filter: filter.to_string(), source })?;
    let is_file = rustix::fs::fstat(io::stderr()).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
    let queue = if is_file { LogQueue::of_file(io::stderr()) } else { LogQueue::start(io::stderr())? };
    let lines = queue.clone();
    let writer = move || OneLine { out: Queued(lines.clone()), format };
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_ansi(false).with_writer(writer);
    // The library would write its own errors to standard error, and end the thread if that fails.
    let builder = builder.log_internal_errors(false);
    match format {
        LogFormat::Text => init_with(builder)?,
        LogFormat::Json => init_with(builder.json().flatten_event(true))?,
    }
    let _ = QUEUE.set(queue); // a second start has failed above
    // The usual hook waits for the reader of standard error.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a task failed")));
    Ok(())
}

/// Writes a line to standard error, in the order of the logs. Before the start of the logs it does nothing.
pub fn line(text: &str) {
    if let Some(queue) = QUEUE.get() {
        queue.push(format!("{}\n", plain_text::escape_lines(text)).into_bytes());
    }
}

/// Waits until the lines so far are written, at most for `patience`. Without a reader they are not.
pub fn flush(patience: Duration) {
    if let Some(queue) = QUEUE.get() {
        queue.flush(patience);
    }
}

/// Returns how many lines were dropped since the start, because standard error was not read in time.
pub fn dropped_lines() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.dropped())
}

/// The queue as a writer. Each write is a whole line.
struct Queued(Arc<LogQueue>);

impl Write for Queued {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that receives a whole event in each call, and escapes everything that could look like another line.
struct OneLine<W> {
    out: W,
    format: LogFormat,
}

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let line = match self.format {
            LogFormat::Text => plain_text::escape(text),
            // The formatter has escaped line feeds already.
            LogFormat::Json => plain_text::escape_json(text),
        };
        self.out.write_all(format!("{line}\n").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn init_with(subscriber: impl tracing_subscriber::util::SubscriberInitExt) -> Result<(), LogError> {
    Ok(subscriber.try_init()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let mut log = OneLine { out: Vec::new(), format: LogFormat::Text };
        log.write_all(b"WARN refused why=a\x1b[2J\nINFO all is well\xff\n").unwrap();
        let line = String::from_utf8(log.out).unwrap();
        assert_eq!(line, "WARN refused why=a\\u{1b}[2J\\u{a}INFO all is well\u{fffd}\n");
    }

    #[test]
    fn a_json_line_stays_json() {
        let event = serde_json::json!({ "why": "\u{202e}gpj.exe \u{85}\u{1b}[2J \u{e0001}\n" });
        let mut log = OneLine { out: Vec::new(), format: LogFormat::Json };
        log.write_all(format!("{event}\n").as_bytes()).unwrap();
        let line = String::from_utf8(log.out).unwrap();
        assert!(!line.trim_end().contains(plain_text::is_unsafe), "{line}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), event);
    }
}
