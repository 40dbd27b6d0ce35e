//! Whatever is written reads back the same.

use crate::samples;
use minicbor::{Decode, Encode};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use shoal_proto::announcement::{Announcement, Class, Kind, Order};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::control::{HostLine, JobRollup, Join, RackRollup, Request, Response};
use shoal_proto::feed::{FeedMark, FeedRow, feed_id, is_feed_name};
use shoal_proto::frame::{AnnounceFrame, FrameKind, Header, Part, SliceHeader};
use shoal_proto::ids::{ContentId, Epoch, HostIndex, JobId, NodeId, ShardIndex};
use shoal_proto::limits;
use shoal_proto::locality::{Labels, Locality, Selector, Term};
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::message::{DemotionStage, LaneSet, Message};
use shoal_proto::rack_placement::RackPlacement;
use shoal_proto::report::{
    HostReport, HostState, HubFlush, HubSubmission, JobFlush, Reason, RosterRow, StateSet, TierBytes,
};
use shoal_proto::trust::{Credential, Envelope, Keypair, Revocation, Role, TrustDocument};
use std::fmt::Debug;
use std::net::SocketAddr;

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
}

fn component() -> impl Strategy<Value = String> {
    name().prop_filter("the link's name", |name| name != "current")
}

fn content_name() -> impl Strategy<Value = String> {
    vec("[a-z0-9][a-z0-9._-]{0,20}".prop_filter("the link's name", |name| name != "current"), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn node() -> impl Strategy<Value = NodeId> {
    any::<[u8; 32]>().prop_map(NodeId)
}

fn content() -> impl Strategy<Value = ContentId> {
    any::<[u8; 32]>().prop_map(ContentId)
}

fn job() -> impl Strategy<Value = JobId> {
    any::<[u8; 16]>().prop_map(JobId)
}

fn host() -> impl Strategy<Value = HostIndex> {
    (0..limits::HOSTS_MAX).prop_map(HostIndex)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

fn locality() -> impl Strategy<Value = Locality> {
    (name(), name(), name(), name()).prop_map(|(region, site, rack, host)| Locality { region, site, rack, host })
}

fn labels() -> impl Strategy<Value = Labels> {
    let key = name().prop_filter("taken", |key| !["region", "site", "rack", "host"].contains(&key.as_str()));
    btree_map(key, name(), 0..4)
}

fn selector() -> impl Strategy<Value = Selector> {
    let term = (name(), name()).prop_map(|(key, value)| Term { key, value });
    vec(vec(term, 0..4), 1..4).prop_map(|any| Selector { any })
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Peer), Just(Role::Seeder), Just(Role::Tracker), Just(Role::Hub)]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL.to_vec())
}

fn bitmap(len_max: u32) -> impl Strategy<Value = Bitmap> {
    (0..=len_max, vec(any::<u32>(), 0..30), any::<bool>()).prop_map(|(len, numbers, full)| {
        let mut map = if full { Bitmap::full(len) } else { Bitmap::new(len) };
        for number in numbers {
            let bit = number % len.max(1);
            if full {
                map.unset(bit)
            } else {
                map.set(bit)
            };
        }
        map
    })
}

fn announcement() -> impl Strategy<Value = Announcement> {
    (any_job(), option::of(any::<u64>())).prop_map(|(announcement, feed)| match feed {
        Some(published_at_ms) if is_feed_name(&announcement.name) => Announcement {
            job: feed_id(&announcement.name),
            size: announcement.size % (limits::FEED_BYTES_MAX + 1),
            feed: Some(FeedMark { published_at_ms }),
            ..announcement
        },
        _ => announcement,
    })
}

