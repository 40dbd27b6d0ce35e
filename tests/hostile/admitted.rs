//! Admitted hosts at the tracker: copies of a key, ended credentials, and floods of joins, reports and names.

use super::SHOAL;
use super::attacker::{Identified, bounded, control_addr, issue, issue_for, join_at, plane, stolen};
use serde_json::Value;
use shoal_net::control::{ControlEvent, ControlHandle};
use shoal_proto::control::{CurrentVersion, Request, Response};
use shoal_proto::ids::{Epoch, JobId, NodeId};
use shoal_proto::report::{HostReport, HostState, Reason, TierBytes};
use shoal_testkit::http::get;
use shoal_testkit::{PATIENCE, Region, until};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// An attacker's connection to the tracker.
struct Connection {
    control: ControlHandle,
    events: mpsc::Receiver<ControlEvent>,
    tracker: NodeId,
}

async fn connect(region: &Region, identified: &Identified) -> Connection {
    let (control, events) = plane(&identified.keys).await;
    let tracker = control.connect(control_addr(region), None).await.unwrap();
    Connection { control, events, tracker }
}

impl Connection {
    async fn ask(&self, request: Request) -> Response {
        self.control.request(self.tracker, request).await.unwrap()
    }

    async fn join(&self, identified: &Identified, port: u16) -> Response {
        self.ask(join_at(identified.credential.clone(), port)).await
    }

    async fn beat(&self, reports: Vec<HostReport>, versions: Vec<CurrentVersion>) -> Response {
        self.ask(Request::Beat { known: Epoch(u64::MAX), reports, versions, trust: 0 }).await
    }
}

fn report(job: JobId, tiers: TierBytes) -> HostReport {
    let (detail, pieces) = ("x".repeat(256), 1 << 20);
    let state = HostState::Active;
    HostReport { job, attempt: 1, state, detail, pieces_have: pieces, pieces_total: pieces, tiers, sent: u64::MAX }
}

/// The tracker's row of a host, by locality.
fn row(region: &Region, locality: &str) -> Option<Value> {
    let (_, body) = get(region.tracker.http(), "/v1/hosts", None)?;
    let rows: Vec<Value> = serde_json::from_str(&body).ok()?;
    rows.into_iter().find(|row| row["host"] == locality)
}

const HOST: &str = "t/site/rack0/host0";

#[test]
fn a_copy_of_a_key_is_refused_while_its_host_answers() {
    let mut region = Region::start(SHOAL, 1, 1);
    let before = row(&region, HOST).unwrap();
    let copy = stolen(region.peers[0].dir());
    let runtime = Runtime::new().unwrap();
    let attempts = 5;
    for _ in 0..attempts {
        let answer = runtime.block_on(async { connect(&region, &copy).await.join(&copy, 1).await });
        let Response::Refused { why } = answer else { panic!("{answer:?}") };
        assert!(why.contains("another connection with this key answers"), "{why}");
    }
    // The other machine has a key of its own and the same place.
    let second = issue_for(&region, "t/site/rack0/host0", 3600);
    let answer = runtime.block_on(async { connect(&region, &second).await.join(&second, 1).await });
    assert!(matches!(&answer, Response::Refused { why } if why.contains("at this locality")), "{answer:?}");

    let after = row(&region, HOST).unwrap();
    assert_eq!((&after["addrs"], &after["presence"]), (&before["addrs"], &before["presence"]));
    assert_eq!((&before["duplicate"], &after["duplicate"]), (&Value::Bool(false), &Value::Bool(true)));
    assert_eq!(region.tracker.metric("shoal_tracker_duplicate_joins_total"), attempts + 1);
    let lines = region.tracker.log().lines().filter(|line| line.contains("refused a second live host")).count();
    assert_eq!(lines, 1, "one line per minute");
    let hosts = region.cli_json(&["hosts", "--json"]).unwrap();
    let shown = hosts.as_array().unwrap().iter().find(|host| host["host"] == HOST).unwrap();
    assert_eq!(shown["duplicate"], true);
    let text = region.cli(&["hosts"]).stdout;
    assert!(String::from_utf8_lossy(&text).contains("up, duplicate"), "{}", String::from_utf8_lossy(&text));

    // A host that does not answer any longer loses its place.
    region.peers[0].kill();
    until("the copy joins in the place of a host that is gone", || {
        let answer = runtime.block_on(async { connect(&region, &copy).await.join(&copy, 1).await });
        matches!(answer, Response::Joined { .. }).then_some(())
    });
}

