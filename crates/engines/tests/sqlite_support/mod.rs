//! Shared by the tests of SQLite: this very program in the roles of helper, writer and onlooker, a journal, and
//! a ledger whose rows vouch for one another.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::print_stdout, reason = "this is a test runner")]

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use engines::sqlite::{Fingerprint, Holder, Means, SqliteLock, SqlitePinner, helper_main, probe};
use model::{
    entry::{Body, Entry, Harvest, Kind},
    id::SourceId,
    known::Known,
    plan::{JournalMode, PinMethod, PinPlan, SqlitePlan},
    port::{Failure, Frozen, Hold, Journal, Pin, Pinner, Silent},
    time::Deadline,
    undo::{ProcessRef, Ticket, Undo},
};
use os::{
    clock::{SystemClock, deadline_in},
    command::Helper,
};
use rusqlite::{Connection, TransactionBehavior};

pub type Case = (&'static str, fn());

/// Plays the role named in the arguments, or runs the cases whose names contain them.
pub fn run(cases: &[Case]) -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let first = args.first().and_then(|a| a.to_str()).unwrap_or_default();
    if first == "__helper" {
        return helper_main(args[1].to_str().expect("a role"), &args[2..]);
    }
    if first.starts_with("__") {
        return play(first, Path::new(&args[1]), args.get(2).and_then(|a| a.to_str()).unwrap_or_default());
    }
    let filters: Vec<&str> = args.iter().filter_map(|a| a.to_str()).filter(|a| !a.starts_with('-')).collect();
    let mut failed = 0;
    for (name, case) in cases {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter)) {
            continue;
        }
        let started = std::time::Instant::now();
        let ok = catch_unwind(AssertUnwindSafe(case)).is_ok();
        println!("test {name} ... {} ({:?})", if ok { "ok" } else { "FAILED" }, started.elapsed());
        failed += u32::from(!ok);
    }
    ExitCode::from(u8::from(failed > 0))
}

// Roles.

fn play(role: &str, path: &Path, argument: &str) -> ExitCode {
    match role {
        "__writer" => hammer(path, argument.parse().expect("a number")),
        "__pair" => hammer_pair(path, Path::new(argument)),
        "__try" => return try_write(path),
        "__read" => println!("{}", state_of(&open(path)).to_line()),
        "__dump" => dump(path),
        "__write" => write_step(path, argument.parse().expect("a step")),
        "__sit" => sit(path),
        "__exclusive" => exclusive(path),
        "__hold" => hold_for_ever(path),
        "__probe" => {
            let facts = probe(source(path), path, &[]);
            println!("{}", facts.refusal.map_or(String::new(), |r| format!("{}; {}", r.what, r.remedy)));
        }
        other => panic!("no role {other}"),
    }
    ExitCode::SUCCESS
}

fn open(path: &Path) -> Connection {
    let db = Connection::open(path).expect("the database opens");
    // Longer than any queue of writers on a slow disk.
    db.busy_timeout(Duration::from_secs(300)).expect("a timeout");
    db
}

/// Makes a ledger: every row's sum follows from the one before, and `counter` counts `items`.
pub fn make_ledger(path: &Path, journal: JournalMode) {
    let db = open(path);
    let mode = if journal == JournalMode::Wal { "wal" } else { "delete" };
    let set: String = db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |r| r.get(0)).expect("a mode");
    assert_eq!(set, mode);
    db.execute_batch(
        "CREATE TABLE ledger(id INTEGER PRIMARY KEY, sum INTEGER NOT NULL, note BLOB);
         CREATE TABLE items(id INTEGER PRIMARY KEY, body BLOB); CREATE INDEX by_body ON items(body);
         CREATE TABLE counter(n INTEGER NOT NULL);
         INSERT INTO ledger VALUES (0, 7, NULL); INSERT INTO counter VALUES (0);",
    )
    .expect("a ledger");
}

fn next_sum(sum: i64, id: i64) -> i64 {
    (sum * 31 + id) % 1_000_000_007
}

