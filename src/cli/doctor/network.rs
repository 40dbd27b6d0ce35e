//! The doctor's checks of the network: own ports, names, trackers and their clock, rack peers, the hub.
//!
//! Invariant: no check joins a tracker or opens a link, so a running role does not notice the doctor.

use super::report::Report;
use crate::cli::role_facts::{Facts, Port};
use shoal_api::service::Health;
use shoal_net::control::{ControlConfig, ControlHandle, ControlPlane};
use shoal_net::identity::Identity;
use shoal_peer::driver::remembered_rack_peers;
use shoal_proto::control::{Request, Response};
use shoal_proto::trust::Keypair;
use shoal_service::http_client::Client;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Clocks that differ by more get a warning.
const SKEW_WARNS: Duration = Duration::from_secs(2);
/// Clocks that differ by more make credentials and announcements invalid too early or too late.
const SKEW_FAILS: Duration = Duration::from_secs(60);

/// A role that answers on the configured address.
pub(crate) struct Running {
    /// Files that it may open, if it says so.
    pub(crate) open_files_max: Option<u64>,
}

/// The address at which this machine reaches its own listener.
fn local(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// Finds out whether the role runs, and how it is.
pub(crate) async fn role(report: &mut Report, facts: &Facts, role: &str, ca: Option<&Path>) -> Option<Running> {
    let addr = local(facts.http);
    let scheme = if facts.access.tls.is_some() { "https" } else { "http" };
    if addr.port() == 0 || connect(addr).await.is_err() {
        report.ok("role", format!("no {role} answers on {}; the checks are those before its start", facts.http));
        return None;
    }
    let asked = async {
        let client = Client::trusting(&format!("{scheme}://{addr}"), None, ca)?;
        // A role with problems answers with status 503.
        let (_, body) = client.answer("/healthz").await?;
        let metrics = client.get_text("/metrics").await?;
        Ok::<_, anyhow::Error>((serde_json::from_slice::<Health>(&body)?, metrics))
    };
    match asked.await {
        Ok((health, _)) if health.role != role => {
            let remedy = "give each role of this machine a port of its own in `http`";
            report.fail("role", format!("{addr} is the port of a {}", health.role), remedy);
            None
        }
        Ok((health, metrics)) => {
            match &health.problems[..] {
                [] => report.ok("role", format!("the {role} runs for {} s without problems", health.uptime_s)),
                problems => report.fail("role", problems.join("; "), "see the rows below and the log of the role"),
            }
            let line = metrics.lines().find_map(|line| line.strip_prefix("process_max_fds "));
            Some(Running { open_files_max: line.and_then(|number| number.parse().ok()) })
        }
        Err(error) => {
            let remedy = format!("name the authority of a TLS port with --ca, or stop the program that holds {addr}");
            report.warn("role", format!("{addr} is held, and does not answer as a {role}: {error:#}"), remedy);
            None
        }
    }
}

async fn connect(addr: SocketAddr) -> io::Result<()> {
    let connected = tokio::time::timeout(CONNECT_MAX, tokio::net::TcpStream::connect(addr)).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(drop)
}

/// Tries to listen, as the roles do.
fn try_listen(addr: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(1)
}

/// Checks that the role's ports are free, or that the role itself holds them.
pub(crate) fn ports(report: &mut Report, facts: &Facts, is_running: bool) {
    for Port { key, addr } in facts.ports() {
        match try_listen(addr) {
            Ok(()) if is_running => {
                let remedy = format!("restart the role, or check that it runs with this configuration (`{key}`)");
                report.fail("port", format!("the role runs and does not listen on {addr}"), remedy);
            }
            Ok(()) => report.ok("port", format!("{addr} is free (`{key}`)")),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_running => {
                report.ok("port", format!("the role listens on {addr} (`{key}`)"));
            }
            Err(error) => {
                let remedy = match error.kind() {
                    io::ErrorKind::AddrInUse => {
                        format!("find the program with `ss -ltnp`, and stop it or change `{key}`")
                    }
                    io::ErrorKind::AddrNotAvailable => format!("use an address of this machine in `{key}`"),
                    _ => format!("use a port above 1023 in `{key}`, or allow the role this one"),
                };
                report.fail("port", format!("cannot listen on {addr}: {error}"), remedy);
            }
        }
    }
}

/// Checks each tracker's name, whether it answers, and its clock.
pub(crate) async fn trackers(report: &mut Report, facts: &Facts) -> anyhow::Result<()> {
    if facts.trackers.is_empty() {
        return Ok(());
    }
    // A key of its own. With the host's key the tracker would take the doctor for the host.
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    let mut config = ControlConfig::new(Identity::new(&Keypair::from_seed(seed)), Vec::new());
    config.timeout = CONNECT_MAX;
    let (control, mut events) = ControlPlane::start(config).await?;
    let drain = tokio::spawn(async move { while events.recv().await.is_some() {} });
    let mut answered = 0;
    for name in &facts.trackers {
        answered += usize::from(tracker(report, &control, name).await);
    }
    if answered == 0 {
        let remedy = "start a tracker, check the route and the firewall to its control port, and node.trackers";
        report.fail("trackers", "no tracker answers, so the host cannot join", remedy);
    }
    control.shutdown(Duration::from_secs(1)).await;
    drain.abort();
    Ok(())
}

/// Checks one tracker. Returns whether it answered.
async fn tracker(report: &mut Report, control: &ControlHandle, name: &str) -> bool {
    let addrs: Vec<SocketAddr> = match tokio::net::lookup_host(name).await {
        Ok(addrs) => addrs.collect(),
        Err(error) => {
            let remedy = "check the name in node.trackers, /etc/resolv.conf and the name server";
            report.fail("name", format!("{name} does not resolve: {error}"), remedy);
            return false;
        }
    };
    let mut is_answering = false;
    for addr in addrs {
        match ask_clock(control, addr).await {
            Ok(skew) => {
                is_answering = true;
                report.ok("tracker", format!("{name} answers at {addr}"));
                clock(report, name, skew);
            }
            Err(error) => {
                let remedy = "start that tracker, or check the route and the firewall to its control port";
                report.warn("tracker", format!("{name} does not answer at {addr}: {error:#}"), remedy);
            }
        }
    }
    is_answering
}

/// How far this clock is from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skew {
    Behind(Duration),
    Ahead(Duration),
}

