//! TLS for bulk links: version 1.3 only, both sides prove their key, AES first.
//!
//! Owns the two rustls configurations of an identity; how they shake hands is in [`handshake`], what follows in [`records`].
//! Invariant: a finished handshake means that the other end holds the Ed25519 key of the [`NodeId`] that [`peer_node`]
//! returns.
//!
//! The certificate is libp2p's (<https://github.com/libp2p/specs/blob/master/tls/tls.md>): self-signed, with the node
//! key's signature in an extension. Cipher order is our own: libp2p lists ChaCha20 first, which costs more than twice
//! the CPU of AES-GCM where the processor has AES instructions.

mod handshake;
mod records;
#[cfg(test)]
mod tests;

use crate::identity::{Identity, node_of};
pub(crate) use handshake::{accept, connect};
use libp2p_tls::certificate;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, sign::any_ecdsa_type};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme, version,
};
use shoal_proto::ids::NodeId;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// The protocol named in the handshake.
const ALPN: &[u8] = b"shoal/1";

/// Both configurations of one identity, sharing one certificate.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Tls {
    pub(crate) fn new(identity: &Identity) -> Result<Self, String> {
        let (certificate, key) = certificate::generate(identity.libp2p()).map_err(|error| error.to_string())?;
        // `CertifiedKey::new`, unlike the builders' shortcuts, does not have webpki parse the certificate, which
        // would refuse libp2p's critical extension.
        let key = any_ecdsa_type(&key).map_err(|error| error.to_string())?;
        let resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key)));
        let mut provider = default_provider();
        provider.cipher_suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        let provider = Arc::new(provider);
        let verifier = Arc::new(KeyVerifier);
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(resolver.clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.enable_sni = false;
        // Links are few and long: a resumed session would save nothing and skip the proof of the key.
        client.resumption = Resumption::disabled();
        // For our own record layer.
        client.enable_secret_extraction = true;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(resolver);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.enable_secret_extraction = true;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

/// The name a client must give and a [`KeyVerifier`] ignores.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into())
}

/// Who is at the other end of a finished handshake.
fn peer_node(state: &CommonState) -> Result<NodeId, Error> {
    if state.alpn_protocol() != Some(ALPN) {
        return Err(Error::NoApplicationProtocol);
    }
    match state.peer_certificates() {
        Some([one]) => node_in(one),
        _ => Err(Error::NoCertificatesPresented),
    }
}

fn node_in(certificate: &CertificateDer<'_>) -> Result<NodeId, Error> {
    let peer = certificate::parse(certificate)?.peer_id();
    node_of(&peer).ok_or(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
}

/// Accepts any node that proves its key. Which node it is, and whether it may speak, is asked afterwards.
#[derive(Debug)]
struct KeyVerifier;

impl KeyVerifier {
    fn check(certificate: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        if !others.is_empty() {
            return Err(Error::General("more than one certificate".into()));
        }
        node_in(certificate).map(|_| ())
    }

    fn check_signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        certificate::parse(certificate)?.verify_signature(signature.scheme, message, signature.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    /// What a libp2p certificate may be made with; ours are P-256.
    fn schemes() -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384, SignatureScheme::ED25519]
    }

    fn tls12() -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for KeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}
