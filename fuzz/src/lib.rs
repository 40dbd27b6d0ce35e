//! What the fuzz targets share: the bound of the heap, and the law that what was read can be written and read again.
//!
//! Owns: the allocator of every target.
//! Invariant: a helper panics only if the code under test broke a promise.
//!
//! Where to look: one file for each target in `fuzz_targets/`, the first inputs in `seeds/`, the build in `run`.

pub mod heap;
pub mod image_files;
pub mod stable;

#[global_allocator]
static HEAP: heap::Counted = heap::Counted;
