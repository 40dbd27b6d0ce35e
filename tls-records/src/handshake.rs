//! The handshake: rustls runs it on buffers of this crate and then hands out the traffic keys.
//!
//! Invariant: rustls sees no record beyond those of the handshake. The records after it belong to the [`TlsStream`].

use crate::error::RecordError;
use crate::rekey::Rekey;
use crate::sizes::{RECORD_BYTES_MAX, record_len};
use crate::stream::{TlsStream, TrafficKeys};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ExtractedSecrets, ServerConfig};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of the other end's handshake at most. A handshake with one small certificate has about 2 KiB.
const HANDSHAKE_BYTES_MAX: usize = 4 * RECORD_BYTES_MAX;

/// The reason for which a handshake fails.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The transport failed or ended.
    #[error("connection failed during the TLS handshake: {0}")]
    Io(#[from] io::Error),
    /// rustls refused the other end, or the caller's inspection did.
    #[error("TLS handshake failed: {0}")]
    Tls(#[from] Error),
    /// The traffic keys are not usable.
    #[error("traffic keys of the TLS handshake are not usable: {0}")]
    Keys(#[from] RecordError),
    /// The other end sent more than a handshake needs.
    #[error("TLS handshake is longer than 65 KiB")]
    TooLong,
    /// rustls reached a state that no handshake leads to.
    #[error("TLS handshake reached an unexpected state")]
    UnexpectedState,
}

/// Runs the client's handshake on `io`. `inspect` sees the finished handshake and returns what the caller keeps of it.
///
/// `config` must set `enable_secret_extraction`, offer TLS 1.3 only, and disable resumption.
///
/// # Errors
///
/// Fails if the transport fails, rustls refuses the server, or `inspect` fails. The server gets no alert then.
pub async fn connect<S, T>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: S,
    inspect: impl FnOnce(&CommonState) -> Result<T, Error>,
) -> Result<(T, TlsStream<S>), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    run(UnbufferedClientConnection::new(config, name)?, io, inspect).await
}

/// Runs the server's handshake on `io`. `inspect` sees the finished handshake and returns what the caller keeps of it.
///
/// `config` must set `enable_secret_extraction`, offer TLS 1.3 only, and send no session tickets.
///
/// # Errors
///
/// Fails if the transport fails, rustls refuses the client, or `inspect` fails. The client gets no alert then.
pub async fn accept<S, T>(
    config: Arc<ServerConfig>,
    io: S,
    inspect: impl FnOnce(&CommonState) -> Result<T, Error>,
) -> Result<(T, TlsStream<S>), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    run(UnbufferedServerConnection::new(config)?, io, inspect).await
}

/// The methods that rustls's client and server connections share. rustls has no trait for them.
trait Side {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn state(&self) -> &CommonState;
    fn into_secrets(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error>;
}

macro_rules! side {
    ($connection:ty, $data:ty) => {
        impl Side for $connection {
            type Data = $data;

            fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, $data> {
                self.process_tls_records(incoming)
            }

            fn state(&self) -> &CommonState {
                self
            }

            fn into_secrets(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error> {
                let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
                Ok((secrets, Box::new(kernel)))
            }
        }
    };
}

side!(UnbufferedClientConnection, ClientConnectionData);
side!(UnbufferedServerConnection, ServerConnectionData);

/// What rustls wants next.
enum Step {
    Continue,
    Send,
    Receive,
    Finish,
}

async fn run<C: Side, S, T>(
    mut side: C,
    mut io: S,
    inspect: impl FnOnce(&CommonState) -> Result<T, Error>,
) -> Result<(T, TlsStream<S>), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    // Length of the whole records in `incoming` that rustls may see. One message may need several records.
    let mut visible = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = side.process(&mut incoming[..visible]);
        // After an error rustls must not be called again, not even for the alert that it would send.
        let step = match state? {
            ConnectionState::EncodeTlsData(mut data) => {
                let start = outgoing.len();
                outgoing.resize(start + RECORD_BYTES_MAX, 0);
                // The buffer holds a whole record, so the only possible error is one of rustls itself.
                let written = data.encode(&mut outgoing[start..]).map_err(io::Error::other)?;
                outgoing.truncate(start + written);
                Step::Continue
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                Step::Send
            }
            ConnectionState::BlockedHandshake => Step::Receive,
            ConnectionState::WriteTraffic(_) => Step::Finish,
            _ => return Err(HandshakeError::UnexpectedState),
        };
        incoming.drain(..discard);
        visible -= discard;
        match step {
            Step::Continue => {}
            Step::Send => {
                io.write_all(&outgoing).await?;
                io.flush().await?;
                outgoing.clear();
            }
            Step::Finish if !side.state().is_handshaking() => {
                let inspected = inspect(side.state())?;
                let (secrets, rekey) = side.into_secrets()?;
                let keys = TrafficKeys::from_rustls(&secrets, rekey)?;
                return Ok((inspected, TlsStream::new(io, incoming, keys)));
            }
            // A server may send application data before it has the client's last message. It waits for that here.
            Step::Finish | Step::Receive => visible = receive_record(&mut io, &mut incoming, visible).await?,
        }
    }
}

/// Makes one more record visible to rustls, and reads it if it has not arrived. Returns the visible length.
async fn receive_record(
    io: &mut (impl AsyncRead + Unpin),
    incoming: &mut Vec<u8>,
    visible: usize,
) -> Result<usize, HandshakeError> {
    loop {
        if let Some(len) = record_len(&incoming[visible..]) {
            let end = visible + len;
            if end > HANDSHAKE_BYTES_MAX {
                return Err(HandshakeError::TooLong);
            }
            if incoming.len() >= end {
                return Ok(end);
            }
        }
        if io.read_buf(incoming).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}
