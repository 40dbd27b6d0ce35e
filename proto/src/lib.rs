//! The vocabulary of Shoal: the types that every other crate uses, and their encoding.
//!
//! Owns: ids, locality and selectors, content geometry, the manifest, announcements, trust documents and
//! credentials, the messages between hosts and with the tracker, reports, the codec and every limit.
//! Invariant: nothing here does IO, reads a clock or draws randomness. No decoder allocates memory for bytes that have
//! not arrived. The terms are those of `docs/GLOSSARY.md`, the formats those of `docs/PROTOCOL.md`.
//!
//! Where to look:
//! - identifiers in [`ids`], places of hosts and selectors in [`locality`], the hosts of a region in [`membership`];
//! - piece, stripe and lane arithmetic in [`geometry`], the shards that hosts keep after a demotion in
//!   [`rack_placement`];
//! - the description of a content in [`manifest`], of an image in [`mod@image`]; an image's own documents in
//!   [`image_documents`], read with [`go_json`]; the choice among an image's platforms in [`platform`];
//! - what a publisher signs in [`announcement`], versions of feeds in [`feed`], the versions that a rollout wants in
//!   [`desired`];
//! - keys, credentials and signatures in [`trust`];
//! - host to host in [`message`] and [`frame`], host to tracker in [`control`], completion in [`report`], the hub's
//!   answer in [`receipt`];
//! - encoding in [`codec`], [`bitmap`] and [`hex`], bounds in [`limits`];
//! - the order of versions in [`sequence`]; lists of hosts in [`host_list`];
//! - text from outside, made safe for people to read, in [`plain_text`].

pub mod announcement;
pub mod bitmap;
pub mod codec;
pub mod control;
pub mod desired;
pub mod feed;
pub mod frame;
pub mod geometry;
pub mod go_json;
pub mod hex;
pub mod host_list;
pub mod ids;
pub mod image;
pub mod image_documents;
pub mod limits;
pub mod locality;
pub mod manifest;
pub mod membership;
pub mod message;
mod names;
pub mod plain_text;
pub mod platform;
pub mod rack_placement;
pub mod receipt;
pub mod report;
pub mod sequence;
pub mod trust;
