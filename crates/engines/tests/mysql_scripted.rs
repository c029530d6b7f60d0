//! MySQL's locks, against a scripted server that speaks the protocol and locks as MySQL 8 is documented to: the real one
//! is not in Debian.

use std::{
    any::Any,
    fs,
    os::unix::fs::PermissionsExt,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use engines::server::{Means, ServerLock, probe};
use model::{
    id::SourceId,
    inventory::{Archive, ServerDatabase},
    plan::{HoldClass, ServerLockPlan},
    port::{Clock, Failure, FailureKind, Frozen, Hold},
    problem::Problem,
    server::{Flavor, RootRole, ServerAccess, ServerAddress, ServerPosition},
    time::Deadline,
    verdict::Stillness,
};
use mysql::{Conn, OptsBuilder, prelude::Queryable};
use os::{
    clock::{SystemClock, deadline_in},
    command::Helper,
};
use testkit::{
    conformance::hold::{self, Bench},
    fakes::journal::MemoryJournal,
    scripted::{Channel, Fault, Login, ScriptedBuilder, ScriptedServer, SqlError, What},
    server::wait_until,
};

const BUDGET: Duration = Duration::from_secs(2);
const FLUSH_LOG: &str = "innodb_flush_log_at_trx_commit";
const INSERT: &str = "INSERT INTO app.other VALUES (1)";

fn access(server: &ScriptedServer) -> ServerAccess {
    ServerAccess {
        flavor: Flavor::MySql,
        address: ServerAddress::Socket(server.socket()),
        user: Some("root".into()),
        password_file: None,
        option_file: None,
        tls_ca: None,
    }
}

fn plan(server: &ScriptedServer) -> ServerLockPlan {
    let access = access(server);
    ServerLockPlan {
        source: SourceId::new("mysql", &access.address),
        access,
        flavor: Flavor::MySql,
        end_blocking_queries: false,
        raise_flush_log: false,
    }
}

fn means(journal: &Arc<MemoryJournal>) -> Means {
    Means { journal: journal.clone(), clock: Arc::new(SystemClock), helper: Helper::this_program() }
}

fn ok<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.in_full()))
}

/// Both steps as one hold, as a cut takes them.
struct Both {
    holds: Vec<Box<dyn Hold>>,
    holder: engines::server::Holder,
}

/// Both steps, held; let go in reverse.
struct BothHeld(Vec<Box<dyn Frozen>>);

impl Both {
    fn of(plan: &ServerLockPlan) -> Self {
        Self::with(plan, &Arc::default())
    }

    fn with(plan: &ServerLockPlan, journal: &Arc<MemoryJournal>) -> Self {
        let lock = ServerLock::new(plan, BUDGET, means(journal));
        let holder = lock.holder();
        Self { holds: lock.into_holds(), holder }
    }

    fn position(&self) -> ServerPosition {
        self.holder.position().expect("a position")
    }
}

impl Hold for Both {
    fn name(&self) -> String {
        self.holds[1].name()
    }
    fn class(&self) -> HoldClass {
        self.holds[1].class()
    }
    fn sources(&self) -> Vec<SourceId> {
        self.holds[1].sources()
    }
    fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
        let mut problems = vec![];
        for hold in &mut self.holds {
            problems.extend(hold.prepare()?);
        }
        Ok(problems)
    }
    fn freeze(&mut self, until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
        let mut held = BothHeld(vec![]);
        for hold in &mut self.holds {
            held.0.push(hold.freeze(until)?);
        }
        Ok(Box::new(held))
    }
}

impl Frozen for BothHeld {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        let proofs: Result<Vec<_>, _> = self.0.iter_mut().rev().map(|held| held.prove()).collect();
        Ok(proofs?.swap_remove(0))
    }
    fn thaw(mut self: Box<Self>) -> Result<(), Failure> {
        let mut thawed = Ok(());
        while let Some(held) = self.0.pop() {
            thawed = thawed.and(held.thaw());
        }
        thawed
    }
}

