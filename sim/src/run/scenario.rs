//! What to simulate.

use crate::Rng;
use crate::faults::{self, Fault};
use crate::layout::Layout;
use std::time::Duration;

/// A region, a content and faults.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The region.
    pub layout: Layout,
    /// Pieces of the content.
    pub pieces: u32,
    /// Length of each piece, bytes.
    pub piece_bytes: u32,
    /// Parity shards in a stripe (m).
    pub parity: u8,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Decides which hosts a fault hits.
    pub seed: u64,
    /// Virtual time after which hosts without the content count as incomplete.
    pub limit: Duration,
    /// Whether every rule of [`crate::check`] is checked. A broken rule panics with time and event.
    pub checked: bool,
}

/// A small region with random faults and all rules checked.
pub fn random(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed);
    let mut layout = Layout::even(2 + rng.below(5) as u32, 2 + rng.below(7) as u32);
    layout.far = Duration::from_micros(rng.pick(&[200, 2_000, 20_000]));
    layout.seeder = layout.racks[0].uplink * rng.pick(&[1, 2, 4]);
    for rack in &mut layout.racks {
        rack.site = format!("site{}", rng.below(2));
    }
    let faults = faults::random(&layout, &mut rng);
    let mut scenario = Scenario {
        layout,
        pieces: 32 + rng.below(300) as u32,
        piece_bytes: rng.pick(&[16, 64, 256]) * 1024,
        parity: rng.pick(&[0, 2, 4]),
        faults,
        seed,
        limit: Duration::from_secs(300),
        checked: true,
    };
    scenario.faults.extend(faults::random_shares(&mut rng));
    scenario
}
