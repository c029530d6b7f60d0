//! MariaDB's locks, positions and facts, on real private servers. Needs root and `mariadbd`; fails where one is missing.

#![allow(clippy::print_stdout, reason = "it is its own harness, and tells figures")]

mod mariadb_support;

use std::{
    any::Any,
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use engines::server::ServerLock;
use mariadb_support::{
    BUDGET, Both, Statement, commits, held, kill_all, lock, means, ok, plan, probing, run,
    server_with_tables, within,
};
use model::{
    port::{Clock, Failure, FailureKind, Frozen, Hold},
    undo::Undo,
    verdict::Stillness,
};
use os::clock::SystemClock;
use rustix::process::{Pid, Signal, kill_process};
use testkit::{
    conformance::hold::{self, Bench},
    fakes::journal::MemoryJournal,
    server::{PrivateServer, wait_until},
};

const FLUSH_LOG: &str = "SELECT @@global.innodb_flush_log_at_trx_commit";

fn main() -> ExitCode {
    let tests: &[(&str, fn())] = &[
        ("both_holds_conform", || hold::suite(|| bench(false))),
        ("the_definition_lock_conforms_too", || hold::suite(|| bench(true))),
        ("readers_and_idle_transactions_are_in_nobodys_way", readers_are_in_nobodys_way),
        ("whoever_is_in_the_way_costs_the_deadline_and_no_more", obstacles_cost_the_deadline),
        ("a_running_alter_table_goes_on_after_the_cut", altering),
        ("a_commit_that_waits_for_a_replica_is_waited_for_in_time", semi_sync),
        ("a_connection_killed_in_any_stage_holds_nobody", killed_in_every_stage),
        ("a_server_that_stops_answering_is_given_up", a_stopped_server),
        ("a_server_that_dies_is_lost_and_holds_nobody", a_killed_server),
        ("the_hold_ends_by_itself", it_ends_by_itself),
        ("a_killed_holder_holds_nobody_and_its_variable_is_put_back", a_killed_holder),
        ("the_log_is_flushed_for_the_cut_only", flushed_for_the_cut_only),
        ("the_position_is_that_of_the_lock", the_position),
        ("without_a_binary_log_there_is_no_position", no_binlog),
        ("a_replica_tells_what_it_has_applied", probing::a_replica),
        ("probe_tells_what_a_server_is_like", probing::facts),
        ("probe_finds_what_lies_outside", probing::outside),
        ("missing_privileges_are_named_with_grants_that_mend_it", probing::privileges),
        ("logins_by_file_and_denied_ones", probing::logins),
        ("tls_is_verified", probing::tls),
    ];
    run(tests, &[("hold", hold_for_ever)])
}

/// A server whose writers are watched in one table.
struct ServerBench {
    server: PrivateServer,
    journal: Arc<MemoryJournal>,
    only_slow: bool,
}

impl Bench for ServerBench {
    fn hold(&self) -> Box<dyn Hold> {
        let mut plan = plan(&self.server);
        plan.raise_flush_log = true;
        let lock = ServerLock::new(&plan, BUDGET, means(&self.journal));
        if self.only_slow { lock.into_holds().remove(0) } else { Box::new(Both::of(lock)) }
    }
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }
    fn writers_run(&self) -> bool {
        commits(&self.server, if self.only_slow { "myisam" } else { "innodb" })
    }
    fn obstruct(&self) -> Option<Box<dyn Any>> {
        Some(Box::new(Statement::running(&self.server, &["LOCK TABLES d.innodb WRITE, d.myisam WRITE"])))
    }
    fn lose(&self) -> bool {
        kill_all(&self.server);
        true
    }
    fn open_undos(&self) -> usize {
        self.journal.open().len()
    }
}

/// The log is not flushed at commit, so that there is something to undo that does not end with the session.
fn bench(only_slow: bool) -> Box<dyn Bench> {
    let server = server_with_tables();
    server.run(["SET GLOBAL innodb_flush_log_at_trx_commit = 0"]);
    Box::new(ServerBench { server, journal: Arc::default(), only_slow })
}

