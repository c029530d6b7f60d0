//! SQLite under load: locks, proofs and pins against writers in other processes. Needs no privileges.

mod sqlite_support;

use std::{
    any::Any,
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use engines::sqlite::{Fingerprint, Means, SqliteLock, probe, sidecars};
use model::{
    entry::{Body, Kind, Role, Stamp},
    known::Known,
    plan::JournalMode,
    port::{Clock, FailureKind, Frozen, Hold, Pinner, Silent},
    problem::Effect,
    verdict::Stillness,
};
use os::clock::{SystemClock, deadline_in};
use rusqlite::Connection;
use sqlite_support::{
    Actor, BOTH, Notebook, OfNotebook, Place, as_nobody, bytes_of, can_write, checked, command, cut, freeze,
    kill, make_ledger, ok, output, pinner, plan, restore, rows_of, run, source, wait_beyond,
};
use testkit::conformance;

fn main() -> ExitCode {
    run(&[
        ("holds_conform", holds_conform),
        ("pinners_conform", pinners_conform),
        ("the_lock_survives_that_we_open_and_close_the_files", survives_closing),
        ("every_pin_is_the_state_at_the_lock", every_pin_is_the_state_at_the_lock),
        ("transactions_over_two_databases_are_whole", two_databases),
        ("a_killed_child_frees_writers_and_is_noticed", killed_child),
        ("a_killed_parent_frees_writers", killed_parent),
        ("the_lock_lapses_at_its_deadline", lapses),
        ("exclusive_locking_is_refused_with_its_remedy", exclusive_is_refused),
        ("a_large_transaction_is_waited_for", a_large_transaction_is_waited_for),
        ("what_is_no_database_is_refused", foreign_is_refused),
        ("what_cannot_be_written_is_refused", unwritable_is_refused),
        ("a_replaced_file_is_lost", replaced_file),
        ("a_long_transaction_is_given_up_in_time", long_transaction),
        ("a_comparison_that_takes_too_long_is_given_up", slow_comparison),
        ("a_restore_over_leftovers_is_whole", restore_over_leftovers),
        ("an_unchanged_database_is_not_checked_again", not_checked_again),
        ("damage_is_told_and_stored", damage_is_told),
        ("links_are_stored_as_links", links_are_stored),
        ("the_directory_is_left_as_it_was", directory_left_alone),
        ("an_empty_database_is_a_database", empty_database),
        ("a_changed_journal_mode_is_refused", changed_mode),
    ])
}

fn lock(path: &Path) -> SqliteLock {
    let mut lock = SqliteLock::new(source(path), path, Means::of(&Notebook::new()));
    ok(lock.prepare());
    lock
}

fn survives_closing() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        let mut lock = lock(&place.path);
        let mut frozen = freeze(&mut lock);
        for path in sidecars(&place.path) {
            // The trap: a close of any of these by the process that has the lock would drop it.
            drop(File::options().read(true).write(true).open(path));
        }
        assert!(!can_write(&place.path), "{journal:?}: a writer got through");
        let Stillness::Lock(how) = ok(frozen.prove()) else { panic!("no lock") };
        let name = if journal == JournalMode::Wal { "WAL write lock" } else { "RESERVED byte" };
        assert!(how.starts_with(name) && how.ends_with("transaction open"), "{how}");
        ok(frozen.thaw());
        assert!(can_write(&place.path));
    }
}

fn every_pin_is_the_state_at_the_lock() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        let mut writers: Vec<Actor> = (0..3).map(|n| Actor::writer(&place.path, 50 + 4000 * n)).collect();
        let mut last = 0;
        for _ in 0..6 {
            wait_beyond(&place.path, last);
            let mut lock = lock(&place.path);
            let plan = plan(&place.path, &place.staging, journal, false);
            let mut pinner = pinner(&plan, lock.holder(), None);
            let (state, harvest, pin) = cut(&mut lock, &mut pinner, &place.path);
            assert!(harvest.problems.is_empty(), "{:?}", harvest.problems);
            assert_eq!(harvest.checks[0], "quick_check: ok");
            let target = tempfile::tempdir().expect("a directory");
            restore(&harvest, target.path());
            assert_eq!(checked(&target.path().join("ledger.db")), state, "{journal:?}");
            ok(pin.release());
            last = state.last;
        }
        assert!(writers.iter_mut().all(Actor::is_running), "{journal:?}: a writer failed");
        assert_eq!(place.names("staging"), Vec::<String>::new());
    }
}

