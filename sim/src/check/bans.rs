//! A host is banned only after it sent a corrupt shard.

use crate::world::World;
use crate::world::observer::{Observer, Violation, WorldEvent};
use shoal_proto::ids::HostIndex;
use shoal_swarm::io::{Notice, Output};
use std::collections::BTreeSet;

#[derive(Default)]
pub struct Bans {
    corrupting: BTreeSet<HostIndex>,
}

impl Observer for Bans {
    fn name(&self) -> &'static str {
        "only senders of corrupt shards are banned"
    }

    fn on_event(&mut self, world: &World, event: &WorldEvent<'_>) -> Result<(), Violation> {
        let WorldEvent::Output { host, output } = event else { return Ok(()) };
        match output {
            Output::SendShard { .. } if world.corrupts(*host) => {
                self.corrupting.insert(*host);
            }
            Output::Notice(Notice::Banned { host: banned }) if !self.corrupting.contains(banned) => {
                return Err(Violation::new(format!("{host} bans {banned}, which never sent a corrupt shard")));
            }
            _ => {}
        }
        Ok(())
    }
}
