//! Servers of one's own, and what watches and disturbs them.

pub mod probing;

use std::{
    env,
    ffi::OsString,
    path::Path,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use engines::server::{Holder, Means, ServerLock, UNDO_ROLE, undo_main};
use model::{
    id::SourceId,
    plan::ServerLockPlan,
    port::{Clock, Failure, Frozen, Hold},
    problem::Problem,
    server::{Flavor, ServerAccess, ServerAddress},
    time::Deadline,
    verdict::Stillness,
};
use mysql::{Conn, OptsBuilder, prelude::Queryable};
use os::{
    clock::SystemClock,
    command::{Helper, helper_role},
};
use testkit::{
    fakes::journal::MemoryJournal,
    server::{PrivateServer, wait_until},
};

/// What a server's writers may be held at the most.
pub const BUDGET: Duration = Duration::from_secs(2);

/// What a process of this program does instead of testing, with its arguments.
pub type Role = fn(&[String]);

/// Runs the tests whose names contain one of the arguments, or plays a role.
pub fn run(tests: &[(&str, fn())], roles: &[(&str, Role)]) -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "__role") {
        let words: Vec<String> =
            arguments[1..].iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let (_, play) = roles.iter().find(|(name, _)| *name == words[0]).expect("a role");
        play(&words[1..]);
        return ExitCode::SUCCESS;
    }
    if let Some((role, rest)) = helper_role(&arguments) {
        assert_eq!(role, UNDO_ROLE, "the only role that is needed here");
        return undo_main(rest);
    }
    let words: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let wanted = |name: &str| {
        let mut words = words.iter().filter(|word| !word.starts_with('-')).peekable();
        words.peek().is_none() || words.any(|word| name.contains(word.as_str()))
    };
    if words.iter().any(|word| word == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut failed = vec![];
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        let start = Instant::now();
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {} ({:.1?})", if passed { "ok" } else { "FAILED" }, start.elapsed());
        if !passed {
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}");
    ExitCode::FAILURE
}

/// What a driver needs of the world.
pub fn means(journal: &Arc<MemoryJournal>) -> Means {
    Means { journal: journal.clone(), clock: Arc::new(SystemClock), helper: Helper::this_program() }
}

/// How the tests reach a server.
pub fn access(server: &PrivateServer) -> ServerAccess {
    access_at(&server.socket())
}

/// How the tests reach a server that has its socket there.
pub fn access_at(socket: &Path) -> ServerAccess {
    ServerAccess {
        flavor: Flavor::MariaDb,
        address: ServerAddress::Socket(socket.to_owned()),
        user: Some("root".into()),
        password_file: None,
        option_file: None,
        tls_ca: None,
    }
}

/// The plan of its lock.
pub fn plan(server: &PrivateServer) -> ServerLockPlan {
    plan_at(&server.socket())
}

/// The plan of the lock of a server that has its socket there.
pub fn plan_at(socket: &Path) -> ServerLockPlan {
    let access = access_at(socket);
    ServerLockPlan {
        source: SourceId::new("mariadb", &access.address),
        access,
        flavor: Flavor::MariaDb,
        end_blocking_queries: false,
        raise_flush_log: false,
    }
}

/// The deadline so far from now.
pub fn within(duration: Duration) -> Deadline {
    Deadline(SystemClock.moment().after(duration))
}

/// The success, or the failure in full.
pub fn ok<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.in_full()))
}

/// A server with one table of each engine, `d.innodb` and so on, a number in each row.
pub fn server_with_tables() -> PrivateServer {
    let server = PrivateServer::builder().start();
    make_tables(&server);
    server
}

/// Makes the tables of [`server_with_tables`].
pub fn make_tables(server: &PrivateServer) {
    server.run(["CREATE DATABASE d"]);
    for engine in ["InnoDB", "MyISAM", "Aria"] {
        server.run([format!(
            "CREATE TABLE d.{} (id INT PRIMARY KEY AUTO_INCREMENT, n INT) ENGINE={engine}",
            engine.to_lowercase()
        )]);
    }
}

/// Its lock, prepared, with what pinners ask.
pub fn held(server: &PrivateServer) -> (Both, Holder) {
    let journal = Arc::new(MemoryJournal::default());
    let lock = ServerLock::new(&plan(server), BUDGET, means(&journal));
    let holder = lock.holder();
    let mut both = Both::of(lock);
    ok(both.prepare());
    (both, holder)
}