fn assert_nobody_is_held(server: &PrivateServer, after: &str) {
    for table in ["innodb", "myisam", "aria"] {
        assert!(commits(server, table), "writers of d.{table} are held after {after}");
    }
    server.run(["CREATE TABLE d.ddl (n INT)", "DROP TABLE d.ddl"]);
}

fn failed(result: Result<Box<dyn Frozen>, Failure>, what: &str) -> Failure {
    match result {
        Ok(_) => panic!("frozen in spite of {what}"),
        Err(failure) => failure,
    }
}

fn readers_are_in_nobodys_way() {
    let server = server_with_tables();
    server.run(["INSERT INTO d.innodb (n) VALUES (1)", "INSERT INTO d.myisam (n) VALUES (1)"]);
    let _others = [
        Statement::running(&server, &["SELECT SLEEP(60) FROM d.innodb"]),
        Statement::running(&server, &["SELECT SLEEP(60) FROM d.myisam"]),
        Statement::running(&server, &["BEGIN", "INSERT INTO d.innodb (n) VALUES (2)"]),
        Statement::running(
            &server,
            &["START TRANSACTION WITH CONSISTENT SNAPSHOT", "SELECT * FROM d.myisam"],
        ),
    ];
    let mut both = lock(&server);
    let start = Instant::now();
    let mut held = ok(both.freeze(within(Duration::from_millis(500))));
    println!("  frozen beside readers and idle transactions in {:.1?}", start.elapsed());
    assert!(!commits(&server, "innodb") && !commits(&server, "myisam"));
    assert!(matches!(ok(held.prove()), Stillness::Lock(said) if said.contains("error 4147")));
    ok(held.thaw());
    assert_nobody_is_held(&server, "a cut beside readers");
}

fn obstacles_cost_the_deadline() {
    let server = server_with_tables();
    server.run(["INSERT INTO d.myisam (n) VALUES (1)"]);
    let obstacles: [(&str, &[&str]); 4] = [
        ("LOCK TABLES", &["LOCK TABLES d.innodb WRITE"]),
        ("a long write to MyISAM", &["INSERT INTO d.myisam (n) SELECT SLEEP(60) FROM d.myisam"]),
        ("a DDL statement that waits", &["CREATE TABLE d.waits AS SELECT SLEEP(60)"]),
        ("another backup", &["BACKUP STAGE START"]),
    ];
    for (what, statements) in obstacles {
        let obstacle = Statement::running(&server, statements);
        let mut both = lock(&server);
        let deadline = Duration::from_millis(300);
        let start = Instant::now();
        let failure = failed(both.freeze(within(deadline)), what);
        let took = start.elapsed();
        println!("  {what}: {:?} after {took:.0?}: {}", failure.kind, failure.in_full());
        assert!(
            matches!(failure.kind, FailureKind::Busy | FailureKind::TimedOut),
            "{what}: {:?}",
            failure.kind
        );
        assert!(took < deadline + Duration::from_millis(200), "{what}: gave up after {took:?}");
        assert!(commits(&server, "aria"), "writers are held after giving up because of {what}");
        drop(obstacle);
        wait_until(Duration::from_secs(20), || server.processes().len() == 1).expect("the obstacle ends");
        ok(ok(both.freeze(within(BUDGET))).thaw());
        assert_nobody_is_held(&server, what);
    }
}

/// It copies rows on, and waits with putting the new table in its place until the cut is over.
fn altering() {
    let server = server_with_tables();
    server.run(["INSERT INTO d.innodb (n) SELECT seq FROM d.seq_1_to_500000"]);
    let mut both = lock(&server);
    let alter = "ALTER TABLE d.innodb ADD pad CHAR(200) DEFAULT 'x', ALGORITHM=COPY";
    let altering = Statement::running(&server, &[alter]);
    let runs = || server.processes().iter().any(|process| process.info == alter);
    let start = Instant::now();
    let mut held = ok(both.freeze(within(Duration::from_millis(500))));
    println!("  frozen beside ALTER TABLE in {:.1?}", start.elapsed());
    assert!(runs(), "it was over before anything was held");
    assert!(!commits(&server, "innodb") && !commits(&server, "myisam"));
    ok(held.prove());
    ok(held.thaw());
    assert!(wait_until(Duration::from_secs(60), || !runs()).is_some());
    drop(altering);
    assert_eq!(server.ask("SELECT COUNT(pad) > 0 FROM d.innodb").as_deref(), Some("1"), "it succeeded");
    assert_nobody_is_held(&server, "ALTER TABLE");
}

