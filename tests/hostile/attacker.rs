//! What attackers of the control plane and of links have in common, and what their victim must keep.

use shoal_net::admission::system_clock;
use shoal_net::control::{ControlConfig, ControlEvent, ControlHandle, ControlPlane};
use shoal_net::identity::{Identity, load_key};
use shoal_proto::codec::Document;
use shoal_proto::control::{Join, Request};
use shoal_proto::trust::{Credential, Envelope, Keypair};
use shoal_testkit::{Process, Region, noise, settings};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Memory that a victim may use.
const RSS_BYTES_MAX: u64 = 128 << 20;
/// Log lines that a victim may write per second, and at once.
const LOG_LINES_PER_SECOND: usize = 10;
const LOG_LINES_AT_ONCE: usize = 30;
/// The time in which a victim answers `/healthz`, mostly and at worst. A busy machine delays single answers.
const MOSTLY_HEALTHY_WITHIN: Duration = Duration::from_secs(1);
const HEALTHY_WITHIN: Duration = Duration::from_secs(10);

/// A key and its credential.
pub(crate) struct Identified {
    pub(crate) keys: Keypair,
    pub(crate) credential: Vec<u8>,
}

/// Issues a credential of the region's cluster.
pub(crate) fn issue(region: &Region, name: &str, role: &str, locality: &str) -> Identified {
    settings::issue(region.program, region.folder.path(), name, role, locality);
    stolen(&region.folder.path().join(name))
}

/// A new key, and a credential that the command line would not issue: for a place that is taken, or a short time.
pub(crate) fn issue_for(region: &Region, locality: &str, seconds: u64) -> Identified {
    let root = load_key(&region.folder.path().join("cluster/root.key")).unwrap();
    let model = stolen(region.peers[0].dir());
    let model: Envelope = Envelope::from_bytes(&model.credential).unwrap();
    let keys = Keypair::from_seed(*blake3::hash(locality.as_bytes()).as_bytes());
    let now = system_clock();
    let credential = Credential {
        node: keys.node(),
        locality: locality.parse().unwrap(),
        not_before: now - 1,
        not_after: now + seconds,
        ..model.open::<Credential>().unwrap()
    };
    Identified { credential: Envelope::seal(&credential, &root).to_bytes(), keys }
}

/// The key and the credential of a host.
pub(crate) fn stolen(dir: &Path) -> Identified {
    let keys = load_key(&dir.join("node.key")).unwrap();
    Identified { keys, credential: std::fs::read(dir.join("node.cred")).unwrap() }
}

/// A key that belongs to no cluster.
pub(crate) fn stranger(number: u32) -> Keypair {
    let mut seed = [9; 32];
    seed[..4].copy_from_slice(&number.to_le_bytes());
    Keypair::from_seed(seed)
}

/// Leaves the processors to others, for the thread of an attacker. Attackers are on other machines in real life.
pub(crate) fn leave_the_processors() {
    rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19).unwrap();
}

/// A runtime for attackers.
pub(crate) fn attackers_runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().on_thread_start(leave_the_processors).build().unwrap()
}

/// A control plane that only dials.
pub(crate) async fn plane(keys: &Keypair) -> (ControlHandle, mpsc::Receiver<ControlEvent>) {
    ControlPlane::start(ControlConfig::new(Identity::new(keys), Vec::new())).await.unwrap()
}

pub(crate) fn join(credential: Vec<u8>) -> Request {
    join_at(credential, 1)
}

/// A join with a port of its own, so that it changes the roster.
pub(crate) fn join_at(credential: Vec<u8>, port: u16) -> Request {
    let addrs = vec![(Ipv4Addr::LOCALHOST, port).into()];
    Request::Join(Join { credential, addrs, weight: 100, uplink_mbit: 0, known: None })
}

/// The address of the tracker's control plane.
pub(crate) fn control_addr(region: &Region) -> SocketAddr {
    region.tracker.addrs["control"][0].as_str().unwrap().parse().unwrap()
}

/// Returns a socket whose connections come from `source`.
pub(crate) fn socket_from(source: Ipv4Addr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    Ok(socket)
}

/// Relays connections to `target` so that they come from `source`. Returns the address to dial. The relay ends with
/// its runtime.
pub(crate) async fn relay(source: Ipv4Addr, target: SocketAddr) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(Ok(far)) = tokio::task::spawn_blocking(move || {
                    let socket = socket_from(source)?;
                    socket.connect_timeout(&target.into(), Duration::from_secs(5))?;
                    socket.set_nonblocking(true)?;
                    Ok::<_, std::io::Error>(std::net::TcpStream::from(socket))
                })
                .await
                else {
                    return;
                };
                if let Ok(mut far) = TcpStream::from_std(far) {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await; // either end may go
                }
            });
        }
    });
    addr
}