/// Its lock, prepared.
pub fn lock(server: &PrivateServer) -> Both {
    held(server).0
}

/// Ends all connections but the one that does it.
pub fn kill_all(server: &PrivateServer) {
    let mut conn = server.connect();
    for process in server.processes() {
        if process.id != u64::from(conn.connection_id()) {
            // It may have ended by itself.
            let _ = conn.query_drop(format!("KILL {}", process.id));
        }
    }
    drop(conn);
    assert!(
        wait_until(Duration::from_secs(5), || server.processes().is_empty()).is_some(),
        "connections are left"
    );
}

/// Both steps as one hold, as a cut takes them.
pub struct Both(pub Vec<Box<dyn Hold>>);

/// Both steps, held.
pub struct BothHeld(Vec<Box<dyn Frozen>>);

impl Both {
    pub fn of(lock: ServerLock) -> Self {
        Self(lock.into_holds())
    }
}

impl Hold for Both {
    fn name(&self) -> String {
        self.0.iter().map(|hold| hold.name()).collect::<Vec<_>>().join(", ")
    }
    fn class(&self) -> model::plan::HoldClass {
        self.0[1].class()
    }
    fn sources(&self) -> Vec<SourceId> {
        self.0[0].sources()
    }
    fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
        let mut problems = vec![];
        for hold in &mut self.0 {
            problems.extend(hold.prepare()?);
        }
        Ok(problems)
    }
    fn freeze(&mut self, until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
        let mut held = BothHeld(vec![]);
        for hold in &mut self.0 {
            held.0.push(hold.freeze(until)?);
        }
        Ok(Box::new(held))
    }
}

impl Frozen for BothHeld {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        let mut last = None;
        for held in self.0.iter_mut().rev() {
            last = Some(held.prove()?);
        }
        Ok(last.expect("two steps"))
    }
    fn thaw(mut self: Box<Self>) -> Result<(), Failure> {
        let mut thawed = Ok(());
        while let Some(held) = self.0.pop() {
            thawed = thawed.and(held.thaw());
        }
        thawed
    }
}

/// A statement that runs on a connection of its own until the value is dropped; its connection is ended then.
pub struct Statement {
    kill: Conn,
    id: u32,
    thread: Option<JoinHandle<()>>,
}

impl Statement {
    /// Runs the statements in order, waiting in the last one or after it.
    pub fn running(server: &PrivateServer, statements: &[&str]) -> Self {
        let mut conn = server.connect();
        let id = conn.connection_id();
        let statements: Vec<String> = statements.iter().map(|sql| (*sql).to_owned()).collect();
        let last = statements.last().cloned().unwrap_or_default();
        let (done, all_done) = mpsc::channel();
        let thread = thread::spawn(move || {
            let results: Vec<_> = statements.iter().map(|sql| conn.query_drop(sql)).collect();
            let _ = done.send(results);
            // Stays connected until it is killed.
            while conn.query_drop("DO SLEEP(0.01)").is_ok() {}
        });
        let mut kill = server.connect();
        let start = Instant::now();
        loop {
            if let Ok(results) = all_done.try_recv() {
                results.into_iter().for_each(|result| result.expect("a statement that disturbs"));
                break;
            }
            let sql =
                format!("SELECT info FROM information_schema.processlist WHERE id = {id} AND time_ms > 50");
            let info: Option<Option<String>> = kill.query_first(sql).expect("the process list");
            if info.flatten().is_some_and(|info| info == last) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{last} does not run");
            thread::sleep(Duration::from_millis(5));
        }
        Self { kill, id, thread: Some(thread) }
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        let _ = self.kill.query_drop(format!("KILL {}", self.id));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether a commit into this table gets through within half a second. A commit that waits for the lock does not heed
/// `max_statement_time` (seen), so the client gives up.
pub fn commits(server: &PrivateServer, table: &str) -> bool {
    let opts = OptsBuilder::from_opts(server.opts()).read_timeout(Some(Duration::from_millis(500)));
    let mut conn = Conn::new(opts).expect("a connection");
    match conn.query_drop(format!("INSERT INTO d.{table} (n) VALUES (1)")) {
        Ok(()) => true,
        Err(error @ mysql::Error::MySqlError(_)) => panic!("{error}"),
        Err(_) => false,
    }
}
