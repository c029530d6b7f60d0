//! The helper roles: this program, started again with one database to open and nothing else.
//!
//! `sqlite-lock DATABASE` holds the write lock; `sqlite-reader DATABASE` (see the module `reader`) holds a read
//! transaction and copies what it sees; `sqlite-log DATABASE` (see the module `wal`) follows its write-ahead log. Requests
//! come on standard input, replies go to standard output.
//!
//! Crash story: the helper ends at the end of its standard input, which the kernel brings about however the
//! main process dies; the lock ends with it. The lock also lapses by itself at the moment named when it was
//! asked for, so that a main process that hangs holds nobody. Nothing is ever written to the database, and the
//! WAL is not folded in when the helper leaves: that is the applications' affair.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use model::{plan::JournalMode, port::Clock, time::Moment};
use os::clock::SystemClock;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, TransactionState, config::DbConfig};

use super::{
    lines::{Incoming, Lines, is_ready},
    names::wal_of,
    protocol::{Reply, Request, Trouble},
    reader, wal,
};

/// The helper role that holds the write lock; its argument is the database.
pub const LOCK_ROLE: &str = "sqlite-lock";
/// The helper role that holds a read transaction; its argument is the database.
pub const READER_ROLE: &str = "sqlite-reader";
/// The helper role that follows the write-ahead log; its argument is the database.
pub const LOG_ROLE: &str = "sqlite-log";

/// How often a lock that somebody else has is tried again: a fraction of the stall that a cut costs.
const RETRY: Duration = Duration::from_micros(100);

