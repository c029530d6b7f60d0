//! The write-ahead log of SQLite, followed while an application writes, checkpoints, restarts and is killed. Needs no
//! privileges. `STILLPOINT_LOG_MOMENTS`, `STILLPOINT_LOG_SECONDS` and `STILLPOINT_LOG_KILLS` make it longer.

#![allow(clippy::print_stdout, reason = "this is a test runner")]

mod sqlite_log_support;
#[path = "sqlite_log_support/torn.rs"]
mod sqlite_log_torn;
#[path = "sqlite_log_support/written.rs"]
mod sqlite_log_written;
mod sqlite_support;

use std::{
    env, fs,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use engines::sqlite::{Means, SqliteLock, wal::follow};
use jiff::{SignedDuration, Timestamp};
use model::port::{FailureKind, Hold};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rusqlite::Connection;
use sqlite_log_support::{
    Files, Process, at, captured, caught_up, checked, epochs, failures, helper, hole, last, make, noted,
    open, post, role,
};
use sqlite_log_torn::Torn;
use sqlite_log_written::Written;
use sqlite_support::{Notebook, OfNotebook, freeze, ok, run, source};

fn main() -> ExitCode {
    if let Some(code) = role() {
        return code;
    }
    run(&[
        ("every_moment_is_a_state_of_the_oracle", every_moment),
        ("a_killed_archive_goes_on_without_a_hole", killed_archive),
        ("a_log_begun_anew_after_all_was_captured_goes_on", begun_anew_without_loss),
        ("a_log_begun_anew_unseen_is_a_hole_and_a_new_base", hole_and_new_base),
        ("a_new_base_is_no_hole", new_base),
        ("a_new_base_after_an_unreadable_index_is_no_hole", new_base_after_torn_index),
        ("checkpoints_of_the_application_get_through", own_checkpoints),
        ("the_log_stays_short", stays_short),
        ("an_application_that_closes_leaves_the_log", closing),
        ("a_cut_works_beside_it", cut_beside),
        ("a_rollback_journal_is_refused", refused),
        ("another_file_in_its_place_is_a_hole", replaced),
        ("commits_are_hardly_slower", hardly_slower),
    ])
}

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

/// A database and an archive in a directory of their own.
struct Place {
    _dir: tempfile::TempDir,
    db: PathBuf,
    archive: PathBuf,
    logs: Vec<PathBuf>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        fs::create_dir(&archive).unwrap();
        let logs = (0..4).map(|n| dir.path().join(format!("notes-{n}"))).collect();
        Self { db: dir.path().join("app.db"), archive, logs, _dir: dir }
    }

    fn archive(&self) -> Process {
        let process = Process::archive(&self.db, &self.archive);
        caught_up(&self.archive);
        process
    }

    fn wal_len(&self) -> u64 {
        fs::metadata(self.db.with_file_name("app.db-wal")).map_or(0, |meta| meta.len())
    }
}

fn nanoseconds(at: i128) -> Timestamp {
    Timestamp::from_nanosecond(at).unwrap()
}

