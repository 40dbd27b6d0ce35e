//! The encoding of requests and responses on a libp2p stream: a length of 4 bytes, then a document.
//!
//! Invariant: memory is reserved only as bytes arrive, and none for a length over the limit.

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response;
use shoal_proto::codec::Document;
use shoal_proto::control::{Request, Response};
use std::io;

/// Reads and writes the documents of the control plane.
#[derive(Clone, Copy, Debug)]
pub struct Codec {
    request_bytes_max: usize,
    response_bytes_max: usize,
}

impl Codec {
    pub fn new(request_bytes_max: usize, response_bytes_max: usize) -> Self {
        Self { request_bytes_max, response_bytes_max }
    }
}

async fn read<D: Document>(io: &mut (impl AsyncRead + Unpin + Send), max: usize) -> io::Result<D> {
    let mut len = [0; 4];
    io.read_exact(&mut len).await?;
    let len = u32::from_le_bytes(len) as usize;
    if len > max {
        let why = format!("document of {len} bytes is over the limit of {max} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut bytes = Vec::new();
    io.take(len as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    D::from_bytes(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

async fn write<D: Document>(io: &mut (impl AsyncWrite + Unpin + Send), document: D) -> io::Result<()> {
    let bytes = document.to_bytes();
    if bytes.len() > D::BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "document is over the limit of the control plane"));
    }
    io.write_all(&(bytes.len() as u32).to_le_bytes()).await?;
    io.write_all(&bytes).await?;
    io.close().await
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Response;

    async fn read_request<T>(&mut self, _protocol: &StreamProtocol, io: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, self.request_bytes_max).await
    }

    async fn read_response<T>(&mut self, _protocol: &StreamProtocol, io: &mut T) -> io::Result<Response>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, self.response_bytes_max).await
    }

    async fn write_request<T>(&mut self, _protocol: &StreamProtocol, io: &mut T, request: Request) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, request).await
    }

    async fn write_response<T>(&mut self, _protocol: &StreamProtocol, io: &mut T, response: Response) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, response).await
    }
}
