//! Who may do what at the API of a seeder or a hub.
//!
//! Owns: the tokens (`tokens`) and what each allows (`grant`), the check around all routes with its audit entries
//! (`gate`), and the routes of tokens and of the audit log (`api`).
//! Invariant: a handler of a route that needs a token runs only for a caller whose scope suffices, and every change is
//! in the audit log before its answer.

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

mod api;
mod gate;
mod grant;
mod tokens;

pub use api::routes;
pub use gate::Gate;
pub use grant::{Caller, Denied};
pub use tokens::{TokenRecords, Tokens};

/// What to do about an invalid selector.
pub const SELECTOR_REMEDY: &str = "use all, region=R, site=S, rack=R, host=H or label=value, joined by `,`";
