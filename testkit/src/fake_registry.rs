//! A registry under the control of a test, which answers as the test says.

use crate::oci::{Image, OCI_MANIFEST};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// A request that the registry received.
#[derive(Clone, Debug)]
pub struct Received {
    /// The method, for example `GET`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body, for example the form in a request for a token.
    pub body: String,
}

impl Received {
    /// A header, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// An answer of the registry.
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    truncated: Option<Truncated>,
}

/// A body of which only a part is sent.
#[derive(Clone, Copy)]
struct Truncated {
    bytes: usize,
    ending: Ending,
}

/// What the registry does after the sent part of a body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It closes the connection.
    Cut,
    /// It sends nothing more and waits until the client closes the connection.
    Silence,
}

impl Reply {
    /// An answer with its whole body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), truncated: None }
    }

    /// Adds a header.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends only the first `bytes` bytes of the body.
    pub fn truncated(mut self, bytes: usize, ending: Ending) -> Self {
        self.truncated = Some(Truncated { bytes, ending });
        self
    }
}

type Handler = Box<dyn Fn(&Received, usize) -> Reply + Send + Sync>;

/// The registry. It serves until the test's process ends.
pub struct FakeRegistry {
    /// Its address, without a scheme.
    pub addr: String,
    received: Arc<Mutex<Vec<Received>>>,
}

impl FakeRegistry {
    /// Starts a registry. `handler` receives each request and its number, from 1, among those to the same path.
    pub fn start(handler: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), handler)
    }

    /// The same on a port that the test opened before, so that the handler can know its address.
    pub fn start_on(
        listener: TcpListener,
        handler: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let addr = listener.local_addr().unwrap().to_string();
        let received: Arc<Mutex<Vec<Received>>> = Arc::default();
        let (handler, log): (Arc<Handler>, _) = (Arc::new(Box::new(handler)), received.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, log) = (handler.clone(), log.clone());
                std::thread::spawn(move || answer(stream, &handler, &log));
            }
        });
        Self { addr, received }
    }

    /// All requests so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

fn answer(stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Received>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    if reader.fill_buf().ok()?.first() == Some(&TLS_HANDSHAKE) {
        // Servers without TLS take it for a request that they cannot read.
        (&stream).write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").ok()?;
        return None;
    }
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let mut body = vec![0; headers.get("content-length").and_then(|len| len.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let received = Received { method, path, headers, body: String::from_utf8_lossy(&body).into_owned() };
    let number = {
        let mut log = log.lock().unwrap();
        log.push(received.clone());
        log.iter().filter(|other| other.path == received.path).count()
    };
    let mut reply = handler(&received, number);
    let mut stream = stream;
    let mut head =
        format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\nconnection: close\r\n", reply.status, reply.body.len());
    if received.method == "HEAD" {
        reply.body.clear();
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    let sent = reply.truncated.map_or(reply.body.len(), |part| part.bytes.min(reply.body.len()));
    stream.write_all(&reply.body[..sent]).ok()?;
    if reply.truncated.is_some_and(|part| part.ending == Ending::Silence) {
        let _ = reader.read(&mut [0]); // Returns when the client closes the connection.
    }
    Some(())
}

/// Answers as a well-behaved registry with one image does.
pub fn serve(image: &Image, received: &Received) -> Reply {
    if received.path.contains("/manifests/") {
        return Reply::new(200, image.manifest.clone()).with("content-type", OCI_MANIFEST);
    }
    let digest = received.path.rsplit('/').next().unwrap_or_default();
    let Some(bytes) = image.blobs.get(digest) else { return Reply::new(404, "") };
    let from =
        received.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        None => Reply::new(200, bytes.clone()),
        Some(from) => {
            let from: usize = from;
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[from..]).with("content-range", &range)
        }
    }
}