/// Two writers, one of which lets SQLite checkpoint, and somebody who vacuums and checkpoints by hand.
fn every_moment() {
    let seed = number("STILLPOINT_LOG_SEED", 4);
    println!("seed {seed}");
    let place = Place::new();
    drop(make(&place.db));
    let mut archive = place.archive();
    let began = Timestamp::now();
    let until = Instant::now() + Duration::from_secs(number("STILLPOINT_LOG_SECONDS", 6));
    let mut round = seed;
    while Instant::now() < until {
        // Between two rounds all of the application is gone.
        let _a = Process::load(&place.db, &place.logs[0], round, 1000);
        let _b = Process::load(&place.db, &place.logs[1], round + 1, 0);
        let _c = Process::admin(&place.db, &place.logs[2], round + 2);
        thread::sleep(Duration::from_secs(3));
        round += 3;
    }
    caught_up(&place.archive);
    assert!(archive.is_running());
    let committed = last(&place.db);
    drop(archive);
    let all = epochs(&place.archive);
    assert_eq!(all.len(), 1, "{}", failures(&place.archive));
    let noted = noted(&place.logs);
    let (reached, end) = at(&all[0], Timestamp::MAX);
    assert_eq!(end, committed, "something is lost");
    let written = Written::read(&all[0]);
    let generations = reached.place.unwrap().generation;
    println!(
        "{committed} transactions in {} records, {generations} logs begun anew, checkpoints {:?}",
        reached.transactions, noted.checkpoints
    );
    assert!(generations > 2, "the log was hardly ever begun anew");
    let mut random = StdRng::seed_from_u64(seed);
    let end = captured(&all[0]).unwrap().1;
    // The moments at which a commit was captured, and just after it, are where one too many or too few would be seen.
    let captured = written.captured();
    let mut moments: Vec<Timestamp> =
        [0, 1].map(|later| nanoseconds(captured[random.random_range(0..captured.len())] + later)).to_vec();
    moments.extend(
        (2..number("STILLPOINT_LOG_MOMENTS", 10))
            .map(|_| nanoseconds(random.random_range(began.as_nanosecond()..=end.as_nanosecond()))),
    );
    for moment in moments {
        let n = written.is_equal_at(&all[0], moment);
        let lag = SignedDuration::from_millis(number("STILLPOINT_LOG_LAG_MS", 5000).try_into().unwrap());
        let settled = (moment - lag).as_nanosecond();
        for (id, before, after) in &noted.commits {
            assert!(*id > n || *before < moment.as_nanosecond(), "{id} was not yet begun at {moment}");
            assert!(
                *id <= n || *after > settled,
                "{id} was committed long before {moment}, but {n} is the last"
            );
        }
    }
}

fn killed_archive() {
    let place = Place::new();
    drop(make(&place.db));
    let mut archive = place.archive();
    // Without checkpoints of its own, the application never begins the log anew while nobody watches.
    let load = Process::load(&place.db, &place.logs[0], 5, 0);
    // It holds the database open, so that closing the other one is never the last.
    let other = open(&place.db);
    other.query_row("SELECT n FROM counter", [], |_| Ok(())).unwrap();
    // Before its first transaction a log has no frame by which it could be known again.
    let asked = Instant::now();
    while captured(&epochs(&place.archive)[0]).is_none() {
        assert!(asked.elapsed() < Duration::from_secs(30), "nothing is captured");
        thread::sleep(Duration::from_millis(10));
    }
    let mut random = StdRng::seed_from_u64(5);
    for _ in 0..number("STILLPOINT_LOG_KILLS", 8) {
        thread::sleep(Duration::from_millis(random.random_range(0..400)));
        drop(archive);
        archive = Process::archive(&place.db, &place.archive);
    }
    drop(load);
    caught_up(&place.archive);
    drop((archive, other));
    let all = epochs(&place.archive);
    let committed = last(&place.db);
    let lasts: Vec<_> = all.iter().map(|epoch| (at(epoch, Timestamp::MAX).1, hole(epoch))).collect();
    assert_eq!(lasts.last().unwrap().0, committed, "{lasts:?}");
    println!("{committed} transactions, epochs: {lasts:?}");
    assert_eq!(all.len(), 1, "{lasts:?}");
}

/// All was captured before the archive was gone; meanwhile the log was begun anew, by a checkpoint or by a transaction that
/// is not yet committed but has pages in it.
fn begun_anew_without_loss() {
    for by_writer in [false, true] {
        let place = Place::new();
        let mut db = make(&place.db);
        db.execute_batch("PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=10").unwrap();
        let archive = place.archive();
        post(&mut db, 3000, 300);
        caught_up(&place.archive);
        drop(archive);
        let how = if by_writer { "PASSIVE" } else { "RESTART" };
        let left: (i64, i64) = db
            .query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |row| Ok((row.get(1)?, row.get(2)?)))
            .unwrap();
        assert_eq!(left.0, left.1, "{how}");
        let archive = if by_writer {
            db.execute_batch("BEGIN IMMEDIATE; UPDATE items SET body = randomblob(2900) WHERE id < 60")
                .unwrap();
            let archive = place.archive();
            db.execute_batch("COMMIT").unwrap();
            archive
        } else {
            place.archive()
        };
        let committed = post(&mut db, 100, 2);
        caught_up(&place.archive);
        drop(archive);
        let all = epochs(&place.archive);
        let holes: Vec<_> = all.iter().map(|epoch| hole(epoch)).collect();
        assert_eq!(all.len(), 1, "by a writer: {by_writer}, {holes:?}");
        let (reached, end) = at(&all[0], Timestamp::MAX);
        assert_eq!((end, reached.place.unwrap().generation), (committed, 1));
    }
}

