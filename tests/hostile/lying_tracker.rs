//! A tracker of the cluster that invents hosts and moves others. Nobody connects to what it says.

use super::SHOAL;
use shoal_net::admission::system_clock;
use shoal_net::control::{ControlConfig, ControlEvent, ControlHandle, ControlPlane};
use shoal_net::identity::{Identity, load_key};
use shoal_proto::codec::Document;
use shoal_proto::control::{Join, Request, Response};
use shoal_proto::ids::{Epoch, HostIndex, NodeId};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::{Credential, Envelope, Keypair, Role, Trust};
use shoal_testkit::process::Launcher;
use shoal_testkit::settings::{issue_with, node};
use shoal_testkit::{Process, own_loopback, until};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// The rack of the victim.
const RACK: &str = "t/site/rack0";

/// The tracker, which answers every host with the memberships of the test.
struct LyingTracker {
    _runtime: Runtime,
    control: ControlHandle,
    keys: Keypair,
    /// The next updates, oldest first. The first is whole and answers the next `Join`.
    updates: Arc<Mutex<Vec<MembershipUpdate>>>,
    /// Beats that told something.
    beats: Arc<AtomicU32>,
}

impl LyingTracker {
    fn start(folder: &Path, addr: Ipv4Addr) -> Self {
        issue_with(SHOAL, folder, "liar", "tracker", "t/core/core/liar", &["--address", "127.0.0.0/8"]);
        let keys = load_key(&folder.join("liar/node.key")).unwrap();
        let credential = fs::read(folder.join("liar/node.cred")).unwrap();
        Self::with(folder, addr, keys, credential)
    }

    /// A node with any key that shows any credential.
    fn with(folder: &Path, addr: Ipv4Addr, keys: Keypair, credential: Vec<u8>) -> Self {
        let trust = Trust::open(&fs::read(folder.join("cluster/trust")).unwrap(), None).unwrap();
        let config = ControlConfig::new(Identity::new(&keys), vec![SocketAddr::from((addr, 0))]);
        let runtime = Runtime::new().unwrap();
        let (control, events) = runtime.block_on(ControlPlane::start(config)).unwrap();
        let updates = Arc::<Mutex<Vec<MembershipUpdate>>>::default();
        let beats = Arc::<AtomicU32>::default();
        runtime.spawn(answer(events, trust, credential, updates.clone(), beats.clone()));
        Self { _runtime: runtime, control, keys, updates, beats }
    }

    fn say(&self, update: MembershipUpdate) {
        self.updates.lock().unwrap().push(update);
    }
}

/// Answers all hosts. A host's own row is true, so that the host starts.
async fn answer(
    mut events: mpsc::Receiver<ControlEvent>,
    trust: Trust,
    credential: Vec<u8>,
    updates: Arc<Mutex<Vec<MembershipUpdate>>>,
    beats: Arc<AtomicU32>,
) {
    let next = || {
        let mut updates = updates.lock().unwrap();
        (!updates.is_empty()).then(|| updates.remove(0))
    };
    while let Some(event) = events.recv().await {
        let ControlEvent::Request { from, request, reply, .. } = event else { continue };
        match request {
            Request::Join(join) => {
                let mut update = next().unwrap_or_else(|| update(None, 1, &[]));
                update.upserts.push(true_row(&trust, from, join));
                reply.admit(Response::Joined {
                    index: HostIndex(0),
                    update: Some(update),
                    beat_ms: 100,
                    tracker: credential.clone(),
                });
            }
            Request::Beat { known, reports, versions, .. } => {
                // A host that cannot admit a tracker asks for its trust document with a beat that tells nothing.
                let tells = known != Epoch(u64::MAX) || !reports.is_empty() || !versions.is_empty();
                beats.fetch_add(u32::from(tells), Ordering::Relaxed);
                reply.send(Response::Heard { update: next(), trust: 1 });
            }
            _ => reply.send(Response::Done),
        }
    }
}

fn true_row(trust: &Trust, from: NodeId, join: Join) -> Member {
    let Credential { locality, labels, .. } = (*trust.admit(&join.credential, from, system_clock()).unwrap()).clone();
    Member {
        index: HostIndex(0),
        node: from,
        role: Role::Peer,
        locality,
        labels,
        addrs: join.addrs,
        weight: join.weight,
        uplink_mbit: 0,
        presence: Presence::Up,
        credential: join.credential.into(),
    }
}

/// A host of the membership, and a port that sees who connects to it.
struct Place {
    row: Member,
    port: TcpListener,
}

impl Place {
    /// The true row of a new host at a port of its own.
    fn of_host(folder: &Path, index: u32, name: &str, role: &str, rack: &str, range: &str) -> Self {
        issue_with(SHOAL, folder, name, role, &format!("{rack}/{name}"), &["--address", range]);
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        port.set_nonblocking(true).unwrap();
        let credential = fs::read(folder.join(name).join("node.cred")).unwrap();
        let opened: Credential = Envelope::from_bytes(&credential).unwrap().open().unwrap();
        let row = Member {
            index: HostIndex(index),
            node: opened.node,
            role: opened.role,
            locality: opened.locality,
            labels: opened.labels,
            addrs: vec![port.local_addr().unwrap()],
            weight: 100,
            uplink_mbit: 0,
            presence: Presence::Up,
            credential: credential.into(),
        };
        Self { row, port }
    }

    /// Changes the row.
    fn but(mut self, lie: impl FnOnce(&mut Member)) -> Self {
        lie(&mut self.row);
        self
    }

    fn was_called(&self) -> bool {
        self.port.accept().is_ok()
    }
}