/// A statement on a connection of its own; whether and when it is over can be seen.
struct Aside {
    id: u64,
    running: JoinHandle<(Duration, mysql::Result<()>)>,
}

impl Aside {
    /// The statement has begun when this returns.
    fn running(server: &ScriptedServer, sql: &str) -> Self {
        let mut connection = server.connect();
        let id = u64::from(connection.connection_id());
        let text = sql.to_owned();
        let running = thread::spawn(move || {
            let begun = Instant::now();
            let result = connection.query_drop(text);
            (begun.elapsed(), result)
        });
        let seen = || server.statements().iter().any(|said| said.session == id && said.sql == sql);
        assert!(wait_until(Duration::from_secs(5), seen).is_some());
        Self { id, running }
    }

    fn end(self) -> (Duration, mysql::Result<()>) {
        self.running.join().expect("no panic")
    }
}

/// Whether a statement gets through within half a second.
fn gets_through(server: &ScriptedServer, sql: &str) -> bool {
    let half = Some(Duration::from_millis(500));
    let opts = OptsBuilder::from_opts(server.opts()).read_timeout(half);
    Conn::new(opts).expect("the server answers").query_drop(sql).is_ok()
}

/// How long the writers were held for the longest, and that nobody is held any longer. A server notices only a moment
/// later that a connection was closed.
fn longest_hold(server: &ScriptedServer) -> Duration {
    let held = || (server.read_locked_by(), server.backup_locked_by());
    let free = wait_until(Duration::from_secs(2), || held() == (None, None));
    assert!(free.is_some(), "somebody is still held: {:?}", held());
    let locks = server.read_locks();
    locks.iter().map(|lock| lock.over.expect("it is over") - lock.asked).max().unwrap_or_default()
}

fn said(stillness: &Stillness) -> &str {
    match stillness {
        Stillness::Lock(text) => text,
        other => panic!("{other:?}"),
    }
}

struct LockBench {
    server: ScriptedServer,
    journal: Arc<MemoryJournal>,
    only_slow: bool,
}

impl Bench for LockBench {
    fn hold(&self) -> Box<dyn Hold> {
        // Something to undo that does not end with the session.
        let plan = ServerLockPlan { raise_flush_log: true, ..plan(&self.server) };
        let both = Both::with(&plan, &self.journal);
        if self.only_slow { both.holds.into_iter().next().expect("two holds") } else { Box::new(both) }
    }
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }
    fn writers_run(&self) -> bool {
        gets_through(&self.server, if self.only_slow { "ALTER TABLE app.other ADD a INT" } else { INSERT })
    }
    fn obstruct(&self) -> Option<Box<dyn Any>> {
        let sql = if self.only_slow {
            "ALTER TABLE app.t ADD b INT, SLEEP(60)"
        } else {
            "UPDATE app.t SET a = SLEEP(60)"
        };
        let aside = Aside::running(&self.server, sql);
        Some(Box::new(Obstacle(self.server.connect(), aside.id)))
    }
    fn lose(&self) -> bool {
        let connections = self.server.connections();
        connections.iter().for_each(|id| self.server.kill(*id));
        wait_until(Duration::from_secs(5), || self.server.connections().is_empty()).is_some()
    }
    fn open_undos(&self) -> usize {
        self.journal.open().len()
    }
}

/// A statement that is ended when this is dropped.
struct Obstacle(Conn, u64);

impl Drop for Obstacle {
    fn drop(&mut self) {
        self.0.query_drop(format!("KILL {}", self.1)).expect("it is there");
    }
}

fn conforms(version: &'static str, only_slow: bool, more: fn(ScriptedBuilder) -> ScriptedBuilder) {
    hold::suite(|| {
        let server = more(ScriptedServer::version(version).variable(FLUSH_LOG, "0")).start();
        Box::new(LockBench { server, journal: Arc::default(), only_slow })
    });
}