fn two_databases() {
    let (a, b) = (Place::with_ledger(JournalMode::Rollback), Place::with_ledger(JournalMode::Rollback));
    let _writer = Actor::pair(&a.path, &b.path);
    thread::sleep(Duration::from_millis(200));
    let mut last = 0;
    for _ in 0..5 {
        let (mut first, mut second) = (lock(&a.path), lock(&b.path));
        let mut pin_a =
            pinner(&plan(&a.path, &a.staging, JournalMode::Rollback, false), first.holder(), None);
        let mut pin_b =
            pinner(&plan(&b.path, &b.staging, JournalMode::Rollback, false), second.holder(), None);
        ok(pin_a.prepare(&Known::default()));
        ok(pin_b.prepare(&Known::default()));
        let (held_a, held_b) = (freeze(&mut first), freeze(&mut second));
        let until = deadline_in(Duration::from_secs(10));
        let mut pins = [ok(pin_a.pin(until)), ok(pin_b.pin(until))];
        ok(held_b.thaw());
        ok(held_a.thaw());
        let counters: Vec<i64> = pins
            .iter_mut()
            .map(|pin| {
                let target = tempfile::tempdir().expect("a directory");
                restore(&ok(pin.harvest(&Silent)), target.path());
                let db = Connection::open(target.path().join("ledger.db")).expect("opens");
                db.query_row("SELECT n FROM counter", [], |r| r.get(0)).expect("a counter")
            })
            .collect();
        assert_eq!(counters[0], counters[1]);
        assert!(counters[0] > last, "nobody wrote");
        last = counters[0];
        thread::sleep(Duration::from_millis(30));
    }
}

fn killed_child() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        let notebook = Notebook::new();
        let mut lock = SqliteLock::new(source(&place.path), &place.path, Means::of(&notebook));
        ok(lock.prepare());
        let mut pinner = pinner(&plan(&place.path, &place.staging, journal, false), lock.holder(), None);
        ok(pinner.prepare(&Known::default()));
        let mut frozen = freeze(&mut lock);
        kill(notebook.children()[0]);
        thread::sleep(Duration::from_millis(50));
        assert!(can_write(&place.path), "{journal:?}: writers are still held");
        let failure = frozen.prove().expect_err("it is lost");
        assert_eq!(failure.kind, FailureKind::Lost, "{}", failure.in_full());
        let refused = pinner.pin(deadline_in(Duration::from_secs(5)));
        assert_eq!(refused.err().expect("nothing to pin under").kind, FailureKind::Lost);
        drop(frozen);
        ok(freeze(&mut lock).thaw());
        drop(lock);
        assert!(notebook.open().is_empty());
    }
}

fn killed_parent() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        let holder = Actor::that_says("held", "__hold", &place.path);
        assert!(!can_write(&place.path));
        // Dropping the actor is `kill -9` of the process that started the lock's child.
        drop(holder);
        let killed = Instant::now();
        assert!(can_write(&place.path), "{journal:?}: writers are held by nobody's child");
        assert!(killed.elapsed() < Duration::from_secs(2));
    }
}

fn lapses() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        let mut lock = lock(&place.path);
        let mut frozen = ok(lock.freeze(deadline_in(Duration::from_millis(400))));
        ok(frozen.prove());
        thread::sleep(Duration::from_millis(500));
        assert!(can_write(&place.path), "{journal:?}: held beyond its deadline");
        assert_eq!(frozen.prove().expect_err("it has lapsed").kind, FailureKind::Lost);
        ok(frozen.thaw());
    }
}

fn exclusive_is_refused() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        let mut lock = lock(&place.path);
        let hermit = if journal == JournalMode::Rollback {
            Some(Actor::that_says("exclusive", "__exclusive", &place.path))
        } else {
            // In WAL mode nobody gets it for himself while another connection is open: ours is opened after.
            drop(lock);
            let hermit = Actor::that_says("exclusive", "__exclusive", &place.path);
            lock = SqliteLock::new(source(&place.path), &place.path, Means::of(&Notebook::new()));
            ok(lock.prepare());
            Some(hermit)
        };
        let facts = probe(source(&place.path), &place.path, &[]);
        let refusal = facts.refusal.expect("it is refused");
        assert!(refusal.what.contains("exclusively"), "{refusal:?}");
        assert!(refusal.remedy.contains("locking_mode=NORMAL"), "{refusal:?}");
        let failure = lock.freeze(deadline_in(Duration::from_secs(1))).err().expect("it is locked");
        // A hold cannot tell it from a large commit, and is tried again.
        assert_eq!(failure.kind, FailureKind::Busy, "{}", failure.in_full());
        assert!(failure.remedy.contains("locking_mode=NORMAL"), "{}", failure.in_full());
        drop(hermit);
        ok(freeze(&mut lock).thaw());
        assert_eq!(probe(source(&place.path), &place.path, &[]).refusal, None);
    }
}

