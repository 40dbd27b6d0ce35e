//! What is handed over for one link and not yet sent stays within the window.

use super::{Check, Seen};
use crate::world::World;
use shoal_proto::announcement::Class;
use shoal_proto::ids::HostIndex;
use shoal_swarm::io::Output;
use shoal_swarm::node::LINK_WINDOW_SHARDS;
use std::collections::BTreeMap;

/// Manifests and shards of a class share its window.
const MOST: usize = LINK_WINDOW_SHARDS + 1;

#[derive(Default)]
pub(super) struct Window {
    seen: BTreeMap<(HostIndex, Class), usize>,
}

impl Check for Window {
    fn name(&self) -> &'static str {
        "windows are bounded"
    }

    fn sees(&mut self, _world: &World, seen: &Seen<'_>) -> Result<(), String> {
        // All wishes of one fact come together: a burst down one link is at most its window.
        match seen {
            Seen::Handled { .. } => self.seen.clear(),
            Seen::Wished {
                host,
                output: Output::SendShard { to, class, .. } | Output::SendManifest { to, class, .. },
            } => {
                let count = self.seen.entry((*to, *class)).or_default();
                *count += 1;
                if *count > MOST {
                    return Err(format!("{host} hands over {count} shards for {to} at once"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
