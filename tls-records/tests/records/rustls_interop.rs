//! Interoperation with rustls's own streams and with ourselves, and key updates in both directions.

use crate::support::{EXCHANGE_BYTES, TestCertificate, exchange, name, own_pair, run};
use rustls::crypto::aws_lc_rs::cipher_suite;
use shoal_tls_records::TlsStream;
use shoal_tls_records::handshake::{HandshakeError, accept, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A client that is all rustls, and a server with our records.
async fn rustls_client() -> (tokio_rustls::client::TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let certificate = TestCertificate::new();
    let (a, b) = duplex(40_000);
    let theirs = TlsConnector::from(certificate.client(&[])).connect(name(), a);
    let (theirs, ours) = tokio::join!(theirs, accept(certificate.server(), b, |_| Ok(())));
    (theirs.unwrap(), ours.unwrap().1)
}

#[test]
fn writes_of_any_length_arrive() {
    for write in [1_000, 16_384, 100_000, EXCHANGE_BYTES] {
        run(async {
            let (client, server) = own_pair().await;
            exchange(client, server, write).await;
        });
    }
}

#[test]
fn rustls_reads_our_records_and_we_read_its_records() {
    run(async {
        let (theirs, ours) = rustls_client().await;
        exchange(theirs, ours, 70_000).await;
    });
    let suites = [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    for suite in suites {
        run(async {
            let certificate = TestCertificate::new();
            let (a, b) = duplex(40_000);
            let theirs = TlsAcceptor::from(certificate.server()).accept(b);
            let client = certificate.client(&[suite]);
            let (ours, theirs) = tokio::join!(connect(client, name(), a, |_| Ok(())), theirs);
            exchange(ours.unwrap().1, theirs.unwrap(), 70_000).await;
        });
    }
}

#[test]
fn keys_are_updated_in_both_directions() {
    run(async {
        let (mut theirs, mut ours) = rustls_client().await;
        ours.set_records_per_key(3);
        for round in 0..20u8 {
            // This updates its key and requests an update of ours.
            theirs.get_mut().1.refresh_traffic_keys().unwrap();
            theirs.write_all(&[round; 5_000]).await.unwrap();
            theirs.flush().await.unwrap();
            let mut received = [0; 5_000];
            ours.read_exact(&mut received).await.unwrap();
            assert_eq!(received, [round; 5_000]);
            for _ in 0..4 {
                ours.write_all(&[round; 3_000]).await.unwrap();
                ours.flush().await.unwrap();
                let mut received = [0; 3_000];
                theirs.read_exact(&mut received).await.unwrap();
                assert_eq!(received, [round; 3_000]);
            }
        }
        let (mut a, mut b) = own_pair().await;
        a.set_records_per_key(2);
        b.set_records_per_key(5);
        exchange(a, b, 9_000).await;
    });
}

#[test]
fn an_inspection_that_fails_ends_the_handshake() {
    run(async {
        let certificate = TestCertificate::new();
        let (a, b) = duplex(40_000);
        let refuse = |_: &_| Err::<(), _>(rustls::Error::NoApplicationProtocol);
        let (client, server) = tokio::join!(
            connect(certificate.client(&[]), name(), a, refuse),
            accept(certificate.server(), b, |_| Ok(()))
        );
        assert!(matches!(client, Err(HandshakeError::Tls(rustls::Error::NoApplicationProtocol))));
        // The server's handshake is complete. It learns of the refusal when it reads.
        let error = server.unwrap().1.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_closed_direction_takes_no_more_data_and_the_other_one_works() {
    run(async {
        let (mut a, mut b) = own_pair().await;
        a.shutdown().await.unwrap();
        assert_eq!(b.read(&mut [0; 8]).await.unwrap(), 0);
        let error = a.write_all(b"late").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        b.write_all(b"still open").await.unwrap();
        b.flush().await.unwrap();
    });
}
