//! The layout of a region: sites, racks, hosts and the rates between them.

use serde::{Deserialize, Serialize};
use shoal_proto::ids::HostIndex;
use std::ops::Range;
use std::time::Duration;

/// The rate of a port that never delays, bytes/s.
pub const UNLIMITED: u64 = u64::MAX;
/// 1 Mbit/s, in bytes/s.
pub const MBIT: u64 = 125_000;

/// The seeder's roster index.
pub const SEEDER: HostIndex = HostIndex(0);

/// A rack. All rates are bytes/s, the same each way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rack {
    /// The name of its site.
    pub site: String,
    /// Number of hosts.
    pub hosts: u32,
    /// Rate of its uplink.
    pub uplink: u64,
    /// Rate of each host's network card.
    pub nic: u64,
    /// Rate at which a host's disk writes.
    pub disk: u64,
}

/// A region: one seeder, and racks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Rate of the seeder's network card, bytes/s each way.
    pub seeder: u64,
    /// The racks. Their hosts have consecutive roster indices.
    pub racks: Vec<Rack>,
    /// Rate of every site's link to the others, bytes/s each way.
    pub site_uplink: u64,
    /// One-way latency within a rack.
    pub near: Duration,
    /// One-way latency between racks.
    pub far: Duration,
    /// Whether hosts declare their uplink rates to the tracker, so that plans can use them.
    pub declared: bool,
}

impl Layout {
    /// `racks` equal racks of `hosts` hosts in one site: uplinks of 200 Mbit/s, a seeder of 400 Mbit/s, cards of 10
    /// Gbit/s.
    pub fn even(racks: u32, hosts: u32) -> Self {
        let rack = Rack { site: "site".into(), hosts, uplink: 200 * MBIT, nic: 10_000 * MBIT, disk: UNLIMITED };
        Self {
            seeder: 400 * MBIT,
            racks: vec![rack; racks as usize],
            site_uplink: UNLIMITED,
            near: Duration::from_micros(50),
            far: Duration::from_micros(200),
            declared: false,
        }
    }

    /// Number of peers.
    pub fn hosts(&self) -> u32 {
        self.racks.iter().map(|rack| rack.hosts).sum()
    }

    /// Roster indices of a rack's hosts.
    pub fn hosts_of(&self, rack: usize) -> Range<u32> {
        let first = 1 + self.racks[..rack].iter().map(|rack| rack.hosts).sum::<u32>();
        first..first + self.racks[rack].hosts
    }

    /// The least possible time to bring `bytes` to every host.
    ///
    /// The seeder must send them once. Each uplink, card and disk must carry them once. The imports of all racks are
    /// sent by the seeder and the uplinks together.
    pub fn bound(&self, bytes: u64) -> Duration {
        let racks: Vec<&Rack> = self.racks.iter().filter(|rack| rack.hosts > 0).collect();
        let slowest = racks.iter().map(|rack| rack.uplink.min(rack.nic).min(rack.disk)).min().unwrap_or(UNLIMITED);
        let all_out = racks.iter().fold(self.seeder, |sum, rack| sum.saturating_add(rack.uplink));
        let seconds = |bytes: u64, rate: u64| bytes as f64 / rate as f64;
        let longest =
            seconds(bytes, self.seeder).max(seconds(bytes, slowest)).max(seconds(bytes * racks.len() as u64, all_out));
        Duration::from_secs_f64(longest)
    }
}
