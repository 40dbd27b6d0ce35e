//! A core's state contradicts neither itself nor the disk.

use crate::world::World;
use crate::world::observer::{Observer, Violation, WorldEvent};

/// Only one input in this many is followed by a check, because the check walks the whole state. Wrong state stays
/// wrong.
const EVERY: u64 = 97;

#[derive(Default)]
pub struct ConsistentState {
    inputs: u64,
}

impl Observer for ConsistentState {
    fn name(&self) -> &'static str {
        "a core's state is consistent"
    }

    fn on_event(&mut self, world: &World, event: &WorldEvent<'_>) -> Result<(), Violation> {
        let WorldEvent::Handled { host } = event else { return Ok(()) };
        self.inputs += 1;
        if !self.inputs.is_multiple_of(EVERY) {
            return Ok(());
        }
        let Some(node) = world.node(*host) else { return Ok(()) };
        node.check_invariants();
        for content in node.contents() {
            let number = world
                .number_of(content)
                .ok_or_else(|| Violation::new(format!("{host} knows {content}, which was never pushed")))?;
            if let (Some(pieces), Some(disk)) = (node.pieces(content), world.disk(*host, number)) {
                let mut missing = pieces.clone();
                missing.subtract(disk);
                if !missing.none() {
                    return Err(Violation::new(format!(
                        "{host} counts {} pieces that are not on its disk",
                        missing.count()
                    )));
                }
            }
        }
        Ok(())
    }
}
