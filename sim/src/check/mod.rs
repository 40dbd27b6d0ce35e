//! What must hold at every moment of every run, faults or not. One file each.

mod books;
mod complete;
mod holds;
mod once;
mod quiet;
mod shut_out;
mod timers;
mod window;

use crate::world::World;
use shoal_proto::ids::{ContentId, HostIndex};
use shoal_swarm::io::Output;

/// Something a check may want to know.
#[derive(Debug)]
pub enum Seen<'a> {
    /// A host was started.
    Started {
        /// The host.
        host: HostIndex,
    },
    /// A host died.
    Killed {
        /// The host.
        host: HostIndex,
    },
    /// A host lost its disk.
    Wiped {
        /// The host.
        host: HostIndex,
    },
    /// A link broke.
    Unlinked {
        /// One end.
        a: HostIndex,
        /// The other.
        b: HostIndex,
    },
    /// A host's brain has taken in a fact.
    Handled {
        /// The host.
        host: HostIndex,
    },
    /// A host's brain wishes something.
    Wished {
        /// The host.
        host: HostIndex,
        /// What.
        output: &'a Output,
    },
    /// Another job names a content: whoever has it says so again.
    Ordered {
        /// The content.
        content: ContentId,
    },
    /// The run is over.
    End,
}

/// A rule.
pub trait Check {
    /// The rule, in words.
    fn name(&self) -> &'static str;

    /// Looks at what happened; says how the rule is broken.
    fn sees(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String>;
}

/// All rules.
pub fn all() -> Vec<Box<dyn Check>> {
    vec![
        Box::new(books::Books::default()),
        Box::new(complete::Complete::default()),
        Box::new(holds::Holds),
        Box::new(once::Once::default()),
        Box::new(quiet::Quiet),
        Box::new(shut_out::ShutOut::default()),
        Box::new(timers::Timers),
        Box::new(window::Window::default()),
    ]
}
