//! A whole run: a scenario in, figures out. What follows the push where a fault waits for the content to be demoted is in
//! [`cold`].

mod cold;

use crate::check;
use crate::faults::{Fault, Kind, When};
use crate::layout::{Layout, SEEDER};
use crate::world::{Push, World};
use crate::{Rng, faults};
use serde::Serialize;
use shoal_proto::ids::{Hash, HostIndex};
use shoal_swarm::time::Instant;
use std::collections::BTreeSet;
use std::time::Duration;

pub use cold::Cold;

/// Time the region has to bring its standing links up before the push.
const SETTLE: Duration = Duration::from_millis(500);
/// Links of flapping hosts break this often.
const FLAP_EVERY: Duration = Duration::from_secs(2);
/// Events between two calls of whoever watches.
const WATCH_EVERY: u64 = 1 << 16;

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The region.
    pub layout: Layout,
    /// Pieces of the content.
    pub pieces: u32,
    /// Length of each, bytes.
    pub piece_bytes: u32,
    /// Parity shards in a stripe (m).
    pub parity: u8,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Decides who is hit.
    pub seed: u64,
    /// Virtual time after which hosts that are not done count as incomplete.
    pub limit: Duration,
    /// Whether every rule of [`check`] is watched; a broken one panics with time and event.
    pub checked: bool,
}

/// Figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Hosts.
    pub hosts: u32,
    /// Hosts that have everything; of those that were not slow to the end.
    pub complete: u32,
    /// Hosts that were dead at the end.
    pub dead: u32,
    /// Hosts that were slow to the end: the others' times are without them, and nobody waits for them.
    pub slow: u32,
    /// Payload bytes of the content.
    pub bytes: u64,
    /// From the push to the last host's completion, seconds.
    pub makespan_s: f64,
    /// No schedule is faster without faults, seconds.
    pub bound_s: f64,
    /// The former by the latter.
    pub ratio: f64,
    /// Half the hosts were done by then, seconds.
    pub p50_s: f64,
    /// 99 of 100.
    pub p99_s: f64,
    /// Payload bytes that entered a rack by the content's size: the worst rack.
    pub rack_import_max: f64,
    /// The same, over all racks.
    pub rack_import_mean: f64,
    /// Payload bytes the seeder sent by the content's size.
    pub seeder_egress: f64,
    /// Parity bytes that entered racks by the bytes that did.
    pub parity_over_uplinks: f64,
    /// Longest way of a piece from the seeder, in hosts.
    pub depth: u8,
    /// Events handled.
    pub events: u64,
    /// Stands for everything that happened.
    pub digest: String,
    /// Of the demotion and promotion after the push; all else here but events and digest is of the push alone. Absent where no
    /// fault waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold: Option<Cold>,
}

/// A run's figures, and what its curves are made of.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The figures.
    pub figures: Figures,
    /// For every rack, when each of its hosts was done, seconds after the push; `None` if it never was.
    pub done: Vec<Vec<Option<f64>>>,
}

impl Outcome {
    /// Whether every host that lives has everything, and had it again after it was demoted.
    pub fn is_complete(&self) -> bool {
        let figures = &self.figures;
        let again = figures.cold.as_ref().is_none_or(|cold| cold.complete == cold.hosts);
        again && figures.complete + figures.dead + figures.slow >= figures.hosts
    }
}

/// A fault that waits for its time, or for its end.
struct Pending {
    fault: Fault,
    hosts: Vec<HostIndex>,
    /// When it begins; `None` while that depends on the push.
    begins: Option<Instant>,
    ends: Option<Instant>,
    running: bool,
    /// For what it decides by chance while it runs.
    seed: u64,
    next_flap: Instant,
}

/// Runs a scenario to its end. `watch` is told now and then what part of the payload
/// was sent.
pub fn run(scenario: &Scenario, watch: impl FnMut(f64)) -> Outcome {
    run_world(scenario, watch).0
}

