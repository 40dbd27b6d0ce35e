//! Shoal's vocabulary: the types every other crate speaks, and their bytes.
//!
//! Owns: ids, locality and selectors, content geometry, the manifest, announcements, trust documents and
//! credentials, the messages between hosts and with the tracker, reports, the codec and every limit.
//! Invariant: nothing here does IO, reads a clock or draws randomness, and no decoder allocates for a length it has
//! not seen the bytes of.
//!
//! Where to look: an id in [`ids`]; "which host is where" in [`locality`]; piece and stripe arithmetic in
//! [`geometry`]; what a content is made of in [`manifest`], an image in [`mod@image`]; what a publisher signs in
//! [`announcement`], what makes it a feed's in [`feed`]; which version a host should have, and when it may switch, in
//! [`desired`]; who may speak in [`trust`]; peer to peer in [`message`] and [`frame`]; host to tracker in [`control`];
//! completion facts in
//! [`report`].

pub mod announcement;
pub mod bitmap;
pub mod codec;
pub mod control;
pub mod desired;
pub mod feed;
pub mod frame;
pub mod geometry;
pub mod ids;
pub mod image;
pub mod limits;
pub mod locality;
pub mod manifest;
pub mod membership;
pub mod message;
pub mod rack_placement;
pub mod report;
pub mod trust;
