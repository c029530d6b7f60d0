//! Dumps and physical copies of real MariaDB servers: what is pinned comes back, to the last bit.

mod server_dump_support;

use std::{fs, sync::Arc, thread, time::Duration};

use engines::server::{
    Holder,
    dump::{DumpPinner, Loaded, SwapPlan, Target, load, recover, undo_exchange},
    physical::{PhysicalPinner, replay_plan},
};
use model::{
    entry::Harvest,
    id::CutId,
    known::Known,
    plan::PinMethod,
    port::{FailureKind, Journal, Pinner, Silent},
    problem::Effect,
    server::ServerForm,
    verdict::Stillness,
};
use mysql::prelude::Queryable;
use server_dump_support::{
    BESIDE, BUDGET, Bench, access, assert_same, ledger, ok, portrait, schema, thaw, within, write_out,
};
use testkit::{fakes::journal::MemoryJournal, server::PrivateServer};

fn dumper(bench: &Bench, holder: &Holder, databases: &[&str]) -> DumpPinner {
    let plan = bench.server_plan(databases);
    let pin = bench.pin_plan(PinMethod::ServerDump(plan.clone()));
    ok(DumpPinner::new(&pin, &plan, holder.clone(), bench.means()))
}

/// A harvest written out as a restore does it, and what a loading needs.
struct Restored {
    dir: tempfile::TempDir,
    journal: Arc<MemoryJournal>,
}

impl Restored {
    fn of(harvest: &Harvest) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        write_out(&harvest.entries, dir.path());
        Self { dir, journal: Arc::new(MemoryJournal::default()) }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join(BESIDE.trim_start_matches('/'))
    }

    fn with<T>(&self, server: &PrivateServer, work: impl FnOnce(&Target<'_>) -> T) -> T {
        let journal: Arc<dyn Journal> = self.journal.clone();
        let access = access(server);
        let done = work(&Target { access: &access, journal: &journal, staging: self.dir.path() });
        assert!(self.journal.open().is_empty(), "{:?}", self.journal.open());
        done
    }
}

fn loaded(harvest: &Harvest, server: &PrivateServer) -> Loaded {
    let restored = Restored::of(harvest);
    restored.with(server, |target| ok(load(&restored.root(), &[], target)))
}

fn worst(harvest: &Harvest) -> Option<Effect> {
    harvest.problems.iter().map(|problem| problem.effect).max()
}

