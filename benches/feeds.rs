//! How long a version of a feed takes to reach every host's readers: real processes, one region on this machine.
//!
//! `cargo bench --bench feeds -- --seconds 60 --racks 4 --hosts 4 --bytes 2048 --every-ms 100 [--restarts] [--push-mib 256]`

#[path = "../tests/common/mod.rs"]
mod common;

use common::feeds::{Reader, numbered, quantile};
use common::{Region, noise, until};
use std::time::{Duration, Instant};

/// The number after a flag.
fn flag(name: &str, otherwise: u64) -> u64 {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.nth(1).map_or(otherwise, |value| value.parse().unwrap_or_else(|_| panic!("{name} wants a number")))
}

#[allow(clippy::print_stdout, reason = "its result")]
fn main() {
    // `cargo test --benches` runs it for a moment.
    let brief = std::env::args().all(|arg| arg != "--bench");
    let seconds = flag("--seconds", if brief { 1 } else { 10 });
    let (racks, hosts) = (flag("--racks", if brief { 1 } else { 4 }), flag("--hosts", if brief { 2 } else { 4 }));
    let (bytes, every) = (flag("--bytes", 2048), Duration::from_millis(flag("--every-ms", 100)));
    let (restarts, push) = (std::env::args().any(|arg| arg == "--restarts"), flag("--push-mib", 0));

    let mut region = Region::start(racks as usize, hosts as usize, |_| Vec::new());
    let readers: Vec<Reader> = region.peers.iter().map(|peer| Reader::start(peer.http(), "gslb/main", || {})).collect();
    let mut publisher = region.publisher();
    until("the first version is there", || {
        publisher.publish("gslb/main", &numbered(0, bytes as usize))?;
        readers.iter().all(|reader| reader.last().is_some()).then_some(())
    });
    let skip: Vec<usize> = readers.iter().map(|reader| reader.seen().len()).collect();
    if push > 0 {
        let file = region.folder.path().join("bulk");
        std::fs::write(&file, noise((push << 20) as usize, 7)).expect("room for the pushed file");
        region.push(&file, "bulk", "1");
    }
    let (began, mut round, mut publishing) = (Instant::now(), 0u32, Vec::new());
    while began.elapsed() < Duration::from_secs(seconds) {
        round += 1;
        if restarts && u64::from(round) * every.as_millis() as u64 == seconds * 333 / 100 * 100 {
            region.peers[0].kill();
            region.peers[0].start();
            region.seeder.kill();
            region.seeder.start();
        }
        std::thread::sleep((began + every * round).saturating_duration_since(Instant::now()));
        let at = Instant::now();
        if publisher.publish("gslb/main", &numbered(u64::from(round), bytes as usize)).is_some() {
            publishing.push(at.elapsed().as_micros() as u64);
        }
    }
    let last = until("the seeder takes the last", || publisher.publish("gslb/main", &numbered(u64::MAX, 100)));
    let mut took = Vec::new();
    let mut missed = 0;
    for (reader, skip) in readers.iter().zip(skip) {
        until("the last version is there", || (reader.last()?.sequence == last).then_some(()));
        let seen = reader.seen();
        let seen = &seen[skip.min(seen.len())..seen.len() - 1];
        missed += (round as usize).saturating_sub(seen.len());
        took.extend(seen.iter().map(|seen| seen.took_us));
    }
    took.sort_unstable();
    publishing.sort_unstable();
    let ms = |sorted: &[u64], share: f64| quantile(sorted, share) as f64 / 1000.0;
    println!(
        "{round} versions of {bytes} bytes to {} hosts: {} readings, {missed} skipped (a newer one came first, or a restart)",
        readers.len(),
        took.len()
    );
    for (what, sorted) in [("published to read", &took), ("publish answered", &publishing)] {
        let shares = [0.5, 0.9, 0.99, 0.999, 1.0].map(|share| format!("{:.2}", ms(sorted, share)));
        println!(
            "{what}: p50 {} p90 {} p99 {} p99.9 {} max {} ms",
            shares[0], shares[1], shares[2], shares[3], shares[4]
        );
    }
}
