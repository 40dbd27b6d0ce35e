//! Racks made of network namespaces: one namespace for each host, one bridge for each rack, uplinks shaped both ways.
//!
//! A core switch connects the seeder, the tracker, the hub and the uplinks of all racks.
//! Invariant: the name of each namespace begins with our prefix and the id of the process that made it. The lab never
//! touches a namespace with another name, nor one of a process that still runs.

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use shoal_sim::layout::{Layout, UNLIMITED};
use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

const PREFIX: &str = "shoal-lab-";

/// A machine of the lab. Racks and hosts count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Seeder,
    Tracker,
    Hub,
    Host { rack: usize, host: usize },
}

impl Place {
    /// The address of the machine.
    pub(crate) fn addr(self) -> String {
        match self {
            Self::Seeder => "10.77.0.1".into(),
            Self::Tracker => "10.77.0.2".into(),
            Self::Hub => "10.77.0.3".into(),
            Self::Host { rack, host } => format!("10.77.{}.{}", rack + 1, host + 1),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seeder => f.write_str("seeder"),
            Self::Tracker => f.write_str("tracker"),
            Self::Hub => f.write_str("hub"),
            Self::Host { rack, host } => write!(f, "r{}h{}", rack + 1, host + 1),
        }
    }
}

/// Bytes that crossed a link, seen from the machine or rack at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crossed {
    pub(crate) into: u64,
    pub(crate) out: u64,
}

impl Crossed {
    pub(crate) fn since(self, before: Self) -> Self {
        Self { into: self.into - before.into, out: self.out - before.out }
    }

    pub(crate) fn both(self) -> u64 {
        self.into + self.out
    }
}

/// Bytes on every link that is counted.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
    pub(crate) racks: Vec<Crossed>,
    pub(crate) seeder: Crossed,
    pub(crate) tracker: Crossed,
    pub(crate) hub: Crossed,
}

/// The reason why this machine cannot run the lab, if there is one.
pub(crate) fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    for (program, arg) in [("ip", "-V"), ("tc", "-V")] {
        if run(Command::new(program).arg(arg)).is_err() {
            return Some(format!("`{program}` is missing: apt-get install iproute2"));
        }
    }
    let probe = format!("{PREFIX}{}-probe", std::process::id());
    let made = run(Command::new("ip").args(["netns", "add", &probe]));
    let _ = run(Command::new("ip").args(["netns", "del", &probe])); // It is missing when `made` is an error.
    made.err().map(|error| format!("cannot make a network namespace: {error:#}"))
}

/// Runs a command to its end; returns what it printed.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `ip`, `tc` or `bridge` with the words of a text as arguments.
fn words(program: &str, text: &str) -> anyhow::Result<String> {
    run(Command::new(program).args(text.split_whitespace()))
}

/// Sets a network parameter of a namespace if the kernel has this parameter.
fn set(namespace: &str, parameter: &str, value: u32) -> anyhow::Result<()> {
    let file = format!("/proc/sys/net/{parameter}");
    let script = format!("test ! -e {file} || echo {value} > {file}");
    run(Command::new("ip").args(["netns", "exec", namespace, "sh", "-c", &script])).map(drop)
}

/// Removes the namespaces of runs that were killed.
pub(crate) fn sweep() {
    for name in names(PREFIX) {
        let owner = name[PREFIX.len()..].split('-').next().and_then(|id| id.parse::<u32>().ok());
        if owner.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            remove(&name);
        }
    }
}

fn names(prefix: &str) -> Vec<String> {
    let list = words("ip", "netns list").unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with(prefix)).map(str::to_string).collect()
}

/// Kills all processes in a namespace and removes it.
fn remove(name: &str) {
    for id in words("ip", &format!("netns pids {name}")).unwrap_or_default().split_whitespace() {
        if let Some(id) = id.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL); // It may have ended.
        }
    }
    let _ = words("ip", &format!("netns del {name}")); // The next run's sweep tries again.
}

/// The namespaces of one region. They are removed when this is dropped.
pub(crate) struct Racks {
    prefix: String,
    layout: Layout,
}

impl Racks {
    /// Makes the namespaces of a layout.
    pub(crate) fn build(layout: &Layout) -> anyhow::Result<Self> {
        if layout.racks.len() > 200 || layout.racks.iter().any(|rack| rack.hosts > 200) {
            bail!("the layout is too large for the lab: use at most 200 racks of 200 hosts");
        }
        let racks = Self { prefix: format!("{PREFIX}{}", std::process::id()), layout: layout.clone() };
        racks.switch("core")?;
        for place in [Place::Seeder, Place::Tracker, Place::Hub] {
            racks.join("core", place)?;
        }
        racks.limit("seeder", "eth0", layout.seeder)?;
        racks.limit("core", "p-seeder", layout.seeder)?;
        for (number, rack) in layout.racks.iter().enumerate() {
            let (name, port) = (format!("rack{number}"), format!("dn{number}"));
            let (core, own) = (racks.name("core"), racks.name(&name));
            racks.switch(&name)?;
            words("ip", &format!("link add up0 netns {own} type veth peer name {port} netns {core}"))?;
            words("ip", &format!("-n {own} link set up0 master br0 up"))?;
            words("ip", &format!("-n {core} link set {port} master br0 up"))?;
            racks.set_uplink(number, rack.uplink)?;
            for host in 0..rack.hosts as usize {
                racks.join(&name, Place::Host { rack: number, host })?;
            }
        }
        Ok(racks)
    }

