//! The cost of a link beside plain TCP, with both ends in this process, over loopback.
//!
//! `cargo bench -p shoal-net --bench link [-- GIB]` prints GiB/s and CPU seconds per GiB of both ends together, from
//! `/proc/self/stat` in steps of 10 ms. Without `--bench` it moves only a few megabytes, to show that it still runs.

use bytes::Bytes;
use shoal_net::admission::{Admission, system_clock};
use shoal_net::identity::Identity;
use shoal_net::links::{LinkConfig, LinkEndpoint, LinkEvent, LinkEvents, OutFrame};
use shoal_proto::announcement::Class;
use shoal_proto::codec::Document;
use shoal_proto::frame::Part;
use shoal_proto::ids::{ContentId, NodeId, ShardIndex};
use shoal_proto::trust::{Credential, Envelope, Keypair, Role, Trust, TrustDocument, cluster_of};
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Parts under way at a time.
const WINDOW: usize = 16;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Returns the processor time of this process so far.
fn cpu() -> Outcome<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().ok_or("no stat")?.split_whitespace();
    // `utime` and `stime` are fields 14 and 15; the name, which may hold spaces, was field 2.
    let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse().unwrap_or(0)).sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn report(name: &str, bytes: u64, begin: Instant, cpu_before: Duration) -> Outcome<()> {
    let gib = bytes as f64 / f64::from(1 << 30);
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), (cpu()? - cpu_before).as_secs_f64());
    writeln!(std::io::stdout(), "{name:<28} {:>6.2} GiB/s {:>6.2} CPU-s/GiB", gib / wall, cpu / gib)?;
    Ok(())
}

async fn plain(total: u64) -> Outcome<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (before, begin) = (cpu()?, Instant::now());
    let sending = tokio::spawn(async move {
        let payload = vec![7u8; 1 << 20];
        let mut stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        for _ in 0..total >> 20 {
            stream.write_all(&payload).await?;
        }
        std::io::Result::Ok(())
    });
    let (mut stream, _) = listener.accept().await?;
    let mut buffer = vec![0u8; 1 << 20];
    for _ in 0..total >> 20 {
        stream.read_exact(&mut buffer).await?;
    }
    sending.await??;
    report("plain TCP, 1 MiB", total, begin, before)
}

async fn endpoint(root: &Keypair, seed: u8) -> Outcome<(NodeId, LinkEndpoint, LinkEvents)> {
    let keys = Keypair::from_seed([seed; 32]);
    let document = TrustDocument::first(root.node(), []);
    let trust = Trust::open(&Envelope::seal(&document, root).to_bytes(), None)?;
    let credential = Credential {
        cluster: cluster_of(&root.node()),
        node: keys.node(),
        role: Role::Peer,
        locality: "region/site/rack/host".parse()?,
        not_before: 0,
        not_after: u64::MAX,
        labels: Default::default(),
        weight_max: Credential::WEIGHT_DEFAULT,
        addresses: vec![],
    };
    let admission = Admission::new(Arc::new(trust), Envelope::seal(&credential, root).to_bytes(), system_clock);
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let (endpoint, events) = LinkEndpoint::bind(LinkConfig::new(vec![any], Identity::new(&keys), admission)).await?;
    Ok((keys.node(), endpoint, events))
}

async fn link(total: u64, len: usize) -> Outcome<()> {
    let root = Keypair::from_seed([9; 32]);
    let (_, a, mut a_events) = endpoint(&root, 1).await?;
    let (b_id, b, mut b_events) = endpoint(&root, 2).await?;
    a.dial(b_id, b.local_addrs().to_vec());
    a_events.recv().await;
    b_events.recv().await;
    let count = total / len as u64;
    let (before, begin) = (cpu()?, Instant::now());
    let sender = a.clone();
    let sending = tokio::spawn(async move {
        let payload = Bytes::from(vec![7u8; len]);
        let mut queued = 0;
        let mut sent = 0;
        while sent < count {
            while queued < count && queued - sent < WINDOW as u64 {
                let part = Part::Shard(ShardIndex(queued as u32));
                let frame =
                    OutFrame::Part { content: ContentId([1; 32]), part, class: Class::Bulk, payload: payload.clone() };
                if sender.send(b_id, frame).is_err() {
                    return;
                }
                queued += 1;
            }
            match a_events.recv().await {
                Some(LinkEvent::Sent { .. }) => sent += 1,
                _ => return,
            }
        }
    });
    for _ in 0..count {
        match b_events.recv().await {
            Some(LinkEvent::Part { payload, .. }) if payload.len() == len => {}
            other => return Err(format!("expected a part, not {other:?}").into()),
        }
    }
    sending.await?;
    report(&format!("link, parts of {} KiB", len >> 10), count * len as u64, begin, before)?;
    tokio::join!(a.shutdown(Duration::from_secs(5)), b.shutdown(Duration::from_secs(5)));
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let gib: u64 = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(4);
    let total = if arguments.iter().any(|argument| argument == "--bench") { gib << 30 } else { 8 << 20 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        plain(total).await?;
        for len in [4 << 20, 1 << 20, 256 << 10, 16 << 10] {
            link(total, len).await?;
        }
        plain(total).await
    })
}
