//! Observers of a world: they see every event and may report a broken rule.
//!
//! Invariant: an observer changes nothing.

use super::World;
use shoal_proto::ids::{ContentId, HostIndex};
use shoal_swarm::io::Output;

/// Something that an observer may need to know.
#[derive(Debug)]
#[allow(missing_docs, reason = "the variants' texts explain their fields")]
pub enum WorldEvent<'a> {
    /// A host was started.
    Started { host: HostIndex },
    /// A host died.
    Killed { host: HostIndex },
    /// A host lost its disk.
    Wiped { host: HostIndex },
    /// The link between two hosts broke.
    Unlinked { a: HostIndex, b: HostIndex },
    /// A host's core has handled an input.
    Handled { host: HostIndex },
    /// A host's core has made an output. The world has not carried it out yet.
    Output { host: HostIndex, output: &'a Output },
    /// A demotion or promotion of a content was ordered, so hosts report on it again.
    Ordered { content: ContentId },
    /// The run is over.
    End,
}

/// A rule that must hold during a whole run.
pub trait Observer {
    /// The rule as a sentence.
    fn name(&self) -> &'static str;

    /// Looks at what happened.
    ///
    /// # Errors
    /// A [`Violation`] when the rule does not hold. The run then panics.
    fn on_event(&mut self, world: &World, event: &WorldEvent<'_>) -> Result<(), Violation>;
}

/// How a rule is broken, as a text for the developer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(String);

impl Violation {
    /// A violation with a text that names the hosts and shards.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
