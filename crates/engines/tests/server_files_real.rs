//! A server's files pinned at a cut, on real private servers on XFS and btrfs in loop devices. Needs root, `mariadbd`,
//! xfsprogs and btrfs-progs; fails where one is missing.

#![allow(clippy::print_stdout, reason = "it is its own harness, and tells figures")]

mod files_support;

use std::{fs, path::Path, process::ExitCode, sync::Arc, thread, time::Duration};

use engines::server::{UNDO_ROLE, files::FilesForm, undo_main};
use files_support::{Bench, Clients, ok, root, scratch, sub, within, write_out};
use model::{
    entry::{Harvest, Kind},
    known::Known,
    port::{FailureKind, Hold, Pinner, Silent},
    problem::Effect,
    server::{RootRole, ServerForm},
    verdict::Stillness,
};
use os::command::helper_role;
use testkit::server::{PrivateServer, Volume};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some((role, rest)) = helper_role(&arguments) {
        assert_eq!(role, UNDO_ROLE, "the only role that is needed here");
        return undo_main(rest);
    }
    let tests: [(&str, fn()); 6] = [
        ("clones_on_xfs_are_the_server_of_the_cut", clones_on_xfs),
        ("clones_on_btrfs_are_the_server_of_the_cut", clones_on_btrfs),
        ("one_snapshot_is_the_server_of_the_cut", one_snapshot),
        ("several_directories_are_one_copy", several_directories),
        ("a_server_that_is_not_held_or_not_locked_is_not_pinned", not_held),
        ("what_cannot_be_cloned_is_refused", not_clonable),
    ];
    let words: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut words = words.iter().filter(|word| !word.starts_with('-')).peekable();
    let word = words.peek().map(|word| word.as_str());
    let mut failed = vec![];
    for (name, test) in tests.iter().filter(|(name, _)| word.is_none_or(|word| name.contains(word))) {
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(*name);
        }
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Takes three cuts of a server under load and opens each copy.
fn cuts(kind: &str, form: FilesForm, held: bool) {
    let dir = scratch();
    let volume = Volume::for_test(kind, 3 << 30, dir.path());
    let server = PrivateServer::builder().datadir(volume.directory("data")).start();
    let staging = sub(volume.path(), "staging");
    let roots = vec![root(RootRole::Data, server.datadir(), &staging)];
    let bench = Bench { server: &server, form, roots, held, journal: Arc::default() };
    for number in 0..3 {
        let clients = Clients::start(&server);
        let mut acknowledged = vec![];
        let mut taken = ok(bench.cut(&mut || {
            // Commits are stopped; whoever was acknowledged gets to know it.
            thread::sleep(Duration::from_millis(30));
            acknowledged = clients.acknowledged();
        }));
        println!("  {kind}: {}; {:?}", taken.times, taken.stillness);
        match (held, &taken.stillness) {
            (true, Stillness::WritersFrozen(_)) | (false, Stillness::AtomicSnapshot(_)) => {}
            (_, other) => panic!("{other:?}"),
        }
        let harvest = ok(taken.pin.harvest(&Silent));
        looks_right(&harvest, &bench);
        let copy = dir.path().join(format!("copy{number}"));
        write_out(&harvest, server.datadir(), &copy);
        assert!(taken.pin.afterwards().is_empty());
        ok(taken.pin.release());
        opens(&harvest, &copy, &acknowledged, &server);
        drop(clients);
    }
    assert_eq!(bench.journal.open(), [], "nothing is left");
    assert_eq!(fs::read_dir(&staging).expect("it stays").count(), 0, "nothing is left");
}

/// What a restore needs stands in the record, and nothing of what was left out in the entries.
fn looks_right(harvest: &Harvest, bench: &Bench<'_>) {
    let bad: Vec<_> = harvest.problems.iter().filter(|p| p.effect > Effect::Note).collect();
    assert!(bad.is_empty(), "{bad:?}");
    let record = harvest.server.as_ref().expect("a record");
    assert_eq!((record.form, record.roots.len()), (ServerForm::Files, bench.roots.len()));
    let binlog = record.position.binlog.as_ref().expect("a position");
    let check = format!("position {}:{}", binlog.file, binlog.offset);
    assert!(harvest.checks.iter().any(|c| c.starts_with(&check)), "{check}: {:?}", harvest.checks);
    let has = |name: &Path| harvest.entries.iter().any(|entry| entry.path == name);
    let data = bench.server.datadir();
    assert!(has(Path::new("/tmp")) && has(&data.join("ibdata1")) && has(&data.join("mysql")));
    let logs = harvest.entries.iter().filter(|e| e.path.to_string_lossy().contains("binlog."));
    assert_eq!(logs.count(), 0, "binary logs are left out");
    let trusted = harvest.entries.iter().filter(|e| e.kind == Kind::File);
    let now = jiff::Timestamp::now();
    for entry in trusted {
        assert!(!entry.meta.stamp().is_settled_at(now), "{} could be carried", entry.path.display());
    }
}

