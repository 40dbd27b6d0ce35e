//! Stragglers: hosts that deliver far less than comparable hosts, and the ways around them.
//!
//! # Problem
//!
//! One host at 1 % of an uplink delays all hosts below it in the trees. Every lane takes another path, so a slow lane
//! owner delays its rack peers, and racks that import from it.
//!
//! # Naive answer
//!
//! A fixed time-out calls a parent slow when it delivers too little. It fails twice. A slow uplink makes every parent
//! behind it look slow, although no other parent would be faster. And a verdict moves lanes: the rack imports them a
//! second time, the new parent has more to send, and looks slow next. A comparison over 400 ms at a factor of four
//! moved lanes back and forth, until every host imported for itself. Each rack imported 3.75 copies (ADR 4).
//!
//! # Answer
//!
//! Two rules, because two hosts see two different things.
//!
//! **Rack peers are compared** (`detect`). Many lanes come from a rack peer, so its rate means something:
//!
//! ```text
//! usual    = deliveries / (lanes that bring anything * time), smoothed          [pieces per lane and second]
//! expected = usual * lanes of the parent * time since the last comparison       [pieces], at least 8
//! crawls   = delivered * 6 < expected      and its lanes lack more than the best quarter of lanes
//! lags     = delivered * 3 < expected * 2  and its lanes lack 3 s worth more than the median lane
//! slow     = crawls or lags, 4 times in a row; 3 times if other racks suspect it and delivered * 3 < expected
//! ```
//!
//! Silent lanes do not count as usual, or silence would become usual. At most a quarter of a rack is avoided as slow at
//! the same time: when more seem slow, the cause lies elsewhere. This leaves a healthy push alone (1.00 copies).
//! Without `lags`, owners at 20 % of an uplink took 3.8 times the bound. With `lags` they take 1.10 (ADR 17). Suspicion
//! and the comparison with the best quarter find slow hosts at 3.6 s instead of 4.2 s (ADR 21).
//!
//! **Imports are watched for silence** (`reroute`). One or two lanes come from a far host, too few for a rate. A lane
//! is rerouted when its parent brought nothing on any lane for 2 s, and for 3 times the usual time of a piece. Three
//! rules keep the reroutes few:
//!
//! - The silence must last longer the deeper the parent is in the lane's tree. So the host nearest to the fault
//!   reroutes, and those below it then receive as before. Without depth, a healthy 4 x 4 lab moved 376 lanes in 14 s
//!   and imported 1.17 copies. With depth it imports 1.01 to 1.03 (ADR 4).
//! - When all that comes from a rack is silent, and two hosts or more of it should bring something, the rack is
//!   bypassed as a whole. With one host only, the seeder's egress was 1.054 instead of 1.020 (ADR 21).
//! - Only importers reroute. Their rack peers see the same silence and wait, because otherwise the rack would import
//!   the lane twice.
//!
//! Near the end, when three lanes in four are whole, links have room. Then a lane that lacks half is judged by itself.
//!
//! **Holders of rack shares** (`slow_holders`) are compared by how long they take to answer while a content is
//! promoted. A restore from rack shares with slow holders takes 5.15 s so, and 7.24 s without this rule.
//!
//! # What is left
//!
//! The time until slow hosts are found is not what costs now. Half the spans and half the silence change the simulated
//! mean by less than 0.002 (ADR 21). With slow owners a push takes 1.07 of the bound in the simulator.
//!
//! Invariant: a straggler is found only by comparison with others. Where all are slow alike, none is.

mod detect;
mod reroute;
mod slow_holders;

pub use detect::Deliveries;
pub use reroute::Bypass;
pub use slow_holders::SlowHolders;
