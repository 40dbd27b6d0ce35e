//! Images through racks of real processes into real containerds: warm everywhere, from peers alone, whatever fails.
//!
//! Needs root and Debian's containerd, runc, skopeo, docker-registry and busybox-static.

#[path = "../common/mod.rs"]
mod common;
mod direct;
mod image;
mod lab;
mod odd;
mod registry;
mod runtime;
mod through;
mod warm;