/// A commit that waits for a replica's acknowledgement has the lock that `BLOCK_COMMIT` waits for.
fn semi_sync() {
    let server = PrivateServer::builder()
        .option("--rpl-semi-sync-master-enabled=ON")
        .option("--rpl-semi-sync-master-timeout=4000")
        .option("--rpl-semi-sync-master-wait-no-slave=ON")
        .start();
    server.run(["SET GLOBAL rpl_semi_sync_master_enabled=OFF"]);
    mariadb_support::make_tables(&server);
    server.run(["SET GLOBAL rpl_semi_sync_master_enabled=ON"]);
    killed_while_waiting(&server, &["INSERT INTO d.innodb (n) VALUES (1)"], "STAGE BLOCK_COMMIT");
    let waiting = Statement::running(&server, &["INSERT INTO d.innodb (n) VALUES (1)"]);
    let mut both = lock(&server);
    let start = Instant::now();
    let outcome = both.freeze(within(Duration::from_millis(400)));
    let took = start.elapsed();
    println!(
        "  beside a commit that waits for a replica: {:?} after {took:.0?}",
        outcome.as_ref().err().map(|f| f.kind)
    );
    assert!(took < Duration::from_millis(800), "{took:?}");
    drop(outcome);
    drop(waiting);
    server.run(["SET GLOBAL rpl_semi_sync_master_enabled=OFF"]);
    assert_nobody_is_held(&server, "a semi-synchronous commit");
}

fn killed_in_every_stage() {
    let server = server_with_tables();
    server.run(["INSERT INTO d.myisam (n) VALUES (1)"]);
    // While it waits.
    killed_while_waiting(&server, &["LOCK TABLES d.innodb WRITE"], "STAGE START");
    assert_nobody_is_held(&server, "a kill in START");
    let writing = ["INSERT INTO d.myisam (n) SELECT SLEEP(60) FROM d.myisam"];
    killed_while_waiting(&server, &writing, "STAGE BLOCK_DDL");
    assert_nobody_is_held(&server, "a kill in BLOCK_DDL");
    let mut both = lock(&server);
    // Between the slow locks and the final one.
    let journal = Arc::new(MemoryJournal::default());
    let mut holds = ServerLock::new(&plan(&server), BUDGET, means(&journal)).into_holds();
    ok(holds[0].prepare());
    let slow = ok(holds[0].freeze(within(BUDGET)));
    kill_all(&server);
    assert_nobody_is_held(&server, "a kill between the locks");
    let failure = failed(holds[1].freeze(within(BUDGET)), "a dead session");
    assert_eq!(failure.kind, FailureKind::Lost, "{}", failure.in_full());
    ok(slow.thaw());
    // With everything held, in every number of tries.
    let mut held = ok(both.freeze(within(BUDGET)));
    kill_all(&server);
    assert_eq!(held.prove().expect_err("killed").kind, FailureKind::Lost);
    ok(held.thaw());
    assert_nobody_is_held(&server, "a kill under the final lock");
    ok(ok(both.freeze(within(BUDGET))).thaw());
}

fn killed_while_waiting(server: &PrivateServer, obstacle: &[&str], stage: &str) {
    let obstacle = Statement::running(server, obstacle);
    let mut both = lock(server);
    let start = Instant::now();
    let failure = thread::scope(|scope| {
        let freezing = scope.spawn(|| both.freeze(within(Duration::from_secs(10))).err());
        let waits = || server.processes().iter().find(|p| p.info.contains(stage)).map(|p| p.id);
        wait_until(Duration::from_secs(5), || waits().is_some()).expect("it waits there");
        server.run([format!("KILL {}", waits().expect("it waits there"))]);
        freezing.join().expect("no panic")
    });
    let failure = failure.expect("its connection was killed");
    println!("  killed in {stage}: {:?} after {:.0?}", failure.kind, start.elapsed());
    assert_eq!(failure.kind, FailureKind::Lost, "{}", failure.in_full());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    drop(obstacle);
}

