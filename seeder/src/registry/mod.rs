//! A client of image registries (the OCI Distribution API).
//!
//! Owns: the connection to one repository of one registry. `repository` asks for documents, blobs and referrers,
//! `exchange` follows redirects and answers challenges, which `auth` reads. `docker_config` and `credential_helper`
//! find credentials. `fetch` brings a blob to the disk, and `error` says what went wrong. Invariant: bytes are
//! returned only if their digest is right, and every failure ends with an error that says what to do.

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

pub(crate) mod auth;
mod credential_helper;
mod docker_config;
mod error;
mod exchange;
mod fetch;
mod repository;
#[cfg(test)]
mod tests;

pub(crate) use error::RegistryError;
pub(crate) use repository::Repository;
