//! The heap in use, for targets that bound what an input may cost.
//!
//! Invariant: an allocation counts before the system hands it out, so a huge one fails the target and not the machine.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// An allocation of more bytes than this is refused. No decoder has a reason for one.
const ALLOCATION_BYTES_MAX: usize = 1 << 30;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a count of the bytes in use.
pub struct Counted;

impl Counted {
    fn add(bytes: usize) -> bool {
        let now = IN_USE.fetch_add(bytes, Relaxed) + bytes;
        PEAK.fetch_max(now, Relaxed);
        bytes <= ALLOCATION_BYTES_MAX
    }
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments, or returns null, which is allowed.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !Self::add(layout.size()) {
            return std::ptr::null_mut();
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !Self::add(layout.size()) {
            return std::ptr::null_mut();
        }
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !Self::add(size) {
            return std::ptr::null_mut();
        }
        IN_USE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs `act`.
///
/// # Panics
///
/// Panics if the heap grew by more than `bytes_max` bytes on the way.
pub fn bounded<T>(bytes_max: usize, act: impl FnOnce() -> T) -> T {
    let before = IN_USE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let out = act();
    let grown = PEAK.load(Relaxed).saturating_sub(before);
    assert!(grown <= bytes_max, "the heap grew by {grown} bytes, the bound is {bytes_max}");
    out
}
