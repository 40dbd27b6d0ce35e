//! Requests to a role's API, made on the calling thread. A thread in another network namespace may call these.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Sends a GET request. Returns the status and the body, or `None` when the server does not answer.
pub fn get(addr: &str, path: &str, token: Option<&str>) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let auth = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
    // HTTP/1.0, so that the body is not encoded and ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {addr}\r\n{auth}\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_string()))
}

/// The value of a metric, 0 when nothing was counted yet. `name` includes the labels.
pub fn metric(addr: &str, name: &str) -> Option<u64> {
    let (_, text) = get(addr, "/metrics", None)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Some(line.and_then(|number| number.parse::<f64>().ok()).unwrap_or(0.0) as u64)
}
