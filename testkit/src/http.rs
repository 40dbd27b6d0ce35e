//! Requests to a role's API, made on the calling thread. A thread in another network namespace may call these.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Sends a GET request. Returns the status and the body, or `None` when the server does not answer.
pub fn get(addr: &str, path: &str, token: Option<&str>) -> Option<(u16, String)> {
    let answer = send(addr, "GET", path, token, None)?;
    Some((answer.status, answer.body))
}

/// An answer of a server.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The status line and the header lines.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Sends a request with a JSON body, if there is one. Returns `None` when the server does not answer.
pub fn send(addr: &str, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> Option<Answer> {
    let mut stream = begin(addr, method, path, token, body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    // A trust document is not text.
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_string(), body: body.to_string() })
}

/// Sends a request like [`send`], and returns the connection before any answer.
pub fn begin(addr: &str, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let auth = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = match (method, body.len()) {
        ("POST", len) => format!("content-type: application/json\r\ncontent-length: {len}\r\n"),
        _ => String::new(),
    };
    // HTTP/1.0, so that the body of the answer is not encoded and ends with the connection.
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: {addr}\r\n{auth}{length}\r\n{body}").ok()?;
    Some(stream)
}

/// The value of a metric, 0 when nothing was counted yet. `name` includes the labels.
pub fn metric(addr: &str, name: &str) -> Option<u64> {
    let (_, text) = get(addr, "/metrics", None)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Some(line.and_then(|number| number.parse::<f64>().ok()).unwrap_or(0.0) as u64)
}
