//! Activation: a complete content becomes a version in the content folder, and a switch puts it into use.
//!
//! Owns: the content folder, the hooks' settings, the record and the journal of switches.
//! Invariant: the network never names a command. Hooks come from this host's configuration. Each step of a switch is
//! durable before it begins. After a kill the host is wholly on one version, and only an interrupted hook runs again.
//!
//! Where to look: versions on disk in [`content_dir`], built in [`version_build`] with the bits of [`mode_mask`]; the
//! steps of a switch in [`switch`], with [`hooks`] and [`probe`]; the durable state of a switch in [`record`]; the
//! operator's log in [`journal`]; the configuration in [`settings`].

pub mod content_dir;
pub(crate) mod hooks;
pub(crate) mod journal;
pub mod mode_mask;
pub(crate) mod probe;
pub(crate) mod record;
pub mod settings;
pub(crate) mod switch;
mod version_build;
