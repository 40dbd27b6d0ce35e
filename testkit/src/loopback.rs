//! Loopback addresses, one for each region or service under test.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};

/// Addresses that one process may take.
const MOST: u8 = 250;

/// Returns a loopback address that no other test uses, in this process or in another one.
///
/// A stopped process must find its port free when it starts again. On 127.0.0.1 any connection of another test may take
/// that port meanwhile, because the kernel draws the source ports of connections there.
///
/// # Panics
/// When the process has used all its addresses.
pub fn own_loopback() -> Ipv4Addr {
    static USED: AtomicU8 = AtomicU8::new(0);
    let used = USED.fetch_add(1, Ordering::Relaxed);
    assert!(used < MOST, "this process has used all its loopback addresses");
    // Linux process ids have at most 22 bits. The top six are folded into the second byte.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + (high.wrapping_mul(4) ^ middle) % MOST, low, 1 + used)
}
