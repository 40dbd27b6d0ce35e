//! A stranger in the hub's place who acknowledges reports, and strangers who ask a hub that other machines reach.

use super::tokens::admin;
use crate::SHOAL;
use serde_json::{Value, json};
use shoal_net::identity::load_key;
use shoal_proto::codec::{Document, decode_exact};
use shoal_proto::hex;
use shoal_proto::ids::Hash;
use shoal_proto::receipt::HubReceipt;
use shoal_proto::report::{HubFlush, HubSubmission};
use shoal_proto::trust::{Envelope, Keypair};
use shoal_testkit::http::{get, metric, send};
use shoal_testkit::settings::issue;
use shoal_testkit::{Region, noise, until};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Returns the answer to a submission, by the number of the request.
type Forger = Box<dyn Fn(usize, &[u8]) -> Value + Send>;

/// A server in the hub's place.
struct FalseHub {
    addr: SocketAddr,
    answered: Arc<AtomicUsize>,
}

impl FalseHub {
    fn start(forge: Forger) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, answered) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let count = answered.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if answer(stream, &forge, count.load(Ordering::Relaxed)).is_some() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { addr, answered }
    }
}

/// Reads one request and answers it with status 200.
fn answer(mut stream: TcpStream, forge: &Forger, number: usize) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).ok()? > 2 {
        let lower = line.to_ascii_lowercase();
        length = lower.strip_prefix("content-length:").map_or(length, |number| number.trim().parse().unwrap_or(0));
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    // The tracker also sends its trust document.
    decode_exact::<HubSubmission>(&body).ok()?;
    let text = forge(number, &body).to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{text}", text.len()).ok()
}

/// Who signs a false receipt.
struct Signer {
    keys: Keypair,
    credential: Vec<u8>,
}

impl Signer {
    fn load(folder: &Path) -> Self {
        let credential = fs::read(folder.join("node.cred")).unwrap();
        Self { keys: load_key(&folder.join("node.key")).unwrap(), credential }
    }

    fn receipt(&self, receipt: &HubReceipt) -> Value {
        let signed = Envelope::seal(receipt, &self.keys).to_bytes();
        let (credential, signed) = (hex::encode(&self.credential), hex::encode(&signed));
        json!({ "sequence": receipt.sequence, "duplicate": false, "credential": credential, "signed": signed })
    }
}

#[test]
fn a_false_hub_loses_no_report() {
    let mut region = Region::start(SHOAL, 1, 1);
    let other = tempfile::tempdir().unwrap();
    SHOAL.ok(&["cluster", "init", "--dir", other.path().join("cluster").to_str().unwrap()]);
    issue(SHOAL, other.path(), "hub", "hub", "t/core/core/hub");
    let foreign = Signer::load(&other.path().join("hub"));
    let (peer, hub) = (Signer::load(region.peers[0].dir()), Signer::load(region.hub.dir()));
    let forge = move |number: usize, body: &[u8]| {
        let submission: HubSubmission = decode_exact(body).unwrap();
        let flush: HubFlush = Envelope::from_bytes(&submission.flush).unwrap().open().unwrap();
        let right = HubReceipt { tracker: flush.tracker, sequence: flush.sequence, submission: Hash::of(body) };
        match number % 6 {
            0 => json!({ "sequence": flush.sequence, "duplicate": false }),
            1 => json!({ "sequence": flush.sequence, "duplicate": true, "credential": "", "signed": "zz" }),
            2 => peer.receipt(&right),
            3 => foreign.receipt(&right),
            // The hub's own receipts, for another flush and for another tracker.
            4 => hub.receipt(&HubReceipt { submission: Hash::of(b"another flush"), ..right }),
            _ => hub.receipt(&HubReceipt { sequence: flush.sequence + 1, ..right }),
        }
    };
    let between = FalseHub::start(Box::new(forge));
    let real = region.hub.http().to_string();
    region.tracker.kill();
    region.tracker.configure(&format!("hub=http://{}", between.addr));
    region.tracker.start();
    region.wait_up(1);
    let file = region.folder.path().join("file");
    fs::write(&file, noise(100_000, 1)).unwrap();
    let job = region.push(&file, "edge/file", "1");
    region.wait_active(&job, 1);
    until("all false receipts were sent", || (between.answered.load(Ordering::Relaxed) >= 6).then_some(()));
    let spooled = metric(region.tracker.http(), "shoal_tracker_spooled_flushes");
    assert!(spooled.is_some_and(|flushes| flushes > 0), "the tracker dropped a flush: {spooled:?}");
    region.tracker.kill();
    region.tracker.configure(&format!("hub=http://{real}"));
    region.tracker.start();
    until("the hub has the report", || (region.hub_active(&job)? == 1).then_some(()));
    until("the hub's receipts empty the spool", || {
        (metric(region.tracker.http(), "shoal_tracker_spooled_flushes")? == 0).then_some(())
    });
}

