//! A shard is sent down a link at most a few times: when the link broke, when it was asked for again, never over and over.

use super::{Check, Seen};
use crate::world::World;
use shoal_proto::ids::{ContentId, HostIndex, ShardIndex};
use shoal_swarm::io::Output;
use std::collections::BTreeMap;

/// Times the same shard may be sent to the same host on one link. A host that asked for it in vain asks for it again.
const MOST: u8 = 4;

#[derive(Default)]
pub(super) struct Once {
    sent: BTreeMap<(HostIndex, HostIndex), BTreeMap<(ContentId, ShardIndex), u8>>,
}

impl Check for Once {
    fn name(&self) -> &'static str {
        "nothing is sent over and over"
    }

    fn sees(&mut self, _world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Unlinked { a, b } => {
                self.sent.remove(&(*a, *b));
                self.sent.remove(&(*b, *a));
            }
            Seen::Wished { host, output: Output::SendShard { to, content, shard, .. } } => {
                let times = self.sent.entry((*host, *to)).or_default().entry((*content, *shard)).or_default();
                *times += 1;
                if *times > MOST {
                    return Err(format!("{host} sends shard {} to {to} for the {times}th time", shard.0));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
