//! What tells that a database has not changed since it was last checked.
//!
//! Database and WAL: device, inode, size, times of change; of the database also the file change counter, of
//! the WAL also the salts (<https://www.sqlite.org/fileformat2.html#the_wal_file_format>). SQLite writes both by
//! `pwrite`, never through a map, so a change moves the times.
//!
//! Crash story: reads only. Taken under the lock.

use std::{
    fmt::Write,
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use jiff::Timestamp;
use model::entry::SETTLING;

use super::{
    header::{self, Found},
    names::wal_of,
};

const LABEL: &str = "fingerprint: ";

/// What a database looked like, as one line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint in the checks of a backup's evidence, if there is one: only databases that were found
    /// good have it.
    #[must_use]
    pub fn from_checks<'a>(checks: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        checks.into_iter().find_map(|check| check.strip_prefix(LABEL)).map(|text| Self(text.to_owned()))
    }

    /// As it stands among the checks of a backup's evidence.
    #[must_use]
    pub fn as_check(&self) -> String {
        format!("{LABEL}{}", self.0)
    }

    /// What the database looks like now; `None` if it changed so lately that a further change might not show.
    ///
    /// # Errors
    /// If database or WAL cannot be read.
    pub(super) fn take(real: &Path, now: Timestamp) -> io::Result<Option<Self>> {
        let database = File::open(real)?;
        let meta = database.metadata()?;
        let changes = match header::read(&database)? {
            Found::Database(header) => header.changes,
            Found::Foreign | Found::TooNew(_) => return Ok(None),
        };
        let mut text = describe(&meta);
        // Writing to a String cannot fail.
        let _ = write!(text, " changes={changes}");
        let mut settled = is_settled(&meta, now);
        match File::open(wal_of(real)) {
            Ok(wal) => {
                let meta = wal.metadata()?;
                // An empty WAL comes and goes with the connections and says nothing.
                if meta.len() >= 32 {
                    let mut salts = [0; 8];
                    wal.read_exact_at(&mut salts, 16)?;
                    let _ =
                        write!(text, "; wal {} salts={:016x}", describe(&meta), u64::from_be_bytes(salts));
                    settled = settled && is_settled(&meta, now);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(settled.then_some(Self(text)))
    }
}

fn describe(meta: &Metadata) -> String {
    format!(
        "{:x}:{} size={} mtime={}.{:09} ctime={}.{:09}",
        meta.dev(),
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    )
}

fn is_settled(meta: &Metadata, now: Timestamp) -> bool {
    let changed = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
    let settling = i128::try_from(SETTLING.as_nanos()).unwrap_or(i128::MAX);
    changed.saturating_add(settling) <= now.as_nanosecond()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use rusqlite::Connection;

    use super::Fingerprint;

    #[test]
    fn it_is_taken_once_settled_and_changes_with_every_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        for mode in ["wal", "delete"] {
            let db = Connection::open(&path).unwrap();
            db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |_| Ok(())).unwrap();
            db.execute_batch("CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES (1)").unwrap();
            assert_eq!(Fingerprint::take(&path, Timestamp::now()).unwrap(), None, "not settled");
            let later = Timestamp::now() + Duration::from_secs(2);
            let first = Fingerprint::take(&path, later).unwrap().unwrap();
            assert_eq!(Fingerprint::take(&path, later).unwrap().unwrap(), first);
            assert_eq!(Fingerprint::from_checks(["x", &first.as_check()]), Some(first.clone()));
            db.execute_batch("UPDATE t SET a = 2").unwrap();
            assert_ne!(Fingerprint::take(&path, later).unwrap().unwrap(), first);
        }
    }
}
