//! Rollouts in regions of real processes: batch by batch, rack by rack, with rollback after failures, and through
//! kills.

use serde_json::Value;
use shoal_testkit::Program;
use shoal_testkit::http::get;
use shoal_testkit::{PATIENCE, Process, Region, Setup, own_loopback, until};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

const SHOAL: Program = shoal_testkit::program!();

const NAME: &str = "edge/settings";

/// The hooks of each host around a switch. Each hook writes a line into the file `hooks`. A version with a file `bad`
/// fails the check on hosts that have a file `weak`. On a host with a file `slow` the hook `post_start` waits.
fn hooks() -> Vec<String> {
    // content/edge/settings/current is four levels below the host's own folder.
    let home = r#"home=$(dirname $(dirname $(dirname $(dirname "$SHOAL_CURRENT"))))"#;
    let note = r#"echo "$SHOAL_HOOK $SHOAL_PHASE $SHOAL_VERSION $SHOAL_ATTEMPT" >> "$home/hooks""#;
    let before = format!("{home}; {note}; sleep 0.1");
    let after = format!(r#"{home}; {note}; while test -e "$home/slow"; do sleep 0.05; done"#);
    let check = format!(r#"{home}; if test -e "$home/weak" -a -e "$SHOAL_PATH/bad"; then echo no good; exit 1; fi"#);
    let argv = |script: &str| format!("['sh', '-c', '{script}']");
    let (before, after, check) = (argv(&before), argv(&after), argv(&check));
    vec![format!("activation={{ '{NAME}' = {{ pre_stop = {before}, post_start = {after}, check = {check} }} }}")]
}

/// A version's folder on the seeder's machine.
fn version(region: &Region, version: &str, bad: bool) -> PathBuf {
    let folder = region.folder.path().join(format!("settings-{version}"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("settings"), format!("version {version}").repeat(20_000)).unwrap();
    if bad {
        fs::write(folder.join("bad"), "").unwrap();
    }
    folder
}

/// Starts a rollout; returns its id.
fn start_rollout(region: &Region, version: &str, path: Option<&Path>, more: &[&str]) -> String {
    let what = format!("{NAME}@{version}");
    let mut args = vec!["rollout", what.as_str()];
    args.extend(path.map(|path| path.to_str().unwrap()));
    args.extend(["--to", "all", "--json"]);
    args.extend(more);
    if !more.contains(&"--soak") {
        args.extend(["--soak", "300ms"]);
    }
    let output = region.cli(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let begun: Value = serde_json::from_slice(&output.stdout).unwrap();
    begun["rollout"].as_str().unwrap().to_string()
}

fn look(region: &Region, of: &str) -> Value {
    region.cli_json(&["rollout", "status", of, "--json"]).expect("the rollout is known")
}

/// Waits until a rollout is in a phase. Another final phase fails the test.
fn wait_phase(region: &Region, of: &str, phase: &str) -> Value {
    until(&format!("the rollout is {phase}"), || {
        let view = region.cli_json(&["rollout", "status", of, "--json"])?;
        let found = view["phase"].as_str()?.to_string();
        if found == phase {
            return Some(view);
        }
        let ends = ["done", "rolled-back", "cancelled", "failed", "stopped"];
        assert!(!ends.contains(&found.as_str()) || phase == "done" && found == "done", "{view:#}");
        None
    })
}

/// Activates the first version on every host.
fn first_version(region: &Region) {
    let path = version(region, "1", false);
    let id = start_rollout(region, "1", Some(&path), &["--batch", "100%", "--per-rack", "4"]);
    wait_phase(region, &id, "done");
    assert!(region.peers.iter().all(|peer| current(peer).as_deref() == Some("1")));
}

fn current(peer: &Process) -> Option<String> {
    let link = fs::read_link(peer.dir().join("content").join(NAME).join("current")).ok()?;
    Some(link.to_str()?.to_string())
}

/// The lines that a host's hooks wrote.
fn hook_lines(peer: &Process) -> Vec<String> {
    let text = fs::read_to_string(peer.dir().join("hooks")).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

fn count(peer: &Process, line: &str) -> usize {
    hook_lines(peer).iter().filter(|found| found.starts_with(line)).count()
}

/// The journal of a host: rollout, attempt, event, time.
fn journal(peer: &Process) -> Vec<Value> {
    let text = fs::read_to_string(peer.dir().join("state/activations.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// When each switch of a host in a rollout began and ended, milliseconds.
fn spans(peer: &Process, rollout: &str) -> Vec<(u64, u64)> {
    let lines = journal(peer);
    let of = |event: &str| {
        let rows = lines.iter().filter(|row| row["rollout"] == rollout && row["event"] == event);
        rows.map(|row| (row["attempt"].as_u64().unwrap(), row["at_ms"].as_u64().unwrap())).collect::<BTreeMap<_, _>>()
    };
    let (begun, ended) = (of("begin"), of("end"));
    begun.iter().map(|(attempt, at)| (*at, ended[attempt])).collect()
}

/// Checks that no two hosts of a rack switched at the same time.
fn assert_one_a_rack(region: &Region, rack_size: usize, rollout: &str) {
    for (rack, peers) in (0..).zip(region.peers.chunks_exact(rack_size)) {
        let mut all: Vec<(u64, u64)> = peers.iter().flat_map(|peer| spans(peer, rollout)).collect();
        all.sort_unstable();
        let apart = all.windows(2).all(|pair| pair[0].1 <= pair[1].0);
        assert!(apart, "rack {rack}: {all:?}");
    }
}

#[test]
fn batches_go_rack_by_rack_and_a_bad_version_is_rolled_back() {
    let region = Setup::new(SHOAL, 4, 4).peers(|_| hooks()).start();
    first_version(&region);
    let path = version(&region, "2", false);
    let id = start_rollout(&region, "2", Some(&path), &["--batch", "1,25%,100%", "--per-rack", "1"]);
    let view = wait_phase(&region, &id, "done");
    assert_eq!((&view["tally"]["active"], &view["batch"]), (&16.into(), &3.into()), "{view:#}");
    assert!(region.peers.iter().all(|peer| current(peer).as_deref() == Some("2")));
    assert!(region.peers.iter().all(|peer| spans(peer, &id).len() == 1));
    assert_one_a_rack(&region, 4, &id);
    until("the hub has the reports", || region.hub_active(&id).filter(|active| *active == 16));
    assert_eq!(Region::total(&region.status(&id), "active"), 16);
    let listed = String::from_utf8(region.cli(&["status"]).stdout).unwrap();
    assert!(listed.contains("rollout") && listed.contains("staged"), "{listed}");

    // Version 3 fails on one host of the second batch.
    let bad = version(&region, "3", true);
    let args = ["push", bad.to_str().unwrap(), "--name", NAME, "--version", "3", "--kind", "config", "--to", "all"];
    let output = region.cli(&[&args[..], &["--stage", "--wait", "--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(region.peers.iter().all(|peer| current(peer).as_deref() == Some("2")), "a staged version was activated");
    let staged = |of: &str| {
        let jobs = region.cli_json(&["status", "--json"]).unwrap();
        let jobs = jobs.as_array().unwrap().iter();
        let mut found = jobs.filter(|job| job["version"] == of && job["rollout"] != true);
        let tiers = found.next().unwrap()["tiers"].clone();
        ["site", "region", "seeder"].map(|tier| tiers[tier].as_u64().unwrap()).iter().sum::<u64>()
    };
    let imported = [staged("2"), staged("3")];
    let dry = region.cli_json(&[
        "rollout",
        &format!("{NAME}@3"),
        "--to",
        "all",
        "--batch",
        "1,25%,100%",
        "--dry-run",
        "--json",
    ]);
    let dry = dry.unwrap();
    assert_eq!(
        dry["batches"].as_array().unwrap().iter().map(|batch| batch["hosts"].as_u64().unwrap()).collect::<Vec<_>>(),
        [1, 3, 12]
    );
    let weak = dry["batches"][1]["named"][1].as_str().unwrap();
    let weak = region.peers.iter().find(|peer| weak.ends_with(&peer.name.replace('-', "/"))).unwrap();
    fs::write(weak.dir().join("weak"), "").unwrap();
    let id = start_rollout(&region, "3", None, &["--batch", "1,25%,100%", "--per-rack", "1"]);
    let view = wait_phase(&region, &id, "rolled-back");
    assert_eq!(view["batch"], 2, "{view:#}");
    assert!(view["why"].as_str().unwrap().contains("failed"), "{view:#}");
    assert!(region.peers.iter().all(|peer| current(peer).as_deref() == Some("2")));
    let tried = region.peers.iter().filter(|peer| !spans(peer, &id).is_empty()).count();
    assert!((2..=4).contains(&tried), "{tried} hosts tried the bad version");
    assert_one_a_rack(&region, 4, &id);
    assert_eq!([staged("2"), staged("3")], imported, "the rollback moved payload");
    let status = region.status(&id);
    let lines: Vec<&str> =
        status["lines"].as_array().unwrap().iter().filter_map(|line| line["detail"].as_str()).collect();
    assert!(lines.iter().any(|line| line.contains("`2`")), "{lines:?}");
    until("the hub has the rollbacks", || {
        let (_, body) = get(region.hub.http(), &format!("/v1/jobs/{id}"), None)?;
        body.contains("rolled-back").then_some(())
    });
    let history = region.cli_json(&["rollout", "history", NAME, "--json"]).unwrap();
    assert_eq!(history.as_array().unwrap().len(), 3);
}

#[test]
fn a_killed_seeder_resumes_and_no_host_switches_twice() {
    let mut region = Setup::new(SHOAL, 2, 4).peers(|_| hooks()).start();
    first_version(&region);
    let path = version(&region, "2", false);
    let id = start_rollout(&region, "2", Some(&path), &["--batch", "1,100%", "--per-rack", "1"]);
    until("the last batch is under way", || {
        let view = look(&region, &id);
        (view["batch"] == 2 && view["tally"]["active"].as_u64()? >= 3).then_some(())
    });
    region.seeder.kill();
    region.seeder.start();
    wait_phase(&region, &id, "done");
    for peer in &region.peers {
        assert_eq!(current(peer).as_deref(), Some("2"), "{}", peer.name);
        for hook in ["pre_stop forward 2", "post_start forward 2"] {
            assert_eq!(count(peer, hook), 1, "{}: {:?}", peer.name, hook_lines(peer));
        }
    }
    assert_one_a_rack(&region, 4, &id);
}

#[test]
fn a_killed_host_finishes_its_switch_and_an_absent_host_catches_up() {
    let mut region = Setup::new(SHOAL, 1, 3).peers(|_| hooks()).start();
    first_version(&region);
    let path = version(&region, "2", false);
    fs::write(region.peers[0].dir().join("slow"), "").unwrap();
    region.peers[2].kill();
    until("the tracker sees that the host is away", || {
        let hosts = region.cli_json(&["hosts", "--json"])?;
        hosts.as_array()?.iter().any(|row| row["presence"] == "away").then_some(())
    });
    let id = start_rollout(&region, "2", Some(&path), &["--batch", "100%", "--per-rack", "2"]);
    until("the slow host is in its hook", || (count(&region.peers[0], "post_start forward 2") == 1).then_some(()));
    region.peers[0].kill();
    assert_eq!(current(&region.peers[0]).as_deref(), Some("2"), "the hook ran before the switch");
    region.peers[0].start();
    until("the hook runs again", || (count(&region.peers[0], "post_start forward 2") == 2).then_some(()));
    assert!(region.peers[0].log().contains("outlived"), "the interrupted hook still runs");
    fs::remove_file(region.peers[0].dir().join("slow")).unwrap();
    wait_phase(&region, &id, "done");
    let lines = hook_lines(&region.peers[0]);
    assert_eq!(count(&region.peers[0], "pre_stop forward 2"), 1, "a finished hook ran again: {lines:?}");
    assert_eq!(count(&region.peers[0], "post_start forward 2"), 2, "the interrupted hook did not run again: {lines:?}");
    region.peers[2].start();
    until("the absent host has caught up", || (current(&region.peers[2]).as_deref() == Some("2")).then_some(()));
    until("the absent host is counted", || (look(&region, &id)["tally"]["active"] == 3).then_some(()));
    assert_eq!(count(&region.peers[2], "post_start forward 2"), 1);
    // The operator orders a rollback, and then a retry.
    for (word, phase, version) in [("rollback", "rolled-back", "1"), ("retry-failed", "done", "2")] {
        assert!(region.cli(&["rollout", word, NAME]).status.success());
        wait_phase(&region, &id, phase);
        assert!(region.peers.iter().all(|peer| current(peer).as_deref() == Some(version)), "{word}");
    }
}

#[test]
fn a_repeated_split_changes_no_host() {
    let region = Setup::new(SHOAL, 2, 3).peers(|_| hooks()).start();
    first_version(&region);
    let path = version(&region, "2", false);
    let split = ["--split", "rack=rack1:2,50%:2,*:1", "--batch", "100%", "--per-rack", "3"];
    let id = start_rollout(&region, "2", Some(&path), &split);
    wait_phase(&region, &id, "done");
    let versions = || {
        let rows = region.cli_json(&["versions", NAME, "--json"]).unwrap();
        let rows = rows.as_array().unwrap().clone();
        let row =
            |row: &Value| (row["host"].as_str().unwrap().to_string(), (row["desired"].clone(), row["actual"].clone()));
        rows.iter().map(row).collect::<BTreeMap<_, _>>()
    };
    let first = until("all hosts have reported their versions", || {
        let found = versions();
        found.values().all(|(desired, actual)| desired == actual && !actual.is_null()).then_some(found)
    });
    assert_eq!(first.len(), 6);
    let in_rack1 = first.iter().filter(|(host, _)| host.contains("/rack1/"));
    assert!(in_rack1.map(|(_, (_, actual))| actual).all(|actual| actual == "2"));
    for peer in &region.peers {
        let (_, actual) = &first[&format!("t/site/{}", peer.name.replace('-', "/"))];
        assert_eq!(current(peer).as_deref(), actual.as_str());
    }
    let before: Vec<usize> = region.peers.iter().map(|peer| hook_lines(peer).len()).collect();
    let id = start_rollout(&region, "2", None, &split);
    let view = wait_phase(&region, &id, "done");
    assert_eq!(view["tally"]["active"], 6);
    assert_eq!(versions(), first);
    let after: Vec<usize> = region.peers.iter().map(|peer| hook_lines(peer).len()).collect();
    assert_eq!(before, after, "a host switched again");
}

/// A service with a health check and a count of errors, both under the control of the test.
struct Service {
    addr: String,
    health: Arc<AtomicU16>,
    errors: Arc<AtomicU32>,
}

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (health, errors) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU32::new(0)));
        let (status, number) = (health.clone(), errors.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let Some(Ok(first)) = lines.next() else { continue };
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let (status, body) = if first.contains("/metrics ") {
                    (200, format!("# TYPE errors gauge\nerrors {}\n", number.load(Ordering::SeqCst)))
                } else {
                    (status.load(Ordering::SeqCst), "as well as can be".to_string())
                };
                let kind = "content-type: text/plain; version=0.0.4";
                let head = format!(
                    "HTTP/1.1 {status} X\r\n{kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes()); // The client may be gone.
            }
        });
        Self { addr, health, errors }
    }
}

/// A Prometheus that scrapes a service ten times a second.
struct Prometheus {
    child: Child,
    addr: String,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Prometheus does not say which port it got. On an address of its own, a drawn port stays free.
        let addr = TcpListener::bind((own_loopback(), 0)).unwrap().local_addr().unwrap().to_string();
        let file = dir.path().join("prometheus.yml");
        let scrape =
            format!("scrape_interval: 100ms, scrape_timeout: 100ms, static_configs: [{{targets: ['{target}']}}]");
        fs::write(&file, format!("scrape_configs: [{{job_name: edge, {scrape}}}]\n")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={addr}"))
            .args(["--log.level=error"])
            .spawn()
            .expect("`prometheus` is needed: apt-get install -y --no-install-recommends prometheus");
        let prometheus = Self { child, addr, _dir: dir };
        until("Prometheus has scraped the service", || {
            let (_, answer) = get(&prometheus.addr, "/api/v1/query?query=errors", None)?;
            answer.contains("\"value\"").then_some(())
        });
        prometheus
    }

    /// Number of queries that it answered.
    fn queries(&self) -> u64 {
        let (_, text) = get(&self.addr, "/metrics", None).unwrap();
        let counts = text.lines().filter(|line| {
            line.starts_with("prometheus_http_requests_total{") && line.contains("handler=\"/api/v1/query\"")
        });
        counts.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64).sum()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended.
        let _ = self.child.wait();
    }
}

#[test]
fn gates_and_operators_steer_a_rollout() {
    let service = Service::start();
    let probe = format!(
        "{{ url = 'http://{}/health', contains = 'well', interval = '50ms', within = '{}s' }}",
        service.addr,
        PATIENCE.as_secs()
    );
    let settings = format!("activation={{ '*' = {{ probe = {probe} }} }}");
    let region = Setup::new(SHOAL, 1, 3).peers(|_| vec![settings.clone()]).start();
    first_version(&region);
    let prometheus = Prometheus::start(&service.addr);
    let queries = prometheus.queries();
    let url = format!("http://{}", prometheus.addr);
    let gated = ["--batch", "1,100%", "--verify", "sum(errors) < 5", "--prometheus", &url];
    let wait = |id: &str, phase: &str| {
        until(&format!("the rollout is {phase}"), || Some(look(&region, id)).filter(|view| view["phase"] == phase))
    };
    let order = |word: &[&str]| {
        let output = region.cli(&[&["rollout"], word, &[NAME]].concat());
        assert!(output.status.success(), "{word:?}: {}", String::from_utf8_lossy(&output.stderr));
    };

    // A pause between batches lasts until the operator ends it.
    let path = version(&region, "2", false);
    let id = start_rollout(&region, "2", Some(&path), &[&gated[..], &["--wait-between", "1h"]].concat());
    wait(&id, "waiting");
    assert!(prometheus.queries() > queries);
    assert_eq!(
        region.peers.iter().filter(|peer| current(peer).as_deref() == Some("2")).count(),
        1,
        "other hosts than the canary switched"
    );
    let busy = region.cli(&[
        "push",
        path.to_str().unwrap(),
        "--name",
        NAME,
        "--version",
        "9",
        "--kind",
        "config",
        "--to",
        "all",
    ]);
    assert!(String::from_utf8_lossy(&busy.stderr).contains("not over"), "a plain push during a rollout was accepted");
    order(&["pause"]);
    order(&["promote"]);
    assert_eq!(look(&region, &id)["tally"]["active"], 1, "a host switched while the rollout was paused");
    order(&["resume"]);
    wait(&id, "done");
    assert!(region.peers.iter().all(|peer| current(peer).as_deref() == Some("2")));

    // The gate's query fails, so the rollout is rolled back.
    let path = version(&region, "3", false);
    let id = start_rollout(&region, "3", Some(&path), &[&gated[..], &["--soak", "1h"]].concat());
    wait(&id, "soaking");
    service.errors.store(9, Ordering::SeqCst);
    let view = wait(&id, "rolled-back");
    assert!(view["why"].as_str().unwrap().contains("sum(errors) < 5"), "{view:#}");
    assert!(region.peers.iter().all(|peer| current(peer).as_deref() == Some("2")));
    service.errors.store(0, Ordering::SeqCst);
    until("Prometheus has scraped the repaired service", || {
        let (_, answer) = get(&prometheus.addr, "/api/v1/query?query=errors", None)?;
        answer.contains("\"0\"").then_some(())
    });

    // A host's probe fails after its switch. The rollout stops, and the operator orders the rollback.
    let path = version(&region, "4", false);
    let id = start_rollout(&region, "4", Some(&path), &["--batch", "1,100%", "--rollback", "manual", "--soak", "1h"]);
    wait(&id, "soaking");
    service.health.store(503, Ordering::SeqCst);
    let view = wait(&id, "stopped");
    assert!(view["why"].as_str().unwrap().contains("1 of 3 hosts failed"), "{view:#}");
    until("the tracker has the reason", || region.status(&id)["lines"].to_string().contains("503").then_some(()));
    service.health.store(200, Ordering::SeqCst);
    order(&["rollback"]);
    wait(&id, "rolled-back");
    assert!(region.peers.iter().all(|peer| current(peer).as_deref() == Some("2")));
    // A plain push is accepted after the rollout has ended.
    let path = version(&region, "5", false);
    let args = ["push", path.to_str().unwrap(), "--name", NAME, "--version", "5", "--kind", "config", "--to", "all"];
    let output = region.cli(&[&args[..], &["--wait"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(region.peers.iter().all(|peer| current(peer).as_deref() == Some("5")));
}
