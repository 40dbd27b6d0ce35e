//! The golden digests of fixed seeds: a change of what the scheduler decides shows here.
//!
//! `SHOAL_BLESS=1 cargo test -p shoal-sim --test digests` writes the file again. A rename or a split of code
//! never needs it.

use shoal_sim::run::{random, run};
use std::fmt::Write as _;
use std::path::Path;

/// Seeds whose regions and faults are drawn at random.
const SEEDS: std::ops::Range<u64> = 0..60;

/// One line per seed: the seed, the events handled, and the digest.
fn digests() -> String {
    SEEDS.fold(String::new(), |mut lines, seed| {
        let figures = run(&random(seed), |_| {}).figures;
        let _ = writeln!(lines, "{seed} {} {}", figures.events, figures.digest); // a `String` takes every write
        lines
    })
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the golden file is read and written here")]
fn the_scheduler_decides_what_it_decided_before() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/digests.txt");
    let now = digests();
    if std::env::var_os("SHOAL_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("the path has a folder")).expect("the folder can be made");
        std::fs::write(&path, &now).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    let changed: Vec<_> = golden.lines().zip(now.lines()).filter(|(then, now)| then != now).collect();
    assert!(golden == now, "{} of {} digests changed: {changed:?}", changed.len(), now.lines().count());
}