fn post(db: &mut Connection, weight: usize) {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).expect("the write lock");
    let (id, sum): (i64, i64) = tx
        .query_row("SELECT id, sum FROM ledger ORDER BY id DESC LIMIT 1", [], |r| Ok((r.get(0)?, r.get(1)?)))
        .expect("a last row");
    let next = next_sum(sum, id + 1);
    tx.execute("INSERT INTO ledger VALUES (?1, ?2, randomblob(?3))", (id + 1, next, weight as i64))
        .expect("a row");
    for _ in 0..3 {
        tx.execute("INSERT INTO items(body) VALUES (randomblob(?1))", [weight as i64]).expect("an item");
    }
    if id % 5 == 4 {
        let gone = tx.execute("DELETE FROM items WHERE id IN (SELECT id FROM items LIMIT 9)", []);
        tx.execute("UPDATE counter SET n = n - ?1", [gone.expect("gone") as i64]).expect("counted");
    }
    tx.execute("UPDATE counter SET n = n + 3", []).expect("counted");
    tx.commit().expect("committed");
}

fn hammer(path: &Path, weight: usize) {
    let mut db = open(path);
    loop {
        post(&mut db, weight);
        // SQLite's waiters queue nowhere: without a gap, readers would starve on a slow disk.
        thread::sleep(Duration::from_millis(2));
    }
}

fn hammer_pair(a: &Path, b: &Path) {
    let db = open(a);
    db.execute("ATTACH ?1 AS b", [b.to_str().expect("UTF-8")]).expect("attached");
    loop {
        let both = db.execute_batch(
            "BEGIN IMMEDIATE; UPDATE main.counter SET n = n + 1; UPDATE b.counter SET n = n + 1; COMMIT;",
        );
        if both.is_err() {
            let _ = db.execute_batch("ROLLBACK");
        }
    }
}

/// Exit status 0 if a commit gets through within half a second.
fn try_write(path: &Path) -> ExitCode {
    let db = Connection::open(path).expect("opens");
    db.busy_timeout(Duration::from_millis(500)).expect("a timeout");
    let done = db.execute_batch(
        "BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS tried(a); \
         INSERT INTO tried VALUES (1); COMMIT;",
    );
    ExitCode::from(u8::from(done.is_err()))
}

fn write_step(path: &Path, step: u64) {
    let db = open(path);
    db.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS rows(k TEXT PRIMARY KEY, v BLOB);
         BEGIN IMMEDIATE;
         INSERT OR REPLACE INTO rows VALUES ('new-{step}', randomblob(3000)), ('same', randomblob(5000)),
            ('other-{step}', randomblob(90));
         DELETE FROM rows WHERE k = 'other-{}';
         COMMIT;",
        step.saturating_sub(1)
    ))
    .expect("a step");
}

pub fn rows_of(db: &Connection) -> BTreeMap<String, Vec<u8>> {
    let mut statement = db.prepare("SELECT k, v FROM rows").expect("rows");
    let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).expect("rows");
    rows.map(|r| r.expect("a row")).collect()
}

fn dump(path: &Path) {
    for (key, value) in rows_of(&open(path)) {
        let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
        println!("{key} {hex}");
    }
}

