//! Nobody is banned who never sent a broken shard.

use super::{Check, Seen};
use crate::world::World;
use shoal_proto::ids::HostIndex;
use shoal_swarm::io::{Notice, Output};
use std::collections::BTreeSet;

#[derive(Default)]
pub(super) struct ShutOut {
    guilty: BTreeSet<HostIndex>,
}

impl Check for ShutOut {
    fn name(&self) -> &'static str {
        "only senders of broken shards are banned"
    }

    fn sees(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Wished { host, output } = seen else { return Ok(()) };
        match output {
            Output::SendShard { .. } if world.corrupts(*host) => {
                self.guilty.insert(*host);
            }
            Output::Notice(Notice::Banned { host: banned }) if !self.guilty.contains(banned) => {
                return Err(format!("{host} bans {banned}"));
            }
            _ => {}
        }
        Ok(())
    }
}