fn hole_and_new_base() {
    let place = Place::new();
    let mut db = make(&place.db);
    let archive = place.archive();
    let first = post(&mut db, 100, 2);
    caught_up(&place.archive);
    drop(archive);
    let (missed, _) =
        (post(&mut db, 100, 2), db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
    let third = post(&mut db, 100, 2);
    let archive = place.archive();
    let fourth = post(&mut db, 100, 2);
    caught_up(&place.archive);
    drop(archive);
    let all = epochs(&place.archive);
    assert_eq!(all.len(), 2);
    assert_eq!(at(&all[0], Timestamp::MAX).1, first);
    assert!(hole(&all[1]).contains("another log was begun meanwhile"), "{}", hole(&all[1]));
    assert_eq!(checked(&all[1].join("base.db")), third);
    assert_eq!((missed, at(&all[1], Timestamp::MAX).1), (2, fourth));
}

fn new_base() {
    let place = Place::new();
    drop(make(&place.db));
    let archive = place.archive();
    let load = Process::load(&place.db, &place.logs[0], 6, 1000);
    for bases in 2..=4 {
        thread::sleep(Duration::from_millis(400));
        fs::write(place.archive.join("new-base"), "").unwrap();
        let asked = Instant::now();
        while epochs(&place.archive).len() < bases {
            assert!(asked.elapsed() < Duration::from_secs(60), "no base: {}", failures(&place.archive));
            thread::sleep(Duration::from_millis(10));
        }
    }
    thread::sleep(Duration::from_millis(400));
    drop(load);
    caught_up(&place.archive);
    drop(archive);
    let all = epochs(&place.archive);
    assert_eq!(all.len(), 4, "{}", failures(&place.archive));
    for pair in all.windows(2) {
        assert_eq!(hole(&pair[1]), "");
        // Where one ends the next begins, exactly.
        assert_eq!(at(&pair[0], Timestamp::MAX).1, checked(&pair[1].join("base.db")));
    }
    assert_eq!(at(all.last().unwrap(), Timestamp::MAX).1, last(&place.db));
}

/// What was committed between the last look of the helper and the base belongs to the epoch that ends.
fn new_base_after_torn_index() {
    let place = Place::new();
    let mut db = make(&place.db);
    post(&mut db, 100, 2);
    let from = Instant::now();
    let over = || epochs(&place.archive).len() == 2 || from.elapsed() > Duration::from_secs(30);
    let mut archive = Torn::new(Files::open(&place.archive), &place.db);
    follow(&helper(), &place.db, &mut archive, &over).unwrap();
    let all = epochs(&place.archive);
    assert_eq!(all.len(), 2);
    assert_eq!(hole(&all[1]), "");
    assert_eq!(at(&all[0], Timestamp::MAX).1, checked(&all[1].join("base.db")));
    assert_eq!(at(&all[1], Timestamp::MAX).1, 10);
}

fn own_checkpoints() {
    let place = Place::new();
    let mut db = make(&place.db);
    let _archive = place.archive();
    db.busy_timeout(Duration::from_secs(5)).unwrap();
    let mut longest = Duration::ZERO;
    for n in 0..30 {
        post(&mut db, 100, 2);
        let asked = Instant::now();
        let mode = if n % 2 == 0 { "TRUNCATE" } else { "RESTART" };
        let busy: i64 = db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |r| r.get(0)).unwrap();
        longest = longest.max(asked.elapsed());
        assert_eq!(busy, 0, "checkpoint {n} did not get through in 5 s");
    }
    println!("longest checkpoint {longest:?}");
    caught_up(&place.archive);
    let all = epochs(&place.archive);
    assert_eq!(all.len(), 1, "{}", failures(&place.archive));
    let (reached, end) = at(&all[0], Timestamp::MAX);
    assert_eq!(
        (end, reached.place.unwrap().generation),
        (30, 29 + u64::from(reached.place.unwrap().generation > 29))
    );
    let changed: Result<String, _> = Connection::open(&place.db)
        .and_then(|other| other.query_row("PRAGMA journal_mode=delete", [], |r| r.get(0)));
    assert!(changed.as_ref().map_or(true, |mode| mode == "wal"), "{changed:?}");
}

