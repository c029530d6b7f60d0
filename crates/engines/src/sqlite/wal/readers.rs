//! Two connections of which one always reads: see the argument in the module head of [`super`].
//!
//! Crash story: read transactions end with the process. They hold back checkpoints and the restart of the log, no writer.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, MAIN_DB, OpenFlags, TransactionState, config::DbConfig};

use super::index::{self, Index};
use crate::sqlite::helper::is_busy;

/// Another process rebuilds the index for moments only.
const PATIENCE: Duration = Duration::from_secs(1);

/// Two connections, one of which has a read transaction open.
pub(super) struct Readers {
    pair: [Connection; 2],
    current: usize,
}

/// Opens a connection that leaves the log alone: it neither folds it in by itself nor when it closes.
///
/// # Errors
/// If SQLite refuses.
pub(super) fn open(path: &Path, patience: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_timeout(patience)?;
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
    Ok(connection)
}

impl Readers {
    /// Opens both; nothing if the database has no write-ahead log.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn open(path: &Path) -> rusqlite::Result<Option<Self>> {
        let first = open(path, PATIENCE)?;
        let mode: String = first.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            return Ok(None);
        }
        let readers = Self { pair: [first, open(path, PATIENCE)?], current: 0 };
        begin(&readers.pair[0])?;
        Ok(Some(readers))
    }

    /// The one that reads.
    pub fn current(&self) -> &Connection {
        &self.pair[self.current]
    }

    /// What the index says now.
    pub fn index(&self) -> Option<Index> {
        index::read(self.current())
    }

    /// Begins to read on the other connection too. Whether it could: somebody may be in the way for a moment.
    ///
    /// # Errors
    /// If SQLite refuses for another reason.
    pub fn begin_next(&self) -> rusqlite::Result<bool> {
        match begin(&self.pair[1 - self.current]) {
            Ok(()) => Ok(true),
            Err(error) if is_busy(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends what [`Self::begin_next`] began.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn abandon_next(&self) -> rusqlite::Result<()> {
        end(&self.pair[1 - self.current])
    }

    /// Ends the older of the two read transactions. Only after everything of the log up to the newer one was captured.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn end_previous(&mut self) -> rusqlite::Result<()> {
        let previous = self.current;
        self.current = 1 - previous;
        end(&self.pair[previous])
    }

    /// Closes both. A log without content goes with them.
    pub fn close(self, is_empty: bool) {
        for connection in &self.pair {
            if is_empty {
                // If it cannot be set, the empty log stays, which harms nobody.
                let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
            }
        }
    }
}

fn begin(connection: &Connection) -> rusqlite::Result<()> {
    let begun = connection.execute_batch("BEGIN").and_then(|()| {
        // The first read takes the snapshot.
        connection.query_row("PRAGMA schema_version", [], |row| row.get::<_, i64>(0))?;
        connection.transaction_state(Some(MAIN_DB))
    });
    match begun {
        Ok(TransactionState::Read) => Ok(()),
        Ok(_) => {
            end(connection)?;
            Err(rusqlite::Error::InvalidQuery)
        }
        Err(error) => {
            end(connection)?;
            Err(error)
        }
    }
}

fn end(connection: &Connection) -> rusqlite::Result<()> {
    if connection.is_autocommit() { Ok(()) } else { connection.execute_batch("ROLLBACK") }
}
