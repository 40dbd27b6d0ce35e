//! One example of everything, the same in every run.

use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::Document;
use shoal_proto::control::{
    AttemptSet, CurrentVersion, HostLine, JobRollup, JobStates, Join, RackRollup, Request, Response, VersionSet,
};
use shoal_proto::desired::{Desired, Hosts, Rule, Target};
use shoal_proto::feed::{FeedMark, FeedRow, feed_id};
use shoal_proto::frame::AnnounceFrame;
use shoal_proto::ids::{ContentId, Epoch, Hash, HostIndex, JobId, NodeId, ShardIndex};
use shoal_proto::image::{Digest, ImageBlob, ImageIndex, OCI_MANIFEST};
use shoal_proto::locality::{Labels, Locality, Selector};
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::message::{DemotionStage, LaneSet, Message};
use shoal_proto::rack_placement::RackPlacement;
use shoal_proto::receipt::HubReceipt;
use shoal_proto::report::{
    HostReport, HostState, HubFlush, HubSubmission, JobFlush, Reason, RosterRow, StateSet, TierBytes,
};
use shoal_proto::trust::{
    Credential, Envelope, Issuer, JoinClaim, JoinToken, Keypair, Publisher, Revocation, Role, Succession,
    TrustDocument, cluster_of,
};

pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) fn root() -> Keypair {
    Keypair::from_seed([1; 32])
}

pub(crate) fn publisher() -> Keypair {
    Keypair::from_seed([2; 32])
}

pub(crate) fn node() -> Keypair {
    Keypair::from_seed([3; 32])
}

pub(crate) fn issuer() -> Keypair {
    Keypair::from_seed([4; 32])
}

pub(crate) fn next_root() -> Keypair {
    Keypair::from_seed([5; 32])
}

pub(crate) fn locality() -> Locality {
    Locality::new("cn-north", "idc7", "r12", "edge-003").unwrap()
}

