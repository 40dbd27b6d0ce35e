//! Holders of tokens who try more than their tokens allow.

use serde_json::{Value, json};
use shoal_api::access::Scope;
use shoal_api::openapi::{Role, document};
use shoal_testkit::http::{begin, send};
use shoal_testkit::{Program, Region, Setup, noise, until};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const SHOAL: Program = shoal_testkit::program!();

/// The secret of a token that the admin created.
pub(crate) fn create(region: &Region, name: &str, args: &[&str]) -> String {
    let output = region.cli(&[&["token", "create", name], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

/// The secret of the admin token.
pub(crate) fn admin(region: &Region) -> String {
    fs::read_to_string(region.folder.path().join("cluster/admin.token")).unwrap().trim().to_string()
}

/// Sends a POST and returns its status and the reason in its answer.
pub(crate) fn post(region: &Region, path: &str, token: &str, body: &Value) -> (u16, String) {
    let answer = send(region.seeder.http(), "POST", path, Some(token), Some(body)).expect("the seeder answers");
    (answer.status, answer.body)
}

/// A route of the seeder's document that needs a token.
struct Guarded {
    method: String,
    path: String,
    scope: Scope,
}

fn guarded_routes(document: &Value) -> Vec<Guarded> {
    let mut found = Vec::new();
    let mut open = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method = method.to_ascii_uppercase();
            match operation["security"][0]["token"][0].as_str() {
                Some(scope) => found.push(Guarded { method, path: path.clone(), scope: scope.parse().unwrap() }),
                None => drop(open.insert(format!("{method} {path}"))),
            }
        }
    }
    let expected = ["GET /healthz", "GET /metrics", "GET /v1/limits", "GET /v1/routes"].map(String::from);
    assert_eq!(open, BTreeSet::from(expected), "routes that need no token");
    found
}

#[test]
fn every_route_refuses_strangers_and_small_scopes() {
    let region = Region::start(SHOAL, 1, 1);
    let addr = region.seeder.http();
    let bounds = ["--names", "edge/", "--to", "site=site"];
    let secrets = [
        (Scope::Read, create(&region, "reader", &["--scope", "read"])),
        (Scope::Push, create(&region, "pusher", &[&["--scope", "push"], &bounds[..]].concat())),
        (Scope::Admin, create(&region, "chief", &["--scope", "admin"])),
    ];
    let routes = guarded_routes(&document(Role::Seeder));
    assert!(routes.len() > 15, "{} routes", routes.len());
    let served: Vec<Value> = serde_json::from_str(&send(addr, "GET", "/v1/routes", None, None).unwrap().body).unwrap();
    for Guarded { method, path, scope } in routes {
        let row = served.iter().find(|row| row["method"] == method.as_str() && row["path"] == path.as_str());
        assert_eq!(row.unwrap_or(&Value::Null)["scope"], scope.name(), "{method} {path} in /v1/routes");
        let filled = path.replace("{id}", &"0".repeat(32)).replace("{name}", "edge/x").replace("{path}", "edge/x");
        let status = |token: Option<&str>| send(addr, &method, &filled, token, None).expect("an answer").status;
        for stranger in [None, Some(""), Some("0000"), Some(&*"0".repeat(64)), Some(&secrets[2].1[..63])] {
            assert_eq!(status(stranger), 401, "{method} {path} with {stranger:?}");
        }
        for (held, secret) in &secrets {
            let answer = send(addr, &method, &filled, Some(secret), None).expect("an answer");
            let is_refused = answer.status == 403 && answer.body.contains("has scope");
            assert_eq!(is_refused, *held < scope, "{method} {path} with {held}: {} {}", answer.status, answer.body);
            assert_ne!(answer.status, 401, "{method} {path} with {held}");
        }
    }
}

/// A region of two racks with contents of the admin, and a token for `edge/` in the first rack.
fn shared_region() -> (Region, String) {
    let region = Region::start(SHOAL, 2, 1);
    let common = region.folder.path().join("common");
    fs::write(&common, noise(200_000, 1)).unwrap();
    for (name, version) in [("other/x", "1"), ("edge/x", "1"), ("other/own", "1")] {
        let job = region.push(&common, name, version);
        region.wait_active(&job, 2);
    }
    let secret =
        create(&region, "ci", &["--scope", "push", "--names", "edge/", "--names", "gslb/ci", "--to", "rack=rack0"]);
    (region, secret)
}

#[test]
fn a_push_token_stays_within_its_names_and_hosts() {
    let (region, ci) = shared_region();
    let own = region.folder.path().join("own");
    fs::write(&own, noise(300_000, 2)).unwrap();
    let rollout = |name: &str, to: &str, path: Option<&Path>| json!({ "name": name, "version": "9", "to": [to], "path": path, "batch": ["100%"], "soak": "10ms" });
    // A rollout of the admin over all hosts, which the token could otherwise pause or replace.
    let (status, answer) = post(&region, "/v1/rollouts", &admin(&region), &rollout("edge/wide", "all", Some(&own)));
    assert_eq!(status, 200, "{answer}");
    let push = |name: &str, to: &[&str]| json!({ "path": own, "name": name, "version": "2", "kind": "blob", "to": to });
    let image = |name: &str, reference: &str| {
        let image = json!({ "reference": reference, "platform": null, "pull": true });
        json!({ "name": name, "version": "2", "kind": "image", "to": ["rack=rack0"], "image": image })
    };
    let order = |target: &str, to: &[&str]| json!({ "target": target, "to": to });
    let content = region
        .cli_json(&["status", "--json"])
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .find_map(|job| (job["name"] == "other/x").then(|| job["content"].as_str().unwrap().to_string()));
    let attacks = [
        ("/v1/push", push("other/x", &["rack=rack0"])),
        ("/v1/push", push("edge", &["rack=rack0"])),
        ("/v1/push", push("edgex/y", &["rack=rack0"])),
        ("/v1/push", push("edge/y", &["all"])),
        ("/v1/push", push("edge/y", &["rack=rack1"])),
        ("/v1/push", push("edge/y", &["rack=rack0", "rack=rack1"])),
        ("/v1/push", push("edge/y", &["rack=rack0 or all"])),
        ("/v1/push", push("edge/y", &["site=site"])),
        ("/v1/push", push("edge/wide", &["rack=rack0"])),
        ("/v1/push", image("edge/nginx", "docker.io/library/nginx:latest")),
        ("/v1/push", image("", "docker.io/library/nginx:latest")),
        ("/v1/images/resolve", image("edge/nginx", "docker.io/library/nginx:latest")),
        ("/v1/rollouts", rollout("other/x", "rack=rack0", Some(&own))),
        ("/v1/rollouts", rollout("edge/y", "all", Some(&own))),
        ("/v1/rollouts", rollout("edge/wide", "rack=rack0", Some(&own))),
        ("/v1/rollouts/command", json!({ "of": "edge/wide", "command": "cancel" })),
        ("/v1/demote", order("other/x@1", &["rack=rack0"])),
        ("/v1/demote", order("edge/x@1", &[])),
        // The content also has names that are not the token's.
        ("/v1/demote", order("edge/x@1", &["rack=rack0"])),
        ("/v1/demote", order(&content.unwrap(), &["rack=rack0"])),
        ("/v1/promote", order("other/x@1", &["rack=rack0"])),
        ("/v1/promote", order("edge/x@1", &["all"])),
        ("/v1/feeds/gslb/main?to=rack=rack0", Value::Null),
        ("/v1/feeds/gslb/ci/x?to=rack=rack0", Value::Null),
        ("/v1/feeds/gslb/ci", Value::Null),
        ("/v1/feeds/gslb/ci?to=rack=rack0;all", Value::Null),
        ("/v1/tokens", json!({ "name": "mine", "scope": "admin" })),
        ("/v1/tokens/revoke", json!({ "name": "ci" })),
        ("/v1/limits", json!({ "uplink_out": "unlimited" })),
    ];
    let jobs = |region: &Region| region.cli_json(&["status", "--json"]).unwrap().as_array().unwrap().len();
    let before = jobs(&region);
    for (path, body) in attacks {
        let (status, answer) = post(&region, path, &ci, &body);
        assert_eq!(status, 403, "{path} {body}: {answer}");
    }
    assert_eq!(jobs(&region), before, "a refused request made a job");

    // What the token is for.
    let (status, answer) = post(&region, "/v1/push", &ci, &push("edge/y", &["rack=rack0", "rack=rack0,host=host0"]));
    assert_eq!(status, 200, "{answer}");
    let accepted: Value = serde_json::from_str(&answer).unwrap();
    region.wait_active(accepted["job"].as_str().unwrap(), 1);
    region.assert_copy(0, "edge/y", "own", &noise(300_000, 2));
    assert!(!region.peers[1].dir().join("content/edge/y").exists(), "the other rack has the content");
    assert_eq!(post(&region, "/v1/feeds/gslb/ci?to=rack=rack0", &ci, &Value::Null).0, 200);
    let (status, answer) = post(&region, "/v1/rollouts", &ci, &rollout("edge/z", "rack=rack0", Some(&own)));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn revoked_and_expired_tokens_end_and_no_secret_is_on_the_disk() {
    let mut region = Setup::new(SHOAL, 1, 1).start();
    let file = region.folder.path().join("reader.token");
    let out = file.to_str().unwrap();
    create(&region, "reader", &["--scope", "read", "--out", out]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = fs::read_to_string(&file).unwrap().trim().to_string();
    let status = |region: &Region, secret: &str| {
        send(region.seeder.http(), "GET", "/v1/jobs", Some(secret), None).map(|answer| answer.status)
    };
    region.seeder.restart();
    assert_eq!(status(&region, &secret), Some(200), "the token outlives a killed seeder");
    assert!(!holds(region.seeder.dir(), secret.as_bytes()), "the secret is on the seeder's disk");
    for taken in [&["reader", "--scope", "read"][..], &["admin", "--scope", "read"], &["x", "--scope", "push"]] {
        assert!(!region.cli(&[&["token", "create"], taken].concat()).status.success(), "{taken:?}");
    }

    // An open stream ends with its token.
    let feed = "/v1/feeds/gslb/main";
    assert_eq!(post(&region, feed, &admin(&region), &Value::Null).0, 200);
    let mut stream = begin(region.seeder.http(), "GET", "/feeds/gslb/main/events", Some(&secret), None).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert!(start.ends_with(b" 200"), "{}", String::from_utf8_lossy(&start));
    assert!(region.cli(&["token", "revoke", "reader"]).status.success());
    assert_eq!(status(&region, &secret), Some(401));
    stream.read_to_end(&mut Vec::new()).expect("the stream ends");
    region.seeder.restart();
    assert_eq!(status(&region, &secret), Some(401), "the token stays revoked");

    let short = create(&region, "short", &["--scope", "read", "--expires", "2s"]);
    until("the token expires", || (status(&region, &short) == Some(401)).then_some(()));
    let listed = region.cli_json(&["token", "ls", "--json"]).unwrap();
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["short"]);
}

/// Whether a file below a folder contains these bytes.
fn holds(folder: &Path, bytes: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().any(|item| {
        let item = item.unwrap();
        match item.file_type().unwrap() {
            kind if kind.is_dir() => holds(&item.path(), bytes),
            kind if kind.is_file() => fs::read(item.path()).unwrap().windows(bytes.len()).any(|window| window == bytes),
            _ => false,
        }
    })
}
