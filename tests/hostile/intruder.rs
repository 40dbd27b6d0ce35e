//! An admitted node that misbehaves. The host refuses its announcements, reports the reason, and changes nothing.

use shoal_net::admission::{Admission, system_clock};
use shoal_net::control::{ControlConfig, ControlHandle, ControlPlane};
use shoal_net::identity::{Identity, load_key};
use shoal_net::links::{LinkConfig, LinkEndpoint, LinkEvent, OutFrame, encode_announce};
use shoal_proto::announcement::{Announcement, Class, Kind};
use shoal_proto::codec::Document;
use shoal_proto::control::{Join, Request, Response};
use shoal_proto::desired::{Desired, Hosts, Rule, Target, feed_of};
use shoal_proto::feed::{FeedMark, feed_id};
use shoal_proto::frame::{AnnounceFrame, Part};
use shoal_proto::ids::{ContentId, Epoch, JobId, NodeId};
use shoal_proto::locality::Selector;
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root};
use shoal_proto::message::Message;
use shoal_proto::report::{HostState, Reason};
use shoal_proto::sequence;
use shoal_proto::trust::{Envelope, Keypair, Role, Trust};
use shoal_testkit::Program;
use shoal_testkit::{PATIENCE, Process, Region, settings, until};
use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;

const SHOAL: Program = shoal_testkit::program!();

const NAME: &str = "edge/settings";

/// A second seeder with a valid credential that announces invalid documents.
pub(crate) struct Intruder {
    runtime: Runtime,
    me: NodeId,
    tracker: NodeId,
    control: ControlHandle,
    endpoint: LinkEndpoint,
    peer: NodeId,
    /// The manifests that it sends on request.
    manifests: Arc<Mutex<BTreeMap<ContentId, Vec<u8>>>>,
    sequence: u8,
}

impl Intruder {
    pub(crate) fn enter(region: &Region) -> Self {
        settings::issue(SHOAL, region.folder.path(), "intruder", "seeder", "t/core/core/intruder");
        let file = |name: &str| region.folder.path().join("intruder").join(name);
        let identity = Identity::new(&load_key(&file("node.key")).unwrap());
        let trust = Arc::new(Trust::open(&fs::read(file("trust")).unwrap(), None).unwrap());
        let credential = fs::read(file("node.cred")).unwrap();
        let admission = Admission::new(trust, credential.clone(), system_clock);
        let runtime = Runtime::new().unwrap();
        let tracker_addr = region.tracker.addrs["control"][0].as_str().unwrap().parse().unwrap();
        let me = identity.node();
        let (endpoint, mut events, control, mut control_events, tracker, peer) = runtime.block_on(async {
            let config = LinkConfig::new(vec!["127.0.0.1:0".parse().unwrap()], identity.clone(), admission);
            let (endpoint, events) = LinkEndpoint::bind(config).await.unwrap();
            let (control, control_events) =
                ControlPlane::start(ControlConfig::new(identity, Vec::new())).await.unwrap();
            let tracker = control.connect(tracker_addr, None).await.unwrap();
            let addrs = endpoint.local_addrs().to_vec();
            let join = Join { credential, addrs, weight: 100, uplink_mbit: 0, known: None };
            let answer = control.request(tracker, Request::Join(join)).await.unwrap();
            let Response::Joined { update: Some(update), .. } = answer else {
                panic!("the tracker refused the intruder: {answer:?}")
            };
            let peer = update.upserts.into_iter().find(|member| member.role == Role::Peer).unwrap();
            endpoint.dial(peer.node, peer.addrs);
            (endpoint, events, control, control_events, tracker, peer.node)
        });
        let manifests = Arc::<Mutex<BTreeMap<ContentId, Vec<u8>>>>::default();
        let (linked, up) = std::sync::mpsc::sync_channel(1);
        let (answers, out) = (manifests.clone(), endpoint.clone());
        runtime.spawn(async move {
            while let Some(event) = events.recv().await {
                match event {
                    LinkEvent::LinkUp { .. } => drop(linked.try_send(())),
                    LinkEvent::Message { node, message: Message::WantManifest { content } } => {
                        let Some(bytes) = answers.lock().unwrap().get(&content).cloned() else { continue };
                        let (part, class, payload) = (Part::Manifest, Class::Normal, bytes.into());
                        out.send(node, OutFrame::Part { content, part, class, payload }).unwrap();
                    }
                    _ => {}
                }
            }
        });
        let beating = control.clone();
        runtime.spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            loop {
                tokio::select! {
                    // Memberships are dropped.
                    event = control_events.recv() => if event.is_none() { return },
                    _ = tick.tick() => {
                        let (known, reports, versions) = (Epoch(0), Vec::new(), Vec::new());
                        let beat = Request::Beat { known, reports, versions, trust: 0 };
                        let _ = beating.request(tracker, beat).await; // A missed beat is repeated.
                    }
                }
            }
        });
        up.recv_timeout(PATIENCE).expect("the intruder has a link to the host");
        // A host keeps no announcement of a node that the membership does not name yet.
        let members = 3;
        until("the host knows the intruder", || (region.peers[0].metric("shoal_members") == members).then_some(()));
        Self { runtime, me, tracker, control, endpoint, peer, manifests, sequence: 0 }
    }

    /// An announcement that is valid except for its content.
    pub(crate) fn announcement(&mut self, manifest: &[u8], size: u64) -> Announcement {
        self.sequence += 1;
        let now = system_clock();
        let content = Manifest::id(manifest);
        self.manifests.lock().unwrap().insert(content, manifest.to_vec());
        Announcement {
            job: JobId([self.sequence; 16]),
            content,
            kind: Kind::Config,
            name: NAME.into(),
            version: format!("evil{}", self.sequence),
            sequence: sequence::at(1, now * 1000 + u64::from(self.sequence)).unwrap(),
            selector: Selector::all(),
            origin: self.me,
            manifest_bytes: manifest.len() as u64,
            size,
            created_at: now,
            expires_at: now + 3600,
            feed: None,
            staged: false,
            order: None,
        }
    }

    pub(crate) fn announce(&self, envelope: Vec<u8>, inline: Option<(Vec<u8>, Vec<u8>)>) {
        let (manifest, data) = inline.unzip();
        let frame = encode_announce(&AnnounceFrame { envelope, lane: 0, manifest, data });
        self.endpoint.send(self.peer, OutFrame::Announce(frame)).unwrap();
    }

    /// The last reported state of a job.
    pub(crate) fn state(&self, job: JobId) -> Option<HostState> {
        let asked = self.control.request(self.tracker, Request::HostStates { job });
        match self.runtime.block_on(asked).unwrap() {
            Response::States(states) => states.sets.first().map(|set| set.state),
            _ => None,
        }
    }

    fn wait_failed(&self, job: JobId, reason: Reason) {
        until(&format!("the host reports {reason}"), || match self.state(job)? {
            HostState::Unknown => None,
            state => {
                assert_eq!(state, HostState::Failed(reason));
                Some(())
            }
        });
    }
}