fn a_large_transaction_is_waited_for() {
    let place = Place::with_ledger(JournalMode::Rollback);
    let hermit = Actor::that_says("exclusive", "__exclusive", &place.path);
    let facts = std::thread::scope(|scope| {
        let probing = scope.spawn(|| probe(source(&place.path), &place.path, &[]));
        // As long as the commit of some hundred megabytes.
        std::thread::sleep(Duration::from_secs(2));
        drop(hermit);
        probing.join().expect("no panic")
    });
    assert_eq!(facts.refusal, None);
}

fn foreign_is_refused() {
    let place = Place::empty();
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("encrypted.db", (0..8192u32).map(|n| (n * 7919 % 251) as u8).collect(), "or encrypted"),
        ("text.db", b"not a database at all".repeat(100), "not an SQLite database"),
        ("short.db", b"SQLite format 3\0".to_vec(), "not an SQLite database"),
        ("png.db", [b"\x89PNG\r\n".to_vec(), vec![0; 5000]].concat(), "not an SQLite database"),
    ];
    for (name, bytes, what) in cases {
        let path = place.root.join("app").join(name);
        fs::write(&path, &bytes).expect("written");
        let refusal = probe(source(&path), &path, &[]).refusal.expect("it is refused");
        assert!(refusal.what.contains(what) && !refusal.remedy.is_empty(), "{name}: {refusal:?}");
        let mut lock = SqliteLock::new(source(&path), &path, Means::of(&Notebook::new()));
        let failure = lock.prepare().expect_err("it is no database");
        assert_eq!(failure.kind, FailureKind::Refused, "{name}: {}", failure.in_full());
        assert_eq!(fs::read(&path).expect("there"), bytes, "{name} was changed");
    }
    let missing = probe(source(&place.path), &place.path, &[]).refusal.expect("refused");
    assert!(missing.what.contains("not there"), "{missing:?}");
    let directory = place.root.join("app");
    let refusal = probe(source(&directory), &directory, &[]).refusal.expect("refused");
    assert!(refusal.what.contains("a directory"), "{refusal:?}");
}

fn unwritable_is_refused() {
    let place = Place::with_ledger(JournalMode::Rollback);
    for directory in [&place.root, &place.root.join("app")] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("root or owner");
    }
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o444)).expect("root or owner");
    // This program may lie where nobody can get at it.
    let copy = place.root.join("program");
    fs::copy(std::env::current_exe().expect("this program"), &copy).expect("copied");
    let mut asked = std::process::Command::new(&copy);
    asked.arg("__probe").arg(&place.path);
    let said = output(&mut as_nobody(asked));
    assert!(said.contains("cannot be written to") && said.contains("as its owner or as root"), "{said:?}");
}

fn replaced_file() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        let other = Place::with_ledger(journal);
        let mut lock = lock(&place.path);
        let mut pinner = pinner(&plan(&place.path, &place.staging, journal, false), lock.holder(), None);
        ok(pinner.prepare(&Known::default()));
        let mut frozen = freeze(&mut lock);
        let mut pin = ok(pinner.pin(deadline_in(Duration::from_secs(5))));
        fs::rename(&place.path, place.root.join("app/old.db")).expect("renamed");
        fs::copy(&other.path, &place.path).expect("copied");
        let failure = frozen.prove().expect_err("another file is there now");
        assert_eq!(failure.kind, FailureKind::Lost, "{}", failure.in_full());
        let unchanged = pin.unchanged(deadline_in(Duration::from_secs(5)));
        assert_eq!(unchanged.expect_err("another file is there now").kind, FailureKind::Lost);
        ok(pin.release());
        let again = pinner.pin(deadline_in(Duration::from_secs(5))).err().expect("another file is there now");
        assert_eq!(again.kind, FailureKind::Lost, "{}", again.in_full());
        ok(frozen.thaw());
        // The next freeze notices that its child has the old file open, the one after it has the new one.
        let moved = lock.freeze(deadline_in(Duration::from_secs(5)));
        assert_eq!(moved.err().expect("the child has the old file").kind, FailureKind::Lost);
        ok(ok(lock.freeze(deadline_in(Duration::from_secs(5)))).thaw());
    }
}

