//! Images through racks of real processes into real containerds, prewarmed from peers alone, with faults.
//!
//! Needs root and Debian's containerd, runc, skopeo, docker-registry and busybox-static.

mod beside;
mod choice;
mod direct;
mod image;
mod lab;
mod odd;
mod runtime;
mod through;
mod warm;

use shoal_testkit::Program;

const SHOAL: Program = shoal_testkit::program!();
