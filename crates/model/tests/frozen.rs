//! Frozen samples of what earlier builds wrote: every later build reads them.
//!
//! A sample is never changed. A new version of a format gets a new sample and a new test beside the old ones.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use model::{
    inventory::{Database, InventoryText, Keep, ProcessSelector, parse},
    pace::{IoClass, Pace},
    plan::HoldClass,
    problem::Effect,
    record::{BackupRecord, CutRecord, RECORD_VERSION},
    server::{Flavor, RootRole, ServerForm},
    size::Bytes,
    time::Millis,
    verdict::{Stillness, Verdict},
};

fn sample(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_sample_has_its_test() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let names: BTreeSet<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let tested = [
        "backup-record-1.json",
        "cut-record-1-server.json",
        "cut-record-1.json",
        "history-1",     // in src/history.rs
        "history-log-1", // in src/history_log.rs
        "inventory-1.toml",
        "inventory-2.toml",
        "inventory-3.toml",
        "inventory-4.toml",
        "logs-record-1.json", // in src/logs_store/tests.rs
    ];
    assert_eq!(names, tested.map(String::from).into());
}

#[test]
fn cut_record_1() {
    let text = sample("cut-record-1.json");
    let record: CutRecord = serde_json::from_str(&text).unwrap();
    assert_eq!(record.version, RECORD_VERSION);
    assert_eq!(record.path().to_str(), Some("/var/lib/stillpoint/cuts/20261120T031500Z-5be2a1.json"));
    assert_eq!((record.server.as_str(), record.vm.as_str()), ("zg-3.softxs.ch", "web"));
    assert_eq!((record.attempts, record.stalls.downtime), (2, Some(Millis(8300.0))));
    assert_eq!(record.stalls.per_hold[1].class, HoldClass::ProcessFreezer);
    assert_eq!(record.thawed_at.as_nanosecond() - record.cut_at.as_nanosecond(), 10_400_000);
    assert_eq!(
        record.evidence[1].stillness,
        Stillness::WritersFrozen("3 processes held by ptrace".to_owned())
    );
    // A name that is not UTF-8, written as an escape.
    let path = record.problems[0].path.as_ref().unwrap();
    assert_eq!(path.as_os_str().as_encoded_bytes(), b"/srv/hydro/var/caf\xe9.sock");
    assert_same(&text, &serde_json::to_string(&record).unwrap());
}

#[test]
fn cut_record_1_with_servers() {
    let text = sample("cut-record-1-server.json");
    let record: CutRecord = serde_json::from_str(&text).unwrap();
    assert_eq!(record.version, RECORD_VERSION);
    assert_eq!(record.stalls.per_hold[2].class, HoldClass::ServerFreezer);
    let [owned, shared] = &record.servers[..] else { panic!("{:?}", record.servers) };
    assert_eq!((owned.version.flavor, owned.version.number), (Flavor::MariaDb, (10, 11, 19)));
    assert_eq!((owned.form, shared.form), (ServerForm::Files, ServerForm::Dump));
    let at = owned.position.binlog.as_ref().map(ToString::to_string);
    assert_eq!(at.as_deref(), Some("binlog.000042:1234"));
    assert_eq!(owned.roots[1].role, RootRole::Redo);
    assert_eq!(shared.replay_from.as_ref().map(|p| p.offset), Some(4));
    assert_same(&text, &serde_json::to_string(&record).unwrap());
}

#[test]
fn inventory_2() {
    let text = InventoryText { file: "inventory-2.toml".into(), text: sample("inventory-2.toml") };
    let inventory = parse(&text, &[], "unused").unwrap_or_else(|e| panic!("{e}"));
    let servers: Vec<_> = inventory.applications.iter().flat_map(|a| &a.databases).collect();
    let ids: Vec<String> = servers.iter().map(|d| d.id().to_string()).collect();
    let expected = [
        "mariadb:/run/mysqld/mysqld.sock",
        "mariadb:/run/mysqld/mysqld.sock#hydro,hydro_cache",
        "mysql:db.softxs.ch:3307",
    ];
    assert_eq!(ids, expected);
    let [Database::Server(owned), Database::Server(shared), Database::Server(remote)] = servers[..] else {
        panic!("{servers:?}")
    };
    assert_eq!(owned.access.option_file, Some("/etc/mysql/debian.cnf".into()));
    assert_eq!(owned.service.as_ref().map(|s| s.stop.run.as_str()), Some("systemctl stop mariadb"));
    assert_eq!((shared.access.user.as_deref(), shared.service.is_none()), (Some("root"), true));
    assert!(remote.end_blocking_queries && remote.access.tls_ca.is_some());
}

