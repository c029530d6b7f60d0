//! The demo's application: entries in SQLite, each naming an uploaded file and its SHA-256.
//!
//! Crash story: an upload is written before its row and the file that it replaces is removed after it, as
//! any careful application does; a kill leaves at most one file without a row for each writer.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use sha2::{Digest, Sha256};

/// How long a writer waits for the database, which is far longer than any cut holds it.
pub const BUSY: Duration = Duration::from_secs(30);

/// Where a guestbook, live or restored, keeps its things.
#[derive(Debug, Clone)]
pub struct Guestbook {
    root: PathBuf,
}

impl Guestbook {
    /// The guestbook in this directory.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.root.join("guestbook.sqlite3")
    }

    /// Its uploaded files.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    /// Makes an empty guestbook.
    ///
    /// # Errors
    /// If directory or database cannot be written.
    pub fn create(&self) -> Result<(), GuestbookError> {
        fs::create_dir_all(self.uploads())?;
        let database = self.connect()?;
        database.pragma_update(None, "journal_mode", "wal")?;
        database.execute_batch(
            "CREATE TABLE entry (
               id INTEGER PRIMARY KEY,
               writer INTEGER NOT NULL,
               message TEXT NOT NULL,
               upload TEXT NOT NULL UNIQUE,
               sha256 TEXT NOT NULL
             );",
        )?;
        Ok(())
    }

    /// Opens the database as the application does.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn connect(&self) -> Result<Connection, GuestbookError> {
        let database = Connection::open(self.database())?;
        database.busy_timeout(BUSY)?;
        database.pragma_update(None, "synchronous", "normal")?;
        Ok(database)
    }

    /// Opens the database of a copy, which must be there.
    ///
    /// # Errors
    /// If it is missing or is no database.
    pub fn open_copy(&self) -> Result<Connection, GuestbookError> {
        Ok(Connection::open_with_flags(self.database(), OpenFlags::SQLITE_OPEN_READ_WRITE)?)
    }
}

/// What went wrong with a guestbook.
#[derive(Debug, thiserror::Error)]
pub enum GuestbookError {
    /// A file.
    #[error("a file of the guestbook")]
    File(#[from] std::io::Error),
    /// The database.
    #[error("the database of the guestbook")]
    Database(#[from] rusqlite::Error),
    /// A process of it.
    #[error("a process of the guestbook")]
    Process(#[from] os::command::CommandError),
    /// A writer ended by itself.
    #[error("a writer of the guestbook ended: {0}")]
    Writer(String),
}

/// The SHA-256 of these bytes in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The name of an upload: it is never used again, and tells its writer.
#[must_use]
pub fn upload_name(writer: u32, number: u64) -> String {
    format!("w{writer}-{number:07}.bin")
}

/// The writer of an upload, by its name.
#[must_use]
pub fn writer_of(upload: &str) -> Option<u32> {
    upload.strip_prefix('w')?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{upload_name, writer_of};

    #[test]
    fn an_upload_tells_its_writer() {
        assert_eq!(writer_of(&upload_name(12, 345)), Some(12));
        assert_eq!(writer_of("guestbook.sqlite3"), None);
    }
}