fn rss_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0u64) << 10
}

/// Asks for `/healthz`. Returns the time of a good answer.
fn health(addr: SocketAddr) -> Option<Duration> {
    let began = Instant::now();
    let ask = || {
        let mut stream = std::net::TcpStream::connect_timeout(&addr, HEALTHY_WITHIN)?;
        stream.set_read_timeout(Some(HEALTHY_WITHIN))?;
        write!(stream, "GET /healthz HTTP/1.0\r\nhost: {addr}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    ask().is_ok_and(|answer: String| answer.contains("200 OK")).then(|| began.elapsed())
}

/// Lines that operators see: tests ask for more than the default level.
fn lines_of(log: &str) -> usize {
    log.lines().filter(|line| !line.contains(" DEBUG ")).count()
}

/// Runs `attack` and checks that the victim keeps its bounds meanwhile: memory, log, and answers to `/healthz`.
pub(crate) fn bounded<T>(victim: &Process, attack: impl FnOnce() -> T) -> T {
    let (began, lines_before) = (Instant::now(), lines_of(&victim.log()));
    let (process, addr) = (victim.id(), victim.http().parse().unwrap());
    let over = AtomicBool::new(false);
    let (outcome, (rss, answers)) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut rss, mut answers) = (0, Vec::new());
            while !over.load(Ordering::Relaxed) {
                rss = rss.max(rss_bytes(process));
                answers.push(health(addr));
                std::thread::park_timeout(Duration::from_millis(100));
            }
            (rss, answers)
        });
        // A failed assertion must end the watch as well.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attack));
        over.store(true, Ordering::Relaxed);
        (outcome, watch.join().unwrap())
    });
    let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let log = victim.log();
    let (lines, seconds) = (lines_of(&log) - lines_before, began.elapsed().as_secs() as usize);
    let last = || log.lines().rev().take(3).collect::<Vec<_>>().join("\n");
    assert!(rss <= RSS_BYTES_MAX, "{} used {} MiB", victim.name, rss >> 20);
    assert!(lines <= LOG_LINES_AT_ONCE + LOG_LINES_PER_SECOND * seconds, "{lines} lines in {seconds} s\n{}", last());
    assert!(!answers.contains(&None), "{} did not answer /healthz: {answers:?}", victim.name);
    let quick = answers.iter().flatten().filter(|took| **took <= MOSTLY_HEALTHY_WITHIN).count();
    assert!(quick * 2 >= answers.len(), "{} answered /healthz slowly: {answers:?}", victim.name);
    outcome
}

/// Honest pushes of 20 MB, alone and beside an attack. The file that `SHOAL_FIGURES` names gets the median times of
/// three pushes each. Without `SHOAL_FIGURES`, there is one push beside the attack.
pub(crate) struct HonestPushes<'a> {
    region: &'a Region,
    attack: &'static str,
    /// The time alone and the file of the figures.
    alone: Option<(Duration, PathBuf)>,
}

impl<'a> HonestPushes<'a> {
    /// Must be called before the attack begins.
    pub(crate) fn before(region: &'a Region, attack: &'static str) -> Self {
        let mut pushes = Self { region, attack, alone: None };
        if let Some(file) = std::env::var_os("SHOAL_FIGURES") {
            pushes.push(); // the first push opens links
            pushes.alone = Some((pushes.median(), file.into()));
        }
        pushes
    }

    /// Must be called while the attack runs. Every host gets each push.
    pub(crate) fn beside(&self) {
        let Some((alone, file)) = &self.alone else {
            self.push();
            return;
        };
        let beside = self.median();
        let ratio = beside.as_secs_f64() / alone.as_secs_f64();
        let line = format!("| {} | {} | {} | {ratio:.2} |\n", self.attack, alone.as_millis(), beside.as_millis());
        let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn median(&self) -> Duration {
        let mut times = [(); 3].map(|()| self.push());
        times.sort();
        times[1]
    }

    fn push(&self) -> Duration {
        static PUSHES: AtomicU64 = AtomicU64::new(0);
        let number = PUSHES.fetch_add(1, Ordering::Relaxed);
        let file = self.region.folder.path().join(format!("honest-{number}"));
        std::fs::write(&file, noise(20_000_000, number)).unwrap();
        let began = Instant::now();
        let job = self.region.push(&file, "edge/pushes", &number.to_string());
        self.region.wait_active(&job, self.region.peers.len() as u64);
        began.elapsed()
    }
}
