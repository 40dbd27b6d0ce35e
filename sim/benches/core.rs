//! How many events per second the core handles: a whole push to a region in virtual time.
//!
//! `cargo bench -p shoal-sim --bench core`

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shoal_proto::ids::HostIndex;
use shoal_sim::layout::Layout;
use shoal_sim::world::{ContentNumber, Push, World};
use std::time::Duration;

const PIECES: u32 = 512;

/// A region at the begin of a push.
fn pushing(racks: u32, hosts: u32) -> (World, ContentNumber) {
    let mut world = World::new(Layout::even(racks, hosts), Vec::new());
    world.run_for(Duration::from_millis(500));
    let number = world.push(&Push::blob(PIECES, 256 * 1024));
    (world, number)
}

/// Runs to the end; returns the events it took.
fn finish(world: &mut World, number: ContentNumber) -> u64 {
    let before = world.events;
    let all: Vec<HostIndex> = world.peers().collect();
    world.run_to_done(number, &all, Duration::from_secs(600)).expect("the push completes");
    world.events - before
}

fn pushes(c: &mut Criterion) {
    let mut group = c.benchmark_group("core");
    group.sample_size(10);
    for (racks, hosts) in [(4, 4), (10, 20)] {
        let (mut world, number) = pushing(racks, hosts);
        group.throughput(Throughput::Elements(finish(&mut world, number)));
        group.bench_function(format!("push_{racks}x{hosts}"), |b| {
            let run = |(world, number): &mut (World, ContentNumber)| finish(world, *number);
            b.iter_batched_ref(|| pushing(racks, hosts), run, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, pushes);
criterion_main!(benches);
