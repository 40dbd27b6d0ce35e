//! A client of containerd over its unix socket: the few calls of CRI's image service and of containerd's own services
//! that warming an image needs. The messages are written out by hand, so building needs no protoc.
//!
//! Owns: the wire messages, what a refusal means, unpacking, pinning.
//! Invariant: an image counts as unpacked only when the snapshot of its last layer is committed.
//!
//! Where to look: messages in [`wire`]; errors in [`error`]; the connection and single calls in [`client`]; what an
//! image consists of in [`image`]; loading blobs and unpacking them without a registry in [`load`]; pins in [`pin`].

mod client;
mod error;
mod image;
mod load;
mod pin;
pub mod wire;

pub use client::{Containerd, Runtime};
pub use error::RuntimeError;
pub use image::{Descriptor, Unpacked, is_digest, sha256};
pub use load::Blobs;
