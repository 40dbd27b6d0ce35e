//! Lines on their way to standard error.
//!
//! A thread of its own writes, so that no task waits for the reader of the lines. A file has no reader, so its lines go
//! there at once.
//! Invariant: a push never waits for the output. The queue has at most [`QUEUE_BYTES_MAX`], and every line that is not
//! written is counted.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of lines that wait to be written.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// How long to wait for an output that refuses to block and is full.
const FULL_WAIT: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// Bytes of `lines`, and of the line that is being written.
    bytes: usize,
    is_writing: bool,
    /// The other end of the output has gone. Nothing can be written any more.
    is_closed: bool,
}

/// The queue. Its thread ends with the process, or when the other end of the output has gone.
pub(crate) struct LogQueue {
    state: Mutex<State>,
    changed: Condvar,
    dropped: AtomicU64,
    /// The output, if it is a file. Lines go there at once.
    file: Option<Mutex<Box<dyn Write + Send>>>,
}

impl LogQueue {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    ///
    /// Fails if the system cannot start a thread.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self::new(None));
        let writing = queue.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || writing.write_to(out))?;
        Ok(queue)
    }

    /// Returns a queue that writes to a file at once, because a file has no reader to wait for.
    pub(crate) fn of_file(file: impl Write + Send + 'static) -> Arc<Self> {
        Arc::new(Self::new(Some(Mutex::new(Box::new(file)))))
    }

    fn new(file: Option<Mutex<Box<dyn Write + Send>>>) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), dropped: AtomicU64::new(0), file }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line, which includes its line feed. Drops the line if the queue is full or the output has gone.
    pub(crate) fn push(&self, line: Vec<u8>) {
        if let Some(file) = &self.file {
            let written = write_line(&mut *file.lock().unwrap_or_else(PoisonError::into_inner), &line);
            self.dropped.fetch_add(u64::from(written.is_err()), Ordering::Relaxed);
            return;
        }
        let mut state = self.state();
        if state.is_closed || state.bytes + line.len() > QUEUE_BYTES_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        self.changed.notify_all();
    }

    /// Returns how many lines were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until every line is written or dropped, at most for `patience`.
    pub(crate) fn flush(&self, patience: Duration) {
        let has_more = |state: &mut State| !state.is_closed && (state.is_writing || !state.lines.is_empty());
        drop(self.changed.wait_timeout_while(self.state(), patience, has_more));
    }

    /// Waits for the next line.
    fn next(&self) -> Vec<u8> {
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.is_writing = true;
                return line;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write_to(&self, mut out: impl Write) {
        let mut told = 0;
        loop {
            let line = self.next();
            let written = write_line(&mut out, &line);
            let mut state = self.state();
            state.is_writing = false;
            state.bytes -= line.len();
            if written.is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            if written.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                state.is_closed = true;
                let left = std::mem::take(&mut state.lines);
                self.dropped.fetch_add(left.len() as u64, Ordering::Relaxed);
                self.changed.notify_all();
                return;
            }
            self.changed.notify_all();
            drop(state);
            // This line has the form of all others, because it takes their way.
            let dropped = self.dropped();
            if dropped > told {
                tracing::warn!(lines = dropped - told, "dropped log lines: standard error was not read in time");
                told = dropped;
            }
        }
    }
}

/// Writes a whole line. A full pipe of an output that refuses to block is tried again.
fn write_line(out: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match out.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(FULL_WAIT),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);
    const LINE_BYTES: usize = 1024;

    fn line(number: usize) -> Vec<u8> {
        let mut line = format!("{number:08} ").into_bytes();
        line.resize(LINE_BYTES - 1, b'x');
        line.push(b'\n');
        line
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let queue = LogQueue::start(writer).unwrap();
        (0..20).for_each(|number| queue.push(line(number)));
        queue.flush(LONG);
        let mut text = vec![0; 20 * LINE_BYTES];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(text, (0..20).flat_map(line).collect::<Vec<u8>>());
        assert_eq!(queue.dropped(), 0);
    }

    #[test]
    fn a_full_pipe_delays_no_push() {
        let (reader, writer) = io::pipe().unwrap();
        let queue = LogQueue::start(writer).unwrap();
        let began = Instant::now();
        let lines = 4 * QUEUE_BYTES_MAX / LINE_BYTES;
        (0..lines).for_each(|number| queue.push(line(number)));
        queue.flush(Duration::from_millis(50));
        assert!(began.elapsed() < LONG, "a push waited for the reader");
        let kept = queue.state().bytes;
        assert!((QUEUE_BYTES_MAX / 2..=QUEUE_BYTES_MAX).contains(&kept), "{kept}");
        // What a pipe holds is written, and what the queue holds waits. All other lines are counted.
        assert!(queue.dropped() as usize >= lines / 2, "{}", queue.dropped());
        drop(reader);
        queue.flush(LONG);
        assert!(queue.state().is_closed);
    }

    #[test]
    fn a_gone_reader_costs_only_the_lines() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let queue = LogQueue::start(writer).unwrap();
        queue.push(line(1));
        queue.flush(LONG);
        assert!(queue.state().is_closed);
        queue.push(line(2));
        assert_eq!(queue.dropped(), 2);
    }
}
