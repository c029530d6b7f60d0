//! `stillpoint log` for an SQLite database: killed, started again, stopped; then every row is in the archive, once.

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use common::{
    Site,
    log::{end, follow, send, spool, wait_until_caught_up},
    make_guestbook,
};
use engines::sqlite::wal::replay;
use jiff::Timestamp;
use model::id::SourceId;
use rusqlite::Connection;
use rustix::process::Signal;

fn epochs(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.join("epoch.json").exists());
    all.sort();
    all
}

fn segments(epoch: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(epoch).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|ending| ending == "seg" || ending == "open"));
    all.sort();
    all
}

fn sign(database: &Connection, messages: std::ops::Range<u32>) {
    for message in messages {
        database.execute("INSERT INTO entry VALUES (?1, 0, 'signed', ?1, '')", [message]).unwrap();
    }
}

fn signed(database: &Path) -> Vec<u32> {
    let open = Connection::open(database).unwrap();
    let mut statement = open.prepare("SELECT id FROM entry ORDER BY id").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn every_row_is_in_the_archive_once() {
    let site = Site::new();
    make_guestbook(&site.database());
    site.init(&site.sources());
    let source = SourceId::new("sqlite", site.database().display());
    let dir = spool(&site).source_dir(&source);
    let database = Connection::open(site.database()).unwrap();
    sign(&database, 0..10);

    let archive = follow(&site);
    wait_until_caught_up(&site, &source);
    sign(&database, 10..200);
    let before = Timestamp::now();
    sign(&database, 200..400);
    wait_until_caught_up(&site, &source);
    end(archive, Signal::KILL);
    sign(&database, 400..450);

    let archive = follow(&site);
    wait_until_caught_up(&site, &source);
    sign(&database, 450..500);
    let told = wait_until_caught_up(&site, &source);
    assert!(told.trouble.is_none() && told.max_lag_s < 30.0, "{told:?}");
    end(archive, Signal::INT);

    let all = epochs(&dir);
    assert_eq!(all.len(), 1, "{all:?}");
    let base = all[0].join("base.db");
    assert_eq!(fs::metadata(&base).unwrap().permissions().mode() & 0o777, 0o600);
    let to = site.root().join("whole.db");
    replay(&base, &segments(&all[0]), Timestamp::MAX, &to).unwrap();
    assert_eq!(signed(&to), (0..500).collect::<Vec<_>>());
    let to = site.root().join("before.db");
    replay(&base, &segments(&all[0]), before, &to).unwrap();
    // What was committed shortly before may have been captured shortly after.
    let some = signed(&to);
    assert!(some.len() >= 10 && some.len() <= 200, "{}", some.len());
    assert_eq!(some, (0..u32::try_from(some.len()).unwrap()).collect::<Vec<_>>());
}

#[test]
fn a_rollback_journal_is_refused_with_its_remedy() {
    let site = Site::new();
    Connection::open(site.database()).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    site.init(&site.sources());
    let remedy = "PRAGMA journal_mode=WAL";
    site.run(["plan", "guestbook"]).expect_status(0).expect_text(remedy);
    site.run(["coverage", "guestbook"]).expect_status(0).expect_text(remedy);
    site.run(["log", "guestbook"]).expect_status(1).expect_text(remedy);
}

/// The archive as the repository holds it, read by restic: its base and segments.
fn stored(site: &Site, to: &str) -> (PathBuf, Vec<PathBuf>) {
    let target = site.root().join(to);
    site.restic(["restore", "latest", "--tag", "log", "--target", &target.display().to_string()])
        .expect_status(0);
    let (mut base, mut segments, mut dirs) = (None, Vec::new(), vec![target]);
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            match path.extension().and_then(|kind| kind.to_str()) {
                _ if path.is_dir() => dirs.push(path),
                Some("seg" | "open") => segments.push(path),
                Some("db") => base = Some(path),
                _ => {}
            }
        }
    }
    segments.sort();
    (base.expect("a base"), segments)
}

#[test]
fn what_was_committed_before_the_interrupt_is_in_the_repository() {
    let site = Site::new();
    make_guestbook(&site.database());
    site.init(&format!("{}archive = {{ rotate = \"1s\" }}\n", site.sources()));
    let source = SourceId::new("sqlite", site.database().display());
    let database = Connection::open(site.database()).unwrap();

    let archive = follow(&site);
    wait_until_caught_up(&site, &source);
    sign(&database, 0..100);
    end(archive, Signal::INT);
    let (base, segments) = stored(&site, "first");
    let to = site.root().join("first.db");
    replay(&base, &segments, Timestamp::MAX, &to).unwrap();
    assert_eq!(signed(&to), (0..100).collect::<Vec<_>>());
    let history = fs::read_dir(site.repository().with_file_name("history")).unwrap();
    let lines: String = history.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    assert!(lines.contains("event=ended") && !lines.contains("status=failed"), "{lines}");

    // Somebody is in the way of the last store: it waits, and the second interrupt ends it at once.
    let mut archive = follow(&site);
    wait_until_caught_up(&site, &source);
    sign(&database, 100..120);
    let held = fs::File::open(site.repository().join("config")).unwrap();
    held.lock().unwrap();
    send(&archive, Signal::INT);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(archive.try_wait().unwrap().is_none(), "it waits for its turn");
    send(&archive, Signal::INT);
    assert_eq!(archive.wait().unwrap().code(), Some(130));
    drop(held);
    let archive = follow(&site);
    wait_until_caught_up(&site, &source);
    end(archive, Signal::TERM);
    let (base, segments) = stored(&site, "second");
    let to = site.root().join("second.db");
    replay(&base, &segments, Timestamp::MAX, &to).unwrap();
    assert_eq!(signed(&to), (0..120).collect::<Vec<_>>());

    // A segment, closed because of its age, whose bytes have changed and not its size.
    let closed = epochs(&spool(&site).source_dir(&source))[0].join("00000001.seg");
    let mut bytes = fs::read(&closed).unwrap();
    bytes[1000] ^= 1;
    fs::write(&closed, bytes).unwrap();
    let quick = site.run(["coverage", "guestbook"]);
    assert!(!quick.out().contains("SHA-256"), "{}", quick.out());
    site.run(["coverage", "guestbook", "--verify"])
        .expect_text("SHA-256")
        .expect_text("whole in the other place");
    fs::write(&closed, b"short").unwrap();
    site.run(["coverage", "guestbook"]).expect_text("has 5 bytes instead of");
}