/// What a harvest says that is worse than a note.
fn bad(harvest: &Harvest) -> String {
    let bad = harvest.problems.iter().filter(|problem| problem.effect != Effect::Note);
    bad.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn cut_id() -> CutId {
    CutId::new("20261120T031500Z-5be2a1").expect("an id")
}

#[test]
fn every_type_and_object_comes_back_as_it_was() {
    let bench = Bench::new(PrivateServer::builder().start());
    schema::make(&bench.server);
    let was = portrait(&bench.server, &["every", "other"]);
    let mut lock = bench.lock();
    let mut pinner = dumper(&bench, &lock.holder, &[]);
    let (harvest, pin) = bench.cut(&mut lock, &mut pinner, || {});
    assert_eq!(worst(&harvest), Some(Effect::Note), "{:#?}", harvest.problems);
    let other = PrivateServer::builder().no_binlog().start();
    let told = loaded(&harvest, &other);
    assert_eq!(told.databases, 2);
    assert!(told.rows > 23_000, "{told:?}");
    let is = portrait(&other, &["every", "other"]);
    assert_same(&was, &is);
    for account in ["reader@'%'", "clerk"] {
        let grants = |server: &PrivateServer| {
            server.connect().query::<String, _>(format!("SHOW GRANTS FOR {account}")).expect("grants")
        };
        assert_eq!(grants(&bench.server), grants(&other));
    }
    ok(pin.release());
    drop((pinner, lock));
    bench.assert_clean();
}

#[test]
fn all_tables_are_of_the_one_instant_while_others_write() {
    let bench = Bench::new(PrivateServer::builder().rocksdb().start());
    ledger::make(&bench.server, ["InnoDB", "InnoDB", "ROCKSDB", "InnoDB"]);
    let mut lock = bench.lock();
    let mut pinner = dumper(&bench, &lock.holder, &["ledger"]);
    let gtid = |text: &str| text.rsplit('-').next().and_then(|n| n.parse::<u64>().ok()).expect("a GTID");
    let before = gtid(&bench.server.ask("SELECT @@gtid_binlog_pos").expect("a GTID"));
    let writers = ledger::Writers::start(&bench.server, 4);
    thread::sleep(Duration::from_millis(300));
    for round in 0..5 {
        let (harvest, pin) = bench.cut(&mut lock, &mut pinner, || thread::sleep(Duration::from_millis(200)));
        assert_eq!(worst(&harvest), Some(Effect::Note), "{}", bad(&harvest));
        let record = harvest.server.as_ref().expect("a record");
        assert_eq!(
            (record.form, record.databases.as_slice()),
            (ServerForm::Dump, &["ledger".to_owned()][..])
        );
        let at = gtid(&record.position.gtid.as_ref().expect("a GTID").0);
        let other = PrivateServer::builder().no_binlog().rocksdb().start();
        loaded(&harvest, &other);
        let rows = ledger::judge(&other);
        assert!(rows > 0);
        assert_eq!(
            rows,
            at - before,
            "round {round}: every transaction up to the position, and none after it"
        );
        ok(pin.release());
    }
    drop((writers, pinner, lock));
    bench.assert_clean();
}

#[test]
fn a_definition_stays_until_its_table_is_read() {
    let bench = Bench::new(PrivateServer::builder().start());
    ledger::make(&bench.server, ["InnoDB", "InnoDB", "InnoDB", "MyISAM"]);
    bench.server.run((0..4).map(|t| {
        format!("INSERT INTO ledger.t{t} (writer, n, pad) SELECT 0, seq, REPEAT('x', 100) FROM ledger.seq_1_to_5000")
    }));
    let mut lock = bench.lock();
    let mut pinner = dumper(&bench, &lock.holder, &["ledger"]);
    let mut alter = None;
    let (harvest, pin) = bench.cut(&mut lock, &mut pinner, || {
        let mut conn = bench.server.connect();
        alter = Some(thread::spawn(move || {
            conn.query_drop("ALTER TABLE ledger.t1 DROP COLUMN pad").expect("in the end");
            conn.query_drop("DROP TABLE ledger.t3").expect("in the end");
        }));
        let waits = "SELECT COUNT(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for table metadata lock'";
        let seen = testkit::server::wait_until(Duration::from_secs(10), || bench.server.ask(waits).as_deref() == Some("1"));
        assert!(seen.is_some(), "the ALTER waits for the dump");
    });
    alter.expect("it was started").join().expect("it ended, since the dump gave its locks up");
    let other = PrivateServer::builder().no_binlog().start();
    loaded(&harvest, &other);
    assert_eq!(ledger::judge(&other), 5000);
    assert_eq!(bad(&harvest), "");
    ok(pin.release());
    drop((pinner, lock));
    bench.assert_clean();
}

#[test]
fn what_is_not_of_the_instant_is_named() {
    let bench = Bench::new(PrivateServer::builder().start());
    bench.server.run([
        "CREATE DATABASE d",
        "CREATE TABLE d.small (a INT) ENGINE=MyISAM",
        "INSERT INTO d.small VALUES (1)",
        "CREATE TABLE d.large (a INT, b VARCHAR(1000)) ENGINE=MyISAM",
        "INSERT INTO d.large SELECT seq, REPEAT('x', 1000) FROM d.seq_1_to_8000",
        "CREATE PROCEDURE d.p() SELECT 1",
    ]);
    let mut lock = bench.lock();
    let mut pinner = dumper(&bench, &lock.holder, &["d"]);
    let (harvest, pin) = bench.cut(&mut lock, &mut pinner, || {
        bench.server.run([
            "INSERT INTO d.small VALUES (2)",
            "INSERT INTO d.large VALUES (0, '')",
            "DROP PROCEDURE d.p",
        ]);
    });
    let said = bad(&harvest);
    assert!(said.contains("d.large (MyISAM)") && !said.contains("d.small"), "{said}");
    assert!(said.contains("triggers or events of d were changed"), "{said}");
    assert_eq!(worst(&harvest), Some(Effect::Weaker));
    let other = PrivateServer::builder().no_binlog().start();
    loaded(&harvest, &other);
    assert_eq!(other.ask("SELECT COUNT(*) FROM d.small").as_deref(), Some("1"));
    ok(pin.release());
}

#[test]
fn a_lost_session_is_noticed() {
    let bench = Bench::new(PrivateServer::builder().start());
    ledger::make(&bench.server, ["InnoDB"; 4]);
    let mut lock = bench.lock();
    let mut pinner = dumper(&bench, &lock.holder, &["ledger"]);
    let kill = |bench: &Bench, most: usize| {
        let asked = "SELECT p.id FROM information_schema.processlist p \
                     JOIN information_schema.innodb_trx t ON p.id = t.trx_mysql_thread_id";
        let mut ids: Vec<u64> = vec![];
        let seen = testkit::server::wait_until(Duration::from_secs(10), || {
            // InnoDB shows an old list to whoever asks again within a tenth of a second.
            std::thread::sleep(Duration::from_millis(150));
            ids = bench.server.connect().query(asked).expect("transactions");
            ids.len() == 4
        });
        assert!(seen.is_some(), "one transaction for each table: {ids:?}");
        bench.server.run(ids.iter().take(most).map(|id| format!("KILL {id}")));
    };
    ok(pinner.prepare(&Known::default()));
    let frozen = lock.freeze(BUDGET);
    let mut pin = ok(pinner.pin(within(BUDGET)));
    kill(&bench, 1);
    let failure = pin.unchanged(within(BUDGET)).expect_err("a session is gone");
    assert_eq!(failure.kind, FailureKind::Lost, "{}", failure.in_full());
    drop((frozen, pin));
    // The next attempt connects anew.
    ok(pinner.round());
    let (harvest, pin) = bench.cut(&mut lock, &mut pinner, || kill(&bench, 2));
    let said = bad(&harvest);
    assert_eq!(said.matches("is not in the dump").count(), 2, "{said}");
    ok(pin.release());
    let (mut failed, frozen) = (dumper(&bench, &lock.holder, &["absent"]), ());
    assert_eq!(
        failed.prepare(&Known::default()).map(drop).expect_err("no such database").kind,
        FailureKind::Refused
    );
    let () = frozen;
    drop((pinner, failed, lock));
    bench.assert_clean();
}

#[test]
fn a_table_made_meanwhile_is_another_attempts() {
    let bench = Bench::new(PrivateServer::builder().start());
    ledger::make(&bench.server, ["InnoDB"; 4]);
    let mut lock = bench.lock();
    let mut pinner = dumper(&bench, &lock.holder, &["ledger"]);
    ok(pinner.prepare(&Known::default()));
    bench.server.run(["CREATE TABLE ledger.more (a INT)", "INSERT INTO ledger.more VALUES (5)"]);
    let frozen = lock.freeze(BUDGET);
    let failure = pinner.pin(within(BUDGET)).map(drop).expect_err("another table");
    assert!(failure.is_transient(), "{}", failure.in_full());
    thaw(frozen);
    ok(pinner.round());
    let frozen = lock.freeze(BUDGET);
    let mut pin = ok(pinner.pin(within(BUDGET)));
    let Stillness::Lock(how) = ok(pin.unchanged(within(BUDGET))) else { panic!("a lock") };
    assert!(how.contains("sessions"), "{how}");
    thaw(frozen);
    let harvest = ok(pin.harvest(&Silent));
    let other = PrivateServer::builder().no_binlog().start();
    assert_eq!(loaded(&harvest, &other).tables, 5);
    // Without a lock nothing is pinned.
    ok(pinner.round());
    assert_eq!(pinner.pin(within(BUDGET)).map(drop).expect_err("no lock").kind, FailureKind::Lost);
}

#[test]
fn databases_are_exchanged_in_place_and_back() {
    let bench = Bench::new(PrivateServer::builder().start());
    schema::make(&bench.server);
    let mut lock = bench.lock();
    let mut pinner = dumper(&bench, &lock.holder, &["every"]);
    let (harvest, pin) = bench.cut(&mut lock, &mut pinner, || {});
    let restored = Restored::of(&harvest);
    ok(pin.release());
    let was = portrait(&bench.server, &["every", "other"]);
    // Damage of all kinds, then what is live now.
    bench.server.run([
        "DROP TRIGGER every.t1",
        "DROP TABLE every.child",
        "DROP VIEW every.a_first",
        "DROP PROCEDURE every.speak",
        "DELETE FROM every.many WHERE id > 10",
        "CREATE TABLE every.extra (a INT) SELECT 1 AS a",
        "CREATE VIEW every.extra_view AS SELECT a FROM every.extra",
        "CREATE TRIGGER every.extra_t BEFORE INSERT ON every.extra FOR EACH ROW SET NEW.a = 1",
        "CREATE EVENT every.extra_e ON SCHEDULE EVERY 1 DAY DISABLE DO SELECT 1",
        "ALTER DATABASE every COLLATE utf8mb4_bin",
    ]);
    let damaged = portrait(&bench.server, &["every", "other"]);
    let root = restored.root();
    let plan = ok(SwapPlan::new(&root, &[], &cut_id()));
    assert_eq!(plan.describe().len(), 1);
    let databases =
        |server: &PrivateServer| server.connect().query::<String, _>("SHOW DATABASES").expect("databases");
    let before = databases(&bench.server);

    restored.with(&bench.server, |target| {
        let exchanged = ok(plan.exchange(&root, target));
        assert!(exchanged.loaded().rows > 23_000);
        assert_same(&was, &portrait(&bench.server, &["every", "other"]));
        ok(exchanged.put_back());
    });
    assert_same(&damaged, &portrait(&bench.server, &["every", "other"]));
    assert_eq!(databases(&bench.server), before);

    // A crash after the exchange.
    restored.with(&bench.server, |target| {
        let staging = fs::read_dir(target.staging).expect("staging").count();
        std::mem::forget(ok(plan.exchange(&root, target)));
        drop(forgotten(&restored));
        assert_eq!(fs::read_dir(target.staging).expect("staging").count(), staging);
        let refused = plan.exchange(&root, target).map(drop).expect_err("leftovers");
        assert_eq!(refused.kind, FailureKind::Refused);
        assert_eq!(ok(recover(target, &["other".to_owned()])), Vec::<String>::new());
        assert_eq!(ok(recover(target, &["every".to_owned()])), ["every"]);
        assert_eq!(ok(recover(target, &[])), Vec::<String>::new());
    });
    assert_same(&damaged, &portrait(&bench.server, &["every", "other"]));
    assert_eq!(databases(&bench.server), before);

    // Another, in the middle of what comes after the tables; undone as `thaw` does it, without the run's directories.
    let undo = restored.with(&bench.server, |target| {
        std::mem::forget(ok(plan.exchange(&root, target)));
        forgotten(&restored)
    });
    bench.server.run([
        "DROP VIEW every.a_first",
        "DROP PROCEDURE every.speak",
        "DROP TRIGGER every.t1",
        "CREATE VIEW every.half AS SELECT 1",
    ]);
    let model::undo::Undo::ServerExchange { access, databases: live, .. } = undo else { panic!("{undo:?}") };
    assert_eq!(live, ["every"]);
    let place = tempfile::tempdir().expect("a directory");
    let undo = |name: &str| model::undo::Undo::ServerExchange {
        access: access.clone(),
        databases: live.clone(),
        staging: place.path().join(name),
    };
    assert_eq!(undo_exchange(&undo("foreign")).expect_err("not ours").kind, FailureKind::Refused);
    for _ in 0..2 {
        ok(undo_exchange(&undo(".stillpoint-gone")));
        assert_same(&damaged, &portrait(&bench.server, &["every", "other"]));
        assert_eq!(databases(&bench.server), before);
        assert_eq!(fs::read_dir(place.path()).expect("a directory").count(), 0, "credentials are left");
    }

    // A dump that fails in the middle.
    let views = root.join("every/5-views.sql");
    let good = fs::read(&views).expect("views");
    fs::write(&views, "SELECT nonsense;").expect("written");
    restored.with(&bench.server, |target| {
        let failure = plan.exchange(&root, target).map(drop).expect_err("nonsense");
        assert!(failure.in_full().contains("5-views.sql"), "{}", failure.in_full());
    });
    assert_same(&damaged, &portrait(&bench.server, &["every", "other"]));
    fs::write(&views, good).expect("written");

    restored.with(&bench.server, |target| ok(ok(plan.exchange(&root, target)).finish()));
    assert_same(&was, &portrait(&bench.server, &["every", "other"]));
    assert_eq!(databases(&bench.server), before);
}

/// A cut of these databases, written out.
fn dumped(bench: &Bench, databases: &[&str]) -> Restored {
    let mut lock = bench.lock();
    let mut pinner = dumper(bench, &lock.holder, databases);
    let (harvest, pin) = bench.cut(&mut lock, &mut pinner, || {});
    let restored = Restored::of(&harvest);
    ok(pin.release());
    restored
}

#[test]
fn foreign_keys_of_other_databases_are_not_taken_along() {
    let bench = Bench::new(PrivateServer::builder().start());
    let key = "ALTER TABLE mine.child ADD CONSTRAINT upwards FOREIGN KEY (p) REFERENCES theirs.parent (id)";
    bench.server.run([
        "CREATE DATABASE theirs",
        "CREATE TABLE theirs.parent (id INT PRIMARY KEY)",
        "INSERT INTO theirs.parent VALUES (1)",
        "CREATE DATABASE mine",
        "CREATE TABLE mine.child (id INT PRIMARY KEY, p INT)",
        key,
    ]);
    let (one, both) = (dumped(&bench, &["theirs"]), dumped(&bench, &["mine", "theirs"]));
    bench.server.run(["INSERT INTO theirs.parent VALUES (2)", "INSERT INTO mine.child VALUES (1, 2)"]);
    let all = ["theirs", "mine"];
    let was = portrait(&bench.server, &all);
    let refused = |restored: &Restored, named: &str| {
        let root = restored.root();
        let plan = ok(SwapPlan::new(&root, &[], &cut_id()));
        restored.with(&bench.server, |target| {
            let failure = plan.exchange(&root, target).map(drop).expect_err("a foreign key");
            assert_eq!(failure.kind, FailureKind::Refused);
            let said = failure.in_full();
            assert!(said.contains(named) && said.contains("upwards") && said.contains("--to"), "{said}");
        });
        assert_same(&was, &portrait(&bench.server, &all));
        assert_eq!(bench.server.ask("SHOW DATABASES LIKE 'stillpoint%'"), None);
    };
    let root = one.root();
    one.with(&bench.server, |target| {
        let plan = ok(SwapPlan::new(&root, &[], &cut_id()));
        plan.refuse(&root, target).expect_err("seen before anything is loaded");
    });
    refused(&one, "mine.child");
    refused(&both, "mine.child");
    // Those that are in the dump only are seen once it is loaded.
    bench.server.run(["ALTER TABLE mine.child DROP FOREIGN KEY upwards"]);
    let was = portrait(&bench.server, &all);
    let root = both.root();
    both.with(&bench.server, |target| {
        let plan = ok(SwapPlan::new(&root, &[], &cut_id()));
        let failure = plan.exchange(&root, target).map(drop).expect_err("a foreign key");
        assert!(failure.what.contains("_mine.child"), "{}", failure.in_full());
    });
    assert_same(&was, &portrait(&bench.server, &all));
    // Dropped and added again, as the remedy says.
    let root = one.root();
    one.with(&bench.server, |target| {
        ok(ok(ok(SwapPlan::new(&root, &[], &cut_id())).exchange(&root, target)).finish());
    });
    bench.server.run(["DELETE FROM mine.child", key, "INSERT INTO mine.child VALUES (1, 1)"]);
}

/// What a dead run leaves in its journal is the undoing of its exchange; its directories and processes are gone here.
fn forgotten(restored: &Restored) -> model::undo::Undo {
    use model::undo::Undo;
    let mut exchange = None;
    for (ticket, undo) in restored.journal.open() {
        match undo {
            Undo::RemoveTree { path } => fs::remove_dir_all(path).expect("its staging"),
            Undo::End { .. } => {}
            Undo::ServerExchange { .. } => exchange = Some(undo),
            undo => panic!("{undo:?}"),
        }
        Journal::done(&*restored.journal, ticket);
    }
    exchange.expect("it is in the journal")
}

#[test]
fn whoever_holds_tables_or_programs_is_named_and_nothing_is_changed() {
    let bench = Bench::new(PrivateServer::builder().start());
    schema::make(&bench.server);
    let restored = dumped(&bench, &["every"]);
    let was = portrait(&bench.server, &["every"]);
    let root = restored.root();
    let plan = ok(SwapPlan::new(&root, &[], &cut_id()));
    for held in ["every.many READ", "mysql.event READ", "mysql.proc READ"] {
        let mut holder = bench.server.connect();
        holder.query_drop(format!("LOCK TABLES {held}")).expect("a lock");
        let begun = std::time::Instant::now();
        let failure = restored
            .with(&bench.server, |target| plan.exchange(&root, target).map(drop).expect_err("it is held"));
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(30), "{held}: {took:?}");
        let said = failure.in_full();
        assert_eq!(failure.kind, FailureKind::Busy, "{held}: {said}");
        assert!(said.contains(&format!("{} (", holder.connection_id())), "{held}: {said}");
        drop(holder);
        assert_eq!(bench.server.ask("SHOW DATABASES LIKE 'stillpoint%'"), None);
        assert_same(&was, &portrait(&bench.server, &["every"]));
    }
}

