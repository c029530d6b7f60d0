//! The reader's role: a read transaction begun under the lock, copied after the thaw.
//!
//! In WAL mode an open read transaction sees one commit for ever; the backup API on that very connection
//! copies exactly that (<https://www.sqlite.org/isolation.html>, <https://www.sqlite.org/backup.html>). Meanwhile
//! checkpoints cannot go beyond that commit.
//!
//! Crash story: the transaction ends with this process, which ends with its pipe, also in the middle of the
//! copy; the half copy goes with its staging directory.

use std::{
    io,
    os::fd::AsFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use model::{plan::JournalMode, size::Bytes, time::Moment};
use rusqlite::{
    Connection, Error, ErrorCode,
    backup::{Backup, StepResult},
};

use super::{
    helper::{Session, failed, is_busy, misplaced, say, thaw},
    lines::is_ready,
    protocol::{Reply, Request, Trouble},
};

/// So much is copied between two looks at the pipe.
const STEP: u64 = 4 * 1024 * 1024;
/// How long the copy waits for a lock in one step before it fails. In WAL mode nobody takes one that is in the
/// way, except for moments.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn answer(session: &mut Session, request: Request) -> io::Result<()> {
    let reply = match request {
        Request::Snapshot { give_up } => snapshot(session, give_up),
        Request::Copy { to } => copy(&session.connection, &to)?,
        Request::Thaw => thaw(session),
        _ => misplaced(),
    };
    say(&reply)
}

fn snapshot(session: &mut Session, give_up: Moment) -> Reply {
    session.roll_back();
    let begun = session.patiently(give_up, |connection| {
        connection.execute_batch("BEGIN")?;
        // A deferred transaction sees nothing yet: the first read takes the snapshot.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
    });
    let told =
        begun.and_then(|_| Ok(Reply::Begun { journal: session.journal()?, moved: session.has_moved()? }));
    match told {
        Ok(reply @ Reply::Begun { journal: JournalMode::Wal, .. }) => reply,
        // With a rollback journal, reading on would hold every writer back.
        Ok(reply) => {
            session.roll_back();
            reply
        }
        Err(error) => {
            session.roll_back();
            if is_busy(&error) { Reply::Busy } else { failed(&error) }
        }
    }
}

/// Copies what the connection's read transaction sees; the reply says whether that worked.
///
/// # Errors
/// If the main process cannot be reached, or has no use for the copy any more.
pub(super) fn copy(connection: &Connection, to: &Path) -> io::Result<Reply> {
    if connection.is_autocommit() {
        let what = "the read transaction has ended".to_owned();
        return Ok(Reply::Failed { what, kind: Trouble::Other });
    }
    match copy_pages(connection, to) {
        Ok(()) => Ok(Reply::Done),
        Err(Stopped::Pipe(error)) => Err(error),
        Err(Stopped::Sqlite(error)) => Ok(failed(&error)),
    }
}

enum Stopped {
    Pipe(io::Error),
    Sqlite(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Pipe(error)
    }
}

fn copy_pages(connection: &Connection, to: &Path) -> Result<(), Stopped> {
    let page: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    let page = u64::try_from(page).unwrap_or(4096).max(512);
    let pages = i32::try_from(STEP / page).unwrap_or(1).max(1);
    let mut target = Connection::open(to)?;
    // The copy is read by this machine while it runs, and is worthless after a crash.
    target.execute_batch("PRAGMA synchronous = OFF")?;
    target.query_row("PRAGMA journal_mode = OFF", [], |_| Ok(()))?;
    let backup = Backup::new(connection, &mut target)?;
    let mut waiting_since = Instant::now();
    let mut left = None;
    loop {
        let step = backup.step(pages)?;
        let now = backup.progress();
        let done = left.unwrap_or(now.pagecount) - now.remaining;
        left = Some(now.remaining);
        say(&Reply::Copied { bytes: Bytes(u64::try_from(done).unwrap_or(0).saturating_mul(page)) })?;
        match step {
            StepResult::Done => return Ok(()),
            StepResult::More => waiting_since = Instant::now(),
            _ if waiting_since.elapsed() > PATIENCE => {
                let busy = rusqlite::ffi::Error { code: ErrorCode::DatabaseBusy, extended_code: 5 };
                return Err(Error::SqliteFailure(busy, None).into());
            }
            _ => thread::sleep(Duration::from_millis(5)),
        }
        if is_ready(io::stdin().as_fd(), Some(Duration::ZERO))? {
            return Err(Stopped::Pipe(io::Error::other("nobody waits for the copy any more")));
        }
    }
}
