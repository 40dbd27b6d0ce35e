//! A host says that a content is complete once in its life, and only when it is.

use super::{Check, Seen};
use crate::world::World;
use shoal_proto::ids::{ContentId, HostIndex};
use shoal_swarm::io::Output;
use std::collections::BTreeSet;

#[derive(Default)]
pub(super) struct Complete {
    said: BTreeSet<(HostIndex, ContentId)>,
}

impl Check for Complete {
    fn name(&self) -> &'static str {
        "complete is said once and is true"
    }

    fn sees(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Killed { host } => self.said.retain(|(other, _)| other != host),
            Seen::Ordered { content } => self.said.retain(|(_, other)| other != content),
            // It lets the whole go, and may get it again.
            Seen::Wished { host, output: Output::DropWhole { content } | Output::DropPartial { content, .. } } => {
                self.said.remove(&(*host, *content));
            }
            Seen::Wished { host, output: Output::Complete { content } } => {
                let disk = world.number_of(content).and_then(|number| world.disk(*host, number));
                if !disk.is_some_and(|disk| disk.is_full()) {
                    return Err(format!("{host} says {content} is complete"));
                }
                if !self.said.insert((*host, *content)) {
                    return Err(format!("{host} says it of {content} again"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