pub(crate) fn credential() -> Credential {
    Credential {
        cluster: cluster_of(&root().node()),
        node: node().node(),
        role: Role::Peer,
        locality: locality(),
        not_before: NOW - 1000,
        not_after: NOW + 1000,
        labels: Labels::from([("gpu".into(), "yes".into())]),
        weight_max: 200,
        addresses: vec!["10.1.0.0/16".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
    }
}

pub(crate) fn trust_document() -> TrustDocument {
    TrustDocument {
        cluster: cluster_of(&root().node()),
        root: root().node(),
        successions: vec![],
        version: 3,
        epoch: 2,
        publishers: vec![Publisher::unscoped(publisher().node())],
        issuers: vec![Issuer {
            key: issuer().node(),
            roles: vec![Role::Peer],
            localities: vec!["cn-north/idc7".into()],
            valid_max_s: 3600,
            not_after: NOW + 500,
        }],
        revoked: vec![Revocation { node: NodeId([0xee; 32]), until: NOW + 1000 }],
    }
}

/// A document under the second root, with a publisher of a narrow scope.
pub(crate) fn succeeded_trust_document() -> TrustDocument {
    let cluster = cluster_of(&root().node());
    let scoped = Publisher {
        key: publisher().node(),
        names: vec!["edge".into()],
        selector: Some(Selector::parse(&["site=idc7"]).unwrap()),
    };
    TrustDocument {
        root: next_root().node(),
        successions: vec![Envelope::seal(&Succession { cluster, next: next_root().node() }, &root())],
        version: 4,
        publishers: vec![scoped],
        ..trust_document()
    }
}

pub(crate) fn announcement() -> Announcement {
    Announcement {
        job: JobId([7; 16]),
        content: ContentId([8; 32]),
        kind: Kind::Config,
        name: "edge/nginx".into(),
        version: "2026-11.1".into(),
        sequence: 41,
        selector: Selector::parse(&["site=idc7,gpu=yes", "rack=r1"]).unwrap(),
        origin: NodeId([9; 32]),
        manifest_bytes: 4711,
        size: 123_456_789,
        created_at: NOW,
        expires_at: NOW + 86_400,
        order: None,
        feed: None,
        staged: false,
    }
}

pub(crate) fn feed_announcement() -> Announcement {
    Announcement {
        job: feed_id("gslb/main"),
        kind: Kind::Gslb,
        name: "gslb/main".into(),
        size: 2048,
        feed: Some(FeedMark { published_at_ms: NOW * 1000 + 7 }),
        ..announcement()
    }
}

fn le(lens: &[u32]) -> Vec<u8> {
    lens.iter().flat_map(|len| len.to_le_bytes()).collect()
}

fn hashes(count: usize, first: u8) -> Vec<u8> {
    (0..count).flat_map(|at| Hash([first + at as u8; 32]).0).collect()
}

fn entry(path: &[u8], mode: u32, kind: EntryKind) -> Entry {
    Entry { path: path.to_vec(), mode, kind }
}

/// Five pieces in two stripes of k = 3, m = 2; a directory, files, an empty one, a link, a name that is not UTF-8.
pub(crate) fn manifest() -> Manifest {
    Manifest {
        root: Root::Directory { mode: 0o755 },
        entries: vec![
            entry(b"bin", 0o750, EntryKind::Directory),
            entry(b"bin/tool", 0o755, EntryKind::File { size: 900 }),
            entry(b"bin/tool-1", 0o777, EntryKind::Link { target: b"tool".to_vec() }),
            entry(b"caf\xe9 au lait", 0o600, EntryKind::File { size: 0 }),
            entry(b"data", 0o644, EntryKind::File { size: 350 }),
        ],
        streams: vec![1250],
        piece_bytes_avg: 256,
        data: 3,
        parity: 2,
        lanes: 8,
        piece_lens: le(&[300, 250, 200, 400, 100]),
        piece_hashes: hashes(5, 0x10),
        parity_hashes: hashes(4, 0x80),
        image: None,
    }
}

fn blob(fill: u8, media_type: &str, size: u64) -> ImageBlob {
    ImageBlob { digest: Digest([fill; 32]), media_type: media_type.into(), size }
}

/// A manifest, a configuration and a layer of two pieces.
pub(crate) fn image_manifest() -> Manifest {
    Manifest {
        root: Root::Image,
        entries: vec![],
        streams: vec![300, 250, 700],
        piece_bytes_avg: 0,
        image: Some(ImageIndex {
            reference: "registry.example:5000/lab/app:v1".into(),
            root: Digest([0x51; 32]),
            blobs: vec![
                blob(0x51, OCI_MANIFEST, 300),
                blob(0x52, "application/vnd.oci.image.config.v1+json", 250),
                blob(0x53, "application/vnd.oci.image.layer.v1.tar+gzip", 700),
            ],
        }),
        ..manifest()
    }
}

pub(crate) fn file_manifest() -> Manifest {
    Manifest {
        root: Root::File,
        entries: vec![entry(b"blob.bin", 0o644, EntryKind::File { size: 300 })],
        streams: vec![300],
        piece_lens: le(&[300]),
        piece_hashes: hashes(1, 0x10),
        parity_hashes: hashes(2, 0x80),
        ..manifest()
    }
}

pub(crate) fn bitmap(len: u32, numbers: &[u32]) -> Bitmap {
    let mut map = Bitmap::new(len);
    numbers.iter().for_each(|number| assert!(map.set(*number)));
    map
}

pub(crate) fn placement(hosts: u32) -> RackPlacement {
    RackPlacement::new((0..hosts).map(|host| HostIndex(host * 500)))
}

pub(crate) fn messages() -> Vec<(&'static str, Message)> {
    let content = ContentId([8; 32]);
    let (lanes, shards) = (LaneSet(0x8001), vec![ShardIndex(0), ShardIndex(70_000)]);
    let jobs = vec![JobId([7; 16]), JobId([8; 16])];
    vec![
        ("subscribe", Message::Subscribe { content, lanes, have: bitmap(1000, &[1, 2, 3, 999]) }),
        ("unsubscribe", Message::Unsubscribe { content, lanes }),
        ("received", Message::Received { content, pieces: bitmap(20, &[0, 5, 19]) }),
        ("done", Message::Done { content }),
        ("want", Message::Want { content, shards: shards.clone() }),
        ("unavailable", Message::Unavailable { content, shards }),
        ("want_manifest", Message::WantManifest { content }),
        ("not_served", Message::NotServed { content }),
        ("digest", Message::Digest { hash: 0x0123_4567_89ab_cdef, jobs: None }),
        ("digest_jobs", Message::Digest { hash: 1, jobs: Some(jobs.clone()) }),
        ("want_announce", Message::WantAnnounce { jobs }),
        ("want_rack_peers", Message::WantRackPeers),
        ("rack_peers", Message::RackPeers { rows: vec![member(1), member(2)] }),
        (
            "demotion",
            Message::Demotion {
                content,
                job: JobId([7; 16]),
                stage: DemotionStage::ShareOnly,
                placement: placement(3),
                ask: true,
            },
        ),
        ("feeds", Message::Feeds { rows: vec![FeedRow { feed: feed_id("gslb/main"), sequence: 41 }] }),
    ]
}

pub(crate) fn member(index: u32) -> Member {
    Member {
        index: HostIndex(index),
        node: NodeId([index as u8; 32]),
        role: Role::Peer,
        locality: locality(),
        labels: labels(),
        addrs: vec!["10.1.2.3:7700".parse().unwrap(), "[2001:db8::1]:7700".parse().unwrap()],
        weight: 100,
        uplink_mbit: 10_000,
        presence: Presence::Up,
        credential: [1, 2, 3].into(),
    }
}

pub(crate) fn labels() -> Labels {
    Labels::from([("gpu".to_string(), "yes".to_string()), ("tier".to_string(), "1".to_string())])
}

pub(crate) fn update() -> MembershipUpdate {
    MembershipUpdate {
        epoch: Epoch(12),
        base: Some(Epoch(10)),
        upserts: vec![member(3), Member { presence: Presence::Away, role: Role::Seeder, ..member(4) }],
        removed: vec![HostIndex(1)],
    }
}

pub(crate) fn tiers() -> TierBytes {
    TierBytes { local: 1, rack: 2000, site: 300_000, region: 40_000_000, seeder: 5_000_000_000 }
}

pub(crate) fn report() -> HostReport {
    HostReport {
        job: JobId([7; 16]),
        attempt: 2,
        state: HostState::Failed(Reason::NoSpace),
        detail: "needs 3 GiB, has 1".into(),
        pieces_have: 17,
        pieces_total: 1000,
        tiers: tiers(),
        sent: 77,
    }
}

pub(crate) fn join_token() -> JoinToken {
    let Credential { cluster, role, labels, weight_max, addresses, .. } = credential();
    JoinToken {
        cluster,
        key: NodeId([9; 32]),
        role,
        place: "cn-north/bj1/rack7".into(),
        uses: 40,
        not_after: NOW + 3600,
        valid_s: 30 * 86_400,
        labels,
        weight_max,
        addresses,
        trust_version: 3,
    }
}

pub(crate) fn join_claim() -> JoinClaim {
    JoinClaim { cluster: credential().cluster, node: NodeId([8; 32]), name: Some("host17".into()) }
}

pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    let join = Join {
        credential: vec![1, 2, 3],
        addrs: vec!["0.0.0.0:7700".parse().unwrap()],
        weight: 50,
        uplink_mbit: 1000,
        known: Some(Epoch(9)),
    };
    let other = HostReport { state: HostState::Has, detail: String::new(), ..report() };
    vec![
        ("join", Request::Join(join)),
        ("beat", Request::Beat { known: Epoch(12), reports: vec![report(), other], versions: Vec::new(), trust: 4 }),
        ("beat_versions", Request::Beat { known: Epoch(12), reports: Vec::new(), versions: versions(), trust: 4 }),
        ("host_states", Request::HostStates { job: JobId([7; 16]) }),
        ("versions", Request::Versions { name: "edge/nginx".into() }),
        ("open_job", Request::OpenJob { envelope: vec![4, 5, 6] }),
        ("job_status", Request::JobStatus { job: JobId([7; 16]) }),
        ("membership", Request::Membership(update())),
        ("leave", Request::Leave),
        ("duplicates", Request::Duplicates),
        ("clock", Request::Clock),
        (
            "want_image",
            Request::WantImage { reference: "registry.example:5000/lab/app:v1".into(), host: Some(HostIndex(3)) },
        ),
        ("enrol", Request::Enrol { token: vec![1, 2, 3], claim: vec![4, 5] }),
        ("renew", Request::Renew),
        (
            "enrol_node",
            Request::EnrolNode {
                at: 1_800_000_000,
                chain: vec![vec![2, 3].into(), vec![4].into()],
                scheme: 0x0403,
                signature: vec![5, 6],
            },
        ),
    ]
}