/// Somebody asks to stop as soon as the tables are exchanged: then nothing new may be begun.
#[derive(Default)]
struct Interrupted {
    journal: MemoryJournal,
    asked: std::sync::atomic::AtomicBool,
}

impl Journal for Interrupted {
    fn intend(
        &self,
        undo: model::undo::Undo,
        until: Option<model::time::Deadline>,
    ) -> Result<model::undo::Ticket, model::port::Failure> {
        if self.asked.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(model::port::Failure::new(FailureKind::Other, "interrupted", ""));
        }
        self.journal.intend(undo, until)
    }

    fn amend(
        &self,
        ticket: model::undo::Ticket,
        undo: model::undo::Undo,
        until: Option<model::time::Deadline>,
    ) -> Result<(), model::port::Failure> {
        self.asked.store(true, std::sync::atomic::Ordering::Relaxed);
        self.journal.amend(ticket, undo, until)
    }

    fn done(&self, ticket: model::undo::Ticket) {
        self.journal.done(ticket);
    }
}

#[test]
fn a_request_to_stop_does_not_keep_it_from_putting_back() {
    let bench = Bench::new(PrivateServer::builder().start());
    schema::make(&bench.server);
    let restored = dumped(&bench, &["every"]);
    bench.server.run(["DELETE FROM every.many WHERE id > 10", "DROP VIEW every.a_first"]);
    let was = portrait(&bench.server, &["every"]);
    let root = restored.root();
    let plan = ok(SwapPlan::new(&root, &[], &cut_id()));
    let access = access(&bench.server);
    for fails in [false, true] {
        if fails {
            fs::write(root.join("every/5-views.sql"), "SELECT nonsense;").expect("written");
        }
        let interrupted = Arc::new(Interrupted::default());
        let journal: Arc<dyn Journal> = interrupted.clone();
        let target = Target { access: &access, journal: &journal, staging: restored.dir.path() };
        match plan.exchange(&root, &target) {
            Ok(exchanged) => {
                assert!(!fails);
                ok(exchanged.put_back());
            }
            Err(failure) => {
                assert!(fails && !failure.what.contains("Besides"), "{}", failure.in_full());
            }
        }
        assert!(interrupted.asked.load(std::sync::atomic::Ordering::Relaxed));
        assert!(interrupted.journal.open().is_empty(), "{:?}", interrupted.journal.open());
        assert_same(&was, &portrait(&bench.server, &["every"]));
        assert_eq!(bench.server.ask("SHOW DATABASES LIKE 'stillpoint%'"), None);
    }
}

