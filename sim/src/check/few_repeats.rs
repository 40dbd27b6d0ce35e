//! A shard is sent over one link only a few times.

use crate::world::World;
use crate::world::observer::{Observer, Violation, WorldEvent};
use shoal_proto::ids::{ContentId, HostIndex, ShardIndex};
use shoal_swarm::io::Output;
use std::collections::BTreeMap;

/// How often one link may carry the same shard. A host whose want timed out may repeat it.
const MOST: u8 = 4;

#[derive(Default)]
pub struct FewRepeats {
    sent: BTreeMap<(HostIndex, HostIndex), BTreeMap<(ContentId, ShardIndex), u8>>,
}

impl Observer for FewRepeats {
    fn name(&self) -> &'static str {
        "no shard is sent again and again"
    }

    fn on_event(&mut self, _world: &World, event: &WorldEvent<'_>) -> Result<(), Violation> {
        match event {
            WorldEvent::Unlinked { a, b } => {
                self.sent.remove(&(*a, *b));
                self.sent.remove(&(*b, *a));
            }
            WorldEvent::Output { host, output: Output::SendShard { to, content, shard, .. } } => {
                let times = self.sent.entry((*host, *to)).or_default().entry((*content, *shard)).or_default();
                *times += 1;
                if *times > MOST {
                    return Err(Violation::new(format!(
                        "{host} sends shard {} to {to} for the {times}th time",
                        shard.0
                    )));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