pub(crate) fn versions() -> Vec<CurrentVersion> {
    let row = |name: &str, version: &str| CurrentVersion { name: name.into(), version: version.into() };
    vec![row("edge/nginx", "2026-11.1"), row("edge/other", "")]
}

pub(crate) fn states() -> JobStates {
    let set = |attempt, state, hosts| AttemptSet { attempt, state, hosts };
    JobStates {
        sets: vec![
            set(3, HostState::Failed(Reason::RolledBack), bitmap(40, &[1, 2])),
            set(0, HostState::Has, bitmap(40, &[5, 6, 7])),
        ],
    }
}

pub(crate) fn desired() -> Desired {
    let target = |version: &str| Target { version: version.into(), content: ContentId([8; 32]), sequence: 41 };
    let rule = |hosts, version: &str| Rule { hosts, target: target(version) };
    Desired {
        name: "edge/nginx".into(),
        rollout: JobId([6; 16]),
        attempt: 3,
        paused: true,
        back: false,
        watch: true,
        rules: vec![
            rule(Hosts::Selector(Selector::parse(&["gpu=yes"]).unwrap()), "2026-11.2"),
            rule(Hosts::HashRange { from: 0, to: 100_000 }, "2026-11.2"),
            rule(Hosts::All, "2026-11.1"),
        ],
        open: Hosts::Indices(bitmap(40, &[5, 6, 7])),
        replaces: 0,
    }
}

