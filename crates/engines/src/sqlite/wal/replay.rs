//! Bringing a moment back: a base, and over it the transactions that were captured before.
//!
//! A moment T means: all transactions before the first, in the order of the log, that was captured at or after T.
//!
//! Crash story: nothing but the new file is written; until the function returns it is worthless and is removed by whoever
//! wanted it.

use std::{
    fs::{self, File},
    io::{self, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use model::{logs::WalPosition, port::Failure};

use super::{
    super::{
        error::SqliteError,
        names::{journal_of, shm_of, wal_of},
        settle::{Found, settle},
    },
    record::{Open, Records},
};

const READ_AHEAD: usize = 1 << 18;

/// What a replay has reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Where the last replayed transaction ends; nothing if there was none.
    pub place: Option<WalPosition>,
    /// When it was captured.
    pub captured: Option<Timestamp>,
    /// How many were replayed.
    pub transactions: u64,
    /// Whether a transaction of T or later was met; if not, the segments end before.
    pub met_the_moment: bool,
    /// What could not be checked in the result, if anything: it uses a collation or function of its application.
    pub unchecked: Option<String>,
}

/// Makes `to` the database that `base` and these segments, in order, give as of the moment `until`: `to` must not exist; it
/// is in WAL mode, checked, synced, and has no sidecars.
///
/// # Errors
/// If a segment up to that moment is damaged, something cannot be read or written, or the result is no sound database.
pub fn replay(base: &Path, segments: &[PathBuf], until: Timestamp, to: &Path) -> Result<Reached, Failure> {
    Ok(make(base, segments, until, to)?)
}

fn make(base: &Path, segments: &[PathBuf], until: Timestamp, to: &Path) -> Result<Reached, SqliteError> {
    let failed = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| SqliteError::Io { path, what, source }
    };
    for path in [to.to_owned(), wal_of(to), shm_of(to), journal_of(to)] {
        if path.exists() {
            return Err(failed("is there already", &path)(io::ErrorKind::AlreadyExists.into()));
        }
    }
    fs::copy(base, to).map_err(failed("cannot be copied", base))?;
    let file = File::options().read(true).write(true).open(to).map_err(failed("cannot be written", to))?;
    let mut reached =
        Reached { place: None, captured: None, transactions: 0, met_the_moment: false, unchecked: None };
    for segment in segments {
        replay_segment(segment, until, &file, &mut reached).map_err(failed("cannot be replayed", segment))?;
        if reached.met_the_moment {
            break;
        }
    }
    // The copy of the base says that it has no log; the database that it is a copy of had one.
    file.write_all_at(&[2, 2], 18).map_err(failed("cannot be written", to))?;
    drop(file);
    reached.unchecked = check(to)?;
    File::open(to).and_then(|file| file.sync_all()).map_err(failed("cannot be synced", to))?;
    Ok(reached)
}

fn replay_segment(segment: &Path, until: Timestamp, to: &File, reached: &mut Reached) -> io::Result<()> {
    let mut records = Records::open(BufReader::with_capacity(READ_AHEAD, File::open(segment)?))?;
    while let Some(record) = records.next()? {
        if record.head.captured >= until {
            reached.met_the_moment = true;
            return Ok(());
        }
        let (place, captured) = (record.head.to, record.head.captured);
        write_pages(record, to)?;
        (reached.place, reached.captured) = (Some(place), Some(captured));
        reached.transactions += 1;
    }
    Ok(())
}

fn write_pages<R: io::Read>(mut record: Open<'_, R>, to: &File) -> io::Result<()> {
    let size = u64::from(record.head.page_size);
    let mut page = vec![0; record.head.page_size as usize];
    while let Some(number) = record.page(&mut page)? {
        let at = u64::from(number).checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
        to.write_all_at(&page, at * size)?;
    }
    to.set_len(u64::from(record.head.database_pages) * size)
}

/// Checks the result; says what could not be checked.
fn check(to: &Path) -> Result<Option<String>, SqliteError> {
    let settled = settle(to, true);
    let settled = settled.map_err(|source| SqliteError::Io {
        path: to.to_owned(),
        what: "cannot be checked",
        source,
    })?;
    match settled.found {
        Found::Good | Found::NotChecked => Ok(None),
        Found::CannotTell(what) => Ok(Some(what)),
        Found::Bad(what) => Err(SqliteError::Io {
            path: to.to_owned(),
            what: "is not sound after its log was replayed",
            source: io::Error::new(io::ErrorKind::InvalidData, what),
        }),
    }
}