fn opens(harvest: &Harvest, copy: &Path, acknowledged: &[u64], live: &PrivateServer) {
    let mut restored = PrivateServer::builder().copy_at(copy).start();
    Clients::compare(&restored, acknowledged);
    let recorded = harvest.server.as_ref().and_then(|record| record.position.binlog.clone()).expect("one");
    let recovered = restored.recovered_position().expect("InnoDB tells where the binary log was");
    // The clients write MyISAM and Aria too: what comes last may be theirs, and InnoDB knows nothing of it.
    let recorded = (recorded.file, recorded.offset);
    assert!(recovered <= recorded, "{recovered:?} {recorded:?}");
    assert_eq!(live.transactions_between(&recovered, &recorded), 0, "{recovered:?} {recorded:?}");
    restored.stop();
}

fn clones_on_xfs() {
    cuts("xfs", FilesForm::Reflink, true);
}

fn clones_on_btrfs() {
    cuts("btrfs", FilesForm::Reflink, true);
}

fn one_snapshot() {
    cuts("btrfs", FilesForm::Volumes, false);
}

/// Redo and undo logs on another filesystem than the data.
fn several_directories() {
    for (kind, form) in [("xfs", FilesForm::Reflink), ("btrfs", FilesForm::Volumes)] {
        let dir = scratch();
        let (one, other) =
            (Volume::for_test(kind, 2 << 30, dir.path()), Volume::new(kind, 2 << 30, dir.path()));
        let (data, logs) = (one.directory("data"), other.directory("logs"));
        std::process::Command::new("chown").arg("mysql:mysql").arg(&logs).status().expect("chown");
        let server = PrivateServer::builder()
            .datadir(&data)
            .option(format!("--innodb-log-group-home-dir={}", logs.display()))
            .start();
        let roots = vec![
            root(RootRole::Data, &data, &sub(one.path(), "staging")),
            root(RootRole::Redo, &logs, &sub(other.path(), "staging")),
        ];
        let bench = Bench { server: &server, form, roots, held: true, journal: Arc::default() };
        let clients = Clients::start(&server);
        let mut acknowledged = vec![];
        let mut taken = ok(bench.cut(&mut || {
            thread::sleep(Duration::from_millis(30));
            acknowledged = clients.acknowledged();
        }));
        println!("  {kind}: {}; {:?}", taken.times, taken.stillness);
        let Stillness::WritersFrozen(how) = &taken.stillness else { panic!("{:?}", taken.stillness) };
        assert!(how.contains(&server.pid().to_string()), "{how}");
        let harvest = ok(taken.pin.harvest(&Silent));
        looks_right(&harvest, &bench);
        let copy = dir.path().join("copy");
        write_out(&harvest, &data, &copy);
        write_out(&harvest, &logs, &copy);
        ok(taken.pin.release());
        opens(&harvest, &copy, &acknowledged, &server);
        assert_eq!(bench.journal.open(), [], "nothing is left");
    }
}

fn not_held() {
    let dir = scratch();
    let volume = Volume::for_test("xfs", 2 << 30, dir.path());
    let server = PrivateServer::builder().datadir(volume.directory("data")).start();
    let roots = vec![root(RootRole::Data, server.datadir(), &sub(volume.path(), "staging"))];
    let form = FilesForm::Reflink;
    let mut bench = Bench { server: &server, form, roots, held: true, journal: Arc::default() };
    let lock = bench.lock();
    let mut process = bench.process();
    let mut pinner = ok(bench.pinner(&lock, &process));
    ok(pinner.prepare(&Known::default()));
    let unlocked = pinner.pin(within(files_support::BUDGET)).err().expect("nothing is locked");
    assert_eq!(unlocked.kind, FailureKind::Lost, "{}", unlocked.in_full());
    let mut locks = lock.into_holds();
    locks.iter_mut().for_each(|hold| drop(ok(hold.prepare())));
    let until = within(files_support::BUDGET);
    let held: Vec<_> = locks.iter_mut().map(|hold| ok(hold.freeze(until))).collect();
    let runs = pinner.pin(until).err().expect("the server runs");
    assert_eq!(runs.kind, FailureKind::Refused, "{}", runs.in_full());
    assert!(runs.what.contains(&server.pid().to_string()), "{}", runs.in_full());
    ok(process.prepare());
    let stopped = ok(process.freeze(until));
    let mut pin = ok(pinner.pin(until));
    ok(stopped.thaw());
    // It was let go too early: whatever was seen says nothing.
    assert!(pin.unchanged(until).is_err());
    ok(pin.release());
    held.into_iter().rev().for_each(|held| ok(held.thaw()));
    drop(pinner);
    assert_eq!(bench.journal.open(), [], "nothing is left");
    bench.held = false;
    let refused = bench.pinner(&bench.lock(), &process).err().expect("clones need the server held");
    assert_eq!(refused.kind, FailureKind::Refused);
}

fn not_clonable() {
    let dir = scratch();
    let volume = Volume::for_test("ext4", 2 << 30, dir.path());
    let server = PrivateServer::builder().datadir(volume.directory("data")).start();
    let roots = vec![root(RootRole::Data, server.datadir(), &sub(volume.path(), "staging"))];
    let form = FilesForm::Reflink;
    let bench = Bench { server: &server, form, roots, held: true, journal: Arc::default() };
    let mut pinner = ok(bench.pinner(&bench.lock(), &bench.process()));
    let refused = pinner.prepare(&Known::default()).expect_err("ext4 makes no clones");
    assert_eq!(refused.kind, FailureKind::Refused, "{}", refused.in_full());
    drop(pinner);
    assert_eq!(bench.journal.open(), [], "nothing is left");
}
