//! The request and answer types of the HTTP APIs of all four roles.
//!
//! Owns: the JSON of the APIs, and the units in which people write sizes, rates and spans. The roles serve these
//! types and the command line reads them, so neither needs the other.
//! Invariant: the types only hold data. What a request means and whether it is allowed is decided by the role.
//!
//! Terms are those of `docs/GLOSSARY.md`.
//!
//! Where to look:
//!
//! - tokens and the audit log in [`access`], the trust document in [`trust`]
//! - the seeder's jobs and hosts in [`jobs`], [`images`], [`rollouts`] and [`hosts`]
//! - what peers and seeders serve in [`contents`], [`feeds`] and [`limits`]
//! - the other roles' own types in [`tracker`] and [`hub`], and those of every role in [`service`]
//! - how numbers are written in [`units`]
//!
//! With the feature `schema`, `openapi` makes the OpenAPI documents.

pub mod access;
pub mod contents;
pub mod feeds;
pub mod hosts;
pub mod hub;
pub mod images;
pub mod jobs;
pub mod limits;
#[cfg(feature = "schema")]
pub mod openapi;
pub mod rollouts;
#[cfg(feature = "schema")]
mod schemas;
pub mod service;
pub mod tracker;
pub mod trust;
pub mod units;
