//! Every bound of a decoder or a queue.
//!
//! Invariant: bytes from outside are compared with one of these bounds before memory is allocated for them.

/// Largest control frame on a link, bytes of body. A `Subscribe` for the largest content (2^20 pieces) is 128 KiB.
pub const CONTROL_FRAME_BYTES_MAX: usize = 256 * 1024;
/// Largest announcement frame, bytes of body: a signed announcement plus inlined manifest and data.
pub const ANNOUNCE_FRAME_BYTES_MAX: usize = 256 * 1024;
/// Contents up to this many payload bytes travel inside their announcement.
pub const INLINE_DATA_BYTES_MAX: u64 = 64 * 1024;
/// Longest inline manifest, bytes. A longer manifest travels apart.
pub const INLINE_MANIFEST_BYTES_MAX: usize = 64 * 1024;
/// Longest piece and longest shard, bytes.
pub const PIECE_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Payload bytes in one slice frame. A more urgent frame may pass between two slices of a shard.
pub const SLICE_BYTES_MAX: usize = 128 * 1024;
/// Pieces in one content.
pub const PIECES_MAX: u32 = 1 << 20;
/// Largest encoded manifest.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Entries (files, directories, links) in one manifest.
pub const ENTRIES_MAX: usize = 2_000_000;
/// Longest path in a manifest, bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest single component of a path, bytes (what Linux file systems take).
pub const PATH_COMPONENT_BYTES_MAX: usize = 255;
/// Blobs in one image. Container runtimes accept at most about a thousand layers.
pub const BLOBS_MAX: usize = 4096;
/// Longest media type, bytes.
pub const MEDIA_TYPE_BYTES_MAX: usize = 255;
/// Longest name of an image, bytes: host, repository, tag and digest.
pub const REFERENCE_BYTES_MAX: usize = 768;
/// Longest content or feed name, bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest label key or value, and longest locality component, bytes.
pub const LABEL_BYTES_MAX: usize = 63;
/// Labels on one host.
pub const LABELS_MAX: usize = 32;
/// Alternatives in a selector, and terms in one alternative.
pub const SELECTOR_TERMS_MAX: usize = 64;
/// Addresses a host may announce.
pub const ADDRS_MAX: usize = 8;
/// Largest signed credential, bytes.
pub const CREDENTIAL_BYTES_MAX: usize = 4 * 1024;
/// Largest document of a join token, bytes. It has the lists of a credential.
pub const JOIN_TOKEN_BYTES_MAX: usize = CREDENTIAL_BYTES_MAX;
/// Hosts that may join with one token.
pub const JOIN_TOKEN_USES_MAX: u32 = 100_000;
/// Largest request of a host to use a join token, bytes.
pub const JOIN_CLAIM_BYTES_MAX: usize = 256;
/// X.509 certificates that a host shows instead of a token, its own and intermediate ones.
pub const NODE_CERTIFICATES_MAX: usize = 3;
/// Longest of these certificates, bytes of DER.
pub const NODE_CERTIFICATE_BYTES_MAX: usize = 2048;
/// Longest signature of such a certificate's key, bytes: RSA of 8,192 bits.
pub const NODE_SIGNATURE_BYTES_MAX: usize = 1024;
/// What an envelope adds to a document, bytes.
pub const ENVELOPE_HEAD_BYTES_MAX: usize = 128;
/// Largest trust document, bytes.
pub const TRUST_BYTES_MAX: usize = 64 * 1024;
/// Publishers a trust document may name.
pub const PUBLISHERS_MAX: usize = 64;
/// Name prefixes of one publisher.
pub const PUBLISHER_NAMES_MAX: usize = 16;
/// Issuers a trust document may name.
pub const ISSUERS_MAX: usize = 16;
/// Locality prefixes of one issuer.
pub const ISSUER_LOCALITIES_MAX: usize = 64;
/// Revoked nodes in a trust document. An entry goes when the last credential of the node has ended.
pub const REVOKED_MAX: usize = 1024;
/// Changes of the root key in the life of a cluster.
pub const SUCCESSIONS_MAX: usize = 32;
/// Largest signed change of the root key, bytes.
pub const SUCCESSION_BYTES_MAX: usize = 128;
/// Greatest trust epoch: the 20 bits above the time in a sequence.
pub const TRUST_EPOCH_MAX: u32 = (1 << 20) - 1;
/// How far ahead of a host's clock a time or a sequence may be, seconds. Clocks that NTP keeps differ by less than 1 s.
/// A new credential is valid from this long before its making.
pub const CLOCK_SKEW_MAX_S: u64 = 300;
/// Longest time between the signature of an announcement and its end, seconds: 366 days.
pub const ANNOUNCEMENT_LIFETIME_MAX_S: u64 = 366 * 86_400;
/// Address ranges in one credential.
pub const ADDRESS_RANGES_MAX: usize = 16;
/// Largest signed announcement, bytes.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 16 * 1024;
/// Shards in one `Want` or `Unavailable`.
pub const WANT_SHARDS_MAX: usize = 64;
/// Jobs in one `Digest` or `WantAnnounce`.
pub const DIGEST_JOBS_MAX: usize = 1024;
/// Rows in one `RackPeers`.
pub const RACK_PEERS_MAX: usize = 1024;
/// Hosts in one rack placement.
pub const PLACEMENT_HOSTS_MAX: usize = 1024;
/// Largest control-plane message (host to tracker and back), bytes. A full membership of 50,000 hosts is about 10 MiB.
pub const CONTROL_PLANE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Hosts in a region.
pub const HOSTS_MAX: u32 = 200_000;
/// Longest free-text detail of a report, bytes.
pub const DETAIL_BYTES_MAX: usize = 256;
/// How often a host can count the bytes of a content in one job: parity, copies that came twice, repeated attempts.
/// Greater counts are lies.
pub const REPORTED_COPIES_MAX: u64 = 16;
/// Reports or progress rows in one beat.
pub const BEAT_ROWS_MAX: usize = 256;
/// Hosts with a line of their own in the rollup of a job.
pub const ROLLUP_LINES_MAX: usize = 256;
/// Sets of hosts in an answer to `HostStates`: one per attempt and state.
pub const STATE_SETS_MAX: usize = 64;
/// Distinct versions of one name over all hosts in one answer.
pub const VERSION_SETS_MAX: usize = 64;
/// Largest encoded desired state, bytes. It travels inline.
pub const DESIRED_BYTES_MAX: usize = INLINE_DATA_BYTES_MAX as usize;
/// Rules of one desired state.
pub const DESIRED_RULES_MAX: usize = 32;
/// Jobs in one flush to the hub.
pub const FLUSH_JOBS_MAX: usize = 64;
/// Sets of hosts in one job of a flush: each state has at most one.
pub const FLUSH_STATES_MAX: usize = 32;
/// Roster rows in one flush to the hub.
pub const FLUSH_ROSTER_MAX: usize = 20_000;
/// Largest body of a request to the hub, bytes.
pub const HUB_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Encoded receipt of a hub, bytes.
pub const HUB_RECEIPT_BYTES_MAX: usize = 256;
/// Lanes: distribution trees per content. One bit each in a `u64`.
pub const LANES_MAX: u8 = 64;
/// Data shards in a stripe.
pub const STRIPE_DATA_MAX: u8 = 64;
/// Parity shards in a stripe.
pub const STRIPE_PARITY_MAX: u8 = 32;
/// Feeds that a host keeps. It refuses further feeds.
pub const FEEDS_MAX: usize = 256;
/// Payload bytes in one version of a feed.
pub const FEED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A feed version of at most this many payload bytes travels inline on every announcement lane, not only on the first.
/// The copies cost less than the loss of one host on the first lane.
pub const FEED_EVERY_LANE_BYTES_MAX: u64 = 4 * 1024;
