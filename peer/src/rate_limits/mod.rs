//! Rate limits of this host's links: by tier and direction, by time of day, set at run time, and reduced by NIC yield.
//!
//! Rates set at run time override windows of the day, and windows override the base configuration. A restart returns to
//! the configuration. Times of day have a fixed offset from UTC.
//! Invariant: the links use the current limits within one second of a change.
//!
//! Where to look: the limits in force in [`current`]; configuration and windows in [`schedule`]; yield to other traffic
//! in [`nic_yield`]; the HTTP API in [`api`].

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

pub mod api;
mod current;
mod nic_yield;
pub mod schedule;

pub use current::RateLimits;
pub use schedule::{RateLimitSettings, Window, YieldSettings};