/// `Authorization: Basic`, as a browser sends it.
fn basic(addr: &str, method: &str, path: &str, secret: &str) -> u16 {
    let mut stream = TcpStream::connect(addr).unwrap();
    let encoded = base64(format!("anna:{secret}").as_bytes());
    let body = r#"{"name":"x","scope":"admin"}"#;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nhost: {addr}\r\nauthorization: Basic {encoded}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize] as char;
            out.push(if place <= group.len() { digit } else { '=' });
        }
    }
    out
}

#[test]
fn an_open_hub_answers_only_to_tokens() {
    let mut region = Region::start(SHOAL, 1, 1);
    let secret = admin(&region);
    let file = region.folder.path().join("cluster/admin.token");
    region.hub.configure(&format!("admin_token='{}'", file.display()));
    region.hub.restart();
    let content = region.folder.path().join("file");
    fs::write(&content, noise(100_000, 1)).unwrap();
    let job = region.push(&content, "edge/file", "1");
    region.wait_active(&job, 1);
    until("reports need no token", || (region.hub_active(&job)? == 1).then_some(()));

    let addr = region.hub.http().to_string();
    let url = format!("http://{addr}");
    let hub = |args: &[&str], token: &Path| {
        SHOAL.run(&[args, &["--hub", &url, "--token-file", token.to_str().unwrap()]].concat())
    };
    let anna = region.folder.path().join("anna.token");
    let args = ["token", "create", "anna", "--scope", "read", "--out", anna.to_str().unwrap()];
    let created = hub(&args, &file);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let reader = fs::read_to_string(&anna).unwrap().trim().to_string();
    // Before the strangers below, whose refusals the log bounds.
    let more = json!({ "name": "more", "scope": "admin" });
    assert_eq!(send(&addr, "POST", "/v1/tokens", Some(&reader), Some(&more)).unwrap().status, 403);
    let one = format!("/v1/jobs/{job}");
    for path in ["/", "/v1/jobs", &one, "/v1/audit"] {
        for stranger in [None, Some("0000"), Some(&reader[1..])] {
            let answer = send(&addr, "GET", path, stranger, None).unwrap();
            assert_eq!(answer.status, 401, "{path} with {stranger:?}");
            assert!(!answer.body.contains("edge/file"), "{}", answer.body);
        }
        assert_eq!(get(&addr, path, Some(&secret)).unwrap().0, 200, "{path}");
        assert_eq!(get(&addr, path, Some(&reader)).unwrap().0, 200, "{path}");
        assert_eq!(basic(&addr, "GET", path, &reader), 200, "{path}");
    }
    assert!(send(&addr, "GET", "/", None, None).unwrap().head.to_lowercase().contains("www-authenticate: basic"));
    assert!(get(&addr, "/", Some(&reader)).unwrap().1.contains("edge/file"));
    assert_eq!(basic(&addr, "POST", "/v1/tokens", &secret), 401, "a browser's password changes nothing");
    for open in ["/healthz", "/metrics", "/v1/routes"] {
        assert_eq!(get(&addr, open, None).unwrap().0, 200, "{open}");
    }

    // The log has the change and the refusals, and outlives a restart, as tokens do.
    region.hub.restart();
    assert_eq!(get(&addr, "/v1/jobs", Some(&reader)).unwrap().0, 200);
    let shown = hub(&["audit", "--json"], &anna);
    let lines = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let entries: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |who: &str, verb: &str, result: &str| {
        entries.iter().any(|entry| entry["who"] == who && entry["verb"] == verb && entry["result"] == result)
    };
    assert!(has("admin", "token create", "done") && has("anna", "token create", "refused"), "{lines}");
    assert!(has("", "read", "refused"), "{lines}");
    assert!(hub(&["token", "revoke", "anna"], &file).status.success());
    assert_eq!(get(&addr, "/v1/jobs", Some(&reader)).unwrap().0, 401, "the token is revoked");
}

#[test]
fn a_hub_on_a_loopback_address_answers_everybody_and_lets_nobody_create_tokens() {
    let region = Region::start(SHOAL, 1, 1);
    let addr = region.hub.http();
    for token in [None, Some("0000")] {
        assert_eq!(get(addr, "/v1/jobs", token).unwrap().0, 200);
        let body = json!({ "name": "mine", "scope": "admin" });
        assert_eq!(send(addr, "POST", "/v1/tokens", token, Some(&body)).unwrap().status, 403);
    }
    let shown = SHOAL.run(&["audit", "--hub", &format!("http://{addr}"), "--token-file", "/no/token", "--json"]);
    let lines = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(lines.contains("anybody") && lines.contains("refused"), "{lines}");
}
