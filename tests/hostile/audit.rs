//! Operators and strangers who would rather leave no trace.

use super::tokens::{admin, create, post};
use serde_json::{Value, json};
use shoal_testkit::http::{begin, send};
use shoal_testkit::{Program, Region, noise, until};
use std::fs;

const SHOAL: Program = shoal_testkit::program!();

/// The entries that `shoal audit --json` prints.
fn audit(region: &Region, args: &[&str]) -> Vec<Value> {
    let output = region.cli(&[&["audit", "--json", "--limit", "10000"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn push(region: &Region, name: &str) -> Value {
    json!({ "path": region.folder.path().join("file"), "name": name, "version": "7", "kind": "blob", "to": ["all"] })
}

#[test]
fn every_change_is_in_the_log_before_its_answer() {
    let mut region = Region::start(SHOAL, 1, 1);
    fs::write(region.folder.path().join("file"), noise(100_000, 1)).unwrap();
    let ci = create(&region, "ci", &["--scope", "push", "--names", "edge/", "--to", "all"]);
    let body = push(&region, "edge/app");
    let answer = send(region.seeder.http(), "POST", "/v1/push", Some(&ci), Some(&body)).unwrap();
    // A power cut right after the answer must not lose the entry. A kill is the nearest that a test can do.
    region.seeder.restart();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let [entry] = &audit(&region, &["--who", "ci", "--verb", "push", "--since", "1h"])[..] else { panic!("one entry") };
    assert_eq!((&entry["result"], &entry["status"]), (&json!("done"), &json!(200)));
    assert!(entry["object"].as_str().unwrap().starts_with("edge/app@7 to all from /"), "{entry}");
    assert!(entry["from"].as_str().unwrap().starts_with("127."), "{entry}");
    assert!(answer.head.contains(entry["id"].as_str().unwrap()), "{} {entry}", answer.head);

    // Callers hang up at any moment. Whatever they caused is in the log.
    let begun = |number: usize| {
        let body = push(&region, &format!("edge/silent-{number}"));
        begin(region.seeder.http(), "POST", "/v1/push", Some(&ci), Some(&body)).unwrap()
    };
    (0..20).for_each(|number| drop(begun(number)));
    let last = begun(20);
    let silent = |region: &Region| -> Vec<String> {
        let jobs = region.cli_json(&["status", "--json"]).unwrap();
        let names = jobs.as_array().unwrap().iter().map(|job| job["name"].as_str().unwrap().to_string());
        names.filter(|name| name.starts_with("edge/silent-")).collect()
    };
    until("the seeder has made the last job", || silent(&region).contains(&"edge/silent-20".into()).then_some(()));
    drop(last);
    until("each job has its entry", || {
        let entries = audit(&region, &["--verb", "push"]);
        let is_logged = |name: &String| {
            let object = format!("{name}@7 ");
            entries.iter().any(|entry| entry["object"].as_str().unwrap().starts_with(&object))
        };
        silent(&region).iter().all(is_logged).then_some(())
    });
    let created = audit(&region, &["--verb", "token create"]);
    assert_eq!((created.len(), &created[0]["who"]), (1, &json!("admin")));
    assert!(!created[0]["object"].as_str().unwrap().contains(&ci), "the secret is in the log");

    // Refused, with text that would change a terminal.
    let evil = "other/\u{1b}]0;x\u{7}\u{202e}";
    assert_eq!(post(&region, "/v1/push", &ci, &push(&region, evil)).0, 403);
    let refused = until("the refusal is logged", || {
        audit(&region, &["--who", "ci"]).into_iter().find(|entry| entry["result"] == "refused")
    });
    let shown = format!("{}{}", refused["object"], refused["detail"]);
    assert!(shown.contains("other/") && shown.chars().all(|c| (' '..='~').contains(&c)), "{shown}");
}

#[test]
fn a_flood_of_strangers_fills_neither_log_and_hides_no_change() {
    let region = Region::start(SHOAL, 1, 1);
    fs::write(region.folder.path().join("file"), noise(100_000, 1)).unwrap();
    assert_eq!(post(&region, "/v1/push", &admin(&region), &push(&region, "edge/app")).0, 200);
    let lines = region.seeder.log().lines().count();
    for number in 0..500 {
        let wrong = format!("{number:064}");
        assert_eq!(post(&region, "/v1/demote", &wrong, &Value::Null).0, 401);
    }
    assert_eq!(post(&region, "/v1/push", &admin(&region), &push(&region, "edge/app")).0, 200);
    let entries = audit(&region, &[]);
    let refused = entries.iter().filter(|entry| entry["status"] == 401).count();
    // Ten at once and one in five seconds from one address.
    assert!((10..=30).contains(&refused), "{refused} entries of 500 refused requests");
    assert_eq!(entries.iter().filter(|entry| entry["verb"] == "push").count(), 2, "{entries:?}");
    let more = region.seeder.log().lines().count() - lines;
    assert!(more < 100, "{more} lines in the log of the seeder");
    // The next refusal that is logged says how many were not.
    until("a later refusal counts those before it", || {
        send(region.seeder.http(), "GET", "/v1/jobs", None, None)?;
        audit(&region, &[]).iter().any(|entry| entry["unlogged"].as_u64() > Some(400)).then_some(())
    });
}