fn stays_short() {
    let place = Place::new();
    drop(make(&place.db));
    let _archive = place.archive();
    let _a = Process::load(&place.db, &place.logs[0], 7, 1000);
    let _b = Process::load(&place.db, &place.logs[1], 8, 0);
    let (mut longest, until) = (0, Instant::now() + Duration::from_secs(8));
    while Instant::now() < until {
        longest = longest.max(place.wal_len());
        thread::sleep(Duration::from_millis(20));
    }
    let written = captured_bytes(&place);
    println!("log at most {} KiB, {} KiB captured", longest >> 10, written >> 10);
    // How many bytes that is depends on how fast the machine writes; one that is never begun anew has them all.
    assert!(longest < written / 2, "the log grew to {longest} bytes of {written}");
}

fn captured_bytes(place: &Place) -> u64 {
    epochs(&place.archive).iter().map(|epoch| fs::metadata(epoch.join("seg")).unwrap().len()).sum()
}

fn closing() {
    let place = Place::new();
    drop(make(&place.db));
    let archive = place.archive();
    for n in 1..=5 {
        assert_eq!(post(&mut open(&place.db), 100, 2), n);
    }
    caught_up(&place.archive);
    drop(archive);
    // The log is still there, so a restart of the archive is no hole.
    let archive = place.archive();
    assert_eq!(post(&mut open(&place.db), 100, 2), 6);
    caught_up(&place.archive);
    drop(archive);
    let all = epochs(&place.archive);
    assert_eq!((all.len(), at(&all[0], Timestamp::MAX).1), (1, 6));
}

fn cut_beside() {
    let place = Place::new();
    drop(make(&place.db));
    let _archive = place.archive();
    let _load = Process::load(&place.db, &place.logs[0], 9, 1000);
    let mut lock = SqliteLock::new(source(&place.db), &place.db, Means::of(&Notebook::new()));
    ok(lock.prepare());
    for _ in 0..10 {
        let mut frozen = freeze(&mut lock);
        let held = last(&place.db);
        thread::sleep(Duration::from_millis(40));
        ok(frozen.prove());
        assert_eq!(last(&place.db), held);
        caught_up(&place.archive);
        assert_eq!(at(epochs(&place.archive).last().unwrap(), Timestamp::MAX).1, held);
        ok(frozen.thaw());
        thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(epochs(&place.archive).len(), 1);
}

fn refused() {
    let place = Place::new();
    open(&place.db).execute_batch("CREATE TABLE t(a)").unwrap();
    let failure = follow(&helper(), &place.db, &mut Files::open(&place.archive), &|| false).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.in_full().contains("PRAGMA journal_mode=WAL"), "{}", failure.in_full());
}

fn replaced() {
    let place = Place::new();
    drop(make(&place.db));
    let archive = place.archive();
    let other = place.db.with_file_name("other.db");
    let mut db = make(&other);
    post(&mut db, 100, 1);
    post(&mut db, 100, 1);
    drop(db);
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(place.db.with_file_name(format!("app.db{suffix}"))).unwrap();
    }
    fs::rename(&other, &place.db).unwrap();
    thread::sleep(Duration::from_millis(600));
    caught_up(&place.archive);
    drop(archive);
    let all = epochs(&place.archive);
    assert_eq!(all.len(), 2, "{}", failures(&place.archive));
    assert_eq!(at(&all[1], Timestamp::MAX).1, 2);
    assert!(failures(&place.archive).contains("replaced"), "{}", failures(&place.archive));
}

/// Prints what a commit costs with and without; a figure is for the benchmarks, so nothing is asserted but that all is well.
fn hardly_slower() {
    let mut told = Vec::new();
    for with in [false, true] {
        let place = Place::new();
        let mut db = make(&place.db);
        let archive = with.then(|| place.archive());
        let until = Instant::now() + Duration::from_secs(number("STILLPOINT_LOG_COMMIT_SECONDS", 2));
        let (mut longest, mut count) = (Duration::ZERO, 0);
        while Instant::now() < until {
            let began = Instant::now();
            post(&mut db, 300, 3);
            longest = longest.max(began.elapsed());
            count += 1;
        }
        told.push((with, count, longest));
        if archive.is_some() {
            caught_up(&place.archive);
            assert_eq!(at(&epochs(&place.archive)[0], Timestamp::MAX).1, last(&place.db));
        }
    }
    println!("(archive, commits, longest): {told:?}");
}
