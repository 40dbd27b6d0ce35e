//! A host sends only what it has: pieces on its disk, parity of stripes it has whole or of its share; and never to itself.

use super::{Check, Seen};
use crate::world::World;
use shoal_swarm::io::Output;

pub(super) struct Holds;

impl Check for Holds {
    fn name(&self) -> &'static str {
        "only what is held is sent"
    }

    fn sees(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Wished { host, output: Output::SendShard { to, content, shard, .. } } = seen else { return Ok(()) };
        if host == to {
            return Err(format!("{host} sends to itself"));
        }
        let number = world.number_of(content).ok_or("nobody pushed this")?;
        let geometry = &world.pushed(number).geometry;
        let disk =
            world.disk(*host, number).ok_or_else(|| format!("{host} sends of {content} and has nothing of it"))?;
        let held = match (geometry.piece_of(*shard), geometry.split(*shard)) {
            (Some(piece), _) => disk.get(piece.0),
            (None, Some((stripe, _))) => {
                geometry.stripe_pieces(stripe).all(|piece| disk.get(piece)) || world.shares(*host, number, *shard)
            }
            (None, None) => false,
        };
        if held { Ok(()) } else { Err(format!("{host} sends shard {} to {to} without having it", shard.0)) }
    }
}
