//! After a fact is taken in, the next deadline lies ahead: no host spins.

use super::{Check, Seen};
use crate::world::World;

pub(super) struct Timers;

impl Check for Timers {
    fn name(&self) -> &'static str {
        "deadlines lie ahead"
    }

    fn sees(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Handled { host } = seen else { return Ok(()) };
        match world.node(*host).and_then(|node| node.poll_timeout()) {
            Some(at) if at <= world.now() => {
                Err(format!("{host} wants to be woken at {}, now is {}", at.0, world.now().0))
            }
            _ => Ok(()),
        }
    }
}
