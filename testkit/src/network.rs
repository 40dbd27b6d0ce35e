//! A network of a test's own: a namespace whose loopback device has addresses that are no loopback addresses.
//!
//! Invariant: the namespace ends with its test, also when the test panics.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The first three numbers of the addresses, of which each last number from 1 to 254 exists (RFC 5737).
pub const NETWORK: [u8; 3] = [198, 51, 100];

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status(); // it may be gone
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().expect("the test needs `ip`, see ./test --needs");
    assert!(status.success(), "`ip {}` failed; the test needs root", args.join(" "));
}

/// Runs `test` on a thread in a network of its own. Processes and threads that it starts are in that network, too.
pub fn in_own_network<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("shoal-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    ip(&["netns", "add", &name]);
    let _namespace = Namespace(name.clone());
    ip(&["-n", &name, "link", "set", "lo", "up"]);
    let [a, b, c] = NETWORK;
    ip(&["-n", &name, "addr", "add", &format!("{a}.{b}.{c}.0/24"), "dev", "lo"]);
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let file = File::open(format!("/run/netns/{name}")).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            test()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
