//! Publishing to a feed fast, and reading it on hosts, with the time each version took.

#![allow(dead_code, reason = "each user has its own part")]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, Unix microseconds.
pub(crate) fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// Publishes on one connection for as long as it lives.
pub(crate) struct Publisher {
    addr: String,
    token: String,
    stream: Option<BufReader<TcpStream>>,
}

impl Publisher {
    /// At a seeder's API.
    pub(crate) fn new(addr: &str, token: &str) -> Self {
        Self { addr: addr.to_string(), token: token.trim().to_string(), stream: None }
    }

    /// Gives the version's sequence; `None` when the seeder is not there.
    pub(crate) fn publish(&mut self, feed: &str, data: &[u8]) -> Option<u64> {
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
            "POST /v1/feeds/{feed} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
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

/// A version that says which it is and when it was made, padded to `len` bytes.
pub(crate) fn numbered(number: u64, len: usize) -> Vec<u8> {
    let mut text = format!("{{\"n\":{number},\"at_us\":{},\"pad\":\"", unix_us());
    let pad = len.saturating_sub(text.len() + 2);
    text.extend(std::iter::repeat_n('x', pad));
    text.push_str("\"}");
    text.into_bytes()
}

/// What a reader saw of one version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) sequence: u64,
    pub(crate) number: u64,
    /// From its making to its reading, microseconds.
    pub(crate) took_us: u64,
}

/// A reader on a host: a stream of versions, opened again when it ends.
pub(crate) struct Reader {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Of the peer at `addr`, once `enter` has brought its thread to where that can be reached.
    pub(crate) fn start(addr: &str, feed: &str, enter: impl FnOnce() + Send + 'static) -> Self {
        let (addr, feed) = (addr.to_string(), feed.to_string());
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Seen>>>::default());
        let thread = std::thread::spawn({
            let (stop, seen) = (stop.clone(), seen.clone());
            move || {
                enter();
                while !stop.load(Ordering::Relaxed) {
                    if read_stream(&addr, &feed, &stop, &seen).is_none() {
                        std::thread::park_timeout(Duration::from_millis(20));
                    }
                }
            }
        });
        Self { stop, seen, thread: Some(thread) }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn last(&self) -> Option<Seen> {
        self.seen.lock().unwrap().last().copied()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_stream(addr: &str, feed: &str, stop: &AtomicBool, seen: &Mutex<Vec<Seen>>) -> Option<()> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    write!(stream, "GET /feeds/{feed}/events HTTP/1.0\r\nhost: x\r\n\r\n").ok()?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        match stream.read_line(&mut line) {
            Ok(0) => return None,
            Ok(_) if line.ends_with('\n') => {}
            // What was read so far stays in the line.
            Ok(_) => continue,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => return None,
        }
        let now = unix_us();
        if let Some(data) = line.strip_prefix("data: ") {
            let told: Value = serde_json::from_str(data).unwrap();
            let text: Value = serde_json::from_str(told["text"].as_str().unwrap()).unwrap();
            seen.lock().unwrap().push(Seen {
                sequence: told["sequence"].as_u64().unwrap(),
                number: text["n"].as_u64().unwrap(),
                took_us: now.saturating_sub(text["at_us"].as_u64().unwrap()),
            });
        }
        line.clear();
    }
    Some(())
}

/// The value that this share of all is below.
pub(crate) fn quantile(sorted: &[u64], share: f64) -> u64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(0)
}