fn any_job() -> impl Strategy<Value = Announcement> {
    let ids = (job(), content(), kind(), content_name(), component(), selector(), node());
    (ids, any::<u64>(), 0..=limits::MANIFEST_BYTES_MAX as u64, 0..=1u64 << 43, any::<(u32, u32)>()).prop_map(
        |((job, content, kind, name, version, selector, origin), sequence, manifest_bytes, size, (at, lasts))| {
            let (created_at, expires_at) =
                (u64::from(at), u64::from(at) + u64::from(lasts) % (limits::ANNOUNCEMENT_LIFETIME_MAX_S + 1));
            Announcement {
                job,
                content,
                kind,
                name,
                version,
                sequence,
                selector,
                origin,
                manifest_bytes,
                size,
                created_at,
                expires_at,
                order: [None, Some(Order::Demote), Some(Order::Promote)][(lasts % 3) as usize],
                staged: sequence % 2 == 0,
                feed: None,
            }
        },
    )
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    // Scope and flow of an IPv6 address are this host's own business and do not travel.
    prop_oneof![
        any::<([u8; 4], u16)>().prop_map(|(ip, port)| SocketAddr::from((ip, port))),
        any::<([u8; 16], u16)>().prop_map(|(ip, port)| SocketAddr::from((ip, port))),
    ]
}

fn member() -> impl Strategy<Value = Member> {
    let presence = prop_oneof![Just(Presence::Up), Just(Presence::Away)];
    let rates = (any::<u16>(), any::<u32>());
    (host(), node(), role(), locality(), labels(), vec(addr(), 0..=8), rates, presence, bytes(100)).prop_map(
        |(index, node, role, locality, labels, addrs, (weight, uplink_mbit), presence, credential)| Member {
            index,
            node,
            role,
            locality,
            labels,
            addrs,
            weight,
            uplink_mbit,
            presence,
            credential: credential.into(),
        },
    )
}

fn update() -> impl Strategy<Value = MembershipUpdate> {
    (any::<u32>(), option::of(1u64..1000), vec(member(), 0..4), vec(host(), 0..4)).prop_map(
        |(epoch, behind, upserts, removed)| {
            let epoch = 1000 + u64::from(epoch);
            MembershipUpdate { epoch: Epoch(epoch), base: behind.map(|by| Epoch(epoch - by)), upserts, removed }
        },
    )
}

fn tiers() -> impl Strategy<Value = TierBytes> {
    any::<[u64; 5]>().prop_map(|[local, rack, site, region, seeder]| TierBytes { local, rack, site, region, seeder })
}

fn state() -> impl Strategy<Value = HostState> {
    use Reason::*;
    let reason = [NoSpace, BadManifest, Untrusted, Stale, Disk, Activation, Superseded, Cancelled, Deadline, InUse]
        .map(HostState::Failed);
    let of_images = [RuntimeAway, PullFailed, DigestMismatch, Timeout].map(HostState::Failed);
    let mut states = vec![HostState::Unknown, HostState::Has, HostState::Stored, HostState::Active];
    states.extend(reason);
    states.extend(of_images);
    prop::sample::select(states)
}

fn report() -> impl Strategy<Value = HostReport> {
    (job(), any::<u16>(), state(), ".{0,60}", 0..=limits::PIECES_MAX, 0..=limits::PIECES_MAX, tiers(), any::<u64>())
        .prop_map(|(job, attempt, state, detail, pieces_have, pieces_total, tiers, sent)| HostReport {
            job,
            attempt,
            state,
            detail,
            pieces_have,
            pieces_total,
            tiers,
            sent,
        })
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..max)
}

fn request() -> impl Strategy<Value = Request> {
    let join = (bytes(100), vec(addr(), 0..=8), any::<u16>(), any::<u32>(), option::of(epoch())).prop_map(
        |(credential, addrs, weight, uplink_mbit, known)| Join { credential, addrs, weight, uplink_mbit, known },
    );
    prop_oneof![
        join.prop_map(Request::Join),
        (epoch(), vec(report(), 0..4)).prop_map(|(known, reports)| Request::Beat {
            known,
            reports,
            versions: samples::versions(),
            trust: 9
        }),
        bytes(100).prop_map(|document| Request::Trust { document }),
        bytes(100).prop_map(|envelope| Request::OpenJob { envelope }),
        job().prop_map(|job| Request::JobStatus { job }),
        update().prop_map(Request::Membership),
        Just(Request::Leave),
        Just(Request::Duplicates),
        (bytes(100), bytes(100)).prop_map(|(token, claim)| Request::Enrol { token, claim }),
        any::<Option<u32>>().prop_map(|host| Request::WantImage {
            reference: "registry.example/app:v1".into(),
            host: host.map(HostIndex),
        }),
    ]
}