#[test]
fn both_holds_conform() {
    conforms("8.0.36", false, |server| server);
}

#[test]
fn both_holds_conform_with_8_4() {
    conforms("8.4.3", false, |server| server);
}

#[test]
fn both_holds_conform_where_metadata_locks_are_not_instrumented() {
    conforms("8.0.36", false, ScriptedBuilder::without_metadata_locks);
}

#[test]
fn the_lock_of_definitions_conforms_too() {
    conforms("8.0.36", true, |server| server);
}

#[test]
fn the_position_is_that_of_the_lock_and_nobody_commits_under_it() {
    for version in ["8.0.20", "8.0.36", "8.4.3"] {
        let server = ScriptedServer::version(version).start();
        let mut idle = server.connect();
        for sql in ["BEGIN", "INSERT INTO app.t VALUES (1)"] {
            idle.query_drop(sql).expect("a transaction");
        }
        let mut both = Both::of(&plan(&server));
        assert_eq!(ok(both.prepare()), []);
        let mut held = ok(both.freeze(deadline_in(BUDGET)));
        let writer = Aside::running(&server, INSERT);
        let (file, offset, gtids) = server.position();
        let position = both.position();
        let binlog = position.binlog.expect("a binary log");
        assert_eq!((binlog.file, binlog.offset, position.gtid.expect("GTIDs").0), (file, offset, gtids));
        let proof = ok(held.prove());
        for word in ["BACKUP LOCK, COMMIT, GLOBAL", "connection ", "log_status"] {
            assert!(said(&proof).contains(word), "{proof:?}");
        }
        assert!(server.commits().is_empty());
        assert!(server.engine_flushes().last().is_some_and(|(_, locked)| *locked), "no flush under the lock");
        ok(held.thaw());
        assert!(writer.end().1.is_ok());
        idle.query_drop("COMMIT").expect("the idle transaction goes on");
        assert_eq!(server.commits().len(), 2);
        assert!(longest_hold(&server) < Duration::from_millis(500));
    }
}

#[test]
fn a_long_query_is_seen_before_anybody_is_held() {
    let server = ScriptedServer::version("8.0.36").start();
    let long = Aside::running(&server, "SELECT SLEEP(60) FROM app.t");
    // This one has no table open: a read lock does not wait for it.
    let harmless = Aside::running(&server, "SELECT SLEEP(2.5)");
    thread::sleep(Duration::from_millis(1_100));
    let mut both = Both::of(&plan(&server));
    ok(both.prepare());
    let begun = Instant::now();
    let failure = both.freeze(deadline_in(BUDGET)).err().expect("somebody is in the way");
    assert_eq!(failure.kind, FailureKind::Busy, "{}", failure.in_full());
    assert!(failure.in_full().contains(&format!("KILL QUERY {}", long.id)), "{}", failure.in_full());
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert!(server.read_locks().is_empty(), "the read lock was asked for");
    assert!(!long.running.is_finished());
    server.kill(long.id);
    assert!(long.end().1.is_err());
    ok(ok(both.freeze(deadline_in(BUDGET))).thaw());
    assert!(harmless.end().1.is_ok(), "a query that was in nobody's way was ended");
    longest_hold(&server);
}

#[test]
fn a_young_query_in_the_way_makes_it_give_up_before_the_budget_is_used() {
    let server = ScriptedServer::version("8.0.36").start();
    let mut both = Both::of(&plan(&server));
    ok(both.prepare());
    for sql in ["SELECT SLEEP(60) FROM app.t", "UPDATE app.t SET a = SLEEP(60)"] {
        let query = Aside::running(&server, sql);
        let failure =
            both.freeze(deadline_in(Duration::from_millis(700))).err().expect("a query is in the way");
        assert_eq!(failure.kind, FailureKind::TimedOut, "{}", failure.in_full());
        assert!(failure.what.contains(&format!("connection {}", query.id)), "{}", failure.in_full());
        assert!(!query.running.is_finished(), "somebody's query was ended although that is not allowed");
        assert!(gets_through(&server, INSERT), "writers of other tables are held");
        assert!(longest_hold(&server) < Duration::from_millis(700), "{:?}", longest_hold(&server));
        server.kill(query.id);
        assert!(query.end().1.is_err());
    }
    ok(ok(both.freeze(deadline_in(BUDGET))).thaw());
}

