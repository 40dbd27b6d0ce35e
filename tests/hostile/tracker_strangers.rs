//! Strangers at the tracker's control plane: silent connections from many addresses, and keys without a credential.

use super::SHOAL;
use super::attacker::{
    HonestPushes, bounded, control_addr, issue, join, leave_the_processors, plane, relay, socket_from, stranger,
};
use shoal_net::control::{ControlEvent, RequestError};
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::JobId;
use shoal_testkit::network::{NETWORK, in_own_network};
use shoal_testkit::{PATIENCE, Region, until};
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Addresses of strangers. Each has more connections than an address may have.
const ADDRESSES: u8 = 30;
const PER_ADDRESS: usize = 50;

pub(crate) fn address(last: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, last)
}

/// Holds silent connections and renews those that the tracker ends, until `stop` is 1. Counts its rounds.
fn hold_connections(target: SocketAddr, stop: &AtomicUsize, rounds: &AtomicUsize) {
    leave_the_processors();
    let mut held: Vec<(u8, TcpStream)> = Vec::new();
    while stop.load(Ordering::Relaxed) == 0 {
        let is_open = |stream: &mut TcpStream| {
            stream.read(&mut [0; 64]).map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |bytes| bytes > 0)
        };
        held.retain_mut(|(_, stream)| is_open(stream));
        for last in 1..=ADDRESSES {
            for _ in held.iter().filter(|(from, _)| *from == last).count()..PER_ADDRESS {
                let connect = || {
                    let socket = socket_from(address(last))?;
                    socket.connect_timeout(&target.into(), Duration::from_secs(1))?;
                    socket.set_nonblocking(true)?;
                    Ok::<_, std::io::Error>(TcpStream::from(socket))
                };
                let Ok(stream) = connect() else { break };
                held.push((last, stream));
            }
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Runs `honest` while strangers hold silent connections to `target` from many addresses.
pub(crate) fn beside_held_connections(target: SocketAddr, honest: impl FnOnce()) {
    let (stop, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // The thread inherits the network of the test.
        scope.spawn(|| hold_connections(target, &stop, &rounds));
        // A failed assertion must end the strangers as well.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("the strangers hold connections", || (rounds.load(Ordering::Relaxed) > 2).then_some(()));
            honest();
        }));
        stop.store(1, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn silent_connections_from_many_addresses_keep_no_host_out() {
    in_own_network(|| {
        let region = Region::start(SHOAL, 1, 1);
        let target = control_addr(&region);
        let pushes = HonestPushes::before(&region, "silent connections to the tracker");
        let runtime = Runtime::new().unwrap();
        beside_held_connections(target, || {
            pushes.beside();
            bounded(&region.tracker, || {
                for number in 0..5 {
                    let host = issue(&region, &format!("new{number}"), "peer", &format!("t/site/new/host{number}"));
                    let answer = runtime.block_on(async {
                        let near = relay(address(200 + number), target).await;
                        let (control, _events) = plane(&host.keys).await;
                        let tracker = control.connect(near, None).await.expect("a new host reaches the tracker");
                        control.request(tracker, join(host.credential.clone())).await.unwrap()
                    });
                    assert!(matches!(answer, Response::Joined { .. }), "{answer:?}");
                }
            });
        });
        region.wait_up(1);
    });
}

/// Joins without a credential. Returns the answer once the tracker has ended the connection.
async fn refused_join(target: SocketAddr, number: u32, request: Request) -> Result<Response, RequestError> {
    let (control, mut events) = plane(&stranger(number)).await;
    let tracker = control.connect(target, None).await.expect("the tracker accepts the connection");
    let answer = control.request(tracker, request).await;
    timeout(PATIENCE, async { while !matches!(events.recv().await, Some(ControlEvent::Disconnected { .. })) {} })
        .await
        .expect("the tracker ends the connection");
    answer
}

#[test]
fn a_refused_join_ends_its_connection_and_floods_no_log() {
    let region = Region::start(SHOAL, 1, 1);
    let target = control_addr(&region);
    bounded(&region.tracker, || {
        Runtime::new().unwrap().block_on(async {
            let mut joins = JoinSet::new();
            for number in 0..200 {
                if joins.len() >= 16 {
                    joins.join_next().await.unwrap().unwrap();
                }
                joins.spawn(async move {
                    let answer = refused_join(target, number, join(vec![1, 2, 3])).await;
                    assert!(matches!(answer, Ok(Response::Refused { .. })), "{answer:?}");
                });
            }
            while joins.join_next().await.transpose().unwrap().is_some() {}
            let asked = refused_join(target, 1000, Request::JobStatus { job: JobId([1; 16]) }).await;
            assert_eq!(asked.unwrap(), Response::Refused { why: "join first".into() });
        });
        until("no stranger is left", || {
            (region.tracker.metric("shoal_tracker_unadmitted_connections") == 0).then_some(())
        });
    });
    assert!(region.tracker.metric("shoal_tracker_unadmitted_dropped_total") >= 201);
}

#[test]
fn large_joins_of_strangers_take_no_memory() {
    let region = Region::start(SHOAL, 1, 1);
    let target = control_addr(&region);
    bounded(&region.tracker, || {
        Runtime::new().unwrap().block_on(async {
            let mut strangers = JoinSet::new();
            for number in 0..32 {
                strangers.spawn(async move {
                    let (control, _events) = plane(&stranger(number)).await;
                    for _ in 0..3 {
                        let Ok(tracker) = control.connect(target, None).await else { continue };
                        let mut asked = JoinSet::new();
                        for _ in 0..16 {
                            let control = control.clone();
                            asked.spawn(async move { control.request(tracker, join(vec![0x55; 1_000_000])).await });
                        }
                        while let Some(answer) = asked.join_next().await {
                            assert!(answer.unwrap().is_err(), "the tracker answers no large request");
                        }
                    }
                });
            }
            while strangers.join_next().await.transpose().unwrap().is_some() {}
        });
    });
    region.wait_up(1);
}

#[test]
fn a_tracker_without_descriptors_for_its_connections_says_so() {
    let mut region = Region::start(SHOAL, 1, 1);
    region.tracker.kill();
    region.tracker.configure("bounds.connections=4000000000");
    assert!(!region.tracker.try_start().success());
    let log = region.tracker.log();
    assert!(log.contains("the limit of open files is") && log.contains("bounds.connections"), "{log}");
}
