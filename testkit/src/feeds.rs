//! A fast publisher of a feed, and readers on hosts that note how long each version took.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time of day, Unix microseconds.
fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// A publisher that keeps one connection open and makes a new one after an error.
pub struct Publisher {
    addr: String,
    token: String,
    stream: Option<BufReader<TcpStream>>,
}

impl Publisher {
    /// A publisher at the seeder whose API is at `addr`.
    pub fn new(addr: &str, token: &str) -> Self {
        Self { addr: addr.to_string(), token: token.trim().to_string(), stream: None }
    }

    /// Publishes a version; returns its sequence, or `None` when the seeder does not answer.
    ///
    /// # Panics
    /// When the seeder refuses the version.
    pub fn publish(&mut self, feed: &str, data: &[u8]) -> Option<u64> {
        let answer = self.try_publish(feed, data);
        if answer.is_none() {
            self.stream = None;
        }
        answer
    }

    fn try_publish(&mut self, feed: &str, data: &[u8]) -> Option<u64> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(&self.addr).ok()?;
            stream.set_nodelay(true).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
            self.stream = Some(BufReader::new(stream));
        }
        let stream = self.stream.as_mut()?;
        let head = format!(
            "POST /v1/feeds/{feed} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
            self.token,
            data.len()
        );
        stream.get_mut().write_all(&[head.as_bytes(), data].concat()).ok()?;
        let (mut line, mut len) = (String::new(), 0);
        let mut status = String::new();
        loop {
            line.clear();
            stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
            if status.is_empty() {
                status = line.trim().to_string();
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                len = value.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; len];
        stream.read_exact(&mut body).ok()?;
        assert!(status.contains("200"), "{status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice::<Value>(&body).ok()?["sequence"].as_u64()
    }
}

/// The data of a version: its number and the time of day, padded to `len` bytes.
pub fn numbered(number: u64, len: usize) -> Vec<u8> {
    let mut text = format!("{{\"n\":{number},\"at_us\":{},\"pad\":\"", unix_us());
    let pad = len.saturating_sub(text.len() + 2);
    text.extend(std::iter::repeat_n('x', pad));
    text.push_str("\"}");
    text.into_bytes()
}

/// One version at a reader.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The sequence that the seeder assigned.
    pub sequence: u64,
    /// The number that [`numbered`] wrote into the data.
    pub number: u64,
    /// From the call of [`numbered`] to the reading, microseconds.
    pub took_us: u64,
}

/// A reader on a host. Its thread follows the event stream and opens it again when it ends.
pub struct Reader {
    stop: Arc<AtomicBool>,
    readings: Arc<Mutex<Vec<Reading>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// A reader of the peer at `addr`. Its thread first calls `enter`, which may move it to another network namespace.
    pub fn start(addr: &str, feed: &str, enter: impl FnOnce() + Send + 'static) -> Self {
        let (addr, feed) = (addr.to_string(), feed.to_string());
        let (stop, readings) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Reading>>>::default());
        let thread = std::thread::spawn({
            let (stop, readings) = (stop.clone(), readings.clone());
            move || {
                enter();
                while !stop.load(Ordering::Relaxed) {
                    if read_stream(&addr, &feed, &stop, &readings).is_none() {
                        std::thread::park_timeout(Duration::from_millis(20));
                    }
                }
            }
        });
        Self { stop, readings, thread: Some(thread) }
    }

    /// All versions that the reader received, in order.
    pub fn readings(&self) -> Vec<Reading> {
        self.readings.lock().unwrap().clone()
    }

    /// The newest of them.
    pub fn last(&self) -> Option<Reading> {
        self.readings.lock().unwrap().last().copied()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic of the reader has been printed.
        }
    }
}

fn read_stream(addr: &str, feed: &str, stop: &AtomicBool, readings: &Mutex<Vec<Reading>>) -> Option<()> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    write!(stream, "GET /feeds/{feed}/events HTTP/1.0\r\nhost: localhost\r\n\r\n").ok()?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        match stream.read_line(&mut line) {
            Ok(0) => return None,
            Ok(_) if line.ends_with('\n') => {}
            // The read timed out inside a line. The bytes so far stay in `line`.
            Ok(_) => continue,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => return None,
        }
        let now = unix_us();
        if let Some(data) = line.strip_prefix("data: ") {
            let event: Value = serde_json::from_str(data).unwrap();
            let text: Value = serde_json::from_str(event["text"].as_str().unwrap()).unwrap();
            readings.lock().unwrap().push(Reading {
                sequence: event["sequence"].as_u64().unwrap(),
                number: text["n"].as_u64().unwrap(),
                took_us: now.saturating_sub(text["at_us"].as_u64().unwrap()),
            });
        }
        line.clear();
    }
    Some(())
}

/// The quantile of sorted values, by nearest rank; 0 when there are none. `fraction` is between 0 and 1.
pub fn quantile(sorted: &[u64], fraction: f64) -> u64 {
    let place = (sorted.len() as f64 * fraction).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(0)
}