#[test]
fn queries_in_the_way_are_ended_only_if_that_is_allowed() {
    let server = ScriptedServer::version("8.0.36").start();
    let in_the_way = Aside::running(&server, "SELECT SLEEP(60) FROM app.t");
    let writing = Aside::running(&server, "UPDATE app.t SET a = SLEEP(60)");
    let harmless = Aside::running(&server, "SELECT SLEEP(3)");
    let mut both = Both::of(&ServerLockPlan { end_blocking_queries: true, ..plan(&server) });
    ok(both.prepare());
    let mut held = ok(both.freeze(deadline_in(BUDGET)));
    let proof = ok(held.prove());
    assert!(said(&proof).contains("were ended, on connections"), "{proof:?}");
    let ids = [in_the_way.id, writing.id].map(|id| id.to_string());
    assert!(ids.iter().all(|id| said(&proof).contains(id.as_str())), "{proof:?}");
    ok(held.thaw());
    assert!(in_the_way.end().1.is_err() && writing.end().1.is_err());
    assert!(longest_hold(&server) < BUDGET);
    assert!(harmless.end().1.is_ok(), "a query that was in nobody's way was ended");
}

#[test]
fn a_running_alter_table_is_waited_for_and_holds_no_writers() {
    let server = ScriptedServer::version("8.4.3").start();
    let alter = Aside::running(&server, "ALTER TABLE app.t ADD b INT, SLEEP(60)");
    let mut both = Both::of(&plan(&server));
    ok(both.prepare());
    let failure =
        both.freeze(deadline_in(Duration::from_millis(600))).err().expect("a definition is in the way");
    assert_eq!(failure.kind, FailureKind::TimedOut, "{}", failure.in_full());
    assert!(server.read_locks().is_empty() && !alter.running.is_finished());
    assert!(gets_through(&server, "ALTER TABLE app.other ADD b INT"));
    server.kill(alter.id);
    ok(ok(both.freeze(deadline_in(BUDGET))).thaw());
}

#[test]
fn a_connection_that_breaks_at_any_statement_leaves_nobody_held() {
    let mut statements = 0;
    for what in [What::BreakBefore, What::BreakAfter] {
        for passed in 0.. {
            let server = ScriptedServer::version("8.0.36").variable(FLUSH_LOG, "0").start();
            let journal = Arc::<MemoryJournal>::default();
            let mut both = Both::with(&ServerLockPlan { raise_flush_log: true, ..plan(&server) }, &journal);
            ok(both.prepare());
            server.fault(Fault::at("", what.clone()).after(passed));
            let begun = Instant::now();
            match both.freeze(deadline_in(BUDGET)) {
                Ok(mut held) => {
                    let proven = held.prove();
                    let thawed = held.thaw();
                    // The put back of the variable, behind the thaw, is told in the journal if it fails.
                    assert!(proven.is_ok() || proven.is_err_and(|failure| failure.kind == FailureKind::Lost));
                    ok(thawed);
                }
                Err(failure) => assert_ne!(failure.kind, FailureKind::Refused, "{}", failure.in_full()),
            }
            assert!(
                begun.elapsed() < BUDGET + Duration::from_secs(1),
                "at statement {passed}: {:?}",
                begun.elapsed()
            );
            let unused = !server.faults_are_used_up();
            let free = || server.read_locked_by().is_none() && server.backup_locked_by().is_none();
            assert!(wait_until(Duration::from_secs(1), free).is_some(), "{what:?} at statement {passed}");
            drop(both);
            let is_back = server.variable(FLUSH_LOG).as_deref() == Some("0");
            assert!(
                is_back || !journal.open().is_empty(),
                "{what:?} at statement {passed}: the variable is forgotten"
            );
            if unused {
                statements = passed;
                break;
            }
        }
    }
    assert!(statements > 15, "only {statements} statements were broken");
}

