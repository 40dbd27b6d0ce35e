//! Who may do what at the seeder's API.
//!
//! Owns: the tokens (`tokens`) and what each allows (`grant`), the check around all routes with its audit entries
//! (`gate`), and the routes of tokens and of the audit log (`api`).
//! Invariant: a handler of a route that needs a token runs only for a caller whose scope suffices, and every change is
//! in the audit log before its answer.

pub(crate) mod api;
mod gate;
mod grant;
mod tokens;

pub(crate) use gate::Gate;
pub(crate) use grant::{Caller, Denied};
pub(crate) use tokens::Tokens;
