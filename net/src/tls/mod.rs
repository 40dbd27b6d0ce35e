//! TLS of links: version 1.3 only, both ends prove their key, AES before ChaCha20.
//!
//! Owns the two rustls configurations of an identity and the choice of the record layer ([`RecordLayer`]).
//! Invariant: a finished handshake proves that the other end holds the Ed25519 key of the [`NodeId`] that [`connect`]
//! and [`accept`] return.
//!
//! The certificate is libp2p's (<https://github.com/libp2p/specs/blob/master/tls/tls.md>): self-signed, with the node
//! key's signature in an extension. The order of ciphers is our own. libp2p puts ChaCha20 first, which costs more than
//! twice the processor time of AES-GCM on processors with AES instructions.

mod key_verifier;
mod stream;
#[cfg(test)]
mod tests;

use crate::identity::{Identity, node_of};
use key_verifier::KeyVerifier;
use libp2p_tls::certificate;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, sign::any_ecdsa_type};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, CommonState, Error, ServerConfig, version};
use shoal_proto::ids::NodeId;
use shoal_tls_records::handshake::{self, HandshakeError};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
pub(crate) use stream::LinkStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The application protocol that both ends name in the handshake.
const ALPN: &[u8] = b"shoal/1";

/// The implementation that seals and opens TLS records. Both speak the same protocol, so hosts with different choices
/// interoperate. rustls runs the handshake in both cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordLayer {
    /// `shoal-tls-records`: larger reads and fewer copies.
    #[default]
    Own,
    /// rustls itself, which costs about 12 % more processor time in a swarm without rate limits.
    Rustls,
}

/// The reason for which an identity yields no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// No certificate can be made from the node's key.
    #[error("certificate cannot be made from the node key: {0}")]
    Certificate(#[from] certificate::GenError),
    /// rustls refuses the settings.
    #[error("TLS settings are refused: {0}")]
    Config(#[from] Error),
}

/// The reason for which a TLS connection does not come about.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The transport or rustls's own stream failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The handshake below our own records failed.
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    /// The other end proves no node key.
    #[error("peer proves no node key: {0}")]
    Peer(#[from] Error),
}

/// Both configurations of one identity. They share one certificate.
#[derive(Clone)]
pub(crate) struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    pub(crate) fn new(identity: &Identity) -> Result<Self, TlsSetupError> {
        let (certificate, key) = certificate::generate(identity.libp2p())?;
        // Unlike the shortcuts of the builders, `CertifiedKey::new` does not have webpki parse the certificate. webpki
        // would refuse libp2p's critical extension.
        let key = any_ecdsa_type(&key)?;
        let resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key)));
        let provider = Arc::new(provider());
        let verifier = Arc::new(KeyVerifier);
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(resolver.clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.enable_sni = false;
        // Links are few and long. A resumed session would save nothing and skip the proof of the key.
        client.resumption = Resumption::disabled();
        // Our own record layer takes the traffic keys.
        client.enable_secret_extraction = true;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(resolver);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.enable_secret_extraction = true;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    #[cfg(test)]
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}

fn provider() -> CryptoProvider {
    let mut provider = default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider
}

/// Runs the client's handshake. Returns the node that the other end proved to be.
pub(crate) async fn connect<S>(tls: &Tls, records: RecordLayer, io: S) -> Result<(NodeId, LinkStream<S>), TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match records {
        RecordLayer::Own => {
            let (node, stream) = handshake::connect(tls.client.clone(), server_name(), io, peer_node).await?;
            Ok((node, LinkStream::Own(Box::new(stream))))
        }
        RecordLayer::Rustls => {
            let stream = TlsConnector::from(tls.client.clone()).connect(server_name(), io).await?;
            let node = peer_node(stream.get_ref().1)?;
            Ok((node, LinkStream::Rustls(Box::new(stream.into()))))
        }
    }
}

/// Runs the server's handshake. Returns the node that the other end proved to be.
pub(crate) async fn accept<S>(tls: &Tls, records: RecordLayer, io: S) -> Result<(NodeId, LinkStream<S>), TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match records {
        RecordLayer::Own => {
            let (node, stream) = handshake::accept(tls.server.clone(), io, peer_node).await?;
            Ok((node, LinkStream::Own(Box::new(stream))))
        }
        RecordLayer::Rustls => {
            let stream = TlsAcceptor::from(tls.server.clone()).accept(io).await?;
            let node = peer_node(stream.get_ref().1)?;
            Ok((node, LinkStream::Rustls(Box::new(stream.into()))))
        }
    }
}

/// Returns the server name that rustls asks a client for. [`KeyVerifier`] ignores it.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into())
}

/// Returns the node at the other end of a finished handshake.
fn peer_node(state: &CommonState) -> Result<NodeId, Error> {
    if state.alpn_protocol() != Some(ALPN) {
        return Err(Error::NoApplicationProtocol);
    }
    match state.peer_certificates() {
        Some([one]) => node_in(one),
        _ => Err(Error::NoCertificatesPresented),
    }
}

/// Returns the node whose key signed a certificate.
fn node_in(certificate: &CertificateDer<'_>) -> Result<NodeId, Error> {
    let peer = certificate::parse(certificate)?.peer_id();
    node_of(&peer).ok_or(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
}