#[test]
fn a_server_that_ends_or_falls_silent_is_given_up_in_time() {
    for at in ["LOCK INSTANCE", "FLUSH TABLES WITH", "ENGINE LOGS", "gtid_executed"] {
        for what in [
            What::ServerEnds,
            What::DelayAnswer(Duration::from_secs(3)),
            What::Delay(Duration::from_secs(60)),
        ] {
            let server = ScriptedServer::version("8.0.36").start();
            let mut both = Both::of(&plan(&server));
            ok(both.prepare());
            server.fault(Fault::at(at, what.clone()));
            let begun = Instant::now();
            let failure = both.freeze(deadline_in(Duration::from_millis(800))).err().expect("it is given up");
            let took = begun.elapsed();
            assert!(took < Duration::from_millis(1_800), "{what:?} at {at}: {took:?}");
            assert!(failure.is_transient(), "{what:?} at {at}: {}", failure.in_full());
            if what != What::ServerEnds {
                let free = || server.read_locked_by().is_none() && server.backup_locked_by().is_none();
                assert!(wait_until(Duration::from_secs(3), free).is_some(), "{what:?} at {at}");
                ok(ok(both.freeze(deadline_in(BUDGET))).thaw());
            }
        }
    }
}

#[test]
fn a_guard_that_is_lost_does_not_make_the_stall_longer() {
    let server = ScriptedServer::version("8.0.36").start();
    let mut both = Both::of(&plan(&server));
    ok(both.prepare());
    // The first is the one that locks, the second guards it.
    let guard = server.connections()[1];
    let query = Aside::running(&server, "UPDATE app.t SET a = SLEEP(60)");
    let begun = Instant::now();
    let failure = thread::scope(|scope| {
        let freezing = scope.spawn(|| both.freeze(deadline_in(Duration::from_millis(1_500))).err());
        let asked = || !server.read_locks().is_empty();
        assert!(wait_until(Duration::from_secs(2), asked).is_some());
        server.kill(guard);
        freezing.join().expect("no panic")
    });
    assert!(failure.is_some_and(|failure| failure.is_transient()));
    assert!(begun.elapsed() < Duration::from_millis(2_500), "{:?}", begun.elapsed());
    let over = || server.read_locks().iter().all(|lock| lock.over.is_some());
    assert!(wait_until(Duration::from_secs(2), over).is_some());
    assert!(longest_hold(&server) < BUDGET + Duration::from_secs(1), "{:?}", longest_hold(&server));
    server.kill(query.id);
    ok(ok(both.freeze(deadline_in(BUDGET))).thaw());
}

#[test]
fn the_server_lets_go_by_itself_when_it_hears_nothing() {
    let server = ScriptedServer::version("8.0.36").start();
    let lock = ServerLock::new(&plan(&server), Duration::from_secs(1), means(&Arc::default()));
    let mut holds = lock.into_holds();
    ok(holds[0].prepare());
    let _slow = ok(holds[0].freeze(deadline_in(BUDGET)));
    let mut last = ok(holds[1].freeze(deadline_in(BUDGET)));
    let (waited, result) = Aside::running(&server, INSERT).end();
    assert!(result.is_ok() && waited < Duration::from_millis(1_500), "{waited:?}");
    assert_eq!(last.prove().expect_err("it is over").kind, FailureKind::Lost);
}