fn rollup() -> impl Strategy<Value = JobRollup> {
    let rack = (locality(), any::<[u32; 7]>(), any::<u64>(), tiers()).prop_map(|(rack, counts, pieces, tiers)| {
        let [hosts, has, active, failed, away, stored, rolled_back] = counts;
        RackRollup { rack: rack.rack_path(), hosts, has, active, failed, away, pieces, tiers, stored, rolled_back }
    });
    let line = (locality(), state(), any::<u32>(), any::<bool>(), ".{0,20}").prop_map(
        |(host, state, pieces_have, away, detail)| HostLine {
            host: host.to_string(),
            state,
            pieces_have,
            away,
            detail,
        },
    );
    (vec(rack, 0..4), any::<u32>(), vec(line, 0..4), any::<u64>())
        .prop_map(|(racks, pieces_total, lines, seeder_sent)| JobRollup { racks, pieces_total, lines, seeder_sent })
}

fn response() -> impl Strategy<Value = Response> {
    prop_oneof![
        (host(), option::of(update()), any::<u32>()).prop_map(|(index, update, beat_ms)| Response::Joined {
            index,
            update,
            beat_ms,
            tracker: vec![1, 2]
        }),
        option::of(update()).prop_map(|update| Response::Heard { update, trust: 7 }),
        rollup().prop_map(Response::Rollup),
        Just(Response::Done),
        Just(Response::Duplicates { hosts: [1, 5].into_iter().collect() }),
        (bytes(99), bytes(99), bytes(99)).prop_map(|(credential, trust, tracker)| Response::Enrolled {
            credential,
            trust,
            tracker
        }),
        ".{0,60}".prop_map(|why| Response::Refused { why }),
    ]
}

