//! The time that versions of a feed take to reach the readers on every host: one region of real processes on this
//! machine.
//!
//! `cargo bench --bench feeds -- --seconds 60 --racks 4 --hosts 4 --bytes 2048 --every-ms 100 [--restarts] [--push-mib
//! 256]`

use shoal_testkit::feeds::{Reader, numbered, quantile};
use shoal_testkit::{Region, noise, until};
use std::time::{Duration, Instant};

/// The number after a flag, or `default`.
fn flag(name: &str, default: u64) -> u64 {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.nth(1).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} needs a number")))
}

#[allow(clippy::print_stdout, reason = "the benchmark prints its result")]
fn main() {
    // Without `--bench`, `cargo test --benches` runs this for a moment.
    let brief = std::env::args().all(|arg| arg != "--bench");
    let seconds = flag("--seconds", if brief { 1 } else { 10 });
    let (racks, hosts) = (flag("--racks", if brief { 1 } else { 4 }), flag("--hosts", if brief { 2 } else { 4 }));
    let (bytes, every) = (flag("--bytes", 2048), Duration::from_millis(flag("--every-ms", 100)));
    let (restarts, push) = (std::env::args().any(|arg| arg == "--restarts"), flag("--push-mib", 0));

    let mut region = Region::start(shoal_testkit::program!(), racks as usize, hosts as usize);
    let readers: Vec<Reader> = region.peers.iter().map(|peer| Reader::start(peer.http(), "gslb/main", || {})).collect();
    let mut publisher = region.publisher();
    until("every host has the first version", || {
        publisher.publish("gslb/main", &numbered(0, bytes as usize))?;
        readers.iter().all(|reader| reader.last().is_some()).then_some(())
    });
    let skip: Vec<usize> = readers.iter().map(|reader| reader.readings().len()).collect();
    if push > 0 {
        let file = region.folder.path().join("bulk");
        std::fs::write(&file, noise((push << 20) as usize, 7)).expect("the disk has room for the pushed file");
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
    let last =
        until("the seeder accepts the last version", || publisher.publish("gslb/main", &numbered(u64::MAX, 100)));
    let mut took = Vec::new();
    let mut missed = 0;
    for (reader, skip) in readers.iter().zip(skip) {
        until("every host has the last version", || (reader.last()?.sequence == last).then_some(()));
        let readings = reader.readings();
        let readings = &readings[skip.min(readings.len())..readings.len() - 1];
        missed += (round as usize).saturating_sub(readings.len());
        took.extend(readings.iter().map(|reading| reading.took_us));
    }
    took.sort_unstable();
    publishing.sort_unstable();
    let ms = |sorted: &[u64], fraction: f64| quantile(sorted, fraction) as f64 / 1000.0;
    println!(
        "{round} versions of {bytes} bytes to {} hosts: {} readings, {missed} versions skipped (a newer one came first, or a process restarted)",
        readers.len(),
        took.len()
    );
    for (what, sorted) in [("published to read", &took), ("publish answered", &publishing)] {
        let times = [0.5, 0.9, 0.99, 0.999, 1.0].map(|fraction| format!("{:.2}", ms(sorted, fraction)));
        println!("{what}: p50 {} p90 {} p99 {} p99.9 {} max {} ms", times[0], times[1], times[2], times[3], times[4]);
    }
}
