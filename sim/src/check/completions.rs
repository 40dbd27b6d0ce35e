//! A core reports a content as complete once, and only when its disk holds all pieces.

use crate::world::World;
use crate::world::observer::{Observer, Violation, WorldEvent};
use shoal_proto::ids::{ContentId, HostIndex};
use shoal_swarm::io::Output;
use std::collections::BTreeSet;

#[derive(Default)]
pub struct Completions {
    reported: BTreeSet<(HostIndex, ContentId)>,
}

impl Observer for Completions {
    fn name(&self) -> &'static str {
        "complete is reported once and is true"
    }

    fn on_event(&mut self, world: &World, event: &WorldEvent<'_>) -> Result<(), Violation> {
        match event {
            WorldEvent::Killed { host } => self.reported.retain(|(other, _)| other != host),
            WorldEvent::Ordered { content } => self.reported.retain(|(_, other)| other != content),
            // The host removes pieces, so it may complete the content again.
            WorldEvent::Output {
                host,
                output: Output::DropWhole { content } | Output::DropPartial { content, .. },
            } => {
                self.reported.remove(&(*host, *content));
            }
            WorldEvent::Output { host, output: Output::Complete { content } } => {
                let disk = world.number_of(content).and_then(|number| world.disk(*host, number));
                if !disk.is_some_and(|disk| disk.is_full()) {
                    return Err(Violation::new(format!("{host} reports {content} as complete without all pieces")));
                }
                if !self.reported.insert((*host, *content)) {
                    return Err(Violation::new(format!("{host} reports {content} as complete again")));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
