//! The core's bounds: how much it keeps, how long a fault may last, and when it shuts a host out.
//!
//! Owns: constants that protect a host and are not tuned for speed. Those are in [`super::tuning`].
//! Invariant: every collection that another host can make grow has its cap here or in `shoal_proto::limits`.

use std::time::Duration;

/// Shards of one class that the driver may hold for one link and has not sent. More would only wait in the kernel.
pub const LINK_WINDOW_SHARDS: usize = 32;
/// Bytes of these shards. Two shards may always be outstanding, so that one follows the other without a gap.
/// Shards that the driver holds cannot be overtaken by more urgent ones. Where 12 links share an uplink of 200 Mbit/s,
/// 512 KiB on each link is a queue of 0.25 s.
pub const LINK_WINDOW_BYTES: u64 = 512 * 1024;
/// Links that are up or wanted.
pub const LINKS_MAX: usize = 1024;
/// Jobs remembered. The oldest are forgotten first.
pub const JOBS_MAX: usize = 4096;
/// Contents known at the same time.
pub const CONTENTS_MAX: usize = 4096;
/// Announcement lanes: the trees that each announcement takes, so that one lost host does not stop it.
pub const ANNOUNCE_LANES: u8 = 3;
/// Feeds whose parents' links stay open while nothing is sent.
pub const KEEP_OPEN_FEEDS_MAX: usize = 16;
/// Hosts remembered as sources of one manifest, and hosts that wait for it here.
pub const MANIFEST_HOSTS_MAX: usize = 64;
/// Subscriptions parked for contents that are not ready here, over all links.
pub const PARKED_MAX: usize = 1024;
/// Contents remembered that the driver refused with their announcements.
pub const TURNED_AWAY_MAX: usize = 64;
/// Wants under way for one content.
pub const WANTS_MAX: usize = 64;
/// Shards of one content that one child may want and has not been sent.
pub const CHILD_WANTS_MAX: usize = 256;
/// Bad shards after which a host is banned.
pub const BAD_SHARDS_MAX: u8 = 3;
/// How long a ban lasts.
pub const BAN: Duration = Duration::from_secs(600);
/// Placements under which a host may promise its rack share of one content. After that it keeps the whole content.
pub const PLACEMENTS_MAX: usize = 8;
/// Stripes of a promoted content that are decoded at the same time.
pub const REBUILDS_MAX: usize = 32;
/// Shards of a promoted content noted as missing on the host that should hold them.
pub const UNAVAILABLE_MAX: usize = 4096;
/// How often everything under way is checked: the core's clock.
pub const CHECK_EVERY: Duration = Duration::from_millis(100);
/// A source that has not sent a manifest after this time has failed.
pub const MANIFEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A source that sends a manifest slower than 10 Mbit/s is not the only one asked. The manifest of a very large content
/// has tens of MiB, and each further source sends all of it.
pub const MANIFEST_BYTES_PER_MS: u64 = 1250;
/// How often rack peers that have not answered are asked about a demotion or a promotion.
pub const DEMOTION_ASK_EVERY: Duration = Duration::from_secs(1);
/// A link that carried nothing for this long is closed.
pub const IDLE: Duration = Duration::from_secs(120);
/// Longest wait before a host is dialled again.
pub const REDIAL_MAX: Duration = Duration::from_secs(30);
/// How often the wait for a piece whose wants fail doubles, from [`CHECK_EVERY`].
pub const FAILED_WANT_DOUBLINGS: u32 = 5;
/// Jobs listed in a digest, the newest.
pub const DIGEST_JOBS: usize = shoal_proto::limits::DIGEST_JOBS_MAX;