fn flush() -> impl Strategy<Value = HubFlush> {
    let states = vec(state(), 1..8).prop_flat_map(|mut states| {
        states.sort();
        states.dedup();
        vec(0..states.len(), 0..200).prop_map(move |who| {
            let set = |at: usize, state: &HostState| {
                let mut hosts = Bitmap::new(who.len() as u32);
                (0..).zip(&who).filter(|(_, place)| **place == at).for_each(|(host, _)| assert!(hosts.set(host)));
                StateSet { state: *state, hosts }
            };
            states.iter().enumerate().map(|(at, state)| set(at, state)).collect::<Vec<_>>()
        })
    });
    let job =
        (announcement(), bitmap(limits::HOSTS_MAX), states, tiers()).prop_map(|(told, targets, states, tiers)| {
            let Announcement { job, content, kind, name, version, size, created_at, .. } = told;
            JobFlush { job, content, kind, name, version, size, created_at, targets, states, tiers }
        });
    let row = (host(), locality()).prop_map(|(index, locality)| RosterRow { index, locality });
    (node(), name(), any::<u64>(), epoch(), vec(row, 0..4), vec(job, 0..3)).prop_map(
        |(tracker, region, sequence, epoch, roster, jobs)| HubFlush { tracker, region, sequence, epoch, roster, jobs },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let lanes = any::<u64>().prop_map(LaneSet);
    let shards = vec(any::<u32>().prop_map(ShardIndex), 0..=limits::WANT_SHARDS_MAX);
    prop_oneof![
        (content(), lanes.clone(), bitmap(limits::PIECES_MAX)).prop_map(|(content, lanes, have)| Message::Subscribe {
            content,
            lanes,
            have
        }),
        (content(), lanes).prop_map(|(content, lanes)| Message::Unsubscribe { content, lanes }),
        (content(), bitmap(5000)).prop_map(|(content, pieces)| Message::Received { content, pieces }),
        content().prop_map(|content| Message::Done { content }),
        (content(), shards.clone()).prop_map(|(content, shards)| Message::Want { content, shards }),
        (content(), shards).prop_map(|(content, shards)| Message::Unavailable { content, shards }),
        content().prop_map(|content| Message::WantManifest { content }),
        content().prop_map(|content| Message::NotServed { content }),
        (any::<u64>(), option::of(vec(job(), 0..9))).prop_map(|(hash, jobs)| Message::Digest { hash, jobs }),
        vec(job(), 0..9).prop_map(|jobs| Message::WantAnnounce { jobs }),
        (content(), job(), 0..3usize, vec(host(), 0..9), any::<bool>()).prop_map(
            |(content, job, stage, placement, ask)| {
                let stage =
                    [DemotionStage::ShareReady, DemotionStage::ShareOnly, DemotionStage::NotParticipating][stage];
                Message::Demotion { content, job, stage, placement: RackPlacement::new(placement), ask }
            }
        ),
        vec((job(), any::<u64>()), 0..9).prop_map(|rows| {
            let rows = rows.into_iter().map(|(feed, sequence)| FeedRow { feed, sequence }).collect();
            Message::Feeds { rows }
        }),
    ]
}

/// A directory of files, some empty, some links; cut anywhere; coded anyhow.
fn manifest() -> impl Strategy<Value = Manifest> {
    let file =
        (vec(any::<u8>().prop_filter("not in a name", |b| *b != 0 && *b != b'/'), 1..20), 0..3000u64, 0..=0o777u32);
    let lens = (1..500u32, 1..=20u8, 0..=8u8, 1..=64u8);
    (btree_map(vec(any::<u8>(), 1..9), file, 0..12), lens, any::<u8>(), 0..=0o777u32).prop_map(
        |(files, (piece, data, parity, lanes), fill, mode)| {
            let files: std::collections::BTreeMap<Vec<u8>, (u64, u32)> = files
                .into_values()
                .filter(|(path, ..)| path != b"." && path != b"..")
                .map(|(path, size, mode)| (path, (size, mode)))
                .collect();
            let size: u64 = files.values().map(|(size, _)| size).sum();
            let pieces: Vec<u32> = (0..size.div_ceil(u64::from(piece)))
                .map(|at| (size - at * u64::from(piece)).min(u64::from(piece)) as u32)
                .collect();
            let stripes = pieces.len().div_ceil(usize::from(data));
            Manifest {
                root: Root::Directory { mode },
                entries: files
                    .into_iter()
                    .map(|(path, (size, mode))| Entry { path, mode, kind: EntryKind::File { size } })
                    .collect(),
                streams: if size > 0 { vec![size] } else { vec![] },
                piece_bytes_avg: piece,
                data,
                parity,
                lanes,
                piece_hashes: vec![fill; pieces.len() * 32],
                piece_lens: pieces.iter().flat_map(|len| len.to_le_bytes()).collect(),
                parity_hashes: vec![fill; stripes * usize::from(parity) * 32],
                image: None,
            }
        },
    )
}

fn same<D: Document + PartialEq + Debug>(value: &D) -> Result<(), TestCaseError> {
    prop_assert_eq!(&D::from_bytes(&value.to_bytes()).unwrap(), value);
    Ok(())
}

fn same_bare<T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug>(value: &T) -> Result<(), TestCaseError> {
    prop_assert_eq!(&decode_exact::<T>(&encode(value)).unwrap(), value);
    Ok(())
}

proptest! {
    #[test]
    fn manifests(manifest in manifest()) {
        same(&manifest)?;
    }

    #[test]
    fn announcements(announcement in announcement()) {
        same(&announcement)?;
    }

    #[test]
    fn credentials(node in node(), cluster in any::<[u8; 32]>(), role in role(), locality in locality(), at in any::<u32>()) {
        let (not_before, not_after) = (u64::from(at), u64::from(at) + 1);
        let cluster = shoal_proto::ids::ClusterId(cluster);
        let (labels, addresses) = (samples::credential().labels, samples::credential().addresses);
        same(&Credential { cluster, node, role, locality, not_before, not_after, labels, weight_max: 7, addresses })?;
    }

    #[test]
    fn trust_documents(root in node(), version in any::<u64>(), publishers in vec(node(), 0..9), revoked in vec(node(), 0..9)) {
        let revoked = revoked.into_iter().map(|node| Revocation { node, until: version }).collect();
        same(&TrustDocument { version, revoked, ..TrustDocument::first(root, publishers) })?;
    }

    #[test]
    fn envelopes(seed in any::<[u8; 32]>(), announcement in announcement()) {
        let envelope = Envelope::seal(&announcement, &Keypair::from_seed(seed));
        same(&envelope)?;
        prop_assert_eq!(envelope.open::<Announcement>().unwrap(), announcement);
    }

    #[test]
    fn requests(request in request()) {
        same(&request)?;
    }

    #[test]
    fn responses(response in response()) {
        same(&response)?;
    }

    #[test]
    fn flushes(flush in flush(), credential in bytes(99), envelope in bytes(99)) {
        same(&flush)?;
        same_bare(&HubSubmission { credential, flush: envelope })?;
    }

    #[test]
    fn messages(message in message()) {
        same_bare(&message)?;
        prop_assert!(encode(&message).len() <= limits::CONTROL_FRAME_BYTES_MAX && message.validate().is_ok());
    }

    #[test]
    fn announce_frames(envelope in bytes(99), lane in any::<u8>(), manifest in option::of(bytes(99)), data in option::of(bytes(99))) {
        same_bare(&AnnounceFrame { envelope, lane, manifest, data })?;
    }

    #[test]
    fn headers(kind in 1u8..=7, class in 0u8..4, len in any::<u32>(), stamp in any::<u64>(), content in content(), index in any::<u32>(), at in 0u32..1 << 23) {
        let kinds = [FrameKind::Hello, FrameKind::Control, FrameKind::Announce, FrameKind::Slice, FrameKind::Ping, FrameKind::Pong, FrameKind::Bye];
        let kind = kinds[usize::from(kind) - 1];
        let body_len = len % (kind.body_max() as u32 + 1);
        let stamp = if matches!(kind, FrameKind::Ping | FrameKind::Pong) { stamp } else { 0 };
        let header = Header { kind, class: Class::ALL[usize::from(class)], body_len, stamp };
        prop_assert_eq!(Header::from_bytes(&header.to_bytes()).unwrap(), header);
        let part = if index == u32::MAX { Part::Manifest } else { Part::Shard(ShardIndex(index)) };
        let slice = SliceHeader { content, part, offset: at, total: limits::PIECE_BYTES_MAX };
        prop_assert_eq!(SliceHeader::from_bytes(&slice.to_bytes(), 1).unwrap(), slice);
    }

    #[test]
    fn text_forms(locality in locality(), selector in selector(), node in node(), role in role(), kind in kind()) {
        prop_assert_eq!(locality.to_string().parse(), Ok(locality));
        prop_assert_eq!(Selector::parse(&[selector.to_string()]), Ok(selector));
        prop_assert_eq!(node.to_string().parse(), Ok(node));
        prop_assert_eq!(role.to_string().parse(), Ok(role));
        prop_assert_eq!(kind.to_string().parse(), Ok(kind));
    }

    #[test]
    fn merging_reports_does_not_depend_on_order(reports in vec(report(), 1..6), turn in any::<prop::sample::Index>()) {
        let best = |reports: &[HostReport]| reports.iter().map(HostReport::rank).max();
        let mut turned = reports.clone();
        turned.rotate_left(turn.index(reports.len()));
        turned.extend_from_slice(&reports);
        prop_assert_eq!(best(&turned), best(&reports));
    }

    #[test]
    fn byte_counts_never_overflow(a in tiers(), b in tiers()) {
        let mut sum = a;
        sum.add(&b);
        prop_assert!(sum.total() >= a.total().max(b.total()) && sum.imported() <= sum.total());
    }
}