/// Compares a clock that was read between two readings of ours. What the exchange took counts for nothing.
fn skew(before: Duration, other: Duration, after: Duration) -> Skew {
    if other > after { Skew::Behind(other - after) } else { Skew::Ahead(before.saturating_sub(other)) }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

async fn ask_clock(control: &ControlHandle, addr: SocketAddr) -> anyhow::Result<Skew> {
    let tracker = control.connect(addr, None).await?;
    let before = since_epoch();
    let answer = control.request(tracker, Request::Clock).await;
    let after = since_epoch();
    control.disconnect(tracker);
    match answer? {
        Response::Clock { unix_ms } => Ok(skew(before, Duration::from_millis(unix_ms), after)),
        Response::Refused { why } => anyhow::bail!("it refuses: {why}"),
        _ => anyhow::bail!("it is no tracker of this version"),
    }
}

fn clock(report: &mut Report, name: &str, skew: Skew) {
    let (by, word) = match skew {
        Skew::Behind(by) => (by, "behind"),
        Skew::Ahead(by) => (by, "ahead of"),
    };
    let found = format!("this clock is {:.1} s {word} that of {name}", by.as_secs_f64());
    let remedy = "synchronise both machines, for example with chrony, and check with `chronyc tracking`";
    match by {
        by if by > SKEW_FAILS => report.fail("clock", found, remedy),
        by if by > SKEW_WARNS => report.warn("clock", found, remedy),
        _ => report.ok("clock", format!("this clock agrees with that of {name}")),
    }
}

/// Checks that remembered rack peers accept connections.
pub(crate) async fn rack_peers(report: &mut Report, facts: &Facts) {
    let all = remembered_rack_peers(&facts.dir);
    let mut away = Vec::new();
    for addrs in &all {
        let mut is_reachable = false;
        for addr in addrs {
            is_reachable = is_reachable || connect(*addr).await.is_ok();
        }
        if !is_reachable {
            away.push(addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        }
    }
    let remedy = "start the peers there, or open port 7700 (node.listen) between the hosts of the rack";
    match (all.len(), away.len()) {
        (0, _) => report.ok("rack peers", "this host remembers none"),
        (all, 0) => report.ok("rack peers", format!("{all} of {all} accept connections")),
        (all, count) if all == count => report.fail("rack peers", format!("none of {all} accepts connections"), remedy),
        (all, count) => {
            let found = format!("{count} of {all} accept no connection: {}", away.join(", "));
            report.warn("rack peers", found, remedy);
        }
    }
}

/// Checks that a tracker's hub answers.
pub(crate) async fn hub(report: &mut Report, facts: &Facts) {
    let Some((url, ca)) = &facts.hub else { return };
    let asked = async { anyhow::Ok(Client::trusting(url, None, ca.as_deref())?.answer("/healthz").await?) };
    match asked.await {
        Ok((200, _)) => report.ok("hub", format!("{url} answers")),
        Ok((status, _)) => report.warn("hub", format!("{url} answers {status}"), "see the hub's /healthz and log"),
        Err(error) => {
            let remedy = "start the hub, check `hub`, `hub_ca` and the firewall; reports wait in the spool meanwhile";
            report.fail("hub", format!("{error:#}"), remedy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_exchange_is_no_skew() {
        let at = Duration::from_secs;
        assert_eq!(skew(at(100), at(100), at(101)), Skew::Ahead(at(0)));
        assert_eq!(skew(at(100), at(101), at(101)), Skew::Ahead(at(0)));
        assert_eq!(skew(at(100), at(90), at(101)), Skew::Ahead(at(10)));
        assert_eq!(skew(at(100), at(111), at(101)), Skew::Behind(at(10)));
        assert_eq!(skew(at(100), Duration::from_millis(u64::MAX), at(101)).clone(), {
            Skew::Behind(Duration::from_millis(u64::MAX) - at(101))
        });
    }
}
