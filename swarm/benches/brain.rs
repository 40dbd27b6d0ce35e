//! How fast the brain is: a whole push to a region in virtual time, in events handled.
//!
//! `cargo bench -p shoal-swarm --bench brain`

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shoal_proto::announcement::Kind;
use shoal_proto::ids::{ContentId, HostIndex};
use shoal_proto::locality::Selector;
use shoal_swarm::testing::{Mesh, Shape};
use std::time::Duration;

const PIECES: u32 = 512;

/// A region that has settled, with a push just begun.
fn pushing(racks: u32, hosts: u32) -> (Mesh, ContentId) {
    let mut mesh = Mesh::new(Shape { racks, hosts, ..Shape::default() });
    mesh.run_for(Duration::from_millis(500));
    let content = mesh.push(1, Kind::Blob, PIECES, 256 * 1024, Selector::all());
    (mesh, content)
}

/// Runs to the end; gives the events it took.
fn finish(mesh: &mut Mesh, content: ContentId) -> u64 {
    let before = mesh.events;
    let all: Vec<HostIndex> = mesh.peers().collect();
    mesh.run_to_done(content, &all, Duration::from_secs(600)).expect("the push completes");
    mesh.events - before
}

fn pushes(c: &mut Criterion) {
    let mut group = c.benchmark_group("brain");
    group.sample_size(10);
    for (racks, hosts) in [(4, 4), (10, 20)] {
        let (mut mesh, content) = pushing(racks, hosts);
        group.throughput(Throughput::Elements(finish(&mut mesh, content)));
        group.bench_function(format!("push_{racks}x{hosts}"), |b| {
            let run = |(mesh, content): &mut (Mesh, ContentId)| finish(mesh, *content);
            b.iter_batched_ref(|| pushing(racks, hosts), run, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, pushes);
criterion_main!(benches);
