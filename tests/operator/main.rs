//! What an operator asks of a host before and while a role runs there: `shoal config check` and `shoal doctor`.

mod config_check;
mod doctor;

const SHOAL: shoal_testkit::Program = shoal_testkit::program!();