/// The manifest of a small file, as a seeder makes it, with any path.
pub(crate) fn small(path: &[u8], data: &[u8]) -> Vec<u8> {
    let entry = Entry { path: path.to_vec(), mode: 0o644, kind: EntryKind::File { size: data.len() as u64 } };
    let manifest = Manifest {
        root: Root::Directory { mode: 0o755 },
        entries: vec![entry],
        streams: vec![data.len() as u64],
        piece_bytes_avg: 1024,
        data: 16,
        parity: 0,
        lanes: 64,
        piece_lens: (data.len() as u32).to_le_bytes().to_vec(),
        piece_hashes: blake3::hash(data).as_bytes().to_vec(),
        parity_hashes: Vec::new(),
        image: None,
    };
    manifest.to_bytes()
}

/// All paths and links in a host's content folder.
fn folder(peer: &Process) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![peer.dir().join("content").join(NAME)];
    while let Some(at) = folders.pop() {
        for item in fs::read_dir(at).unwrap() {
            let path = item.unwrap().path();
            found.push(format!("{} {:?}", path.display(), fs::read_link(&path).ok()));
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn invalid_documents_are_refused_with_the_reason() {
    let region = Region::start(SHOAL, 1, 1);
    let source = region.folder.path().join("settings");
    fs::write(&source, "version 1").unwrap();
    let what = format!("{NAME}@1");
    let args = ["rollout", &what, source.to_str().unwrap(), "--to", "all", "--soak", "0s", "--wait"];
    let output = region.cli(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let peer = &region.peers[0];
    let before = folder(peer);
    assert!(before.iter().any(|row| row.contains("current") && row.contains("\"1\"")), "{before:?}");

    let mut intruder = Intruder::enter(&region);
    let publisher = load_key(&region.folder.path().join("cluster/publisher.key")).unwrap();
    let stranger = Keypair::from_seed([9; 32]);

    // A path leads out of its folder.
    for path in [&b"../escape"[..], b"/etc/escape", b"a/../../escape"] {
        let manifest = small(path, b"evil");
        let escaping = intruder.announcement(&manifest, 4);
        intruder.announce(Envelope::seal(&escaping, &publisher).to_bytes(), Some((manifest, b"evil".to_vec())));
        intruder.wait_failed(escaping.job, Reason::BadManifest);
    }
    let manifest = small(b"settings", b"evil");
    // The sequence is older than that of the active version.
    let mut older = intruder.announcement(&manifest, 4);
    older.sequence = 1;
    intruder.announce(Envelope::seal(&older, &publisher).to_bytes(), Some((manifest.clone(), b"evil".to_vec())));
    intruder.wait_failed(older.job, Reason::Stale);
    // The time has ended, or this host's clock is wrong. The signature is good, so the host reports it.
    let mut expired = intruder.announcement(&manifest, 4);
    (expired.created_at, expired.expires_at) = (system_clock() - 2000, system_clock() - 1000);
    let refused = peer.metric("shoal_announcements_refused_total");
    intruder.announce(Envelope::seal(&expired, &publisher).to_bytes(), Some((manifest.clone(), b"evil".to_vec())));
    intruder.wait_failed(expired.job, Reason::Deadline);
    assert_eq!(peer.metric("shoal_announcements_refused_total"), refused + 1);
    assert!(peer.log().contains("refused an expired announcement"));
    // The signer is not trusted, the signature is invalid, or the time or the trust epoch is ahead. Nothing of such an
    // announcement is verified, so the host counts and logs it but reports nothing.
    let mut broken = Envelope::seal(&intruder.announcement(&manifest, 4), &publisher).to_bytes();
    *broken.last_mut().unwrap() ^= 1;
    let with = |change: fn(&mut Announcement), intruder: &mut Intruder, signer: &Keypair| {
        let mut announcement = intruder.announcement(&manifest, 4);
        change(&mut announcement);
        (announcement.job, Envelope::seal(&announcement, signer).to_bytes())
    };
    let cases = [
        ("not trusted", with(|_| {}, &mut intruder, &stranger)),
        ("trust epoch is 2", with(|row| row.sequence = sequence::at(2, 1).unwrap(), &mut intruder, &publisher)),
        ("trust epoch is 1048575", with(|row| row.sequence = u64::MAX, &mut intruder, &publisher)),
        ("ahead of this host's clock", with(|row| row.sequence += 600_000, &mut intruder, &publisher)),
        ("ahead of this host's clock", with(|row| row.created_at += 600, &mut intruder, &publisher)),
        ("bad signature", (JobId([intruder.sequence; 16]), broken)),
    ];
    for (why, (job, bytes)) in cases {
        let refused = peer.metric("shoal_announcements_refused_total");
        intruder.announce(bytes, Some((manifest.clone(), b"evil".to_vec())));
        let counts = || (peer.metric("shoal_announcements_refused_total") > refused).then_some(());
        until("the host counts the refusal", counts);
        assert_eq!(intruder.state(job), None, "{why}");
        assert!(peer.log().contains(why), "{why}");
    }

    // Desired states: one by an untrusted signer, and an old one.
    let current = region.cli_json(&["status", "--json"]).unwrap();
    let content = current[0]["content"].as_str().unwrap().parse().unwrap();
    let target = Target { version: "evil".into(), content, sequence: 1 };
    let desired = Desired {
        name: NAME.into(),
        rollout: JobId([77; 16]),
        attempt: 1,
        paused: false,
        back: false,
        watch: false,
        rules: vec![Rule { hosts: Hosts::All, target }],
        open: Hosts::All,
        replaces: 0,
    };
    let data = desired.to_bytes();
    let manifest = small(b"desired", &data);
    let [refused, stale] = ["shoal_announcements_refused_total", "shoal_feed_refused_total{reason=\"stale\"}"];
    for (signer, sequence, metric) in [(&stranger, u64::MAX - 1, refused), (&publisher, 1, stale)] {
        let mut document = intruder.announcement(&manifest, data.len() as u64);
        let feed = feed_of(NAME).unwrap();
        (document.job, document.name, document.sequence) = (feed_id(&feed), feed, sequence);
        (document.kind, document.feed) = (Kind::Gslb, Some(FeedMark { published_at_ms: 1 }));
        let refused = peer.metric(metric);
        intruder.announce(Envelope::seal(&document, signer).to_bytes(), Some((manifest.clone(), data.clone())));
        until("the desired state is refused", || (peer.metric(metric) > refused).then_some(()));
        assert_eq!(intruder.state(JobId([77; 16])), None);
    }
    assert_eq!(folder(peer), before, "the content folder has changed");
}
