//! The entry functions of the fuzz target `control`: streams of the control plane as bytes.
//!
//! Invariant: they use the codec of the control plane and nothing else.

use super::codec::Codec;
use futures::FutureExt;
use libp2p::StreamProtocol;
use libp2p::request_response::Codec as _;
use shoal_proto::control::{Request, Response};
use std::io;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/fuzz");

/// Bytes in memory are always ready.
fn ready<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    work.now_or_never().unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
}

/// Reads a request of at most `bytes_max` bytes.
///
/// # Errors
///
/// Fails if the stream ends early, or the document is too long or invalid.
pub fn read_request(mut stream: &[u8], bytes_max: usize) -> io::Result<Request> {
    ready(Codec::new(bytes_max, bytes_max).read_request(&PROTOCOL, &mut stream))
}

/// Reads a response of at most `bytes_max` bytes.
///
/// # Errors
///
/// As [`read_request`].
pub fn read_response(mut stream: &[u8], bytes_max: usize) -> io::Result<Response> {
    ready(Codec::new(bytes_max, bytes_max).read_response(&PROTOCOL, &mut stream))
}

/// Returns the stream of a request.
///
/// # Errors
///
/// Fails if the request is too long.
pub fn write_request(request: Request) -> io::Result<Vec<u8>> {
    let mut stream = Vec::new();
    ready(Codec::new(0, 0).write_request(&PROTOCOL, &mut stream, request))?;
    Ok(stream)
}

/// Returns the stream of a response.
///
/// # Errors
///
/// Fails if the response is too long.
pub fn write_response(response: Response) -> io::Result<Vec<u8>> {
    let mut stream = Vec::new();
    ready(Codec::new(0, 0).write_response(&PROTOCOL, &mut stream, response))?;
    Ok(stream)
}
