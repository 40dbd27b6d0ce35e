//! Hosts that join with tokens, and those that try more than a token allows.

use super::SHOAL;
use shoal_api::trust::CredentialInForce;
use shoal_net::admission::system_clock;
use shoal_net::control::{ControlConfig, ControlEvent, ControlPlane};
use shoal_net::enrolment::{EnrolError, Enrolment, enrol};
use shoal_net::identity::{Identity, load_key};
use shoal_proto::codec::Document;
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Credential, Envelope, Keypair, TokenSecret};
use shoal_service::http_client::{Client, ClientError};
use shoal_testkit::process::Launcher;
use shoal_testkit::settings::{issue_with, node};
use shoal_testkit::{Process, Region, Setup, until};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

/// Hosts of one token file.
const HOSTS: usize = 1000;
/// Hosts that join at the same time.
const AT_ONCE: usize = 8;

/// A region whose tracker issues credentials.
fn region() -> Region {
    Setup::new(SHOAL, 1, 1).with_issuer().start()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Creates a token for peers and returns its file.
fn token_file(region: &Region, name: &str, options: &[&str]) -> PathBuf {
    let (dir, out) = (region.folder.path().join("cluster"), region.folder.path().join(name));
    let args = ["cluster", "token", "create", "--dir", text(&dir), "--role", "peer", "--out", text(&out)];
    SHOAL.ok(&[&args, options].concat());
    out
}

fn token(file: &Path) -> TokenSecret {
    fs::read_to_string(file).unwrap().parse().unwrap()
}

fn control(region: &Region) -> SocketAddr {
    region.tracker.addrs["control"][0].as_str().unwrap().parse().unwrap()
}

/// Joins as `shoal join` does, from this process.
async fn join(at: SocketAddr, keys: &Keypair, token: &TokenSecret) -> Result<Enrolment, EnrolError> {
    let config = ControlConfig::new(Identity::new(keys), Vec::new());
    let (control, mut events) = ControlPlane::start(config).await.unwrap();
    let drain = tokio::spawn(async move { while events.recv().await.is_some() {} });
    let joined = enrol(&control, at, keys.node(), token, None, system_clock).await;
    control.shutdown(Duration::from_secs(1)).await;
    drain.abort();
    joined
}

fn keys(number: usize) -> Keypair {
    Keypair::from_seed(*blake3::hash(&number.to_be_bytes()).as_bytes())
}

/// Runs `shoal join` on a host whose files are in a folder of the region. Returns its output if it succeeds, else its
/// complaint.
fn join_here(region: &Region, host: &str, options: &[&str]) -> Result<String, String> {
    let (dir, tracker) = (region.folder.path().join(host), control(region).to_string());
    let args = ["join", "--dir", text(&dir), "--tracker", &tracker];
    let output = SHOAL.run(&[&args, options].concat());
    let (out, complaint) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    if output.status.success() { Ok(out) } else { Err(complaint) }
}

/// Whether a file below a folder contains these bytes.
fn holds(folder: &Path, bytes: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().any(|item| {
        let item = item.unwrap();
        match item.file_type().unwrap() {
            kind if kind.is_dir() => holds(&item.path(), bytes),
            kind if kind.is_file() => fs::read(item.path()).unwrap().windows(bytes.len()).any(|part| part == bytes),
            _ => false,
        }
    })
}

#[test]
fn a_thousand_hosts_join_by_one_token_file_and_no_key_leaves_a_host() {
    let mut region = region();
    let uses = HOSTS.to_string();
    let file = token_file(&region, "rack.token", &["--locality", "t/site/rack7/", "--uses", &uses]);
    let (token, at) = (Arc::new(token(&file)), control(&region));
    let runtime = Runtime::new().unwrap();
    let places: BTreeSet<String> = runtime.block_on(async {
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut joining = tokio::task::JoinSet::new();
        for number in 0..HOSTS {
            let (slots, token) = (slots.clone(), token.clone());
            joining.spawn(async move {
                let _slot = slots.acquire().await.unwrap();
                let joined = join(at, &keys(number), &token).await;
                joined.unwrap_or_else(|error| panic!("host {number}: {error:?}")).credential.locality.to_string()
            });
        }
        joining.join_all().await.into_iter().collect()
    });
    assert_eq!(places.len(), HOSTS, "each host has a place of its own");
    assert!(places.iter().all(|place| place.starts_with("t/site/rack7/")));
    let refusal = |number| match runtime.block_on(join(control(&region), &keys(number), &token)) {
        Err(EnrolError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(refusal(HOSTS).contains("the token has been used by 1000 hosts"), "{}", refusal(HOSTS));
    // A host that lost its answer asks again and counts once. So it is after a kill of the tracker.
    for number in [0, 500, 999] {
        let again = runtime.block_on(join(at, &keys(number), &token)).unwrap();
        assert!(places.contains(&again.credential.locality.to_string()));
    }
    region.tracker.kill();
    let tracker = region.tracker.dir();
    for number in [0, 1, 500, 999] {
        let seed = keys(number).seed();
        for bytes in [&seed[..], NodeId(seed).to_string().as_bytes()] {
            assert!(!holds(tracker, bytes), "the tracker has the key of host {number}");
        }
    }
    let text = token.to_string();
    let secret = &text["shoal-join-1-".len()..][..64];
    assert!(!holds(tracker, secret.as_bytes()), "the tracker has the secret of the token");
    region.tracker.start();
    let why = match runtime.block_on(join(control(&region), &keys(HOSTS), &token)) {
        Err(EnrolError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(why.contains("used by 1000 hosts"), "{why}");
}

#[test]
fn a_host_joins_with_a_token_and_becomes_a_member() {
    let region = region();
    let at = region.folder.path();
    let rack = ["--locality", "t/site/rack0/", "--uses", "2", "--label", "service=cache", "--address", "127.0.0.0/8"];
    let file = token_file(&region, "rack.token", &rack);
    let joined = join_here(&region, "new", &["--token-file", text(&file), "--name", "new"]).unwrap();
    assert!(joined.starts_with("peer t/site/rack0/new: node "), "{joined}");
    let control = control(&region).to_string();
    let mut settings = node(at, region.addr, "new", &control);
    settings.push("mirror.listen=''".into());
    settings.push(format!("content_dir='{}'", at.join("new/content").display()));
    let mut peer = Process::new(at, "new", "peer", settings, &Launcher::new(SHOAL, &[]));
    peer.start();
    region.wait_up(2);
    let hosts = region.cli_json(&["hosts", "--json"]).unwrap();
    let row = hosts.as_array().unwrap().iter().find(|row| row["host"] == "t/site/rack0/new").unwrap();
    assert_eq!(row["labels"], serde_json::json!({ "service": "cache" }));

    // A host that has joined does not join again. Without its credential it gets the same one, without a new use.
    let again = |host: &str| join_here(&region, host, &["--token-file", text(&file)]);
    assert!(again("new").unwrap_err().contains("this host has joined"));
    fs::remove_file(at.join("new/node.cred")).unwrap();
    assert!(again("new").unwrap().starts_with("peer t/site/rack0/new: node "));
    let other = again("other").unwrap();
    assert!(other.starts_with("peer t/site/rack0/host-"), "{other}");
    assert!(again("third").unwrap_err().contains("used by 2 hosts, which is its limit"));
}

#[test]
fn tokens_that_end_are_forged_or_name_taken_places_say_so() {
    let region = region();
    let at = region.folder.path();
    let short = token_file(&region, "short.token", &["--locality", "t/site/rack0/", "--uses", "1000", "--ttl", "1s"]);
    let expired = until("the token ends", || {
        let number = fs::read_dir(at).unwrap().count();
        join_here(&region, &format!("late{number}"), &["--token-file", text(&short)]).err()
    });
    assert!(expired.contains("the token ended"), "{expired}");
    assert!(expired.contains("shoal cluster token create"), "{expired}");

    let good = token_file(&region, "good.token", &["--locality", "t/site/rack0/", "--uses", "9"]);
    let taken = join_here(&region, "thief", &["--token-file", text(&good), "--name", "host0"]).unwrap_err();
    assert!(taken.contains("t/site/rack0/host0 is taken by another key"), "{taken}");
    join_here(&region, "first", &["--token-file", text(&good), "--name", "h1"]).unwrap();
    let taken = join_here(&region, "second", &["--token-file", text(&good), "--name", "h1"]).unwrap_err();
    assert!(taken.contains("t/site/rack0/h1 is taken by another key"), "{taken}");

    // A token that a stranger signed for this cluster, and one of another cluster.
    let stranger = Keypair::from_seed([66; 32]);
    let forged = TokenSecret::seal(&token(&good).document().unwrap(), Keypair::from_seed([67; 32]), &stranger);
    let refused = join_here(&region, "forger", &["--token", &forged.to_string()]).unwrap_err();
    assert!(refused.contains("not trusted"), "{refused}");
    let other = at.join("other");
    SHOAL.ok(&["cluster", "init", "--dir", text(&other)]);
    let theirs = at.join("theirs.token");
    let create = ["cluster", "token", "create", "--dir", text(&other), "--role", "peer", "--out", text(&theirs)];
    SHOAL.ok(&[&create[..], &["--locality", "t/site/rack0/"]].concat());
    let refused = join_here(&region, "foreign", &["--token-file", text(&theirs)]).unwrap_err();
    assert!(refused.contains("not trusted"), "{refused}");
    // An issuer cannot make tokens beyond its mandate.
    let cluster = at.join("cluster");
    let create = ["cluster", "token", "create", "--dir", text(&cluster), "--role", "peer", "--valid", "60d"];
    let long = SHOAL.run(&[&create[..], &["--locality", "t/site/rack0/"]].concat());
    let complaint = String::from_utf8(long.stderr).unwrap();
    assert!(complaint.contains("its mandate excludes the length of validity"), "{complaint}");
    for host in ["thief", "second", "forger", "foreign"] {
        assert!(!at.join(host).join("node.cred").exists());
    }
}

#[test]
fn a_list_of_hosts_admits_these_hosts_only() {
    let region = region();
    let hosts = region.folder.path().join("hosts.csv");
    fs::write(&hosts, "name,locality,labels,addresses\nh1,t/site/rack1,tier=1,127.0.0.0/8\nh2,t/site/rack2,,\n")
        .unwrap();
    let file = token_file(&region, "hosts.tokens", &["--from", text(&hosts)]);
    let join_as = |host: &str, name: &str| join_here(&region, host, &["--token-file", text(&file), "--name", name]);
    assert!(join_as("a", "h1").unwrap().starts_with("peer t/site/rack1/h1"));
    assert!(join_as("b", "t/site/rack2/h2").unwrap().starts_with("peer t/site/rack2/h2"));
    assert!(join_as("c", "h3").unwrap_err().contains("no token for h3"));
    assert!(join_as("d", "h1").unwrap_err().contains("used by 1 hosts"));
    // The token of a line is for that host alone, whatever name its bearer asks for.
    let line = fs::read_to_string(&file).unwrap().lines().next().unwrap().split_once(' ').unwrap().1.to_string();
    assert!(join_here(&region, "e", &["--token", &line, "--name", "h9"]).unwrap_err().contains("not for a host named"));
    // What the root issued is taken as well.
    issue_with(SHOAL, region.folder.path(), "rooted", "peer", "t/site/rack3/h1", &[]);
    fs::write(&hosts, "h1,t/site/rack3\n").unwrap();
    let dir = region.folder.path().join("cluster");
    let args = ["cluster", "token", "create", "--dir", text(&dir), "--role", "peer", "--from", text(&hosts)];
    let complaint = String::from_utf8(SHOAL.run(&args).stderr).unwrap();
    assert!(complaint.contains("t/site/rack3/h1 is taken"), "{complaint}");
}

#[test]
fn a_place_is_issued_once_unless_it_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let cluster = at.join("cluster");
    SHOAL.ok(&["cluster", "init", "--dir", text(&cluster)]);
    issue_with(SHOAL, at, "first", "peer", "t/site/rack0/host0", &[]);
    let second = at.join("second");
    let mut args = vec!["cluster", "issue", "--dir", text(&cluster), "--role", "peer", "--out", text(&second)];
    args.extend(["--locality", "t/site/rack0/host0"]);
    let complaint = String::from_utf8(SHOAL.run(&args).stderr).unwrap();
    assert!(complaint.contains("t/site/rack0/host0 is taken by node"), "{complaint}");
    assert!(complaint.contains("--replace") && !second.join("node.key").exists(), "{complaint}");
    args.push("--replace");
    SHOAL.ok(&args);
}

/// Answers every request to join with documents of its choice.
fn impostor(runtime: &Runtime, keys: &Keypair, credential: Vec<u8>, trust: Vec<u8>) -> (SocketAddr, Arc<Seen>) {
    let config = ControlConfig::new(Identity::new(keys), vec!["127.0.0.1:0".parse().unwrap()]);
    let (control, mut events) = runtime.block_on(ControlPlane::start(config)).unwrap();
    let (at, seen) = (control.local_addrs()[0], Arc::<Seen>::default());
    let notes = seen.clone();
    runtime.spawn(async move {
        let _control = control;
        while let Some(event) = events.recv().await {
            let ControlEvent::Request { request: Request::Enrol { token, claim }, reply, .. } = event else { continue };
            notes.lock().unwrap().extend([token, claim]);
            let (credential, tracker) = (credential.clone(), credential.clone());
            reply.send(Response::Enrolled { credential, trust: trust.clone(), tracker });
        }
    });
    (at, seen)
}

/// The bytes that an impostor saw.
type Seen = std::sync::Mutex<Vec<Vec<u8>>>;

#[test]
fn a_host_believes_no_tracker_but_one_of_the_cluster_and_tells_it_no_secret() {
    let region = region();
    let at = region.folder.path();
    let file = token_file(&region, "rack.token", &["--locality", "t/site/rack0/", "--uses", "9"]);
    let (token, runtime) = (token(&file), Runtime::new().unwrap());
    // A tracker of another cluster, and a peer of this one.
    let other = at.join("other");
    fs::create_dir(&other).unwrap();
    SHOAL.ok(&["cluster", "init", "--dir", text(&other.join("cluster"))]);
    issue_with(SHOAL, &other, "tracker", "tracker", "t/core/core/tracker", &[]);
    let posing = [(other.join("tracker"), "not from the expected cluster"), (at.join("rack0-host0"), "no tracker")];
    for (files, why) in posing {
        let read = |name: &str| fs::read(files.join(name)).unwrap();
        let keys = load_key(&files.join("node.key")).unwrap();
        let (addr, seen) = impostor(&runtime, &keys, read("node.cred"), read("trust"));
        let dir = at.join(format!("victim-{}", addr.port()));
        let args = ["join", "--dir", text(&dir), "--tracker", &addr.to_string(), "--token-file", text(&file)];
        let output = SHOAL.run(&args);
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && complaint.contains(why), "{complaint}");
        assert!(dir.join("node.key").exists() && !dir.join("node.cred").exists() && !dir.join("trust").exists());
        // What the impostor saw is of no use to another key.
        let seen = seen.lock().unwrap().clone();
        let [shown, claim] = &seen[..] else { panic!("one request") };
        let thief = Keypair::from_seed([99; 32]);
        let control_plane = ControlConfig::new(Identity::new(&thief), Vec::new());
        let answer = runtime.block_on(async {
            let (handle, _events) = ControlPlane::start(control_plane).await.unwrap();
            let tracker = handle.connect(control(&region), None).await.unwrap();
            handle.request(tracker, Request::Enrol { token: shown.clone(), claim: claim.clone() }).await.unwrap()
        });
        match answer {
            Response::Refused { why } => assert!(why.contains("not signed with the token's secret"), "{why}"),
            other => panic!("a thief joined: {other:?}"),
        }
        let secret = &token.to_string()["shoal-join-1-".len()..][..64];
        let secret: NodeId = secret.parse().unwrap();
        for bytes in [shown, claim] {
            assert!(!bytes.windows(32).any(|part| part == secret.as_bytes()), "the impostor has the secret");
        }
    }
}

#[test]
fn credentials_renew_by_themselves() {
    let region = region();
    let at = region.folder.path();
    let rack = ["--locality", "t/site/rack0/new", "--valid", "15s", "--address", "127.0.0.0/8"];
    let file = token_file(&region, "new.token", &rack);
    join_here(&region, "new", &["--token-file", text(&file)]).unwrap();
    let first = fs::read(at.join("new/node.cred")).unwrap();
    let mut settings = node(at, region.addr, "new", &control(&region).to_string());
    settings.push("mirror.listen=''".into());
    settings.push(format!("content_dir='{}'", at.join("new/content").display()));
    let mut peer = Process::new(at, "new", "peer", settings, &Launcher::new(SHOAL, &[]));
    peer.start();
    let metric = "shoal_credential_expiry_timestamp_seconds";
    let end = peer.metric(metric);
    // Every role with a credential shows its end.
    for process in [&region.tracker, &region.seeder, &region.peers[0]] {
        assert!(process.metric(metric) > system_clock() + 29 * 86_400, "{}", process.name);
    }
    until("the first credential has ended", || (system_clock() > end + 1).then_some(()));
    assert!(peer.metric(metric) > end, "{}", peer.log());
    region.wait_up(2);
    assert_eq!(fs::read(at.join("new/node.cred")).unwrap(), first, "the operator's file stays");
    peer.restart();
    assert!(peer.metric(metric) > end, "a restart continues with the renewed credential");
    region.wait_up(2);
    // A host that joins the region now knows the host by its new credential, and pushes reach it.
    let source = at.join("content");
    fs::write(&source, "after the renewal").unwrap();
    let job = region.push(&source, "n", "1");
    region.wait_active(&job, 2);
}

#[test]
fn a_tracker_renews_the_hubs_credential_and_the_hub_takes_no_other() {
    let mut region = region();
    let at = region.folder.path().join("hub");
    let root = load_key(&region.folder.path().join("cluster/root.key")).unwrap();
    let issued: Envelope = Envelope::from_bytes(&fs::read(at.join("node.cred")).unwrap()).unwrap();
    let now = system_clock();
    // Less than a third of its life is left.
    let ending = Credential { not_before: now - 1000, not_after: now + 400, ..issued.open().unwrap() };
    let ending_bytes = Envelope::seal(&ending, &root).to_bytes();
    region.tracker.kill();
    region.hub.kill();
    fs::write(at.join("node.cred"), &ending_bytes).unwrap();
    region.hub.start();
    let metric = "shoal_credential_expiry_timestamp_seconds";
    assert_eq!(region.hub.metric(metric), ending.not_after);
    let refused = [
        ending_bytes,
        Envelope::seal(&Credential { weight_max: 7, not_after: now + 900, ..ending.clone() }, &root).to_bytes(),
        Envelope::seal(&Credential { not_after: now + 900, ..ending.clone() }, &Keypair::from_seed([5; 32])).to_bytes(),
        fs::read(region.peers[0].dir().join("node.cred")).unwrap(),
        b"nonsense".to_vec(),
    ];
    let client = Client::trusting(&format!("http://{}", region.hub.http()), None, None).unwrap();
    let runtime = Runtime::new().unwrap();
    for bytes in refused {
        match runtime.block_on(client.post_bytes::<CredentialInForce>("/v1/credential", bytes)) {
            Err(ClientError::Refused(error)) => assert_eq!(error.status, 409, "{error}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(region.hub.metric(metric), ending.not_after);
    region.tracker.start();
    until("the hub has its new credential", || (region.hub.metric(metric) > ending.not_after).then_some(()));
    let renewed = region.hub.metric(metric);
    region.hub.restart();
    assert_eq!(region.hub.metric(metric), renewed);
    // Receipts that the renewed credential covers count.
    region.wait_up(1);
    let source = region.folder.path().join("content");
    fs::write(&source, "after the renewal").unwrap();
    let job = region.push(&source, "n", "1");
    region.wait_active(&job, 1);
    until("the hub has the report", || (region.hub_active(&job)? == 1).then_some(()));
}