pub(crate) fn rollup() -> JobRollup {
    let rack = RackRollup {
        rack: locality().rack_path(),
        hosts: 8,
        has: 6,
        active: 5,
        failed: 1,
        away: 1,
        pieces: 6017,
        tiers: tiers(),
        stored: 0,
        rolled_back: 0,
    };
    let line = HostLine {
        host: locality().to_string(),
        state: HostState::Active,
        pieces_have: 17,
        away: true,
        detail: "gone".into(),
    };
    JobRollup { racks: vec![rack], pieces_total: 1000, lines: vec![line], seeder_sent: 9 }
}

pub(crate) fn responses() -> Vec<(&'static str, Response)> {
    vec![
        (
            "joined",
            Response::Joined { index: HostIndex(3), update: Some(update()), beat_ms: 2000, tracker: vec![7, 8] },
        ),
        ("heard", Response::Heard { update: None, trust: 4 }),
        ("heard_update", Response::Heard { update: Some(update()), trust: 4 }),
        ("rollup", Response::Rollup(rollup())),
        ("states", Response::States(states())),
        ("versions", Response::Versions { sets: vec![VersionSet { version: "2".into(), hosts: bitmap(9, &[1]) }] }),
        ("done", Response::Done),
        ("duplicates", Response::Duplicates { hosts: [1, 5].into_iter().collect() }),
        ("clock", Response::Clock { unix_ms: NOW * 1000 }),
        ("refused", Response::Refused { why: "no".into() }),
        ("enrolled", Response::Enrolled { credential: vec![1], trust: vec![2, 3], tracker: vec![4] }),
        ("renewed", Response::Renewed { credential: vec![1, 2] }),
    ]
}

pub(crate) fn flush() -> HubFlush {
    let job = JobFlush {
        job: JobId([7; 16]),
        content: ContentId([8; 32]),
        kind: Kind::Image,
        name: "edge/nginx".into(),
        version: "2026-11.1".into(),
        size: 123_456_789,
        created_at: NOW,
        targets: Bitmap::full(40),
        states: vec![
            StateSet { state: HostState::Active, hosts: bitmap(40, &[0, 1, 2, 3, 39]) },
            StateSet { state: HostState::Failed(Reason::Disk), hosts: bitmap(40, &[5]) },
        ],
        tiers: tiers(),
    };
    HubFlush {
        tracker: node().node(),
        region: "cn-north".into(),
        sequence: 5,
        epoch: Epoch(12),
        roster: vec![RosterRow { index: HostIndex(3), locality: locality() }],
        jobs: vec![job],
    }
}

pub(crate) fn submission() -> HubSubmission {
    HubSubmission {
        credential: Envelope::seal(&credential(), &root()).to_bytes(),
        flush: Envelope::seal(&flush(), &node()).to_bytes(),
    }
}

pub(crate) fn receipt() -> HubReceipt {
    HubReceipt { tracker: node().node(), sequence: 5, submission: Hash::of(b"submission") }
}

pub(crate) fn announce_frames() -> Vec<(&'static str, AnnounceFrame)> {
    let envelope = Envelope::seal(&announcement(), &publisher()).to_bytes();
    let bare = AnnounceFrame { envelope, lane: 1, manifest: None, data: None };
    let full = AnnounceFrame { lane: 0, manifest: Some(vec![1, 2]), data: Some(vec![3, 4, 5]), ..bare.clone() };
    vec![("bare", bare), ("inline", full)]
}
