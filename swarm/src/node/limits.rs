//! The node's constants: windows, patience, bounds. Each says what it costs to change.

use std::time::Duration;

/// Shards of one class handed to the shell for one link and not yet sent. More only deepens queues: payload waits in the kernel.
pub const LINK_WINDOW_SHARDS: usize = 32;
/// Bytes of these shards; two shards may always be outstanding, so that one follows the other. What is handed over can
/// no longer be overtaken: where a dozen links share a rack's uplink of 200 Mbit/s, 512 KiB on each is a quarter second.
pub const LINK_WINDOW_BYTES: u64 = 512 * 1024;
/// Pieces of its own that a child may be ahead of those behind, where a content leaves its origin.
pub const LEVEL_AHEAD: u32 = 8;
/// One child in this many may be slow by itself, and nobody waits for it.
pub const LEVEL_SLOW: usize = 4;
/// With fewer children nobody can be told to be slow, and nobody waits.
pub const LEVEL_LEAST: usize = 4;
/// A child that took nothing for so long, and for so many times as long as the middle one, is stuck and counts for nothing there.
pub const LEVEL_STUCK: Duration = Duration::from_secs(2);
/// See [`LEVEL_STUCK`].
pub const LEVEL_STUCK_FACTOR: u32 = 4;
/// The span over which the rate is taken of what some are held back for.
pub const TOLL_SPAN: Duration = Duration::from_millis(500);
/// What has not been counted for so many spans has rested: what its rate was before is forgotten.
pub const TOLL_REST: u32 = 4;
/// After so many spans in a row nobody is held back for one, to see what passes then; after twice as many when it was no more.
pub const TOLL_PROBE: u32 = 4;
/// How often [`TOLL_FREE`] doubles.
pub const TOLL_DOUBLINGS: u32 = 3;
/// How long nobody is held back once that has cost a fifth of the rate; doubles with each repeat.
pub const TOLL_FREE: Duration = Duration::from_secs(2);
/// Pieces that a lane may be ahead of others, or as many as usually come on one in [`ABREAST_TIME`], or as the trees are high.
pub const ABREAST: u32 = 2;
/// A lane that has brought nothing for so long is not waited for.
pub const ABREAST_MOVES: Duration = Duration::from_secs(1);
/// See [`ABREAST`].
pub const ABREAST_TIME: Duration = Duration::from_millis(300);
/// Links, up or wanted.
pub const LINKS_MAX: usize = 1024;
/// Jobs remembered; the oldest go first.
pub const JOBS_MAX: usize = 4096;
/// Contents known at once.
pub const CONTENTS_MAX: usize = 4096;
/// Trees an announcement goes down, so that one lost host does not cut it off.
pub const ANNOUNCE_LANES: u8 = 3;
/// Feeds whose parents' links are kept up though nothing comes.
pub const WARM_FEEDS_MAX: usize = 16;
/// The `lane` of an announcement that came by anti-entropy.
pub const ENTROPY_LANE: u8 = u8::MAX;
/// How long to wait for the manifest's own lane when another lane was faster, and for one asked for beyond the time it takes to
/// send. A lost packet costs a quarter second; a manifest that comes twice is a few parts in ten thousand of its content.
pub const MANIFEST_PATIENCE: Duration = Duration::from_millis(100);
/// How long to wait for a small version's data on its own lane, when another told of the version first. It is at most 64 KiB:
/// as much as a link of 10 Mbit/s carries in this time.
pub const FEED_PATIENCE: Duration = Duration::from_millis(50);
/// When a manifest asked for is late and another source is tried.
pub const MANIFEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A host that sends a manifest slower than this (10 Mbit/s, after [`MANIFEST_PATIENCE`]) is not waited for alone.
pub const MANIFEST_BYTES_PER_MS: u64 = 1250;
/// How many others are asked for one: with one slow host in four, as many as there are trees it is announced on.
pub const MANIFEST_AGAIN: usize = ANNOUNCE_LANES as usize;
/// Hosts remembered as sources of a manifest, and hosts waiting for it from us.
pub const MANIFEST_HOSTS_MAX: usize = 64;
/// A host that joins late gives its rack peers this long to say what they have before it imports anything.
pub const MATES_PATIENCE: Duration = Duration::from_millis(250);
/// Subscriptions kept for contents that are not ready here, over all links.
pub const PARKED_MAX: usize = 1024;
/// How long such a subscription waits before the child is told to look elsewhere.
pub const PARKED_TIME: Duration = Duration::from_secs(15);
/// How often running contents are looked over for late parents and missing pieces.
pub const CHECK_EVERY: Duration = Duration::from_millis(100);
/// Shortest span over which a parent's deliveries are judged.
pub const JUDGE_SPAN: Duration = Duration::from_millis(600);
/// Deliveries expected of a parent before it is judged: fewer say little.
pub const JUDGE_PIECES: u64 = 8;
/// A parent that delivers less than one part in this many of what all do, per lane, is slow.
pub const SLOW_FACTOR: u64 = 6;
/// A parent whose lanes lack what others bring in this time, and that still delivers less than two thirds of what is usual, is slow
/// too: it would keep its rack waiting for as many times the push as it is slower.
pub const LAG: Duration = Duration::from_secs(3);
/// How many spans in a row. Its rack imports the lanes it owns a second time, so a host that lacked a processor for a second
/// must not look like it.
pub const SLOW_STRIKES: u8 = 4;
/// The same where hosts of other racks have found it silent, too, and want its lanes from a mate: if it delivers less than one
/// part in [`DOUBTED_FACTOR`]. A host at half an uplink's rate is often enough silent to others, and its rack is better off with it.
pub const DOUBTED_STRIKES: u8 = 3;
/// See [`DOUBTED_STRIKES`].
pub const DOUBTED_FACTOR: u64 = 3;
/// How long nobody is judged after a lost host has come back: others are still finding theirs.
pub const JUDGE_GRACE: Duration = Duration::from_secs(3);
/// An imported lane is silent when nothing came for this long (a disk that writes back takes a second or two), and for as long as this many pieces usually take.
pub const SILENT: Duration = Duration::from_millis(2000);
/// See [`SILENT`].
pub const SILENT_PIECES: u64 = 3;
/// The deeper in a lane's tree its parent is, the more often this is waited for, up to so many times.
pub const SILENT_DEPTH: u32 = 3;
/// A lane whose parent brings others must be silent so many times as long.
pub const SILENT_ALONE: u32 = 4;
/// When one lane in this many is still awaited, the end is near.
pub const ENDING: usize = 4;
/// Who was silent is not tried again when the rest takes less than so many times what silence was waited for.
pub const TRIAL_REST: u32 = 3;
/// A lane that lacks one piece in so many by then, or more, is not merely the last one: links share a rate unevenly, and what
/// is taken from elsewhere then only makes the others later.
pub const BEHIND: u32 = 2;
/// A rack is passed over when at least so many of its hosts are to bring something and all are silent.
pub const SILENT_HOSTS: usize = 2;
/// One in this many rack peers may be avoided as slow at a time, and one always. When more seem slow, it is not they.
pub const SLOW_SHARE: usize = 4;
/// Nothing arrived for this long, though the parents' links are up: ask for single pieces. A disk that writes back for a
/// second or two must not look like it: what is asked for then arrives twice.
pub const STALL: Duration = Duration::from_millis(2000);
/// An asked-for shard that has not come is asked for elsewhere.
pub const WANT_TIMEOUT: Duration = Duration::from_secs(2);
/// A piece may be asked for in vain this often without waits; then the wait doubles each time as many tries have failed.
pub const TRIES_SWIFT: u32 = 8;
/// How often it doubles, from [`CHECK_EVERY`].
pub const TRIES_DOUBLINGS: u32 = 5;
/// Shards asked for and not yet here, per content.
pub const WANTS_MAX: usize = 64;
/// How many of them at first: each that comes allows one more, each that is late halves it, down to this.
pub const WANTS_FIRST: usize = 8;
/// Where the lane's owner lives, its rack peers leave asking other racks to it until they have asked this often in vain.
pub const OWNER_TRIES: u32 = 40;
/// Shards a host may have asked us for and not yet been sent, per content.
pub const WANTED_MAX: usize = 256;
/// How long a lost host is not used as a parent; doubles with each repeat.
pub const AVOID_UNREACHABLE: Duration = Duration::from_secs(10);
/// How long a slow host is not used as a parent.
pub const AVOID_SLOW: Duration = Duration::from_secs(30);
/// How long a host that does not know a content is not used as its parent.
pub const AVOID_USELESS: Duration = Duration::from_secs(10);
/// Bad shards after which a host is banned, and for how long.
pub const BAD_SHARDS_MAX: u8 = 3;
/// How long a banned host stays out.
pub const BAN: Duration = Duration::from_secs(600);
/// Pieces got from elsewhere are told to their parents in batches this often.
pub const GOT_EVERY: Duration = Duration::from_millis(50);
/// Deals a host may have promised its share of for one content; then it keeps the whole.
pub const PLACEMENTS_MAX: usize = 8;
/// How often mates that have not answered are asked how far they are with a demotion.
pub const HOLD_EVERY: Duration = Duration::from_secs(1);
/// How long the rack may bring nothing of a content that it holds shares of, before other racks are asked.
pub const COLD_PATIENCE: Duration = Duration::from_secs(3);
/// A mate that takes so many times as long to answer as is usual while a content comes back is tardy, but not before
/// [`TARDY_LEAST`]. What it was asked for is then sent twice within the rack.
pub const TARDY_FACTOR: u32 = 4;
/// See [`TARDY_FACTOR`].
pub const TARDY_LEAST: Duration = Duration::from_millis(200);
/// How long a tardy mate is asked for nothing more.
pub const TARDY_TIME: Duration = Duration::from_secs(1);
/// Stripes decoded at a time from what is here when a content comes back.
pub const REBUILDS_MAX: usize = 32;
/// Shards noted as missing where they should be.
pub const LACKING_MAX: usize = 4096;
/// How often job lists are compared with a neighbour.
pub const ENTROPY_EVERY: Duration = Duration::from_secs(5);
/// A link with nothing to say for this long is closed.
pub const IDLE: Duration = Duration::from_secs(120);
/// Shortest wait before dialling again.
pub const RETRY_FIRST: Duration = Duration::from_millis(500);
/// A host that is back is found so after one part in this many of the time it was away, or sooner.
pub const RETRY_SHARE: u32 = 4;
/// Hosts that could not be reached from within so much of each other were lost to the same thing, and come back together.
pub const LOST_TOGETHER: Duration = Duration::from_secs(5);
/// Longest wait before dialling again.
pub const RETRY_MAX: Duration = Duration::from_secs(30);
/// Jobs listed in a digest, the newest.
pub const DIGEST_JOBS: usize = shoal_proto::limits::DIGEST_JOBS_MAX;