fn say_and_wait(what: &str) {
    println!("{what}");
    std::io::stdout().flush().expect("flushed");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn sit(path: &Path) {
    let db = open(path);
    db.execute_batch("BEGIN IMMEDIATE; CREATE TABLE sat(a);").expect("the lock");
    say_and_wait("sitting");
}

fn exclusive(path: &Path) {
    let db = open(path);
    db.query_row("PRAGMA locking_mode=EXCLUSIVE", [], |_| Ok(())).expect("exclusive");
    db.execute_batch("CREATE TABLE mine(a)").expect("written");
    say_and_wait("exclusive");
}

fn hold_for_ever(path: &Path) {
    let mut lock = SqliteLock::new(source(path), path, Means::of(&Notebook::new()));
    lock.prepare().expect("prepared");
    let _frozen = lock.freeze(deadline_in(Duration::from_secs(60))).expect("frozen");
    say_and_wait("held");
}

// Other processes.

/// A process in one of the roles; ends when dropped.
pub struct Actor(Child);

impl Actor {
    /// Starts a role that says a word when it is there.
    pub fn that_says(word: &str, role: &str, path: &Path) -> Self {
        let mut child =
            command(role, path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), word);
        Self(child)
    }

    pub fn writer(path: &Path, weight: usize) -> Self {
        Self(command("__writer", path).arg(weight.to_string()).spawn().expect("a writer"))
    }

    pub fn pair(a: &Path, b: &Path) -> Self {
        Self(command("__pair", a).arg(b).spawn().expect("a writer"))
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("waited").is_none()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn command(role: &str, path: &Path) -> Command {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.arg(role).arg(path);
    command
}

pub fn output(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().expect("a process");
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

pub fn can_write(path: &Path) -> bool {
    command("__try", path).status().expect("a process").success()
}

pub fn live_state(path: &Path) -> Ledger {
    Ledger::from_line(output(&mut command("__read", path)).trim())
}

/// Waits until more than `last` rows are posted: the writers get on.
pub fn wait_beyond(path: &Path, last: i64) {
    let asked = std::time::Instant::now();
    while live_state(path).last <= last {
        assert!(asked.elapsed() < Duration::from_secs(120), "no writer gets on");
        thread::sleep(Duration::from_millis(5));
    }
}

/// As an ordinary user, also when the tests are run by root.
pub fn as_nobody(mut command: Command) -> Command {
    if rustix::process::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    command
}

// The ledger.

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    pub last: i64,
    pub sum: i64,
    pub items: i64,
    pub counter: i64,
}

impl Ledger {
    fn to_line(&self) -> String {
        format!("{} {} {} {}", self.last, self.sum, self.items, self.counter)
    }

    fn from_line(line: &str) -> Self {
        let n: Vec<i64> = line.split(' ').map(|n| n.parse().expect("a number")).collect();
        Self { last: n[0], sum: n[1], items: n[2], counter: n[3] }
    }
}

pub fn state_of(db: &Connection) -> Ledger {
    db.query_row(
        "SELECT max(id), (SELECT sum FROM ledger ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM items),
                (SELECT n FROM counter) FROM ledger",
        [],
        |r| Ok(Ledger { last: r.get(0)?, sum: r.get(1)?, items: r.get(2)?, counter: r.get(3)? }),
    )
    .expect("a ledger")
}

/// Checks a restored ledger from its first row to its last.
pub fn checked(path: &Path) -> Ledger {
    let db = open(path);
    let whole: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0)).expect("a check");
    assert_eq!(whole, "ok");
    let mut rows = db.prepare("SELECT id, sum FROM ledger ORDER BY id").expect("rows");
    let mut expected = (0, 7);
    for row in rows.query_map([], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?))).expect("rows") {
        assert_eq!(row.expect("a row"), expected, "the chain is broken");
        expected = (expected.0 + 1, next_sum(expected.1, expected.0 + 1));
    }
    drop(rows);
    let state = state_of(&db);
    assert_eq!(state.items, state.counter, "items and counter");
    state
}

// The world of the drivers.

/// A journal in memory.
#[derive(Default)]
pub struct Notebook {
    open: Mutex<(u64, BTreeMap<u64, Undo>)>,
}

impl Notebook {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn open(&self) -> Vec<Undo> {
        self.open.lock().expect("not poisoned").1.values().cloned().collect()
    }

    /// The helper processes that are journalled.
    pub fn children(&self) -> Vec<ProcessRef> {
        let end = |undo| if let Undo::End { process } = undo { Some(process) } else { None };
        self.open().into_iter().filter_map(end).collect()
    }
}

impl Journal for Notebook {
    fn intend(&self, undo: Undo, _until: Option<Deadline>) -> Result<Ticket, Failure> {
        let mut open = self.open.lock().expect("not poisoned");
        open.0 += 1;
        let ticket = open.0;
        open.1.insert(ticket, undo);
        Ok(Ticket(ticket))
    }

    fn amend(&self, ticket: Ticket, undo: Undo, _until: Option<Deadline>) -> Result<(), Failure> {
        self.open.lock().expect("not poisoned").1.insert(ticket.0, undo);
        Ok(())
    }

    fn done(&self, ticket: Ticket) {
        self.open.lock().expect("not poisoned").1.remove(&ticket.0);
    }
}

pub trait OfNotebook {
    fn of(journal: &Arc<Notebook>) -> Self;
}