fn long_transaction() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        let mut lock = lock(&place.path);
        let sitter = Actor::that_says("sitting", "__sit", &place.path);
        let asked = Instant::now();
        let failure = lock.freeze(deadline_in(Duration::from_millis(400))).err().expect("it is locked");
        assert!(matches!(failure.kind, FailureKind::Busy | FailureKind::TimedOut), "{}", failure.in_full());
        assert!(asked.elapsed() < Duration::from_millis(600), "{journal:?}: {:?}", asked.elapsed());
        drop(sitter);
        thread::sleep(Duration::from_millis(100));
        assert!(can_write(&place.path), "{journal:?}: a lock was left");
    }
}

fn slow_comparison() {
    let place = Place::with_ledger(JournalMode::Rollback);
    let db = Connection::open(&place.path).expect("opens");
    db.execute("INSERT INTO ledger VALUES (-1, 0, zeroblob(400000000))", []).expect("a large row");
    drop(db);
    let mut lock = lock(&place.path);
    let plan = plan(&place.path, &place.staging, JournalMode::Rollback, false);
    let mut pinner = pinner(&plan, lock.holder(), None);
    ok(pinner.prepare(&Known::default()));
    let frozen = freeze(&mut lock);
    let asked = Instant::now();
    let failure = pinner.pin(deadline_in(Duration::from_millis(15))).err().expect("400 MB take longer");
    assert_eq!(failure.kind, FailureKind::TimedOut, "{}", failure.in_full());
    assert!(failure.what.contains("were not compared"), "{}", failure.in_full());
    assert!(asked.elapsed() < Duration::from_millis(200), "{:?}", asked.elapsed());
    ok(frozen.thaw());
}

fn restore_over_leftovers() {
    let place = Place::with_ledger(JournalMode::Wal);
    let mut writer = Actor::writer(&place.path, 500);
    thread::sleep(Duration::from_millis(300));
    let mut lock = lock(&place.path);
    let plan = plan(&place.path, &place.staging, JournalMode::Wal, false);
    let mut pinner = pinner(&plan, lock.holder(), None);
    let (state, harvest, pin) = cut(&mut lock, &mut pinner, &place.path);
    thread::sleep(Duration::from_millis(200));
    assert!(writer.is_running());
    drop(writer);
    drop(lock);
    let app = place.root.join("app");
    assert!(fs::metadata(app.join("ledger.db-wal")).is_ok_and(|wal| wal.len() > 0), "nothing is left over");
    let stored = harvest.entries.iter().find(|e| e.path == place.path).expect("the database");
    assert_eq!(bytes_of(stored)[18..20], [2, 2], "it is still a WAL database");
    restore(&harvest, &app);
    assert_eq!(checked(&place.path), state);
    ok(pin.release());
}

fn not_checked_again() {
    for journal in BOTH {
        let place = Place::with_ledger(journal);
        thread::sleep(Duration::from_millis(1_100));
        let checks = |previous: Option<Fingerprint>| {
            let mut lock = lock(&place.path);
            let plan = plan(&place.path, &place.staging, journal, false);
            let mut pinner = pinner(&plan, lock.holder(), previous);
            cut(&mut lock, &mut pinner, &place.path).1.checks
        };
        let first = checks(None);
        assert_eq!(first[0], "quick_check: ok");
        let fingerprint = Fingerprint::from_checks(first.iter().map(String::as_str));
        assert!(fingerprint.is_some(), "{first:?}");
        let second = checks(fingerprint.clone());
        assert_eq!(second[0], "quick_check: unchanged since the check of the last backup");
        assert_eq!(second[1], first[1]);
        assert!(can_write(&place.path));
        assert_eq!(checks(fingerprint), ["quick_check: ok"], "lately changed: checked, no fingerprint");
    }
}

