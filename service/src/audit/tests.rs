//! The log across restarts, rotation, torn lines and floods.

use super::*;
use shoal_api::access::AuditResult;
use shoal_api::units::Span;
use std::fs;

fn entry(verb: &str, object: &str) -> AuditEntry {
    AuditEntry {
        time_ms: now_ms(),
        id: "1".into(),
        who: "ci".into(),
        from: String::new(),
        verb: verb.into(),
        object: object.into(),
        result: AuditResult::Done,
        status: 200,
        detail: String::new(),
        unlogged: 0,
    }
}

const SMALL: AuditSettings = AuditSettings { file_size: ByteSize(1000), files: 3 };

fn objects(entries: &[AuditEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.object.as_str()).collect()
}

#[tokio::test]
async fn entries_survive_a_restart_and_a_torn_line_hides_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), SMALL).unwrap();
    log.record(entry("push", "a")).await.unwrap();
    drop(log);
    let path = dir.path().join("changes-0000000001.log");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], &whole[..20]].concat()).unwrap();
    let log = AuditLog::open(dir.path(), SMALL).unwrap();
    log.record(entry("demote", "b")).await.unwrap();
    let all = log.read(AuditQuery::default()).await.unwrap();
    assert_eq!(objects(&all), ["a", "b"]);
    let query = AuditQuery { verb: Some("demote".into()), who: Some("ci".into()), ..AuditQuery::default() };
    assert_eq!(objects(&log.read(query).await.unwrap()), ["b"]);
    let query = AuditQuery { who: Some("other".into()), ..AuditQuery::default() };
    assert!(log.read(query).await.unwrap().is_empty());
    let query = AuditQuery { since: Some(Span::seconds(3600)), limit: Some(1), ..AuditQuery::default() };
    assert_eq!(objects(&log.read(query).await.unwrap()), ["b"]);
}

#[tokio::test]
async fn old_files_go_and_a_flood_of_refusals_removes_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), SMALL).unwrap();
    log.record(entry("push", "first")).await.unwrap();
    for number in 0..2_000u32 {
        let from = IpAddr::from([10, 0, (number / 256) as u8, (number % 256) as u8]);
        log.refuse(Some(from), AuditEntry { result: AuditResult::Refused, ..entry("push", "flood") });
    }
    log.record(entry("push", "second")).await.unwrap();
    let query = AuditQuery { limit: Some(10_000), ..AuditQuery::default() };
    let all = log.read(query.clone()).await.unwrap();
    let changes: Vec<&AuditEntry> = all.iter().filter(|entry| entry.result == AuditResult::Done).collect();
    assert_eq!(changes.len(), 2);
    assert!(all.len() <= 102 + 5, "{} entries of 2,000 refused requests", all.len());
    for number in 0..40 {
        log.record(entry("push", &format!("later {number}"))).await.unwrap();
    }
    let files = fs::read_dir(dir.path()).unwrap().filter_map(|item| item.unwrap().file_name().into_string().ok());
    assert_eq!(files.filter(|name| name.starts_with("changes")).count(), 3);
    let all = log.read(query).await.unwrap();
    assert!(all.iter().any(|entry| entry.object == "later 39") && !all.iter().any(|entry| entry.object == "first"));
}

#[test]
fn one_address_leaves_room_for_others_and_the_table_is_bounded() {
    let (mut refusals, now) = (Refusals::default(), Instant::now());
    let of = |low: u8| Some(IpAddr::from([10, 0, 0, low]));
    let flood = (0..1000).filter(|_| refusals.admits(of(1), now)).count();
    assert_eq!(flood, 10);
    assert!(refusals.admits(of(2), now));
    let later = now + Duration::from_secs(60);
    assert!(refusals.admits(of(1), later));
    // One host can use every address of its network.
    let v6 = |low: u64| Some(IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(low)).to_be_bytes()));
    assert_eq!((0..1000).filter(|low| refusals.admits(v6(*low), later)).count(), 10);
    for number in 0..100_000u32 {
        refusals.admits(Some(IpAddr::from(number.to_be_bytes())), later);
    }
    assert!(refusals.addresses_len() <= 1024);
}
