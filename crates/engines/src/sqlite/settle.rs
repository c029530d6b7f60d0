//! Making a pinned copy a database by itself: the WAL folded in, the pages checked.
//!
//! Only copies in our staging directory are opened here, never a live database: the main process must not
//! have POSIX locks on those.
//!
//! Crash story: copies are worthless after a crash and go with their staging directory; nothing is synced.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use model::size::Bytes;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::names::{journal_of, shm_of, wal_of};

/// How many faults are named.
const MOST_FAULTS: u32 = 5;

/// What a copy turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing is wrong.
    Good,
    /// It was not asked for.
    NotChecked,
    /// What `quick_check` says.
    Bad(String),
    /// It uses something that this program does not have, such as a collation of its own.
    CannotTell(String),
}

/// A copy that was settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    /// Its size.
    pub bytes: Bytes,
    /// The WAL that could not be folded in, with its size: only of a damaged database.
    pub wal: Option<(PathBuf, Bytes)>,
    /// What the check found.
    pub found: Found,
}

/// Folds the WAL of a copy in, and runs `quick_check` if asked to. The journal mode in the header stays.
///
/// # Errors
/// If the copy cannot be looked at. Whatever SQLite says against it is no error.
pub(super) fn settle(copy: &Path, check: bool) -> io::Result<Settled> {
    let found = match look(copy, check) {
        Ok(found) => found,
        Err(error) => Found::Bad(error.to_string()),
    };
    remove(&shm_of(copy))?;
    remove(&journal_of(copy))?;
    let wal = match fs::metadata(wal_of(copy)) {
        Ok(wal) if wal.len() > 0 => Some((wal_of(copy), Bytes(wal.len()))),
        _ => None,
    };
    Ok(Settled { bytes: Bytes(fs::metadata(copy)?.len()), wal, found })
}

fn look(copy: &Path, check: bool) -> rusqlite::Result<Found> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let copy = Connection::open_with_flags(copy, flags)?;
    // Exclusive: no wal-index file is made, and closing removes the WAL.
    copy.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
    copy.execute_batch("PRAGMA synchronous = OFF")?;
    // For a database without a WAL this does nothing and says so in its row.
    let busy: i64 = copy.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy != 0 {
        return Ok(Found::Bad("its WAL could not be folded in".into()));
    }
    let found = if check { quick_check(&copy)? } else { Found::NotChecked };
    copy.close().map_err(|(_, error)| error)?;
    Ok(found)
}

fn quick_check(copy: &Connection) -> rusqlite::Result<Found> {
    let rows = copy.prepare(&format!("PRAGMA quick_check({MOST_FAULTS})")).and_then(|mut statement| {
        statement.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()
    });
    match rows {
        Ok(rows) if rows == ["ok"] => Ok(Found::Good),
        Ok(rows) => Ok(Found::Bad(rows.join(", ").replace('\n', ", "))),
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::Unknown) => Ok(Found::CannotTell(error.to_string())),
            _ => Err(error),
        },
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rusqlite::Connection;

    use super::{Found, settle};
    use crate::sqlite::names::wal_of;

    fn rows(path: &Path) -> i64 {
        Connection::open(path).unwrap().query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap()
    }

    #[test]
    fn a_wal_is_folded_in_and_the_mode_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (live, copy) = (dir.path().join("live.db"), dir.path().join("copy.db"));
        let db = Connection::open(&live).unwrap();
        db.query_row("PRAGMA journal_mode=wal", [], |_| Ok(())).unwrap();
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1), (2), (3)").unwrap();
        fs::copy(&live, &copy).unwrap();
        fs::copy(wal_of(&live), wal_of(&copy)).unwrap();
        let settled = settle(&copy, true).unwrap();
        assert_eq!((settled.found, settled.wal), (Found::Good, None));
        assert!(!wal_of(&copy).exists());
        assert_eq!(&fs::read(&copy).unwrap()[18..20], [2, 2]);
        assert_eq!(settled.bytes.0, fs::metadata(&copy).unwrap().len());
        assert_eq!(rows(&copy), 3);
    }

    #[test]
    fn damage_is_found_and_the_copy_stays() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy.db");
        let db = Connection::open(&copy).unwrap();
        db.execute_batch("CREATE TABLE t(a); CREATE INDEX i ON t(a)").unwrap();
        for n in 0..2000 {
            db.execute("INSERT INTO t VALUES (?1)", [format!("{n:0100}")]).unwrap();
        }
        drop(db);
        let mut bytes = fs::read(&copy).unwrap();
        bytes[4096 * 5..4096 * 6].fill(0x5a);
        fs::write(&copy, &bytes).unwrap();
        let settled = settle(&copy, true).unwrap();
        assert!(matches!(settled.found, Found::Bad(_)), "{:?}", settled.found);
        assert_eq!(fs::read(&copy).unwrap(), bytes);
    }

    #[test]
    fn an_empty_database_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy.db");
        fs::write(&copy, b"").unwrap();
        let settled = settle(&copy, true).unwrap();
        assert_eq!((settled.found, settled.bytes.0), (Found::Good, 0));
    }
}