impl OfNotebook for Means {
    fn of(journal: &Arc<Notebook>) -> Self {
        Self {
            helper: Helper {
                program: env::current_exe().expect("this program"),
                args: vec!["__helper".into()],
            },
            journal: Arc::clone(journal) as Arc<dyn Journal>,
            clock: Arc::new(SystemClock),
        }
    }
}

pub fn source(path: &Path) -> SourceId {
    SourceId::new("sqlite", path.display())
}

pub fn plan(path: &Path, staging: &Path, journal: JournalMode, reflink: bool) -> PinPlan {
    let database = SqlitePlan { path: path.to_owned(), journal };
    let method = match journal {
        _ if reflink => PinMethod::SqliteReflink(database),
        JournalMode::Wal => PinMethod::SqliteTransaction(database),
        JournalMode::Rollback => PinMethod::SqlitePages(database),
    };
    PinPlan { source: source(path), method, staging: staging.to_owned(), why: String::new() }
}

pub fn pinner(plan: &PinPlan, holder: Holder, previous: Option<Fingerprint>) -> SqlitePinner {
    ok(SqlitePinner::new(plan, holder, Means::of(&Notebook::new()), previous))
}

pub fn ok<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.in_full()))
}

pub fn kill(process: ProcessRef) {
    let pid = i32::try_from(process.pid).expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
}

/// Takes the lock, trying again while writers are quicker.
pub fn freeze(lock: &mut SqliteLock) -> Box<dyn Frozen> {
    for _ in 0..20 {
        match lock.freeze(deadline_in(Duration::from_secs(5))) {
            Ok(frozen) => return frozen,
            Err(failure) => assert!(failure.is_transient(), "{}", failure.in_full()),
        }
    }
    panic!("the lock was never free")
}

/// A whole cut; returns the state under the lock and what was harvested, with the pin that keeps it.
pub fn cut(lock: &mut SqliteLock, pinner: &mut SqlitePinner, path: &Path) -> (Ledger, Harvest, Box<dyn Pin>) {
    ok(pinner.prepare(&Known::default()));
    ok(pinner.round());
    let mut frozen = freeze(lock);
    let mut pin = ok(pinner.pin(deadline_in(Duration::from_secs(20))));
    let state = live_state(path);
    ok(pin.unchanged(deadline_in(Duration::from_secs(5))));
    ok(frozen.prove());
    ok(frozen.thaw());
    thread::sleep(Duration::from_millis(50));
    let harvest = ok(pin.harvest(&Silent));
    (state, harvest, pin)
}

pub fn bytes_of(entry: &Entry) -> Vec<u8> {
    match &entry.body {
        Body::At(path) => fs::read(path).expect("a pinned copy"),
        Body::Inline(bytes) => bytes.clone(),
        Body::Carried | Body::Nothing => panic!("{} is not stored anew", entry.path.display()),
    }
}

/// Writes the harvested files into a directory under their own names, as a restore does.
pub fn restore(harvest: &Harvest, to: &Path) {
    for entry in harvest.entries.iter().filter(|e| e.kind == Kind::File) {
        let bytes = bytes_of(entry);
        assert_eq!(bytes.len() as u64, entry.meta.size.0, "{}", entry.path.display());
        fs::write(to.join(entry.path.file_name().expect("a name")), bytes).expect("restored");
    }
}

/// A directory with a ledger in it, and one for staging; both under real paths.
pub struct Place {
    _dir: tempfile::TempDir,
    pub root: PathBuf,
    pub path: PathBuf,
    pub staging: PathBuf,
}

impl Place {
    pub fn with_ledger(journal: JournalMode) -> Self {
        let place = Self::empty();
        make_ledger(&place.path, journal);
        place
    }

    pub fn empty() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = fs::canonicalize(dir.path()).expect("a real path");
        let staging = root.join("staging");
        fs::create_dir_all(&staging).expect("a directory");
        fs::create_dir_all(root.join("app")).expect("a directory");
        Self { _dir: dir, path: root.join("app/ledger.db"), staging, root }
    }

    pub fn names(&self, below: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(below)).expect("a directory");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

pub const BOTH: [JournalMode; 2] = [JournalMode::Wal, JournalMode::Rollback];