#[test]
fn a_raised_variable_is_put_back() {
    let server = ScriptedServer::version("8.0.36").variable(FLUSH_LOG, "0").start();
    let journal = Arc::<MemoryJournal>::default();
    let mut both = Both::with(&ServerLockPlan { raise_flush_log: true, ..plan(&server) }, &journal);
    ok(both.prepare());
    let held = ok(both.freeze(deadline_in(BUDGET)));
    assert_eq!((server.variable(FLUSH_LOG).as_deref(), journal.open().len()), (Some("1"), 1));
    ok(held.thaw());
    assert_eq!((server.variable(FLUSH_LOG).as_deref(), journal.open().len()), (Some("0"), 0));
}

#[test]
fn a_missing_privilege_is_a_refusal() {
    for at in ["LOCK INSTANCE", "FLUSH TABLES WITH"] {
        let server = ScriptedServer::version("8.0.36").start();
        let mut both = Both::of(&plan(&server));
        ok(both.prepare());
        let denied =
            "Access denied; you need (at least one of) the BACKUP_ADMIN privilege(s) for this operation";
        server.fault(Fault::at(at, What::Error(SqlError::new(1227, denied))));
        let failure = both.freeze(deadline_in(BUDGET)).err().expect("it is denied");
        assert_eq!(failure.kind, FailureKind::Refused, "{}", failure.in_full());
        assert!(failure.in_full().contains("BACKUP_ADMIN"), "{}", failure.in_full());
        assert!(gets_through(&server, INSERT));
        longest_hold(&server);
    }
}

#[test]
fn the_place_of_a_parallel_replica_is_called_incomplete() {
    let channel = || Channel {
        name: "a".into(),
        host: "db1".into(),
        executed: ("binlog.000003".into(), 1_234),
        applies: true,
    };
    for (version, workers, gtids, complete, notes) in [
        ("8.0.36", "4", "ON", false, 0),
        ("8.0.36", "4", "OFF", false, 1),
        ("8.4.3", "1", "OFF", true, 0),
        ("8.0.36", "0", "ON", true, 0),
    ] {
        let server = ScriptedServer::version(version)
            .replicates_from(channel())
            .variable("replica_parallel_workers", workers)
            .variable("gtid_mode", gtids)
            .start();
        let mut both = Both::of(&plan(&server));
        assert_eq!(ok(both.prepare()).len(), notes, "{version} {workers} {gtids}");
        ok(ok(both.freeze(deadline_in(BUDGET))).thaw());
        let position = both.position();
        let applied = &position.applied[0];
        assert_eq!((applied.channel.as_str(), applied.source.as_str()), ("a", "db1:3306"));
        assert_eq!(
            (applied.position.to_string().as_str(), applied.is_complete),
            ("binlog.000003:1234", complete)
        );
        assert_eq!(position.gtid.is_some(), gtids == "ON");
    }
}

#[test]
fn a_password_of_mysql_8_is_taken_from_a_file() {
    for how in [Login::FastSha2, Login::FullSha2, Login::Native] {
        let server = ScriptedServer::version("8.4.3").account("backup", "secret", how).start();
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "secret\n").expect("written");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).expect("private");
        let mut plan = plan(&server);
        plan.access.user = Some("backup".into());
        plan.access.password_file = Some(file.path().to_owned());
        let mut both = Both::of(&plan);
        ok(both.prepare());
        ok(ok(both.freeze(deadline_in(BUDGET))).thaw());
        if how != Login::Native {
            fs::write(file.path(), "guess\n").expect("written");
            let failure = Both::of(&plan).prepare().expect_err("it is the wrong one");
            assert_eq!(failure.kind, FailureKind::Refused);
            assert!(!failure.in_full().contains("guess"), "{}", failure.in_full());
        }
    }
}

fn facts(server: &ScriptedServer, end_blocking_queries: bool) -> model::server::ServerFacts {
    let database = ServerDatabase {
        access: access(server),
        databases: vec![],
        service: None,
        end_blocking_queries,
        archive: Archive::default(),
    };
    probe(&database, &|_| vec![])
}