/// Plays [`LOCK_ROLE`], [`READER_ROLE`] or [`LOG_ROLE`] until standard input ends. Exit status 0 if it was not interrupted, 1
/// if the main process could no longer be reached, 2 for another role or missing arguments.
#[must_use]
pub fn helper_main(role: &str, args: &[OsString]) -> ExitCode {
    let [path] = args else { return complain("a helper for SQLite needs one database") };
    let path = PathBuf::from(path);
    let played = match role {
        LOCK_ROLE => Session::run(path, answer_lock),
        READER_ROLE => Session::run(path, reader::answer),
        LOG_ROLE => wal::play(path),
        _ => return complain(&format!("there is no helper role {role:?}")),
    };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("the main process cannot be reached: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn complain(what: &str) -> ExitCode {
    // Nobody is left to tell if standard error is closed too.
    let _ = writeln!(io::stderr(), "{what}");
    ExitCode::from(2)
}

/// One database, opened, and the pipe to the main process.
pub(super) struct Session {
    pub connection: Connection,
    path: PathBuf,
    lines: Lines,
    /// When the busy handler stops trying, as a [`Moment`].
    give_up: Arc<AtomicU64>,
    /// When the transaction ends, asked or not.
    lapse: Option<Moment>,
}

impl Session {
    fn run(path: PathBuf, answer: fn(&mut Self, Request) -> io::Result<()>) -> io::Result<()> {
        let give_up = Arc::new(AtomicU64::new(0));
        let connection = match open(&path, Arc::clone(&give_up)) {
            Ok(connection) => connection,
            Err(error) => return say(&failed(&error)),
        };
        let mut session = Self { connection, path, lines: Lines::default(), give_up, lapse: None };
        say(&Reply::Ready)?;
        let talked = session.talk(answer);
        session.leave();
        talked
    }

    fn talk(&mut self, answer: fn(&mut Self, Request) -> io::Result<()>) -> io::Result<()> {
        loop {
            let wait = self.lapse.map(|lapse| lapse.since(SystemClock.moment()));
            match self.lines.next(io::stdin().as_fd(), wait)? {
                Incoming::End => return Ok(()),
                Incoming::Silence => {
                    self.roll_back();
                }
                Incoming::Line(line) => match serde_json::from_str(&line)? {
                    Request::Quit => return Ok(()),
                    request => answer(self, request)?,
                },
            }
        }
    }

    /// Runs something that may have to wait for locks until `give_up`.
    pub fn patiently<T>(
        &self,
        give_up: Moment,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.give_up.store(give_up.0, Ordering::Relaxed);
        run(&self.connection)
    }

    /// Ends the transaction, if one is open. Says whether none is open afterwards.
    pub fn roll_back(&mut self) -> bool {
        self.lapse = None;
        if !self.connection.is_autocommit() {
            // Whether it worked is read from the connection itself.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        self.connection.is_autocommit()
    }

    /// How the connection journals; asked inside a transaction, it tells what holds for that transaction.
    pub fn journal(&self) -> rusqlite::Result<JournalMode> {
        let mode: String = self.connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        Ok(if mode == "wal" { JournalMode::Wal } else { JournalMode::Rollback })
    }

    /// Whether the file at the path is no longer the one that is open.
    pub fn has_moved(&self) -> rusqlite::Result<bool> {
        let mut moved = 0;
        let ask = rusqlite::FileControl::HasMoved(&mut moved);
        self.connection.file_control(Some(MAIN_DB), ask)?;
        Ok(moved != 0)
    }

    /// Closes the database. A WAL without content, which our opening may have made, goes as it does when any
    /// last connection closes; one with content stays as it is.
    fn leave(mut self) {
        self.roll_back();
        let empty = fs::metadata(wal_of(&self.path)).is_ok_and(|wal| wal.len() == 0);
        if empty {
            // If it cannot be set, the empty WAL stays, which harms nobody.
            let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
        }
    }
}

fn open(path: &Path, give_up: Arc<AtomicU64>) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_handler(Some(move |_| try_again(&give_up)))?;
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
    // Reads the first page: opens or makes the wal-index, and finds out what is no database. If somebody has
    // the database for himself now, the first freeze will find out whether that lasts.
    match connection.query_row("PRAGMA schema_version", [], |row| row.get::<_, i64>(0)) {
        Ok(_) => Ok(connection),
        Err(error) if is_busy(&error) => Ok(connection),
        Err(error) => Err(error),
    }
}

/// Anything on standard input means that nobody waits for the lock any more.
fn try_again(give_up: &AtomicU64) -> bool {
    let now = SystemClock.moment();
    let wanted = now < Moment(give_up.load(Ordering::Relaxed))
        && !is_ready(io::stdin().as_fd(), Some(Duration::ZERO)).unwrap_or(true);
    if wanted {
        thread::sleep(RETRY);
    }
    wanted
}

fn answer_lock(session: &mut Session, request: Request) -> io::Result<()> {
    let reply = match request {
        Request::Freeze { give_up, lapse } => freeze(session, give_up, lapse),
        Request::Prove => state(session).unwrap_or_else(|error| failed(&error)),
        Request::Thaw => thaw(session),
        _ => misplaced(),
    };
    say(&reply)
}

fn freeze(session: &mut Session, give_up: Moment, lapse: Moment) -> Reply {
    if SystemClock.moment() >= give_up {
        return Reply::Busy;
    }
    let begun = session.patiently(give_up, |connection| {
        if connection.is_autocommit() { connection.execute_batch("BEGIN IMMEDIATE") } else { Ok(()) }
    });
    session.lapse = Some(lapse);
    let begun =
        begun.and_then(|()| Ok(Reply::Begun { journal: session.journal()?, moved: session.has_moved()? }));
    begun.unwrap_or_else(|error| {
        session.roll_back();
        if is_busy(&error) { Reply::Busy } else { failed(&error) }
    })
}

fn state(session: &Session) -> rusqlite::Result<Reply> {
    let open = session.connection.transaction_state(Some(MAIN_DB))?;
    let writing = open == TransactionState::Write && !session.connection.is_autocommit();
    Ok(Reply::State { writing, moved: session.has_moved()? })
}

pub(super) fn thaw(session: &mut Session) -> Reply {
    if session.roll_back() {
        Reply::Thawed
    } else {
        Reply::Failed { what: "the transaction cannot be ended".into(), kind: Trouble::Other }
    }
}

pub(super) fn misplaced() -> Reply {
    Reply::Failed { what: "this helper has another role".into(), kind: Trouble::Other }
}

pub(super) fn say(reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

pub(super) fn failed(error: &rusqlite::Error) -> Reply {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Trouble::Foreign,
        Some(ErrorCode::DiskFull) => Trouble::Full,
        _ => Trouble::Other,
    };
    Reply::Failed { what: error.to_string(), kind }
}