/// Like [`run`]; gives the region as it is at the end, too.
pub fn run_world(scenario: &Scenario, mut watch: impl FnMut(f64)) -> (Outcome, World) {
    let checks = if scenario.checked { check::all() } else { Vec::new() };
    let mut world = World::new(scenario.layout.clone(), checks);
    world.run_for(SETTLE);
    let start = world.now();
    let push = Push { parity: scenario.parity, ..Push::blob(scenario.pieces, scenario.piece_bytes) };
    let number = world.push(&push);
    let bytes = world.pushed(number).geometry.bytes();
    let bound = scenario.layout.bound(bytes);
    let mut rng = Rng::new(scenario.seed);
    let mut pending: Vec<Pending> = scenario
        .faults
        .iter()
        .map(|fault| {
            let begins = match fault.when {
                When::At(after) => Some(start + after),
                When::Part(part) => Some(start + bound.mul_f64(part)),
                When::Out | When::Cold => None,
            };
            let hosts = fault.hosts(&scenario.layout, &mut rng);
            Pending { fault: *fault, hosts, begins, ends: None, running: false, seed: scenario.seed, next_flap: start }
        })
        .collect();
    let later: Vec<Pending> = pending.extract_if(.., |row| row.fault.when == When::Cold).collect();
    let until = start + scenario.limit;
    let slow: BTreeSet<HostIndex> = pending
        .iter()
        .filter(|row| row.fault.kind == Kind::Slow && row.fault.span.is_none())
        .flat_map(|row| row.hosts.iter().copied())
        .collect();
    let mut open = scenario.layout.hosts() as usize - slow.len();
    loop {
        let now = world.now();
        advance(&mut world, &mut pending, now);
        open -= world.finished.drain(..).filter(|(host, _)| !slow.contains(host)).count();
        let dead_for_good = || {
            let dead = world.peers().filter(|host| !world.is_running(*host) && !slow.contains(host));
            dead.filter(|host| !world.pushed(number).done.contains_key(host) && !comes_back(&pending, *host)).count()
        };
        if open == 0 || (open <= scenario.layout.hosts() as usize / 2 && open == dead_for_good()) {
            break;
        }
        let fault_at = pending.iter().filter_map(Pending::next_at).min();
        let stop = fault_at.unwrap_or(until).min(until);
        let mut handled = 0;
        let out_before = world.pushed(number).out.is_full();
        while handled < WATCH_EVERY && world.finished.is_empty() && world.next_at().is_some_and(|at| at <= stop) {
            world.step();
            handled += 1;
            if !out_before && handled % 64 == 0 && world.pushed(number).out.is_full() {
                break;
            }
        }
        if world.next_at().is_none_or(|at| at > stop) && world.finished.is_empty() {
            world.run_until(stop);
            if stop >= until {
                break;
            }
        }
        watch(world.traffic.all as f64 / (bytes as f64 * f64::from(scenario.layout.hosts())));
    }
    let mut outcome = measure(scenario, &world, number, bound, &slow);
    if !later.is_empty() {
        outcome.figures.cold = Some(cold::run(&mut world, number, pending, later, scenario.limit));
        outcome.figures.events = world.events;
        outcome.figures.digest = digest(&world, number);
    }
    world.check_end();
    (outcome, world)
}

fn comes_back(pending: &[Pending], host: HostIndex) -> bool {
    pending
        .iter()
        .any(|row| row.fault.kind == Kind::Crash && row.ends.is_some() && row.running && row.hosts.contains(&host))
}

impl Pending {
    /// When to look at it next.
    fn next_at(&self) -> Option<Instant> {
        let flap = (self.running && self.fault.kind == Kind::Flap).then_some(self.next_flap);
        let edge = if self.running { self.ends } else { self.begins };
        [flap, edge].into_iter().flatten().min()
    }
}

/// Begins and ends the faults whose time has come.
fn advance(world: &mut World, pending: &mut Vec<Pending>, now: Instant) {
    let out = world.pushed(0).out.is_full();
    for row in pending.iter_mut() {
        if !row.running && row.begins.is_none() && out {
            row.begins = Some(now);
        }
        if !row.running && row.begins.is_some_and(|at| at <= now) {
            row.running = true;
            row.ends = row.fault.span.map(|span| now + span);
            switch(world, row, true);
        }
        if row.running && row.fault.kind == Kind::Flap && row.next_flap <= now {
            row.next_flap = now + FLAP_EVERY;
            row.hosts.iter().for_each(|host| world.break_links(*host));
        }
    }
    pending.retain(|row| {
        let over = row.running && row.ends.is_some_and(|at| at <= now);
        if over {
            switch(world, row, false);
        }
        !over
    });
}