fn update(base: Option<u64>, epoch: u64, places: &[Place]) -> MembershipUpdate {
    let upserts = places.iter().map(|place| place.row.clone()).collect();
    MembershipUpdate { epoch: Epoch(epoch), base: base.map(Epoch), upserts, removed: Vec::new() }
}

#[test]
fn invented_and_moved_hosts_are_never_called() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    SHOAL.ok(&["cluster", "init", "--dir", at.join("cluster").to_str().unwrap()]);
    let addr = own_loopback();
    let tracker = LyingTracker::start(at, addr);
    let host = |index, name: &str, rack: &str, range: &str| Place::of_host(at, index, name, "peer", rack, range);
    // A host that is nobody's child calls the seeder, so a true seeder is called whatever the plan is.
    let seeder = |index, name: &str| Place::of_host(at, index, name, "seeder", RACK, "127.0.0.0/8");
    let near = |index, name: &str| host(index, name, RACK, "127.0.0.0/8");
    let invented = Keypair::from_seed([77; 32]);
    let lies = [
        // A host that nobody issued a credential to, with a credential that the tracker signed.
        near(2, "model").but(|row| {
            let stolen: Credential = Envelope::from_bytes(&row.credential).unwrap().open().unwrap();
            row.node = invented.node();
            let made_up = Credential { node: row.node, ..stolen };
            row.credential = Envelope::seal(&made_up, &tracker.keys).to_bytes().into();
        }),
        // A host that shows the credential of another one, and one without a credential.
        near(3, "lender").but(|row| row.node = Keypair::from_seed([78; 32]).node()),
        near(4, "bare").but(|row| row.credential = Arc::default()),
        // Hosts at other places and addresses than their credentials say.
        host(5, "far", "t/site/rack9", "127.0.0.0/8").but(|row| row.locality.rack = "rack0".into()),
        host(6, "narrow", RACK, "127.9.9.9/32"),
        // The seeder that every lane would begin at.
        near(7, "root").but(|row| row.role = Role::Seeder),
        near(8, "heavy").but(|row| row.weight = 60_000),
    ];
    let honest = [seeder(1, "honest")];
    let all: Vec<Place> = lies.into_iter().chain(honest).collect();
    tracker.say(update(None, 1000, &all));
    let mut victim = victim(at, addr, &tracker);
    victim.start();
    let (lies, honest) = all.split_at(7);
    let refused = || victim.metric("shoal_membership_rows_refused_total");
    until("the lies are refused", || (refused() >= 7).then_some(()));
    until("the true host is called", || honest[0].was_called().then_some(()));
    assert_eq!(victim.metric("shoal_members"), 2);

    // Deltas: a known host moves without a new credential, and is invented again under its old index.
    let moved = [near(9, "moved").but(|row| {
        row.node = honest[0].row.node;
        row.index = HostIndex(1);
        row.locality = "t/site/rack5/honest".parse().unwrap();
        row.credential = Arc::default();
    })];
    tracker.say(update(Some(1000), 1001, &moved));
    let late = [seeder(10, "late")];
    tracker.say(MembershipUpdate { removed: vec![HostIndex(1)], ..update(Some(1001), 1002, &late) });
    until("the true host of the delta is called", || late[0].was_called().then_some(()));
    assert_eq!(refused(), 8);
    for place in lies.iter().chain(&moved) {
        assert!(!place.was_called(), "the victim calls {}", place.row.locality);
    }
    let log = victim.log();
    let lines = log.lines().filter(|line| line.contains("refused rows of a membership")).count();
    assert_eq!(lines, 1, "{log}");
}

/// A host of the tracker, not started.
fn victim(at: &Path, addr: Ipv4Addr, tracker: &LyingTracker) -> Process {
    let mut set = node(at, addr, "victim", &tracker.control.local_addrs()[0].to_string());
    issue_with(SHOAL, at, "victim", "peer", &format!("{RACK}/victim"), &["--address", "127.0.0.0/8", "--replace"]);
    set.push("mirror.listen=''".into());
    set.push(format!("content_dir='{}'", at.join("victim/content").display()));
    Process::new(at, "victim", "peer", set, &Launcher::new(SHOAL, &[]))
}

#[test]
fn only_a_tracker_of_the_region_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    SHOAL.ok(&["cluster", "init", "--dir", at.join("cluster").to_str().unwrap()]);
    for (name, role, locality) in
        [("true", "tracker", "t/core/core/true"), ("peer", "peer", "t/core/core/p"), ("other", "tracker", "u/c/c/t")]
    {
        issue_with(SHOAL, at, name, role, locality, &["--address", "127.0.0.0/8"]);
    }
    let key = |name: &str| load_key(&at.join(name).join("node.key")).unwrap();
    let credential = |name: &str| fs::read(at.join(name).join("node.cred")).unwrap();
    let cases = [
        ("a stranger without a credential", Keypair::from_seed([5; 32]), Vec::new()),
        ("a stranger with a tracker's credential", Keypair::from_seed([6; 32]), credential("true")),
        ("a stolen host", key("peer"), credential("peer")),
        ("a tracker of another region", key("other"), credential("other")),
    ];
    for (who, keys, credential) in cases {
        let addr = own_loopback();
        let liar = LyingTracker::with(at, addr, keys, credential);
        let mut victim = victim(at, addr, &liar);
        victim.start();
        until(who, || victim.log().contains("does not believe the node at the tracker's address").then_some(()));
        assert_eq!((victim.metric("shoal_members"), liar.beats.load(Ordering::Relaxed)), (0, 0), "{who}");
        victim.kill();
        fs::remove_dir_all(at.join("victim")).unwrap();
    }
}
