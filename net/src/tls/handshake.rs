//! Handshakes: rustls does them, on buffers of ours, and then hands the keys to [`TlsStream`].
//!
//! Invariant: rustls is shown no record beyond those of the handshake; what follows them is the stream's.

use super::records::{RECORD_MAX, TlsStream, record_len};
use super::{Tls, peer_node, server_name};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{CommonState, ConnectionTrafficSecrets, Error, ExtractedSecrets};
use shoal_proto::ids::NodeId;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Handshakes have a few kilobytes; more is none.
const HANDSHAKE_MAX: usize = 4 * RECORD_MAX;

/// Makes the keys that follow the present ones.
pub(super) trait Rekey: Send {
    /// For what we send.
    fn sending(&mut self) -> Result<ConnectionTrafficSecrets, Error>;
    /// For what we receive.
    fn receiving(&mut self) -> Result<ConnectionTrafficSecrets, Error>;
}

impl<Data: Send> Rekey for KernelConnection<Data> {
    fn sending(&mut self) -> Result<ConnectionTrafficSecrets, Error> {
        self.update_tx_secret().map(|(_, secrets)| secrets)
    }

    fn receiving(&mut self) -> Result<ConnectionTrafficSecrets, Error> {
        self.update_rx_secret().map(|(_, secrets)| secrets)
    }
}

/// What a finished handshake leaves.
type Keys = (ExtractedSecrets, Box<dyn Rekey>);

/// Client or server.
trait Side {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn state(&self) -> &CommonState;
    fn into_keys(self) -> Result<Keys, Error>;
}

/// rustls has the same methods on both, but no name for what they share.
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

            fn into_keys(self) -> Result<Keys, Error> {
                let (secrets, rest) = self.dangerous_into_kernel_connection()?;
                Ok((secrets, Box::new(rest)))
            }
        }
    };
}

side!(UnbufferedClientConnection, ClientConnectionData);
side!(UnbufferedServerConnection, ServerConnectionData);

/// Shakes hands with whoever was dialled; gives the node it proved to be.
pub(crate) async fn connect<S>(tls: &Tls, io: S) -> io::Result<(NodeId, TlsStream<S>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let side = UnbufferedClientConnection::new(tls.client.clone(), server_name()).map_err(io::Error::other)?;
    shake(side, io).await
}

/// Shakes hands with whoever dialled; gives the node it proved to be.
pub(crate) async fn accept<S>(tls: &Tls, io: S) -> io::Result<(NodeId, TlsStream<S>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let side = UnbufferedServerConnection::new(tls.server.clone()).map_err(io::Error::other)?;
    shake(side, io).await
}

/// What rustls wants next.
enum Step {
    Again,
    Send,
    Read,
    Done,
}

async fn shake<C: Side, S>(mut side: C, mut io: S) -> io::Result<(NodeId, TlsStream<S>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    // Of what came, whole records that rustls was shown. A message may need more than one.
    let mut shown = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = side.process(&mut incoming[..shown]);
        // Once it has failed it must not be asked again, not even for the alert it would send.
        let step = match state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
            ConnectionState::EncodeTlsData(mut data) => {
                let start = outgoing.len();
                outgoing.resize(start + RECORD_MAX, 0);
                let written = data.encode(&mut outgoing[start..]).map_err(io::Error::other)?;
                outgoing.truncate(start + written);
                Step::Again
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                Step::Send
            }
            ConnectionState::BlockedHandshake => Step::Read,
            ConnectionState::WriteTraffic(_) => Step::Done,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no handshake goes like this")),
        };
        incoming.drain(..discard);
        shown -= discard;
        match step {
            Step::Again => {}
            Step::Send => {
                io.write_all(&outgoing).await?;
                io.flush().await?;
                outgoing.clear();
            }
            Step::Done if !side.state().is_handshaking() => {
                let node = peer_node(side.state()).map_err(io::Error::other)?;
                let (secrets, rekey) = side.into_keys().map_err(io::Error::other)?;
                return Ok((node, TlsStream::new(io, incoming, &secrets, rekey)?));
            }
            // A server may speak before it has heard the last of the client's.
            Step::Done | Step::Read => shown = more(&mut io, &mut incoming, shown).await?,
        }
    }
}

/// Shows rustls one record more, read if it is not here yet; gives how many bytes that is in all.
async fn more(io: &mut (impl AsyncRead + Unpin), incoming: &mut Vec<u8>, shown: usize) -> io::Result<usize> {
    loop {
        if let Some(len) = record_len(&incoming[shown..]) {
            let end = shown + len;
            if end > HANDSHAKE_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a handshake of that length is none"));
            }
            if incoming.len() >= end {
                return Ok(end);
            }
        }
        if io.read_buf(incoming).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