    /// Every host, rack by rack.
    pub(crate) fn hosts(&self) -> Vec<Place> {
        let racks = self.layout.racks.iter().enumerate();
        racks.flat_map(|(rack, row)| (0..row.hosts as usize).map(move |host| Place::Host { rack, host })).collect()
    }

    /// The layout of the region.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A command that runs a program on a machine of the lab.
    pub(crate) fn command(&self, place: Place, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(&place.to_string())]).arg(program);
        command
    }

    /// Returns a function that moves its calling thread into the namespace of a machine, for the rest of the thread's
    /// life.
    pub(crate) fn entrance(&self, place: Place) -> anyhow::Result<impl FnOnce() + Send + use<>> {
        let path = Path::new("/run/netns").join(self.name(&place.to_string()));
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        Ok(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a namespace that it made");
        })
    }

    /// Changes the rate of a host's link, bytes/s each way.
    pub(crate) fn set_nic(&self, place: Place, rate: u64) -> anyhow::Result<()> {
        let Place::Host { rack, host } = place else { bail!("{place} is not a host") };
        self.limit(&place.to_string(), "eth0", rate)?;
        self.limit(&format!("rack{rack}"), &format!("p{host}"), rate)
    }

    /// Changes the rate of a rack's uplink, bytes/s each way; 0 cuts it.
    pub(crate) fn set_uplink(&self, rack: usize, rate: u64) -> anyhow::Result<()> {
        // The ports stop forwarding. If they went down, the switch would forget the addresses behind them and flood
        // frames.
        let state = if rate == 0 { 0 } else { 3 };
        words("bridge", &format!("-n {} link set dev up0 state {state}", self.name(&format!("rack{rack}"))))?;
        words("bridge", &format!("-n {} link set dev dn{rack} state {state}", self.name("core")))?;
        if rate > 0 {
            self.limit(&format!("rack{rack}"), "up0", rate)?;
            self.limit("core", &format!("dn{rack}"), rate)?;
        }
        Ok(())
    }

    /// Bytes on the counted links so far.
    pub(crate) fn counters(&self) -> anyhow::Result<Counters> {
        let racks = 0..self.layout.racks.len();
        Ok(Counters {
            racks: racks.map(|rack| self.crossed(&format!("rack{rack}"), "up0")).collect::<Result<_, _>>()?,
            seeder: self.crossed("seeder", "eth0")?,
            tracker: self.crossed("tracker", "eth0")?,
            hub: self.crossed("hub", "eth0")?,
        })
    }

    /// Bytes on one device of a machine so far.
    pub(crate) fn crossed(&self, name: &str, dev: &str) -> anyhow::Result<Crossed> {
        let text = words("ip", &format!("-n {} -s -j link show dev {dev}", self.name(name)))?;
        let shown: Value = serde_json::from_str(&text).with_context(|| format!("counters of {name}"))?;
        let bytes = |way: &str| shown[0]["stats64"][way]["bytes"].as_u64();
        let (into, out) = bytes("rx").zip(bytes("tx")).with_context(|| format!("`ip` shows no counters of {name}"))?;
        Ok(Crossed { into, out })
    }

    fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    fn switch(&self, short: &str) -> anyhow::Result<()> {
        let name = self.name(short);
        words("ip", &format!("netns add {name}"))?;
        words("ip", &format!("-n {name} link add br0 type bridge"))?;
        words("ip", &format!("-n {name} link set br0 up"))?;
        // A real switch does not filter packets. If bridges are filtered here, the sender pays CPU time for it.
        set(&name, "bridge/bridge-nf-call-iptables", 0)
    }

    /// Makes a machine and connects it to a switch.
    fn join(&self, switch: &str, place: Place) -> anyhow::Result<()> {
        let (name, at) = (self.name(&place.to_string()), self.name(switch));
        let port = match place {
            Place::Host { host, .. } => format!("p{host}"),
            other => format!("p-{other}"),
        };
        words("ip", &format!("netns add {name}"))?;
        words("ip", &format!("link add eth0 netns {name} type veth peer name {port} netns {at}"))?;
        words("ip", &format!("-n {name} addr add {}/16 dev eth0", place.addr()))?;
        words("ip", &format!("-n {name} link set eth0 up"))?;
        words("ip", &format!("-n {name} link set lo up"))?;
        // On a real wire a packet that waits for an uplink has left its sender. Here the packet stays charged to the
        // sender's socket until it has passed, and TCP stops while two segments wait. TCP makes its segments shorter if
        // the least round trip was long. So a connection that was made while the uplink was full got a tenth of its
        // share for good. This parameter switches that rule off.
        set(&name, "ipv4/tcp_tso_rtt_log", 31)?;
        words("ip", &format!("-n {at} link set {port} master br0 up")).map(drop)
    }

    /// Shapes the packets that leave a device: bursts of 10 ms of the rate, at least 64 KiB, and a queue of 40 ms.
    fn limit(&self, short: &str, dev: &str, rate: u64) -> anyhow::Result<()> {
        if rate == UNLIMITED {
            return Ok(());
        }
        let name = self.name(short);
        let burst = (rate / 100).max(65_536);
        let shape = format!("root tbf rate {}bit burst {burst} latency 40ms", rate.saturating_mul(8));
        words("tc", &format!("-n {name} qdisc replace dev {dev} {shape}")).map(drop)
    }
}

impl Drop for Racks {
    fn drop(&mut self) {
        names(&format!("{}-", self.prefix)).iter().for_each(|name| remove(name));
    }
}
