//! A brain's state never contradicts itself, nor the disk.

use super::{Check, Seen};
use crate::world::World;

/// The state is walked once in so many facts: all of it is costly, and what is wrong stays wrong.
const EVERY: u64 = 97;

#[derive(Default)]
pub(super) struct Books {
    facts: u64,
}

impl Check for Books {
    fn name(&self) -> &'static str {
        "a brain's books balance"
    }

    fn sees(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Handled { host } = seen else { return Ok(()) };
        self.facts += 1;
        if !self.facts.is_multiple_of(EVERY) {
            return Ok(());
        }
        let Some(node) = world.node(*host) else { return Ok(()) };
        node.check_invariants();
        for content in node.contents() {
            let number =
                world.number_of(content).ok_or_else(|| format!("{host} knows {content}, which nobody pushed"))?;
            if let (Some(pieces), Some(disk)) = (node.pieces(content), world.disk(*host, number)) {
                let mut unkept = pieces.clone();
                unkept.subtract(disk);
                if !unkept.none() {
                    return Err(format!("{host} counts {} pieces that are not on its disk", unkept.count()));
                }
            }
        }
        Ok(())
    }
}