#[test]
fn a_physical_copy_is_replayed_up_to_the_cut() {
    let bench = Bench::new(PrivateServer::builder().rocksdb().start());
    ledger::make(&bench.server, ["InnoDB", "InnoDB", "ROCKSDB", "InnoDB"]);
    let mut lock = bench.lock();
    let plan = bench.server_plan(&[]);
    let pin = bench.pin_plan(PinMethod::ServerPhysical(plan.clone()));
    let mut pinner = ok(PhysicalPinner::new(&pin, &plan, lock.holder.clone(), bench.means()));
    let writers = ledger::Writers::start(&bench.server, 4);
    thread::sleep(Duration::from_millis(300));
    ok(pinner.prepare(&Known::default()));
    thread::sleep(Duration::from_millis(300));
    bench.server.run(["FLUSH BINARY LOGS"]);
    thread::sleep(Duration::from_millis(300));
    let frozen = lock.freeze(BUDGET);
    let rows = ledger::judge(&bench.server);
    let mut pin = ok(pinner.pin(within(BUDGET)));
    assert!(matches!(ok(pin.unchanged(within(BUDGET))), Stillness::Lock(_)));
    thaw(frozen);
    thread::sleep(Duration::from_millis(200));
    bench.server.run(["FLUSH BINARY LOGS", "PURGE BINARY LOGS TO 'binlog.000003'"]);
    let harvest = ok(pin.harvest(&Silent));
    assert_eq!(bad(&harvest), "");
    drop(writers);
    let dir = tempfile::Builder::new().prefix("dump-copy").tempdir().expect("a directory");
    write_out(&harvest.entries, dir.path());
    ok(pin.release());

    let below = |path: &std::path::Path| dir.path().join(path.strip_prefix("/").expect("absolute"));
    let record = harvest.server.clone().expect("a record");
    assert_eq!(record.form, ServerForm::Physical);
    let replay = ok(replay_plan(&record, below)).expect("something to replay");
    assert_eq!(replay.logs.len(), 2, "{}", replay.describe());
    let copy = PrivateServer::builder().rocksdb().copy_at(below(bench.server.datadir())).start();
    assert!(ledger::judge(&copy) < rows, "the copy was made before the cut");
    let journal: Arc<dyn Journal> = bench.journal.clone();
    ok(replay.run(&access(&copy), &journal, bench.staging.path()));
    assert_eq!(ledger::judge(&copy), rows);
    drop((pinner, lock));
    bench.assert_clean();
}