fn damage_is_told() {
    let place = Place::with_ledger(JournalMode::Rollback);
    let db = Connection::open(&place.path).expect("opens");
    for _ in 0..400 {
        db.execute("INSERT INTO items(body) VALUES (randomblob(900))", []).expect("an item");
    }
    drop(db);
    let mut bytes = fs::read(&place.path).expect("there");
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 8192].fill(0x5a);
    fs::write(&place.path, &bytes).expect("damaged");
    let mut lock = lock(&place.path);
    let plan = plan(&place.path, &place.staging, JournalMode::Rollback, false);
    let mut pinner = pinner(&plan, lock.holder(), None);
    ok(pinner.prepare(&Known::default()));
    let frozen = freeze(&mut lock);
    let mut pin = ok(pinner.pin(deadline_in(Duration::from_secs(5))));
    ok(frozen.thaw());
    let harvest = ok(pin.harvest(&Silent));
    let [problem] = &harvest.problems[..] else { panic!("{:?}", harvest.problems) };
    assert_eq!(problem.effect, Effect::Missing);
    assert!(problem.what.contains("fails quick_check") && problem.remedy.contains(".recover"), "{problem}");
    assert_eq!(harvest.checks, Vec::<String>::new());
    let stored = harvest.entries.iter().find(|e| e.path == place.path).expect("stored all the same");
    assert!(bytes_of(stored) == bytes);
}

fn links_are_stored() {
    let place = Place::with_ledger(JournalMode::Rollback);
    let current = place.root.join("current");
    symlink("app", &current).expect("a link");
    let given = place.root.join("given.db");
    symlink(current.join("ledger.db"), &given).expect("a link");
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o640)).expect("ours");
    let mut lock = lock(&given);
    let plan = plan(&given, &place.staging, JournalMode::Rollback, false);
    let mut pinner = pinner(&plan, lock.holder(), None);
    let (_, harvest, pin) = cut(&mut lock, &mut pinner, &place.path);
    let content: BTreeMap<PathBuf, Kind> = harvest
        .entries
        .iter()
        .filter(|e| e.role == Role::Content)
        .map(|e| (e.path.clone(), e.kind.clone()))
        .collect();
    let sidecar = |suffix: &str| place.root.join(format!("app/ledger.db{suffix}"));
    let expected = BTreeMap::from([
        (given.clone(), Kind::Symlink(current.join("ledger.db"))),
        (current.clone(), Kind::Symlink("app".into())),
        (sidecar(""), Kind::File),
        (sidecar("-wal"), Kind::File),
        (sidecar("-journal"), Kind::File),
    ]);
    assert_eq!(content, expected);
    for entry in harvest.entries.iter().filter(|e| e.kind == Kind::File) {
        assert_eq!(entry.meta.mode & 0o7777, 0o640, "{}", entry.path.display());
        assert!(!entry.meta.stamp().is_settled_at(jiff::Timestamp::now()), "a parent could carry it");
    }
    let wal = harvest.entries.iter().find(|e| e.path == sidecar("-wal")).expect("stored");
    assert_eq!(wal.body, Body::Inline(vec![]));
    ok(pin.release());
}

fn directory_left_alone() {
    let place = Place::with_ledger(JournalMode::Wal);
    assert_eq!(place.names("app"), ["ledger.db"], "its last user has closed it");
    let cycle = || {
        let mut lock = lock(&place.path);
        ok(freeze(&mut lock).thaw());
    };
    cycle();
    assert_eq!(place.names("app"), ["ledger.db"]);
    let writer = Actor::writer(&place.path, 100);
    thread::sleep(Duration::from_millis(200));
    drop(writer);
    let files = || {
        ["ledger.db", "ledger.db-wal"].map(|name| fs::read(place.root.join("app").join(name)).expect(name))
    };
    let before = files();
    assert!(!before[1].is_empty());
    cycle();
    assert!(files() == before, "the WAL was folded in or lost");
    let rollback = Place::with_ledger(JournalMode::Rollback);
    let mut lock = lock(&rollback.path);
    let frozen = freeze(&mut lock);
    assert_eq!(rollback.names("app"), ["ledger.db"]);
    ok(frozen.thaw());
}

fn empty_database() {
    let place = Place::empty();
    fs::write(&place.path, b"").expect("made");
    assert_eq!(probe(source(&place.path), &place.path, &[]).refusal, None);
    let mut lock = lock(&place.path);
    let plan = plan(&place.path, &place.staging, JournalMode::Rollback, false);
    let mut pinner = pinner(&plan, lock.holder(), None);
    ok(pinner.prepare(&Known::default()));
    let mut frozen = freeze(&mut lock);
    assert!(!can_write(&place.path));
    let mut pin = ok(pinner.pin(deadline_in(Duration::from_secs(5))));
    ok(frozen.prove());
    ok(frozen.thaw());
    let harvest = ok(pin.harvest(&Silent));
    assert!(harvest.problems.is_empty());
    assert_eq!(harvest.entries.iter().map(|e| e.meta.size.0).max(), Some(0));
}

