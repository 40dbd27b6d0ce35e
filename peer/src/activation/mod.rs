//! Switching versions in as a desired state asks for: with the hooks this host's own configuration names, and back again
//! when they fail.
//!
//! Owns: the hooks' settings, the record of what was begun and what is done, the journal operators read.
//! Invariant: nothing that comes over the network names a command. A step is on the disk before it begins, so after a kill at
//! any moment the host is wholly on one version, and only a hook that was cut in its middle runs again.
//!
//! Split by meaning: [`settings`] is the configuration, [`hooks`] runs commands, [`probe`] asks services how they are,
//! [`record`] is what is kept, [`switch`] goes through the steps, [`journal`] is the file of what happened.

pub mod content_dir;
pub(crate) mod hooks;
pub(crate) mod journal;
pub(crate) mod probe;
pub(crate) mod record;
pub mod settings;
pub(crate) mod switch;
