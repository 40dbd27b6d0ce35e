//! Two or more control planes on loopback.

use super::*;
use crate::identity::Identity;
use crate::testing::{keys, local};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use shoal_proto::control::{JobRollup, Join, RackRollup};
use shoal_proto::ids::{Epoch, JobId};
use shoal_proto::limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(20);

struct Plane {
    id: NodeId,
    handle: ControlHandle,
    events: mpsc::Receiver<ControlEvent>,
}

fn config(number: u8) -> ControlConfig {
    ControlConfig::new(Identity::new(&keys(number)), vec![])
}

impl Plane {
    async fn start(config: ControlConfig) -> Self {
        let id = config.identity.node();
        let (handle, events) = ControlPlane::start(config).await.unwrap();
        Self { id, handle, events }
    }

    async fn server(number: u8) -> Self {
        let mut config = config(number);
        config.listen = vec![local()];
        Self::start(config).await
    }

    fn addr(&self) -> SocketAddr {
        self.handle.local_addrs()[0]
    }

    async fn next(&mut self) -> ControlEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").unwrap()
    }
}

/// Connects `client`, and lets `server` admit it.
async fn admit(client: &Plane, server: &mut Plane) {
    let id = server.id;
    client.handle.connect(server.addr(), Some(id)).await.unwrap();
    assert!(matches!(server.next().await, ControlEvent::Connected { .. }));
    let admitting = async {
        match server.next().await {
            ControlEvent::Request { reply, .. } => reply.admit(Response::Done),
            other => panic!("{other:?}"),
        }
    };
    let (answer, ()) = tokio::join!(client.handle.request(id, Request::Leave), admitting);
    assert_eq!(answer.unwrap(), Response::Done);
}

fn open_job(bytes: usize) -> Request {
    Request::OpenJob { envelope: vec![7; bytes] }
}

/// Answers `Done` to every request, and admits its sender.
async fn answer_all(mut server: Plane) {
    loop {
        if let ControlEvent::Request { reply, .. } = server.next().await {
            reply.admit(Response::Done);
        }
    }
}