#[test]
fn inventory_3() {
    let text = InventoryText { file: "inventory-3.toml".into(), text: sample("inventory-3.toml") };
    let inventory = parse(&text, &[], "unused").unwrap_or_else(|e| panic!("{e}"));
    let [hydro, server] = &inventory.applications[..] else { panic!("{:?}", inventory.applications) };
    let hours = |n: u64| std::time::Duration::from_secs(n * 3600);
    assert_eq!((hydro.settings.local_window, server.settings.local_window), (hours(12), hours(72)));
    let archive = hydro.databases[0].archive();
    let seconds = |length: std::time::Duration| length.as_secs();
    assert_eq!(
        (archive.segment.0, seconds(archive.rotate), seconds(archive.store_every)),
        (4 << 20, 1800, 20)
    );
    let archive = server.databases[0].archive();
    assert_eq!((archive.segment.0, archive.acknowledge), (64 << 20, true));
}

#[test]
fn inventory_4() {
    let text = InventoryText { file: "inventory-4.toml".into(), text: sample("inventory-4.toml") };
    let inventory = parse(&text, &[], "unused").unwrap_or_else(|e| panic!("{e}"));
    let [hydro, wiki] = &inventory.applications[..] else { panic!("{:?}", inventory.applications) };
    let pace = |limit, io_class| Pace { read_limit: Some(Bytes(limit)), io_class };
    assert_eq!(hydro.settings.pace, pace(512 << 10, IoClass::Inherited));
    assert_eq!(wiki.settings.pace, pace(50 << 20, IoClass::Idle));
    assert_eq!((hydro.settings.changed_extents_only, wiki.settings.changed_extents_only), (false, true));
    assert_eq!(wiki.settings.read_all_every, Duration::from_secs(14 * 86_400));
}

#[test]
fn backup_record_1() {
    let text = sample("backup-record-1.json");
    let record: BackupRecord = serde_json::from_str(&text).unwrap();
    assert_eq!((record.version, record.verdict), (RECORD_VERSION, Verdict::Incomplete));
    assert!(record.looks_wrong.as_ref().is_some_and(|why| why.contains("41 files")));
    assert_eq!(record.label.as_deref(), Some("before the upgrade"));
    assert_eq!((record.files, record.bytes, record.bytes_added), (41, Bytes(1_104_882_133), Bytes(9312)));
    let effects: Vec<Effect> = record.problems.iter().map(|p| p.effect).collect();
    assert_eq!(effects, [Effect::Missing, Effect::Weaker]);
    assert_same(&text, &serde_json::to_string(&record).unwrap());
}

/// What is read is written as it was: no field is lost or renamed.
fn assert_same(frozen: &str, written: &str) {
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(value(frozen), value(written));
}

#[test]
fn inventory_1() {
    let text = InventoryText { file: "inventory-1.toml".into(), text: sample("inventory-1.toml") };
    let inventory = parse(&text, &[], "unused").unwrap_or_else(|e| panic!("{e}"));
    let [hydro, wiki] = &inventory.applications[..] else { panic!("{inventory:#?}") };
    assert_eq!(hydro.settings.schedule, "15 */6 * * 1-5");
    assert_eq!(hydro.settings.stall_budget, Duration::from_millis(500));
    assert_eq!(hydro.settings.require, Verdict::PerSource);
    assert_eq!(hydro.settings.keep.daily, 7);
    assert_eq!(hydro.settings.point_in_time, Some(Duration::from_secs(14 * 86400)));
    assert_eq!(hydro.process, Some(ProcessSelector::Unit("hydro.service".into())));
    let keep = Keep { last: 1, hourly: 168, daily: 30, weekly: 8, monthly: 12, yearly: 10 };
    assert_eq!(wiki.settings.keep, keep);
    assert_eq!(wiki.process, Some(ProcessSelector::PidFile("/run/wiki.pid".into())));
}
