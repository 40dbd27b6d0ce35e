//! The rules that must hold at every moment of every run, with or without faults. Each rule has a file.

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

mod bans;
mod completions;
mod consistent_state;
mod few_repeats;
mod no_needless_sends;
mod sends_only_stored;
mod timers;
mod windows;

use crate::world::observer::Observer;

/// All rules.
pub fn all() -> Vec<Box<dyn Observer>> {
    vec![
        Box::new(consistent_state::ConsistentState::default()),
        Box::new(completions::Completions::default()),
        Box::new(sends_only_stored::SendsOnlyStored),
        Box::new(few_repeats::FewRepeats::default()),
        Box::new(no_needless_sends::NoNeedlessSends),
        Box::new(bans::Bans::default()),
        Box::new(timers::Timers),
        Box::new(windows::Windows::default()),
    ]
}