fn changed_mode() {
    for (planned, real) in
        [(JournalMode::Wal, JournalMode::Rollback), (JournalMode::Rollback, JournalMode::Wal)]
    {
        let place = Place::with_ledger(real);
        let mut lock = lock(&place.path);
        let mut pinner = pinner(&plan(&place.path, &place.staging, planned, false), lock.holder(), None);
        ok(pinner.prepare(&Known::default()));
        let frozen = freeze(&mut lock);
        let failure = pinner.pin(deadline_in(Duration::from_secs(5))).err().expect("the mode is another");
        assert_eq!(failure.kind, FailureKind::Refused, "{}", failure.in_full());
        assert!(failure.what.contains("journal mode"), "{}", failure.in_full());
        ok(frozen.thaw());
    }
}

// The suites of the ports.

struct HoldBench {
    place: Place,
    notebook: Arc<Notebook>,
}

impl conformance::hold::Bench for HoldBench {
    fn hold(&self) -> Box<dyn Hold> {
        let path = &self.place.path;
        Box::new(SqliteLock::new(source(path), path, Means::of(&self.notebook)))
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }

    fn writers_run(&self) -> bool {
        can_write(&self.place.path)
    }

    fn obstruct(&self) -> Option<Box<dyn Any>> {
        Some(Box::new(Actor::that_says("sitting", "__sit", &self.place.path)))
    }

    fn lose(&self) -> bool {
        kill(self.notebook.children()[0]);
        true
    }

    fn open_undos(&self) -> usize {
        self.notebook.open().len()
    }
}

fn holds_conform() {
    for journal in BOTH {
        conformance::hold::suite(|| {
            Box::new(HoldBench { place: Place::with_ledger(journal), notebook: Notebook::new() })
        });
    }
}

struct PinBench {
    place: Place,
    journal: JournalMode,
    lock: RefCell<SqliteLock>,
    notebook: Arc<Notebook>,
}

/// Keeps what is frozen until it is dropped.
struct Guard(Option<Box<dyn Frozen>>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(frozen) = self.0.take() {
            ok(frozen.thaw());
        }
    }
}

impl PinBench {
    fn new(journal: JournalMode) -> Self {
        let place = Place::empty();
        make_ledger(&place.path, journal);
        let lock = RefCell::new(lock(&place.path));
        Self { place, journal, lock, notebook: Notebook::new() }
    }
}

impl conformance::pinner::Bench for PinBench {
    fn pinner(&self) -> Box<dyn Pinner> {
        let plan = plan(&self.place.path, &self.place.staging, self.journal, false);
        let holder = self.lock.borrow().holder();
        Box::new(ok(engines::sqlite::SqlitePinner::new(&plan, holder, Means::of(&self.notebook), None)))
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }

    fn hold(&self) -> Box<dyn Any> {
        Box::new(Guard(Some(freeze(&mut self.lock.borrow_mut()))))
    }

    fn write(&self, step: u64) {
        output(command("__write", &self.place.path).arg(step.to_string()));
    }

    fn writes_under_hold(&self) -> bool {
        false
    }

    fn live(&self) -> conformance::pinner::Content {
        let text = output(&mut command("__dump", &self.place.path));
        text.lines()
            .map(|line| {
                let (key, hex) = line.split_once(' ').expect("two words");
                let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("a digit");
                (key.to_owned(), (0..hex.len()).step_by(2).map(byte).collect())
            })
            .collect()
    }

    fn stored(&self, files: &BTreeMap<PathBuf, Vec<u8>>) -> conformance::pinner::Content {
        let target = tempfile::tempdir().expect("a directory");
        for (path, bytes) in files {
            fs::write(target.path().join(path.file_name().expect("a name")), bytes).expect("restored");
        }
        rows_of(&Connection::open(target.path().join("ledger.db")).expect("opens"))
    }

    fn carries(&self) -> bool {
        false
    }

    fn settle(&self) {
        thread::sleep(Duration::from_millis(1_100));
    }

    fn read_live(&self, _path: &Path) -> Option<(Stamp, Vec<u8>)> {
        None
    }

    fn leftovers(&self) -> Vec<String> {
        self.place.names("staging")
    }

    fn open_undos(&self) -> usize {
        self.notebook.open().len()
    }

    fn destroy(&self) -> bool {
        fs::remove_dir_all(self.place.root.join("app")).is_ok()
    }
}

fn pinners_conform() {
    for journal in BOTH {
        conformance::pinner::suite(|| Box::new(PinBench::new(journal)));
    }
}
