//! Strangers who hold connections to an HTTP port: silent ones, half requests, and readers of nothing.

use super::attacker::{HonestPushes, leave_the_processors};
use shoal_testkit::network::{NETWORK, in_own_network};
use shoal_testkit::region::ADDR;
use shoal_testkit::{Program, Region, Setup, until};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SHOAL: Program = shoal_testkit::program!();

/// Connections that one address may have.
const PER_ADDRESS: usize = 64;
/// The time that an honest client waits for a connection, and for each read. A busy kernel can lose a packet, which it
/// repeats after 1 s and then after 2 s. A client that strangers shut out waits at least 10 s, the time for a head.
const HONEST: Duration = Duration::from_secs(8);

/// Returns a connection to `target` from the address with this last number.
fn connect_from(last: u8, target: SocketAddr) -> std::io::Result<std::net::TcpStream> {
    let [a, b, c] = NETWORK;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::new(a, b, c, last), 0)).into())?;
    socket.connect_timeout(&target.into(), HONEST)?;
    socket.set_read_timeout(Some(HONEST))?;
    Ok(socket.into())
}

fn healthz(last: u8, target: SocketAddr) -> std::io::Result<String> {
    let mut stream = connect_from(last, target)?;
    write!(stream, "GET /healthz HTTP/1.0\r\nhost: {target}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Holds as many connections as each of six addresses may have, and renews those that the server ends.
fn flood(target: SocketAddr, first_bytes: &[u8], stop: &AtomicBool, full: &AtomicBool) {
    leave_the_processors();
    let mut held: Vec<(u8, std::net::TcpStream)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        held.retain_mut(|(_, stream)| {
            stream.set_nonblocking(true).is_ok()
                && stream.read(&mut [0; 64]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        });
        for last in 1..=6 {
            while held.iter().filter(|(from, _)| *from == last).count() < PER_ADDRESS {
                let Ok(mut stream) = connect_from(last, target) else { break };
                let _ = stream.write_all(first_bytes); // a refused connection is dropped in the next round
                held.push((last, stream));
            }
        }
        full.store(true, Ordering::Relaxed);
        std::thread::yield_now();
    }
}

/// Runs `honest` while strangers flood `target`.
fn beside_a_flood(target: SocketAddr, first_bytes: &[u8], honest: impl FnOnce()) {
    let (stop, full) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // The thread inherits the network of the test.
        scope.spawn(|| flood(target, first_bytes, &stop, &full));
        // A failed assertion must end the flood as well.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("the strangers hold their connections", || full.load(Ordering::Relaxed).then_some(()));
            honest();
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn strangers_who_hold_connections_shut_out_no_other() {
    in_own_network(|| {
        let region = Region::start(SHOAL, 1, 1);
        let file = region.folder.path().join("file");
        std::fs::write(&file, b"honest").unwrap();
        let roles = [region.hub.http(), region.tracker.http(), region.seeder.http()];
        for (first_bytes, version) in [(&b""[..], "1"), (b"GET /healthz HTTP/1.1\r\nhost: x", "2")] {
            for role in roles {
                beside_a_flood(role.parse().unwrap(), first_bytes, || {
                    for attempt in 0..10 {
                        let answer = healthz(100 + attempt, role.parse().unwrap());
                        assert!(answer.as_ref().is_ok_and(|answer| answer.contains("200 OK")), "{role}: {answer:?}");
                    }
                });
            }
            let pushes = HonestPushes::before(&region, "connections held to the seeder's API");
            beside_a_flood(region.seeder.http().parse().unwrap(), first_bytes, || pushes.beside());
            // The tracker's reports reach the hub meanwhile.
            beside_a_flood(region.hub.http().parse().unwrap(), first_bytes, || {
                let job = region.push(&file, "edge/honest", version);
                region.wait_active(&job, 1);
                until("the hub has the report", || (region.hub_active(&job)? == 1).then_some(()));
            });
        }
    });
}

#[test]
fn a_page_of_another_site_is_answered_by_no_role() {
    let region = Setup::new(SHOAL, 1, 1).peers(|_| vec![format!("mirror.listen='{ADDR}:0'")]).start();
    let http = [&region.hub, &region.tracker, &region.seeder, &region.peers[0]].map(|role| (role.http(), "/metrics"));
    let mirror = (region.peers[0].addrs["mirror"].as_str().unwrap(), "/v2/");
    for (addr, path) in http.into_iter().chain([mirror]) {
        let ask = |host: &str| {
            let mut stream = std::net::TcpStream::connect(addr).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(ask("rebound.example:80").starts_with("HTTP/1.1 421"), "{addr}");
        let own = ask(addr);
        assert!(own.starts_with("HTTP/1.1 200") && own.contains("x-content-type-options: nosniff"), "{own:.300}");
    }
}
