//! A database over stops, faults and batches of any size.

use shoal_kv::{Change, Database, KvError, SledDatabase, SledOptions, Table, backup};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const OPTIONS: SledOptions = SledOptions { cache_bytes: 1 << 20, flush_interval: Duration::from_millis(500) };

fn open(dir: &Path) -> Arc<dyn Database> {
    SledDatabase::open_shared(dir, OPTIONS).unwrap()
}

fn put(number: u32) -> Change {
    Change::Put { key: number.to_be_bytes().to_vec(), value: vec![number as u8; 3] }
}

#[test]
fn rows_survive_a_stop_and_stay_in_order() {
    let dir = tempfile::tempdir().unwrap();
    // More than one batch of sled, out of order, with a key that is set twice and one that is deleted.
    let mut changes: Vec<Change> = (0..250).rev().map(put).collect();
    changes.push(Change::Put { key: 7u32.to_be_bytes().to_vec(), value: b"again".to_vec() });
    changes.push(Change::set(8u32.to_be_bytes(), None));
    let table = Table::new(&open(dir.path()), "numbers");
    table.apply(&changes).unwrap();
    table.sync().unwrap();
    drop(table);
    for _ in 0..3 {
        let table = Table::new(&open(dir.path()), "numbers");
        let rows = table.scan([]).unwrap();
        assert_eq!(rows.len(), 249);
        assert!(rows.windows(2).all(|pair| pair[0].key < pair[1].key));
        assert_eq!(table.count().unwrap(), 249);
        assert_eq!(table.first().unwrap().unwrap().key, 0u32.to_be_bytes());
        assert_eq!(table.get(7u32.to_be_bytes()).unwrap().unwrap(), b"again");
        assert_eq!(table.get(8u32.to_be_bytes()).unwrap(), None);
    }
    let table = Table::new(&open(dir.path()), "numbers");
    table.clear().unwrap();
    table.flush().unwrap();
    drop(table);
    assert_eq!(Table::new(&open(dir.path()), "numbers").first().unwrap(), None);
}

#[test]
fn a_scan_returns_only_keys_with_the_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let table = Table::new(&open(dir.path()), "names");
    for key in ["a", "ab", "abc", "b", "aa/x", "aa/y"] {
        table.put(key, key).unwrap();
    }
    table.put_u64("number", 1 << 40).unwrap();
    let keys = |prefix: &str| -> Vec<String> {
        table.scan(prefix).unwrap().into_iter().map(|row| String::from_utf8(row.key).unwrap()).collect()
    };
    assert_eq!(keys("aa/"), ["aa/x", "aa/y"]);
    assert_eq!(keys("ab"), ["ab", "abc"]);
    assert_eq!(keys("").len(), 7);
    assert_eq!(table.get_u64("number").unwrap(), Some(1 << 40));
    assert_eq!(table.get_u64("a").unwrap(), None, "not a number");
    table.delete("ab").unwrap();
    assert_eq!(keys("ab"), ["abc"]);
}

#[test]
fn an_open_waits_for_the_former_owner_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let former = open(dir.path());
    std::thread::scope(|scope| {
        let next = scope.spawn(|| SledDatabase::open(dir.path(), OPTIONS));
        drop(former);
        let next = next.join().unwrap();
        assert!(next.is_ok());
        let refused = SledDatabase::open(dir.path(), OPTIONS).err().unwrap();
        assert!(matches!(&refused, KvError::InUse { .. }), "{refused:?}");
        let source = std::error::Error::source(&refused).unwrap().to_string();
        assert!(source.contains("could not acquire lock"), "{source}");
    });
}

#[test]
fn a_backup_has_every_row_in_the_order_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(&dir.path().join("from"));
    for name in ["meta", "rows", "jobs"] {
        let table = Table::new(&database, name);
        table.put("1", name).unwrap();
        table.put("2", "x").unwrap();
    }
    let into = open(&dir.path().join("into"));
    let mut order = Vec::new();
    backup::export(
        &*database,
        |name| name == "meta",
        |table, key, value| {
            order.push(table.to_string());
            backup::import_row(&*into, table, key, value)
        },
    )
    .unwrap();
    assert_eq!(order, ["jobs", "jobs", "rows", "rows", "meta", "meta"]);
    into.sync().unwrap();
    drop(into);
    let into = open(&dir.path().join("into"));
    let mut tables = into.tables().unwrap();
    tables.sort();
    assert_eq!(tables, ["jobs", "meta", "rows"]);
    assert_eq!(Table::new(&into, "rows").get("1").unwrap().unwrap(), b"rows");
}

#[test]
fn a_backup_stops_at_the_first_error() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path());
    Table::new(&database, "rows").apply(&(0..10).map(put).collect::<Vec<_>>()).unwrap();
    let mut seen = 0;
    let stopped = backup::export(
        &*database,
        |_| 0,
        |_, _, _| {
            seen += 1;
            Err(KvError::Flush("the disk is full".into()))
        },
    );
    assert!(matches!(stopped, Err(KvError::Flush(_))));
    assert_eq!(seen, 1);
}

#[test]
fn a_damaged_folder_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"not a folder").unwrap();
    let refused = SledDatabase::open(&file, OPTIONS).err().unwrap();
    assert!(matches!(&refused, KvError::Open { .. }), "{refused:?}");
    assert!(refused.to_string().contains("file"), "{refused}");
}
