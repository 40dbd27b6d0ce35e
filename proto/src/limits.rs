//! Every bound a decoder or a queue obeys, in one place.
//!
//! Invariant: whatever arrives from outside is measured against one of these before memory is set aside for it.

/// Largest control frame on a link, bytes of body. A `Subscribe` for the largest content (2^20 pieces) is 128 KiB.
pub const CONTROL_FRAME_BYTES_MAX: usize = 256 * 1024;
/// Largest announcement frame, bytes of body: a signed announcement plus inlined manifest and data.
pub const ANNOUNCE_FRAME_BYTES_MAX: usize = 256 * 1024;
/// Contents up to this many payload bytes travel inside their announcement.
pub const INLINE_DATA_BYTES_MAX: u64 = 64 * 1024;
/// An inlined manifest is at most this long; a longer one is fetched apart.
pub const INLINE_MANIFEST_BYTES_MAX: usize = 64 * 1024;
/// A piece, and so a shard, is at most this long.
pub const PIECE_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Payload bytes in one slice frame. Between two slices of a shard a more urgent frame may pass.
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
/// Blobs in one image. With a thousand layers an image is at the limit of what runtimes take.
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
/// Largest trust document, bytes.
pub const TRUST_BYTES_MAX: usize = 64 * 1024;
/// Publishers a trust document may name.
pub const PUBLISHERS_MAX: usize = 64;
/// Largest signed announcement, bytes.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 16 * 1024;
/// Shards named in one `Want` or `Lack`.
pub const WANT_SHARDS_MAX: usize = 64;
/// Jobs named in one `Digest` or `WantAnnounce`.
pub const DIGEST_JOBS_MAX: usize = 1024;
/// Rows of a rack told to a mate that lost everything.
pub const RACK_PEERS_MAX: usize = 1024;
/// Hosts among which a rack's shares of a content are dealt.
pub const PLACEMENT_HOSTS_MAX: usize = 1024;
/// Largest control-plane message (host to tracker and back), bytes. A full membership of 50,000 hosts is about 10 MiB.
pub const CONTROL_PLANE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Hosts in a region.
pub const HOSTS_MAX: u32 = 200_000;
/// Longest free-text detail of a report, bytes.
pub const DETAIL_BYTES_MAX: usize = 256;
/// Reports or progress rows in one beat.
pub const BEAT_ROWS_MAX: usize = 256;
/// Hosts named one by one in a job's rollup.
pub const ROLLUP_LINES_MAX: usize = 256;
/// Sets of hosts in the answer to "which hosts are in which state": one for each attempt and state there is.
pub const STATE_SETS_MAX: usize = 64;
/// Versions of one name told apart, over all hosts.
pub const VERSION_SETS_MAX: usize = 64;
/// Largest encoded desired state, bytes: it travels inside its announcement.
pub const DESIRED_BYTES_MAX: usize = INLINE_DATA_BYTES_MAX as usize;
/// Rules of one desired state.
pub const DESIRED_RULES_MAX: usize = 32;
/// Jobs in one flush to the hub.
pub const FLUSH_JOBS_MAX: usize = 64;
/// Sets of hosts in one job of a flush: each state has at most one.
pub const FLUSH_STATES_MAX: usize = 32;
/// Roster rows in one flush to the hub.
pub const FLUSH_ROSTER_MAX: usize = 20_000;
/// Largest body the hub takes in one request.
pub const HUB_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Lanes: distribution trees per content. One bit each in a `u64`.
pub const LANES_MAX: u8 = 64;
/// Data shards in a stripe, and parity shards in a stripe.
pub const STRIPE_DATA_MAX: u8 = 64;
/// Parity shards in a stripe.
pub const STRIPE_PARITY_MAX: u8 = 32;
/// Feeds a host knows; those that come later are refused.
pub const FEEDS_MAX: usize = 256;
/// Payload bytes in one version of a feed.
pub const FEED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A feed's version of up to this many payload bytes goes down every announcement lane, not just the first: what it costs
/// is less than a lost host would.
pub const FEED_EVERY_LANE_BYTES_MAX: u64 = 4 * 1024;