#[test]
fn a_session_ends_with_its_credential() {
    let region = Region::start(SHOAL, 1, 1);
    let host = issue_for(&region, "t/site/rack0/brief", 4);
    Runtime::new().unwrap().block_on(async {
        let mut connection = connect(&region, &host).await;
        assert!(matches!(connection.join(&host, 1).await, Response::Joined { .. }));
        let beats = async {
            loop {
                // A beat after the end has no answer.
                let beat =
                    Request::Beat { known: Epoch(u64::MAX), reports: Vec::new(), versions: Vec::new(), trust: 0 };
                let _ = connection.control.request(connection.tracker, beat).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let ended =
            async { while !matches!(connection.events.recv().await, Some(ControlEvent::Disconnected { .. })) {} };
        tokio::select! {
            () = beats => {}
            ended = timeout(PATIENCE, ended) => ended.expect("the tracker ends the session"),
        }
    });
    assert!(region.tracker.log().contains("no longer admitted"));
}

#[test]
fn one_host_fills_neither_jobs_nor_names_nor_memberships() {
    let region = Region::start(SHOAL, 1, 1);
    let file = region.folder.path().join("file");
    std::fs::write(&file, b"honest").unwrap();
    let real = region.push(&file, "edge/real", "1");
    region.wait_active(&real, 1);
    let evil = issue(&region, "evil", "peer", "t/site/rack9/evil");
    let runtime = Runtime::new().unwrap();
    bounded(&region.tracker, || {
        let connection = runtime.block_on(async {
            let connection = connect(&region, &evil).await;
            assert!(matches!(connection.join(&evil, 1).await, Response::Joined { .. }));
            for beat in 0..40u32 {
                let id = |number: u32| {
                    let mut id = [0xee; 16];
                    id[..4].copy_from_slice(&(beat * 256 + number).to_be_bytes());
                    JobId(id)
                };
                let name = |number: u32| format!("fake/{}", beat * 256 + number);
                let reports = (0..256).map(|number| report(id(number), TierBytes::default())).collect();
                let versions =
                    (0..256).map(|number| CurrentVersion { name: name(number), version: "1".into() }).collect();
                connection.beat(reports, versions).await;
            }
            connection
        });
        // Joins with another address each time, several at once.
        let joined = runtime.block_on(async {
            let (mut joins, mut joined) = (JoinSet::new(), 0);
            for port in 1..=300 {
                let (control, tracker) = (connection.control.clone(), connection.tracker);
                let join = join_at(evil.credential.clone(), port);
                joins.spawn(async move { control.request(tracker, join).await });
                if joins.len() >= 8 {
                    let answer = joins.join_next().await.unwrap().unwrap();
                    joined += u32::from(matches!(answer, Ok(Response::Joined { .. })));
                }
            }
            joined
        });
        assert!(joined <= 20, "{joined} of 300 joins changed the membership");
        // Meanwhile the tracker serves others.
        let later = region.push(&file, "edge/later", "1");
        region.wait_active(&later, 1);
        until("the version of a name that was announced after the flood", || {
            let rows = region.cli_json(&["versions", "edge/later", "--json"])?;
            rows.as_array()?.iter().any(|row| row["host"] == HOST && row["actual"] == "1").then_some(())
        });
    });
    let (_, body) = get(region.tracker.http(), "/v1/jobs", None).unwrap();
    let jobs: Vec<Value> = serde_json::from_str(&body).unwrap();
    assert!(jobs.iter().any(|job| job["job"] == real.as_str()) && jobs.len() == 2, "{} jobs", jobs.len());
}

/// A region with an honest host and a joined one that lies about the job that the seeder pushes.
struct Liar {
    region: Region,
    runtime: Runtime,
    connection: Connection,
    job: String,
}

impl Liar {
    fn beside_an_honest_job(host: &str) -> Self {
        let region = Region::start(SHOAL, 1, 1);
        let file = region.folder.path().join("file");
        std::fs::write(&file, b"honest").unwrap();
        let evil = issue(&region, "evil", "peer", host);
        let runtime = Runtime::new().unwrap();
        let connection = runtime.block_on(connect(&region, &evil));
        assert!(matches!(runtime.block_on(connection.join(&evil, 1)), Response::Joined { .. }));
        let job = region.push(&file, "edge/real", "1");
        Self { region, runtime, connection, job }
    }
}

#[test]
fn a_host_that_lies_about_its_counts_spoils_no_total() {
    let Liar { region, runtime, connection, job } = Liar::beside_an_honest_job("t/site/rack0/evil");
    let lie = TierBytes { local: u64::MAX, rack: u64::MAX, site: u64::MAX, region: u64::MAX, seeder: u64::MAX };
    until("the lie reaches the seeder and the hub", || {
        runtime.block_on(connection.beat(vec![report(job.parse().unwrap(), lie)], Vec::new()));
        (Region::total(&region.status(&job), "active") >= 2 && region.hub_active(&job)? == 2).then_some(())
    });
    let most = 2 * TierBytes::most_of(6);
    let status = region.status(&job);
    let (_, body) = get(region.hub.http(), &format!("/v1/jobs/{job}"), None).unwrap();
    let hub: Value = serde_json::from_str(&body).unwrap();
    for tiers in [&status["tiers"], &hub[0]["tiers"]] {
        let tier = |name: &str| tiers[name].as_u64().unwrap_or_else(|| panic!("{status:#} {hub:#}"));
        assert!(["local", "rack", "site", "region", "seeder"].iter().all(|name| tier(name) <= most), "{tiers}");
    }
    assert_eq!(status["pieces"], 1);
}

#[test]
fn a_host_reports_failure_for_no_other_host() {
    let Liar { region, runtime, connection, job } = Liar::beside_an_honest_job("t/site/rack9/evil");
    region.wait_active(&job, 1);
    let lie = HostReport {
        state: HostState::Failed(Reason::Disk),
        detail: format!("{HOST} has failed"),
        ..report(job.parse().unwrap(), TierBytes::default())
    };
    until("the lie reaches the seeder", || {
        runtime.block_on(connection.beat(vec![lie.clone()], Vec::new()));
        (Region::total(&region.status(&job), "failed") == 1).then_some(())
    });
    let status = region.status(&job);
    assert_eq!(Region::total(&status, "active"), 1, "{status:#}");
    let lines = status["lines"].as_array().unwrap();
    let failed: Vec<&Value> = lines.iter().filter(|line| line["state"] != "active").collect();
    assert!(failed.iter().all(|line| line["host"] == "t/site/rack9/evil"), "{status:#}");
}