#[test]
fn a_physical_copy_without_a_log_is_weaker() {
    let bench = Bench::new(PrivateServer::builder().no_binlog().start());
    ledger::make(&bench.server, ["InnoDB"; 4]);
    let mut lock = bench.lock();
    let plan = bench.server_plan(&[]);
    let pin = bench.pin_plan(PinMethod::ServerPhysical(plan.clone()));
    let mut pinner = ok(PhysicalPinner::new(&pin, &plan, lock.holder.clone(), bench.means()));
    ok(pinner.prepare(&Known::default()));
    let frozen = lock.freeze(BUDGET);
    let mut pin = ok(pinner.pin(within(BUDGET)));
    assert!(matches!(ok(pin.unchanged(within(BUDGET))), Stillness::NotShown(_)));
    thaw(frozen);
    // Given up, it waits for the next attempt.
    drop(pin);
    let frozen = lock.freeze(BUDGET);
    let mut pin = ok(pinner.pin(within(BUDGET)));
    thaw(frozen);
    let harvest = ok(pin.harvest(&Silent));
    assert_eq!(worst(&harvest), Some(Effect::Weaker));
    assert!(bad(&harvest).contains("log_bin"), "{}", bad(&harvest));
    assert_eq!(ok(replay_plan(&harvest.server.clone().expect("a record"), |path| path.to_owned())), None);
    ok(pin.release());
    drop((pinner, lock));
    bench.assert_clean();
}

