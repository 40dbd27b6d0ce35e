//! Certificates, configurations and exchanges that the tests of this crate share.

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite, version};
use shoal_tls_records::TlsStream;
use shoal_tls_records::handshake::{accept, connect};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};

/// The name in the test certificate.
pub(crate) const NAME: &str = "localhost";

/// A self-signed certificate for [`NAME`] with its key.
pub(crate) struct TestCertificate {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: Vec<u8>,
    pub(crate) pem: String,
    pub(crate) key_pem: String,
}

impl TestCertificate {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_string()]).unwrap();
        Self {
            certificate: made.cert.der().clone(),
            key: made.key_pair.serialize_der(),
            pem: made.cert.pem(),
            key_pem: made.key_pair.serialize_pem(),
        }
    }

    /// A client that trusts this certificate and offers `suites`, or all suites of TLS 1.3.
    pub(crate) fn client(&self, suites: &[SupportedCipherSuite]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider(suites))
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.enable_secret_extraction = true;
        Arc::new(config)
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let mut config = ServerConfig::builder_with_provider(provider(&[]))
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)
            .unwrap();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.enable_secret_extraction = true;
        Arc::new(config)
    }
}

fn provider(suites: &[SupportedCipherSuite]) -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = default_provider();
    if !suites.is_empty() {
        provider.cipher_suites = suites.to_vec();
    }
    Arc::new(provider)
}

pub(crate) fn name() -> ServerName<'static> {
    NAME.try_into().unwrap()
}

/// A client and a server of this crate on a pipe in memory.
pub(crate) async fn own_pair() -> (TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let certificate = TestCertificate::new();
    let (a, b) = duplex(40_000);
    let (client, server) = tokio::join!(
        connect(certificate.client(&[]), name(), a, |_| Ok(())),
        accept(certificate.server(), b, |_| Ok(()))
    );
    (client.unwrap().1, server.unwrap().1)
}

/// Bytes that look random and depend on `seed`.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| (at ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0]).collect()
}

/// Bytes that [`exchange`] sends each way: more than several reads of the record layer.
pub(crate) const EXCHANGE_BYTES: usize = 1_000_000;

/// Sends noise both ways in writes of `write` bytes, flushes now and then, closes, and checks what arrived.
pub(crate) async fn exchange<A, B>(a: A, b: B, write: usize)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (at_a, at_b) = tokio::join!(send_and_receive(a, 1, write), send_and_receive(b, 2, write));
    assert!(at_a == noise(EXCHANGE_BYTES, 2) && at_b == noise(EXCHANGE_BYTES, 1));
}

/// Sends the noise of `seed` and returns what the other end sent until its close.
pub(crate) async fn send_and_receive<S: AsyncRead + AsyncWrite + Unpin>(stream: S, seed: u64, write: usize) -> Vec<u8> {
    let (mut read, mut written) = tokio::io::split(stream);
    let sending = async {
        for (turn, part) in noise(EXCHANGE_BYTES, seed).chunks(write).enumerate() {
            written.write_all(part).await.unwrap();
            if turn % 3 == 0 {
                written.flush().await.unwrap();
            }
        }
        written.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let ((), read) = tokio::join!(sending, read.read_to_end(&mut received));
    read.unwrap();
    received
}

/// Runs `work` on a runtime of its own.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