fn switch(world: &mut World, row: &Pending, begins: bool) {
    let part = if begins { row.fault.rate } else { 1.0 };
    let hosts = row.hosts.iter().copied();
    match row.fault.kind {
        Kind::Crash if begins => hosts.for_each(|host| world.kill(host)),
        Kind::Crash => hosts.for_each(|host| world.start(host)),
        Kind::Seeder if begins => world.kill(SEEDER),
        Kind::Seeder => world.start(SEEDER),
        Kind::Tracker => world.set_tracker(!begins),
        Kind::Corrupt => hosts.for_each(|host| world.set_corrupt(host, begins)),
        Kind::Stale => hosts.for_each(|host| world.set_deaf(host, begins)),
        Kind::Flap => {}
        Kind::Uneven => world.set_uneven(begins.then_some(part), row.seed),
        Kind::Slow => hosts.for_each(|host| {
            let rack = world.rack_of(host).map_or(0, |rack| rack as usize);
            // What is left is a part of what is needed, not of a card that is hardly used.
            let row = &world.layout().racks[rack];
            let rate = if begins { row.nic.min(row.uplink) } else { row.nic };
            world.set_nic(host, (rate as f64 * part) as u64);
        }),
        Kind::Uplink => {
            if let Some(rack) = row.fault.rack(world.layout()) {
                let rate = world.layout().racks[rack].uplink as f64 * part;
                world.set_uplink(rack, rate as u64);
            }
        }
    }
}

fn measure(scenario: &Scenario, world: &World, number: usize, bound: Duration, slow: &BTreeSet<HostIndex>) -> Outcome {
    let pushed = world.pushed(number);
    let bytes = pushed.geometry.bytes();
    let seconds = |at: u64| (at - pushed.at) as f64 / 1e9;
    let done: Vec<Vec<Option<f64>>> = (0..scenario.layout.racks.len())
        .map(|rack| {
            let hosts = scenario.layout.hosts_of(rack).map(HostIndex);
            hosts.map(|host| pushed.done.get(&host).map(|at| seconds(*at))).collect()
        })
        .collect();
    let waited = pushed.done.iter().filter(|(host, _)| **host != SEEDER && !slow.contains(host));
    let mut times: Vec<f64> = waited.map(|(_, at)| seconds(*at)).collect();
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times.get(((times.len() as f64 * part).ceil() as usize).max(1) - 1).copied().unwrap_or(0.0);
    let makespan_s = times.last().copied().unwrap_or(0.0);
    let imports = &world.traffic.imported;
    let size = bytes as f64;
    let imported: u64 = imports.iter().sum();
    let lost = |host: &HostIndex| !world.is_running(*host) && !pushed.done.contains_key(host) && !slow.contains(host);
    let dead = world.peers().filter(lost).count();
    let figures = Figures {
        hosts: scenario.layout.hosts(),
        complete: times.len() as u32,
        dead: dead as u32,
        slow: slow.len() as u32,
        bytes,
        makespan_s,
        bound_s: bound.as_secs_f64(),
        ratio: makespan_s / bound.as_secs_f64(),
        p50_s: at(0.50),
        p99_s: at(0.99),
        rack_import_max: imports.iter().max().copied().unwrap_or(0) as f64 / size,
        rack_import_mean: imported as f64 / size / imports.len().max(1) as f64,
        seeder_egress: world.traffic.seeder as f64 / size,
        parity_over_uplinks: world.traffic.parity as f64 / (imported as f64).max(1.0),
        depth: world.depth,
        events: world.events,
        digest: digest(world, number),
        cold: None,
    };
    Outcome { figures, done }
}

fn digest(world: &World, number: usize) -> String {
    let mut trace = format!("{} {:?}", world.events, world.traffic).into_bytes();
    for (host, at) in &world.pushed(number).done {
        trace.extend_from_slice(&host.0.to_be_bytes());
        trace.extend_from_slice(&at.to_be_bytes());
    }
    format!("{:016x}", Hash::of(&trace).prefix())
}

/// A small region with random faults, every rule watched. For a bank of seeds.
pub fn random(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed);
    let mut layout = Layout::even(2 + rng.below(5) as u32, 2 + rng.below(7) as u32);
    layout.far = Duration::from_micros(rng.pick(&[200, 2_000, 20_000]));
    layout.seeder = layout.racks[0].uplink * rng.pick(&[1, 2, 4]);
    for rack in &mut layout.racks {
        rack.site = format!("site{}", rng.below(2));
    }
    let faults = faults::random(&layout, &mut rng);
    let mut scenario = Scenario {
        layout,
        pieces: 32 + rng.below(300) as u32,
        piece_bytes: rng.pick(&[16, 64, 256]) * 1024,
        parity: rng.pick(&[0, 2, 4]),
        faults,
        seed,
        limit: Duration::from_secs(300),
        checked: true,
    };
    scenario.faults.extend(faults::random_shares(&mut rng));
    scenario
}