/// Somebody who asks to stop once something is copied.
struct Impatient(std::sync::atomic::AtomicU64);

impl model::port::Progress for Impatient {
    fn begin(&self, _stage: model::port::Stage, _total: Option<model::size::Bytes>) {}
    fn advance(&self, bytes: model::size::Bytes) {
        self.0.fetch_add(bytes.0, std::sync::atomic::Ordering::Relaxed);
    }
    fn end(&self) {}
    fn is_stopped(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed) > 0
    }
}

#[test]
fn a_request_to_stop_does_not_wait_for_a_table() {
    let bench = Bench::new(PrivateServer::builder().start());
    bench.server.run([
        "CREATE DATABASE d",
        "CREATE TABLE d.t (id INT PRIMARY KEY, b LONGBLOB)",
        "INSERT INTO d.t SELECT seq, REPEAT('x', 1000000) FROM d.seq_1_to_60",
        "ANALYZE TABLE d.t",
    ]);
    let mut lock = bench.lock();
    let mut pinner = dumper(&bench, &lock.holder, &["d"]);
    ok(pinner.prepare(&Known::default()));
    let frozen = lock.freeze(BUDGET);
    let mut pin = ok(pinner.pin(within(BUDGET)));
    thaw(frozen);
    let impatient = Impatient(std::sync::atomic::AtomicU64::new(0));
    let failure = pin.harvest(&impatient).map(drop).expect_err("it was stopped");
    assert!(failure.what.contains("asked to stop"), "{}", failure.in_full());
    assert!(impatient.0.into_inner() < 10_000_000, "it went on");
    ok(pin.release());
    drop((pinner, lock));
    bench.assert_clean();
}
