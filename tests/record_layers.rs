//! Links between hosts with different implementations of TLS records.

use shoal_testkit::{Program, Setup, noise};
use std::fs;

const SHOAL: Program = shoal_testkit::program!();

/// The seeder and every second host use rustls's records, the others use our own. So every pair of choices occurs: from
/// the seeder to hosts, between racks and within a rack.
#[test]
fn a_region_works_with_both_record_layers() {
    const SIZE: usize = 12 << 20;
    let records =
        |peer: usize| vec![format!("node.net.records={}", if peer.is_multiple_of(2) { "own" } else { "rustls" })];
    let region = Setup::new(SHOAL, 2, 2).seeder(&["node.net.records=rustls"]).peers(records).start();
    let file = region.folder.path().join("file");
    let bytes = noise(SIZE, 1);
    fs::write(&file, &bytes).unwrap();
    let job = region.push(&file, "file", "1");
    region.wait_active(&job, 4);
    (0..4).for_each(|peer| region.assert_copy(peer, "file", "file", &bytes));
}
