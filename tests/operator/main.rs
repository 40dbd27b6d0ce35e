//! What an operator asks of a host: `shoal config check`, `shoal doctor` and `shoal containerd setup`.

mod config_check;
mod containerd_setup;
mod doctor;

const SHOAL: shoal_testkit::Program = shoal_testkit::program!();
