//! What is run: a region, a content, and what goes wrong.
//!
//! Faults are written as the simulator's are ([`shoal_sim::faults`]), and the same hosts are hit, so that both can be
//! compared.

use crate::feed_traffic::Feed;
use crate::systems::Kind;
use shoal_service::units::ByteSize;
use shoal_sim::faults::{self, Fault, When};
use shoal_sim::layout::{Layout, MBIT, UNLIMITED};
use std::time::Duration;

/// Decides which hosts a fault hits, here and in the simulator.
pub(crate) const SEED: u64 = 1;

/// The part of a rate that carries TCP payload: 1448 of every 1514 bytes that the shapers count.
const GOODPUT: f64 = 1448.0 / 1514.0;

/// A region, a content and faults.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    about: &'static str,
    /// Rates are those of the shapers, bytes/s.
    pub(crate) layout: Layout,
    /// Size of the content.
    pub(crate) bytes: u64,
    pub(crate) faults: Vec<Fault>,
    /// How long control traffic is measured before and after the push: several beats of the tracker.
    pub(crate) window: Duration,
    /// The feed that is published meanwhile.
    pub(crate) feed: Option<Feed>,
}

/// Every scenario, in order.
pub(crate) const ALL: [fn() -> Scenario; 13] = [
    || push("healthy", "4 racks of 4, uplinks 200 Mbit/s, seeder 400", 4, 4, 400, ""),
    || push("2x8", "2 racks of 8", 2, 8, 400, ""),
    || push("8x2", "8 racks of 2", 8, 2, 400, ""),
    || push("fat-seeder", "4 racks of 4, seeder 2000 Mbit/s", 4, 4, 2000, ""),
    || push("thin-seeder", "4 racks of 4, seeder 100 Mbit/s", 4, 4, 100, ""),
    || {
        push(
            "killed",
            "10 % of the hosts killed at 40 % of the bound; once it is demoted, one of each rack",
            4,
            4,
            400,
            "crash:10%@40%,crash:owners@demoted",
        )
    },
    || {
        push(
            "slow-owners",
            "one host of each rack at 1 % of the uplink's rate, and again once it is demoted; that host need not finish",
            4,
            4,
            400,
            "slow:owners,slow:owners@demoted",
        )
    },
    || {
        push(
            "neighbours",
            "2 racks of 10; once it is demoted, two hosts of each are lost that hold the same without parity",
            2,
            10,
            400,
            "crash:0/3@demoted,crash:0/4@demoted,crash:1/6@demoted,crash:1/7@demoted",
        )
    },
    || push("seeder-lost", "the seeder killed once every shard is out", 4, 4, 400, "seeder@out"),
    || push("uplink-cut", "a rack's uplink cut for 10 s at 30 % of the bound", 4, 4, 400, "uplink:1=0%@30%+10s"),
    || push("late", "a quarter of the hosts come 6 s late", 4, 4, 400, "crash:25%@0s+6s"),
    feeds,
    unshaped,
];

fn push(
    name: &'static str,
    about: &'static str,
    racks: u32,
    hosts: u32,
    seeder_mbit: u64,
    faults: &'static str,
) -> Scenario {
    let faults = faults::parse(faults).expect("the faults of the table above are valid");
    let layout = Layout { seeder: seeder_mbit * MBIT, ..Layout::even(racks, hosts) };
    Scenario { name, about, layout, bytes: 256 << 20, faults, window: Duration::from_secs(4), feed: None }
}

/// Readers on every host follow a feed of ten versions per second while bulk traffic fills the uplinks. The content is
/// large enough for about 500 versions.
fn feeds() -> Scenario {
    let mut scenario = push("feeds", "16 KiB of a feed ten times a second beside the content", 4, 4, 400, "");
    scenario.bytes = 1 << 30;
    scenario.feed = Some(Feed { bytes: 16 << 10, every: Duration::from_millis(100) });
    scenario
}

/// The capacity of this machine: nothing is shaped.
fn unshaped() -> Scenario {
    let about = "a rack of 8 beside the seeder, nothing shaped: the cost in CPU time";
    let mut scenario = push("unshaped", about, 1, 8, 0, "");
    scenario.layout.seeder = UNLIMITED;
    for rack in &mut scenario.layout.racks {
        (rack.uplink, rack.nic) = (UNLIMITED, UNLIMITED);
    }
    scenario.bytes = 512 << 20;
    scenario
}

/// A few seconds of everything: racks, a late host, and one that is killed once the content is demoted.
pub(crate) fn smoke(bytes: u64) -> Scenario {
    let faults = "crash:1/1@0s+300ms,crash:0/1@demoted";
    let mut scenario = push("smoke", "2 racks of 2; one host comes late, another is killed", 2, 2, 400, faults);
    scenario.bytes = bytes;
    scenario.window = Duration::from_millis(200);
    scenario
}

impl Scenario {
    /// The line that `--list` prints.
    pub(crate) fn summary(&self) -> String {
        format!("{:<12} {}, {}", self.name, self.about, ByteSize(self.bytes).rounded())
    }

    /// Whether a system can run this scenario. Other systems have no feeds and do not report when every piece has left
    /// their seeder. With them, faults that wait for a demotion are left out.
    pub(crate) fn suits(&self, kind: Kind) -> bool {
        kind == Kind::Shoal || self.feed.is_none() && self.faults.iter().all(|fault| fault.when != When::Out)
    }

    /// The layout with the rates that remain for payload.
    pub(crate) fn goodput(&self) -> Layout {
        let left = |rate: u64| if rate == UNLIMITED { rate } else { (rate as f64 * GOODPUT) as u64 };
        let mut layout = self.layout.clone();
        layout.seeder = left(layout.seeder);
        layout.racks.iter_mut().for_each(|rack| (rack.uplink, rack.nic) = (left(rack.uplink), left(rack.nic)));
        layout
    }

    /// The least possible time of any schedule, `None` where nothing is shaped. It includes the cuts of uplinks.
    pub(crate) fn bound(&self) -> Option<Duration> {
        let layout = self.goodput();
        let is_cut = |fault: &&Fault| fault.rack(&layout).is_some() && fault.rate == 0.0 && fault.when != When::Demoted;
        let cuts = self.faults.iter().filter(is_cut);
        let cut: Duration = cuts.filter_map(|fault| fault.span).sum();
        let shaped = layout.seeder != UNLIMITED || layout.racks.iter().any(|rack| rack.uplink != UNLIMITED);
        shaped.then(|| layout.bound(self.bytes) + cut)
    }

    /// When the lab gives up.
    pub(crate) fn limit(&self) -> Duration {
        let bound = self.bound().unwrap_or_default();
        (bound * 15).clamp(Duration::from_secs(60), Duration::from_secs(600))
    }
}
