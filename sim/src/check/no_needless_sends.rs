//! A host with the whole content is sent no shards of it. Shards may cross with the message that it is complete.

use crate::world::World;
use crate::world::observer::{Observer, Violation, WorldEvent};
use shoal_swarm::io::Output;
use std::time::Duration;

/// Longer than any message takes, reroutes included.
const GRACE: Duration = Duration::from_secs(2);

pub struct NoNeedlessSends;

impl Observer for NoNeedlessSends {
    fn name(&self) -> &'static str {
        "a complete host is sent nothing"
    }

    fn on_event(&mut self, world: &World, event: &WorldEvent<'_>) -> Result<(), Violation> {
        let WorldEvent::Output { host, output: Output::SendShard { to, content, .. } } = event else { return Ok(()) };
        let Some(number) = world.number_of(content) else { return Ok(()) };
        // A restarted host may have lost pieces since it completed.
        let whole = world.node(*to).and_then(|node| node.progress(content)).is_some_and(|got| got.have == got.total);
        // A cut may have delayed the message.
        let since_told = |at: &u64| world.now().0.saturating_sub((*at).max(world.rate_changed_at));
        let since = world.pushed(number).done.get(to).filter(|_| world.is_reachable(*to, *host)).map(since_told);
        match since {
            Some(since) if whole && u128::from(since) > GRACE.as_nanos() => {
                let ms = since / 1_000_000;
                Err(Violation::new(format!("{host} sends to {to}, which has been complete for {ms} ms")))
            }
            _ => Ok(()),
        }
    }
}
