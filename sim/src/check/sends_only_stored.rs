//! A host sends only what it can read or compute: pieces on its disk, parity of its whole stripes, parity of its rack
//! share.

use crate::world::World;
use crate::world::observer::{Observer, Violation, WorldEvent};
use shoal_swarm::io::Output;

pub struct SendsOnlyStored;

impl Observer for SendsOnlyStored {
    fn name(&self) -> &'static str {
        "a host sends only what it stores"
    }

    fn on_event(&mut self, world: &World, event: &WorldEvent<'_>) -> Result<(), Violation> {
        let WorldEvent::Output { host, output: Output::SendShard { to, content, shard, .. } } = event else {
            return Ok(());
        };
        if host == to {
            return Err(Violation::new(format!("{host} sends to itself")));
        }
        let number = world.number_of(content).ok_or_else(|| Violation::new(format!("{content} was never pushed")))?;
        let geometry = &world.pushed(number).geometry;
        let disk = world
            .disk(*host, number)
            .ok_or_else(|| Violation::new(format!("{host} sends a shard of {content} and stores no piece of it")))?;
        let has = match (geometry.piece_of(*shard), geometry.split(*shard)) {
            (Some(piece), _) => disk.get(piece.0),
            (None, Some((stripe, _))) => {
                geometry.stripe_pieces(stripe).all(|piece| disk.get(piece)) || world.has_in_share(*host, number, *shard)
            }
            (None, None) => false,
        };
        if has { Ok(()) } else { Err(Violation::new(format!("{host} sends shard {} to {to} and lacks it", shard.0))) }
    }
}
