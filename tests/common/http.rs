//! Asking a role's API by hand, from whatever machine the calling thread is on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// GET by hand: status line and body.
pub(crate) fn get(addr: &str, path: &str, token: Option<&str>) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let auth = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
    // HTTP/1.0: the body comes as it is and ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {addr}\r\n{auth}\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_string()))
}

/// A metric's value, with its labels; 0 when it was never counted.
pub(crate) fn metric(addr: &str, name: &str) -> Option<u64> {
    let (_, text) = get(addr, "/metrics", None)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Some(line.and_then(|number| number.parse::<f64>().ok()).unwrap_or(0.0) as u64)
}
