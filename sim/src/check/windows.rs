//! A core hands at most one window of shards to a link at once.

use crate::world::World;
use crate::world::observer::{Observer, Violation, WorldEvent};
use shoal_proto::announcement::Class;
use shoal_proto::ids::HostIndex;
use shoal_swarm::io::Output;
use shoal_swarm::node::LINK_WINDOW_SHARDS;
use std::collections::BTreeMap;

/// A window of shards, and one manifest in the same class.
const MOST: usize = LINK_WINDOW_SHARDS + 1;

#[derive(Default)]
pub struct Windows {
    handed: BTreeMap<(HostIndex, Class), usize>,
}

impl Observer for Windows {
    fn name(&self) -> &'static str {
        "windows are bounded"
    }

    fn on_event(&mut self, _world: &World, event: &WorldEvent<'_>) -> Result<(), Violation> {
        // All outputs of one input come together.
        match event {
            WorldEvent::Handled { .. } => self.handed.clear(),
            WorldEvent::Output {
                host,
                output: Output::SendShard { to, class, .. } | Output::SendManifest { to, class, .. },
            } => {
                let count = self.handed.entry((*to, *class)).or_default();
                *count += 1;
                if *count > MOST {
                    return Err(Violation::new(format!("{host} hands over {count} shards for {to} at once")));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
