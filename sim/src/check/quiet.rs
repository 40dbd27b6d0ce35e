//! Who has everything is sent nothing: a shard may cross with the word that it is no longer needed, not follow it.

use super::{Check, Seen};
use crate::world::World;
use shoal_swarm::io::Output;
use std::time::Duration;

/// Longer than a word takes to come across, detours and all.
const GRACE: Duration = Duration::from_secs(2);

pub(super) struct Quiet;

impl Check for Quiet {
    fn name(&self) -> &'static str {
        "who has everything is sent nothing"
    }

    fn sees(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Wished { host, output: Output::SendShard { to, content, .. } } = seen else { return Ok(()) };
        let Some(number) = world.number_of(content) else { return Ok(()) };
        // A host that was restarted may have lost pieces since.
        let whole = world.node(*to).and_then(|node| node.progress(content)).is_some_and(|got| got.have == got.total);
        // The word may have been held up by a cut.
        let told = |at: &u64| world.now().0.saturating_sub((*at).max(world.mended_at));
        let since = world.pushed(number).done.get(to).filter(|_| world.is_reachable(*to, *host)).map(told);
        match since {
            Some(since) if whole && u128::from(since) > GRACE.as_nanos() => {
                Err(format!("{host} sends to {to}, which has had everything for {} ms", since / 1_000_000))
            }
            _ => Ok(()),
        }
    }
}
