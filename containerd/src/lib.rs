//! A client of containerd over its unix socket.
//!
//! The crate has the calls of CRI's image service and of containerd's own services that prewarming an image needs.
//! Terms are in `docs/GLOSSARY.md`.
//!
//! Owns: the gRPC messages, the meaning of a failed call, loading, unpacking and pinning images.
//! Invariant: an image counts as unpacked only if the snapshot of its last layer is committed.
//!
//! Where to look: messages in [`wire`]; errors in [`error`]; the connection and single calls in [`client`]; manifests,
//! indexes and digests in [`image`]; whether an image is unpacked in [`unpacked`]; what an image is, and its loading
//! without a registry, in [`load`]; pins in [`pin`].

mod client;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod load;
mod pin;
mod unpacked;
mod wire;

pub use client::{Containerd, Runtime};
pub use error::RuntimeError;
pub use image::{Descriptor, ImageError, is_digest, sha256};
pub use load::{BlobReader, ImageKind, examine};
pub use pin::Pin;
pub use unpacked::Unpacked;