#[test]
fn the_data_dictionary_leads_to_tablespaces_outside_the_data_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = dir.path().canonicalize().expect("real");
    let at = |name: &str| base.join(name);
    let text = |name: &str| at(name).display().to_string();
    for name in ["data/app", "far/app", "undo", "dblwr"] {
        fs::create_dir_all(at(name)).expect("made");
    }
    for name in ["data/ibdata1", "data/app/t.ibd", "far/app/x.ibd", "undo/u.ibu", "keys", "data/s.lock"] {
        fs::write(at(name), "x").expect("written");
    }
    let server = ScriptedServer::version("8.4.3")
        .variable("datadir", &text("data"))
        .variable("mysqlx_socket", &text("data/s"))
        .variable("innodb_doublewrite_dir", &text("dblwr"))
        .file("./app/t.ibd", "TABLESPACE")
        .file(&text("far/app/x.ibd"), "TABLESPACE")
        .file(&text("undo/u.ibu"), "UNDO LOG")
        .file("./ibtmp1", "TEMPORARY")
        .keyring(&text("keys"))
        .start();
    // Whoever serves a data directory has files of it open: here that is this very process.
    let _open = fs::File::open(at("data/ibdata1")).expect("open");
    let facts = facts(&server, false);
    assert_eq!(facts.refusal, None);
    let roots: Vec<_> = facts.roots.iter().map(|root| (root.role, root.path.clone())).collect();
    let expected = [
        (RootRole::Data, at("data")),
        (RootRole::SystemTablespace, at("dblwr")),
        (RootRole::External, at("far/app")),
        (RootRole::Keyring, at("keys")),
        (RootRole::Undo, at("undo")),
    ];
    assert_eq!(roots, expected);
    assert!(facts.roots[0].exclude.iter().any(|glob| glob == "s.lock"), "{:?}", facts.roots[0].exclude);
    assert_eq!(facts.files, 5, "data, a table, a far one, undo and keys: {:?}", facts.notes);
    assert_eq!(facts.settings.get("gtid_mode").map(String::as_str), Some("ON"));
    assert_eq!(facts.version.expect("a version").number, (8, 4, 3));
}

#[test]
fn facts_name_what_the_account_lacks_and_whom_the_server_replicates() {
    let channel =
        Channel { name: String::new(), host: "db1".into(), executed: ("b.3".into(), 4), applies: true };
    let server = ScriptedServer::version("8.0.36")
        .grants(&[
            "GRANT SELECT, RELOAD, PROCESS ON *.* TO `root`@`localhost`",
            "GRANT `r`@`%` TO `root`@`localhost`",
        ])
        .replicates_from(channel)
        .variable("replica_preserve_commit_order", "OFF")
        .variable("innodb_flush_log_at_trx_commit", "0")
        .table("app", "m", "MyISAM")
        .start();
    let facts = facts(&server, true);
    assert_eq!(facts.refusal, None);
    let lacks: Vec<&str> = facts.missing_privileges.iter().map(|privilege| privilege.name.as_str()).collect();
    assert_eq!(lacks, ["BACKUP_ADMIN", "REPLICATION CLIENT", "SYSTEM_VARIABLES_ADMIN", "CONNECTION_ADMIN"]);
    assert!(facts.missing_privileges[0].grant.contains("`root`@`localhost`"));
    let replica = &facts.replicas[0];
    assert_eq!((replica.source.as_str(), replica.applies, replica.out_of_order), ("db1:3306", true, true));
    let engines: Vec<_> =
        facts.engines.iter().map(|engine| (engine.name.as_str(), engine.transactional)).collect();
    assert_eq!(engines, [("InnoDB", true), ("MyISAM", false)]);
    assert_eq!(facts.flush_log_at_commit, 0);
}
