//! After each input the next deadline lies in the future, so no host spins.

use crate::world::World;
use crate::world::observer::{Observer, Violation, WorldEvent};

pub struct Timers;

impl Observer for Timers {
    fn name(&self) -> &'static str {
        "deadlines lie in the future"
    }

    fn on_event(&mut self, world: &World, event: &WorldEvent<'_>) -> Result<(), Violation> {
        let WorldEvent::Handled { host } = event else { return Ok(()) };
        match world.node(*host).and_then(|node| node.poll_timeout()) {
            Some(at) if at <= world.now() => Err(Violation::new(format!(
                "the deadline of {host} is {} ns and the time is {} ns",
                at.0,
                world.now().0
            ))),
            _ => Ok(()),
        }
    }
}
