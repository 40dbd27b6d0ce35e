//! A client of image registries (the OCI Distribution API).
//!
//! Owns: the connection to one repository of one registry. `repository` asks for documents and blobs, `auth` knows
//! credentials and challenges, `fetch` brings a blob to the disk, `error` says what went wrong.
//! Invariant: bytes are returned only if their digest is right, and every failure ends with an error that says what
//! to do.

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

pub(crate) mod auth;
mod error;
mod fetch;
mod repository;

pub(crate) use error::RegistryError;
pub(crate) use repository::Repository;
