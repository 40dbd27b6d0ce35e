//! Interoperation with OpenSSL's `s_server` and `s_client`: both roles, all ciphers, bulk data and key updates.
//!
//! The tests need the program `openssl`, version 3.

use crate::support::{TestCertificate, name, noise, run};
use rustls::crypto::aws_lc_rs::cipher_suite;
use shoal_tls_records::TlsStream;
use shoal_tls_records::handshake::{accept, connect};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// The certificate in files of a folder of its own.
struct Files {
    certificate: TestCertificate,
    certificate_file: PathBuf,
    key_file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let certificate = TestCertificate::new();
        let folder = tempfile::tempdir().unwrap();
        let (certificate_file, key_file) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        std::fs::write(&certificate_file, &certificate.pem).unwrap();
        std::fs::write(&key_file, &certificate.key_pem).unwrap();
        Self { certificate, certificate_file, key_file, _folder: folder }
    }
}

/// A running `openssl` with its standard output and error as one stream.
struct OpenSsl {
    _child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    /// Output that no [`OpenSsl::expect`] has consumed yet.
    output: Vec<u8>,
}

impl OpenSsl {
    /// `stdbuf` has it print each line at once. Some of its lines it does not flush itself.
    fn start(arguments: &str) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec stdbuf -oL openssl {arguments} 2>&1")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { _child: child, stdin, stdout, output: Vec::new() }
    }

    async fn say(&mut self, line: &str) {
        self.stdin.write_all(line.as_bytes()).await.unwrap();
        self.stdin.flush().await.unwrap();
    }

    async fn read_more(&mut self) {
        let read = timeout(PATIENCE, self.stdout.read_buf(&mut self.output)).await;
        let text = String::from_utf8_lossy(&self.output).into_owned();
        assert!(matches!(read, Ok(Ok(1..))), "openssl ended or is silent (is it installed?); output: {text}");
    }

    /// Waits for `text` in the output and consumes the output up to its end.
    async fn expect(&mut self, text: &str) {
        loop {
            if let Some(at) = find(&self.output, text.as_bytes()) {
                self.output.drain(..at + text.len());
                return;
            }
            self.read_more().await;
        }
    }

    /// Waits for a whole line that starts with `start`, consumes it, and returns the rest of it.
    async fn line_after(&mut self, start: &str) -> String {
        self.expect(start).await;
        loop {
            if let Some(end) = find(&self.output, b"\n") {
                let line: Vec<u8> = self.output.drain(..=end).collect();
                return String::from_utf8(line).unwrap().trim().to_string();
            }
            self.read_more().await;
        }
    }

    async fn expect_bytes(&mut self, len: usize) -> Vec<u8> {
        while self.output.len() < len {
            self.read_more().await;
        }
        self.output.drain(..len).collect()
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

/// Starts `s_server` and connects to it. It chooses a free port and names it.
async fn server(files: &Files, options: &str, suite: rustls::SupportedCipherSuite) -> (OpenSsl, TlsStream<TcpStream>) {
    let (certificate, key) = (files.certificate_file.display(), files.key_file.display());
    let arguments = format!(
        "s_server -accept 127.0.0.1:0 -naccept 1 -tls1_3 -num_tickets 0 -cert {certificate} -key {key} {options}"
    );
    let mut openssl = OpenSsl::start(&arguments);
    let addr = openssl.line_after("ACCEPT ").await;
    let io = TcpStream::connect(addr).await.unwrap();
    let config = files.certificate.client(&[suite]);
    let (_, stream) = connect(config, name(), io, |_| Ok(())).await.unwrap();
    (openssl, stream)
}

/// Starts `s_client` against a listener of ours and accepts it.
async fn client(files: &Files, options: &str) -> (OpenSsl, TlsStream<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, authority) = (listener.local_addr().unwrap(), files.certificate_file.display());
    let arguments = format!(
        "s_client -connect {addr} -servername localhost -tls1_3 -CAfile {authority} -verify_return_error {options}"
    );
    let openssl = OpenSsl::start(&arguments);
    let (io, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let (_, stream) = accept(files.certificate.server(), io, |_| Ok(())).await.unwrap();
    (openssl, stream)
}

async fn say(stream: &mut TlsStream<TcpStream>, line: &str) {
    stream.write_all(line.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
}

async fn expect_line(stream: &mut TlsStream<TcpStream>, line: &str) {
    let mut received = vec![0; line.len()];
    timeout(PATIENCE, stream.read_exact(&mut received)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(received).unwrap(), line);
}

/// Lines both ways, with key updates from both ends between them. OpenSSL updates its key and requests ours when it
/// reads the line `K`, and only its own on `k`. Then it prints `updated`.
async fn converse(openssl: &mut OpenSsl, ours: &mut TlsStream<TcpStream>, updated: &str) {
    ours.set_records_per_key(2);
    for round in 0..6 {
        say(ours, &format!("shoal says {round}\n")).await;
        openssl.expect(&format!("shoal says {round}")).await;
        openssl.say(if round % 2 == 0 { "K\n" } else { "k\n" }).await;
        openssl.expect(updated).await;
        let line = format!("openssl says {round}\n");
        openssl.say(&line).await;
        expect_line(ours, &line).await;
    }
}

/// Raw bytes both ways. `-quiet` makes OpenSSL copy them without reading commands in them.
async fn exchange_bulk(openssl: &mut OpenSsl, ours: &mut TlsStream<TcpStream>) {
    let bytes = noise(300_000, 5);
    let sending = async {
        ours.write_all(&bytes).await.unwrap();
        ours.flush().await.unwrap();
    };
    let (_, received) = tokio::join!(sending, openssl.expect_bytes(bytes.len()));
    assert!(received == bytes, "openssl received other bytes");
    let mut received = vec![0; bytes.len()];
    let sending = async {
        openssl.stdin.write_all(&bytes).await.unwrap();
        openssl.stdin.flush().await.unwrap();
    };
    let (_, read) = tokio::join!(sending, timeout(PATIENCE, ours.read_exact(&mut received)));
    read.unwrap().unwrap();
    assert!(received == bytes, "we received other bytes");
}

#[test]
fn a_client_of_ours_and_s_server_update_their_keys() {
    let suites = [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    for suite in suites {
        run(async {
            let files = Files::new();
            let (mut openssl, mut ours) = server(&files, "", suite).await;
            converse(&mut openssl, &mut ours, "SSL_do_handshake -> 1").await;
            ours.shutdown().await.unwrap();
            // It answers our close with its own.
            assert_eq!(timeout(PATIENCE, ours.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
        });
    }
}

#[test]
fn a_server_of_ours_and_s_client_update_their_keys() {
    run(async {
        let files = Files::new();
        let (mut openssl, mut ours) = client(&files, "").await;
        openssl.expect("Verify return code: 0 (ok)").await;
        converse(&mut openssl, &mut ours, "KEYUPDATE").await;
        openssl.say("Q\n").await;
        assert_eq!(timeout(PATIENCE, ours.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    });
}

#[test]
fn bulk_data_passes_between_openssl_and_us() {
    run(async {
        let files = Files::new();
        let (mut openssl, mut ours) = client(&files, "-quiet").await;
        // It reports on the certificate first.
        openssl.expect("verify return:1\n").await;
        exchange_bulk(&mut openssl, &mut ours).await;
    });
}