fn a_stopped_server() {
    let server = server_with_tables();
    let mut both = lock(&server);
    let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::STOP).expect("it is ours");
    let start = Instant::now();
    let failure = failed(both.freeze(within(Duration::from_millis(400))), "a stopped server");
    let took = start.elapsed();
    kill_process(pid, Signal::CONT).expect("it is ours");
    println!("  stopped server: {:?} after {took:.0?}", failure.kind);
    assert_eq!(failure.kind, FailureKind::TimedOut, "{}", failure.in_full());
    assert!(took < Duration::from_secs(3), "{took:?}");
    drop(both);
    assert!(wait_until(Duration::from_secs(3), || commits(&server, "innodb")).is_some());
    assert_nobody_is_held(&server, "a stopped server");
}

fn a_killed_server() {
    let mut server = server_with_tables();
    let mut both = lock(&server);
    let mut held = ok(both.freeze(within(BUDGET)));
    server.kill();
    assert_eq!(held.prove().expect_err("the server is dead").kind, FailureKind::Lost);
    let start = Instant::now();
    ok(held.thaw());
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(both.freeze(within(BUDGET)).is_err());
    server.start();
    assert_nobody_is_held(&server, "a crash");
    ok(ok(both.freeze(within(BUDGET))).thaw());
}

fn it_ends_by_itself() {
    let server = server_with_tables();
    let journal = Arc::new(MemoryJournal::default());
    let budget = Duration::from_millis(700);
    let mut both = Both::of(ServerLock::new(&plan(&server), budget, means(&journal)));
    ok(both.prepare());
    let mut held = ok(both.freeze(within(budget)));
    let start = Instant::now();
    assert!(wait_until(Duration::from_secs(10), || commits(&server, "innodb")).is_some());
    println!("  the server let go by itself after {:.2?}, of a budget of {budget:?}", start.elapsed());
    assert!(start.elapsed() < budget + Duration::from_millis(1_300), "{:?}", start.elapsed());
    assert_eq!(held.prove().expect_err("it has ended").kind, FailureKind::Lost);
    ok(held.thaw());
    ok(ok(both.freeze(within(budget))).thaw());
}

/// The role of a process that holds a server until it is killed, and says how to undo that.
fn hold_for_ever(arguments: &[String]) {
    let journal = Arc::new(MemoryJournal::default());
    let mut plan = mariadb_support::plan_at(arguments[0].as_ref());
    plan.raise_flush_log = true;
    let mut both = Both::of(ServerLock::new(&plan, Duration::from_secs(60), means(&journal)));
    ok(both.prepare());
    let _held = ok(both.freeze(within(Duration::from_secs(60))));
    let undo = journal.open().remove(0).1;
    println!("{}", serde_json::to_string(&undo).expect("plain values"));
    loop {
        thread::park();
    }
}

fn a_killed_holder() {
    let server = server_with_tables();
    server.run(["SET GLOBAL innodb_flush_log_at_trx_commit = 0"]);
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["__role", "hold"])
        .arg(server.socket())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let undo: Undo = serde_json::from_str(&line).expect("an undo");
    assert!(!commits(&server, "innodb"), "nothing is held");
    assert_eq!(server.ask(FLUSH_LOG).as_deref(), Some("1"));
    let start = Instant::now();
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    assert!(wait_until(Duration::from_secs(5), || commits(&server, "innodb")).is_some());
    println!("  writers ran {:.0?} after kill -9 of the holder", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(1));
    for _ in 0..2 {
        os::undo::perform(&undo).expect("it is put back");
        assert_eq!(server.ask(FLUSH_LOG).as_deref(), Some("0"));
    }
    // Another value that somebody gave it since stays.
    server.run(["SET GLOBAL innodb_flush_log_at_trx_commit = 2"]);
    os::undo::perform(&undo).expect("nothing to do");
    assert_eq!(server.ask(FLUSH_LOG).as_deref(), Some("2"));
    drop(server);
    os::undo::perform(&undo).expect("a server that is gone has forgotten it");
}