#[tokio::test]
async fn a_request_and_its_answer_with_bytes_counted() {
    let mut server = Plane::server(1).await;
    let mut client = Plane::start(config(2)).await;
    assert!(client.handle.local_addrs().is_empty());
    assert_eq!(client.handle.connect(server.addr(), None).await.unwrap(), server.id);
    match (server.next().await, client.next().await) {
        (ControlEvent::Connected { node: at_server, .. }, ControlEvent::Connected { node: at_client, remote }) => {
            assert_eq!((at_server, at_client, remote), (client.id, server.id, server.addr()));
        }
        other => panic!("{other:?}"),
    }
    let join =
        Join { credential: vec![1; 100], addrs: vec![local()], weight: 1, uplink_mbit: 0, known: Some(Epoch(3)) };
    let (asked, client_handle) = (Request::Join(join.clone()), client.handle.clone());
    let asking = tokio::spawn(async move { client_handle.request(server.id, asked).await });
    match server.next().await {
        ControlEvent::Request { from, request, reply, remote, .. } => {
            assert_eq!((from, request), (client.id, Request::Join(join)));
            assert!(remote.ip().is_loopback());
            reply.admit(Response::Done);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(asking.await.unwrap().unwrap(), Response::Done);
    // The other direction on the same connection.
    let (server_handle, client_id) = (server.handle.clone(), client.id);
    let asking = tokio::spawn(async move { server_handle.request(client_id, Request::Leave).await });
    match client.next().await {
        ControlEvent::Request { from, request: Request::Leave, reply, .. } => {
            assert_eq!(from, server.id);
            reply.send(Response::Done);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(asking.await.unwrap().unwrap(), Response::Done);
    assert!(client.handle.bytes_out() > 500 && client.handle.bytes_in() > 500);
    assert!(server.handle.bytes_in() <= client.handle.bytes_out());
}

#[tokio::test]
async fn a_response_of_megabytes_arrives() {
    let mut server = Plane::server(1).await;
    let client = Plane::start(config(2)).await;
    client.handle.connect(server.addr(), Some(server.id)).await.unwrap();
    let row = |number: u32| RackRollup { rack: format!("cn/s1/r{number}"), hosts: number, ..RackRollup::default() };
    let rollup = JobRollup { racks: (0..20_000).map(row).collect(), ..JobRollup::default() };
    let answering = async {
        loop {
            if let ControlEvent::Request { reply, .. } = server.next().await {
                return reply.admit(Response::Rollup(rollup.clone()));
            }
        }
    };
    let asking = client.handle.request(keys(1).node(), Request::JobStatus { job: JobId([1; 16]) });
    let (answer, ()) = tokio::join!(asking, answering);
    assert!(answer.unwrap() == Response::Rollup(rollup));
    assert!(client.handle.bytes_in() > 500_000);
}

#[tokio::test]
async fn requests_over_the_limit_fail_and_others_work() {
    let mut narrow = config(1);
    narrow.listen = vec![local()];
    narrow.request_bytes_max = 4096;
    let server = Plane::start(narrow).await;
    let (addr, id) = (server.addr(), server.id);
    let client = Plane::start(config(2)).await;
    let serving = tokio::spawn(answer_all(server));
    client.handle.connect(addr, Some(id)).await.unwrap();
    assert_eq!(client.handle.request(id, Request::Leave).await.unwrap(), Response::Done);
    assert_eq!(client.handle.request(id, open_job(4000)).await.unwrap(), Response::Done);
    let over = client.handle.request(id, open_job(4096)).await;
    assert!(matches!(over, Err(RequestError::Protocol(_) | RequestError::NoAnswer | RequestError::Lost)), "{over:?}");
    let far_over = client.handle.request(id, open_job(limits::CONTROL_PLANE_BYTES_MAX + 1)).await;
    assert!(matches!(far_over, Err(RequestError::TooLong)), "{far_over:?}");
    assert_eq!(client.handle.request(id, Request::Leave).await.unwrap(), Response::Done);
    serving.abort();
}

#[tokio::test]
async fn a_wrong_node_and_an_unreachable_address_are_different_errors() {
    let server = Plane::server(1).await;
    let client = Plane::start(config(2)).await;
    let other = keys(3).node();
    match client.handle.connect(server.addr(), Some(other)).await {
        Err(ConnectError::WrongNode { expected, found, .. }) => {
            assert_eq!((expected, found), (other, server.id.to_string()));
        }
        result => panic!("{result:?}"),
    }
    let closed = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    match client.handle.connect(closed, None).await {
        Err(ConnectError::Unreachable { why, .. }) => assert!(why.contains("refused"), "{why}"),
        result => panic!("{result:?}"),
    }
    assert!(matches!(client.handle.request(other, Request::Leave).await, Err(RequestError::NotConnected)));
}

#[tokio::test]
async fn an_unknown_client_on_the_port_is_dropped() {
    let mut quick = config(1);
    quick.listen = vec![local()];
    quick.timeout = Duration::from_millis(300);
    let server = Plane::start(quick).await;
    for hello in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 200], b""] {
        let mut client = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
        client.write_all(hello).await.unwrap();
        let mut received = Vec::new();
        let read = client.read_to_end(&mut received);
        let _ = timeout(PATIENCE, read).await.expect("dropped in time"); // a reset will do as well
    }
}

#[tokio::test]
async fn unanswered_requests_fail_and_too_many_are_refused() {
    let mut small = config(1);
    small.listen = vec![local()];
    small.requests_max = 2;
    let mut server = Plane::start(small).await;
    let client = Plane::start(config(2)).await;
    admit(&client, &mut server).await;
    let id = server.id;
    let asks = (0..3u8).map(|n| client.handle.request(id, Request::JobStatus { job: JobId([n; 16]) }));
    let serving = async {
        let mut slots = Vec::new();
        for _ in 0..2 {
            match server.next().await {
                ControlEvent::Request { reply, .. } => slots.push(reply),
                other => panic!("{other:?}"),
            }
        }
        slots
    };
    // The third request is refused while two wait.
    let mut asking: FuturesUnordered<_> = asks.collect();
    let (mut slots, first) = tokio::join!(serving, asking.next());
    assert!(matches!(first, Some(Ok(Response::Refused { .. }))), "{first:?}");
    drop(slots.pop());
    slots.pop().unwrap().send(Response::Done);
    let mut answers: Vec<_> = asking.collect().await;
    answers.sort_by_key(|answer| format!("{answer:?}"));
    match answers.as_slice() {
        [Err(RequestError::NoAnswer), Ok(Response::Done)] => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_that_never_answers_is_disconnected() {
    let mut server = Plane::server(1).await;
    let mut hasty = config(2);
    // The timeout holds for connecting too.
    hasty.timeout = Duration::from_secs(2);
    let mut client = Plane::start(hasty).await;
    admit(&client, &mut server).await;
    assert!(matches!(client.next().await, ControlEvent::Connected { .. }));
    for _ in 0..2 {
        assert!(matches!(client.handle.request(server.id, Request::Leave).await, Err(RequestError::Timeout)));
    }
    assert!(matches!(client.next().await, ControlEvent::Disconnected { .. }));
}

#[tokio::test]
async fn disconnect_and_block() {
    let mut server = Plane::server(1).await;
    let client = Plane::start(config(2)).await;
    client.handle.connect(server.addr(), None).await.unwrap();
    assert!(matches!(server.next().await, ControlEvent::Connected { .. }));
    server.handle.disconnect(client.id);
    assert!(matches!(server.next().await, ControlEvent::Disconnected { .. }));
    server.handle.block(client.id);
    // The refusal may come after our own end counts as connected. Then the first request finds the connection closed.
    let refused = match client.handle.connect(server.addr(), None).await {
        Err(_) => true,
        Ok(_) => client.handle.request(server.id, Request::Leave).await.is_err(),
    };
    assert!(refused);
    let other = Plane::start(config(3)).await;
    other.handle.connect(server.addr(), None).await.unwrap();
}

#[tokio::test]
async fn shutdown_closes_connections_and_leaves_no_task() {
    let mut server = Plane::server(1).await;
    let clients = join_all((2..6).map(|number| Plane::start(config(number)))).await;
    for client in &clients {
        client.handle.connect(server.addr(), Some(server.id)).await.unwrap();
        assert!(matches!(server.next().await, ControlEvent::Connected { .. }));
    }
    server.handle.shutdown(Duration::from_secs(5)).await;
    assert!(server.handle.context.tasks.is_empty());
    for mut client in clients {
        assert!(matches!(client.next().await, ControlEvent::Connected { .. }));
        assert!(matches!(client.next().await, ControlEvent::Disconnected { .. }));
    }
    let late = server.handle.connect(local(), None).await;
    assert!(matches!(late, Err(ConnectError::Unavailable(_))), "{late:?}");
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(1);
    config.listen = vec![listener.local_addr().unwrap()];
    match ControlPlane::start(config).await.map(|_| ()) {
        Err(StartError::Listen { addr, why }) => {
            assert_eq!(addr, listener.local_addr().unwrap());
            assert!(why.contains("in use"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_that_is_not_admitted_has_one_small_request() {
    let mut server = Plane::server(1).await;
    let (addr, id) = (server.addr(), server.id);
    for (number, ask) in [(2, open_job(7000)), (3, open_job(12_000)), (4, open_job(limits::ANNOUNCEMENT_BYTES_MAX))] {
        let mut client = Plane::start(config(number)).await;
        client.handle.connect(addr, Some(id)).await.unwrap();
        let answering = async {
            loop {
                match server.next().await {
                    ControlEvent::Request { reply, .. } => reply.send(Response::Refused { why: "no".into() }),
                    ControlEvent::Disconnected { .. } => return,
                    ControlEvent::Connected { .. } => {}
                }
            }
        };
        let (answer, ()) = tokio::join!(client.handle.request(id, ask), answering);
        match number {
            2 => assert_eq!(answer.unwrap(), Response::Refused { why: "no".into() }, "a small request has an answer"),
            _ => assert!(answer.is_err(), "{answer:?}"),
        }
        assert!(matches!(client.next().await, ControlEvent::Connected { .. }));
        assert!(matches!(client.next().await, ControlEvent::Disconnected { .. }), "the server ends the connection");
    }
    assert_eq!((server.handle.unadmitted(), server.handle.dropped_unadmitted()), (0, 3), "waiting, dropped");
}

#[tokio::test]
async fn a_second_request_before_admission_ends_the_connection() {
    let mut server = Plane::server(1).await;
    let client = Plane::start(config(2)).await;
    client.handle.connect(server.addr(), Some(server.id)).await.unwrap();
    assert!(matches!(server.next().await, ControlEvent::Connected { .. }));
    let ask = |number| client.handle.request(keys(1).node(), Request::JobStatus { job: JobId([number; 16]) });
    let serving = async {
        let first = server.next().await;
        assert!(matches!(first, ControlEvent::Request { .. }), "{first:?}");
        let end = server.next().await;
        assert!(matches!(end, ControlEvent::Disconnected { .. }), "{end:?}");
    };
    let (first, second, ()) = tokio::join!(ask(1), ask(2), serving);
    assert!(first.is_err() && second.is_err());
}

#[tokio::test]
async fn a_silent_node_is_dropped_and_the_oldest_one_makes_room() {
    let mut few = config(1);
    few.listen = vec![local()];
    few.unadmitted_per_range_max = 2;
    few.unadmitted_timeout = Duration::from_secs(2);
    let mut server = Plane::start(few).await;
    let mut clients = Vec::new();
    for number in 2..5 {
        let client = Plane::start(config(number)).await;
        client.handle.connect(server.addr(), Some(server.id)).await.unwrap();
        clients.push(client);
    }
    let mut gone = Vec::new();
    while gone.len() < 3 {
        if let ControlEvent::Disconnected { node, .. } = server.next().await {
            gone.push(node);
        }
    }
    assert_eq!(gone[0], clients[0].id, "the oldest one went first, the others at their deadline");
}