fn flushed_for_the_cut_only() {
    let server = server_with_tables();
    server.run(["SET GLOBAL innodb_flush_log_at_trx_commit = 0"]);
    let journal = Arc::new(MemoryJournal::default());
    let mut raising = plan(&server);
    raising.raise_flush_log = true;
    let mut both = Both::of(ServerLock::new(&raising, BUDGET, means(&journal)));
    ok(both.prepare());
    let value = || server.ask(FLUSH_LOG).expect("a value");
    assert_eq!((value().as_str(), journal.open().len()), ("0", 0), "preparing changes nothing");
    let held = ok(both.freeze(within(BUDGET)));
    assert_eq!((value().as_str(), journal.open().len()), ("1", 1));
    ok(held.thaw());
    assert_eq!((value().as_str(), journal.open().len()), ("0", 0));
    // A freeze that fails, and a session that is killed.
    let obstacle = Statement::running(&server, &["LOCK TABLES d.innodb WRITE"]);
    failed(both.freeze(within(Duration::from_millis(200))), "LOCK TABLES");
    drop(obstacle);
    assert_eq!((value().as_str(), journal.open().len()), ("0", 0));
    let held = ok(both.freeze(within(BUDGET)));
    kill_all(&server);
    drop(held);
    drop(both);
    assert_eq!((value().as_str(), journal.open().len()), ("0", 0));
    // What is 1 already is not touched.
    server.run(["SET GLOBAL innodb_flush_log_at_trx_commit = 1"]);
    let mut both = Both::of(ServerLock::new(&raising, BUDGET, means(&journal)));
    ok(both.prepare());
    let held = ok(both.freeze(within(BUDGET)));
    assert!(journal.open().is_empty());
    ok(held.thaw());
    assert_eq!(value(), "1");
}

fn the_position() {
    let server = server_with_tables();
    let journal = Arc::new(MemoryJournal::default());
    let lock = ServerLock::new(&plan(&server), BUDGET, means(&journal));
    let holder = lock.holder();
    let mut both = Both::of(lock);
    ok(both.prepare());
    assert!(holder.position().is_none() && !holder.is_locked());
    for _ in 0..3 {
        server.run([
            "INSERT INTO d.innodb (n) VALUES (7)",
            "FLUSH BINARY LOGS",
            "INSERT INTO d.myisam (n) VALUES (7)",
        ]);
        let held = ok(both.freeze(within(BUDGET)));
        assert!(holder.is_locked());
        let position = holder.position().expect("read under the lock");
        let place = position.binlog.clone().expect("it writes a binary log");
        let mut other = ok(holder.connect(Duration::from_secs(1)));
        let row = other.row("SHOW MASTER STATUS", Duration::from_secs(1)).expect("a row");
        // After a rotation the server appends a Binlog_checkpoint event, also under the lock (seen): no transaction.
        assert_eq!(place.file, row.text(0));
        assert!(
            row.number(1).is_some_and(|now| now == place.offset || now == place.offset + 40),
            "{row:?} {place}"
        );
        assert_eq!(position.gtid.clone().map(|gtid| gtid.0), server.ask("SELECT @@gtid_binlog_pos"));
        assert!(position.gtid_binlog_state.is_some() && position.applied.is_empty());
        ok(held.thaw());
        assert!(!holder.is_locked());
        server.run(["INSERT INTO d.innodb (n) VALUES (8)"]);
        let said = ok(holder.confirm_position(Duration::from_secs(5)));
        assert!(said.contains(&position.gtid.unwrap_or_default().0), "{said}");
    }
    server.run(["RESET MASTER"]);
    let failure = holder.confirm_position(Duration::from_secs(5)).expect_err("that log is gone");
    println!("  after RESET MASTER: {}", failure.in_full());
}

fn no_binlog() {
    let server = PrivateServer::builder().no_binlog().start();
    mariadb_support::make_tables(&server);
    let (mut both, holder) = held(&server);
    let guard = ok(both.freeze(within(BUDGET)));
    let position = holder.position().expect("read under the lock");
    assert!(position.binlog.is_none() && position.gtid.is_none(), "{position:?}");
    ok(guard.thaw());
    ok(holder.confirm_position(Duration::from_secs(5)));
}
