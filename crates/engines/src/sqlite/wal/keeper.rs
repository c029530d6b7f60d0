//! Keeps the log short: checkpoints, and the short write lock under which one can reach the end of a busy log.
//!
//! Crash story: a checkpoint may stop anywhere; SQLite folds in again what it does not know to be folded in. The write lock
//! ends with the process, and nothing is written under it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::{index::Index, readers::open};
use crate::sqlite::helper::is_busy;

/// From so many frames on, the log is folded in when there is a pause: below SQLite's own default of 1000, from which on
/// every commit of an application tries to.
const FOLD_FROM: u64 = 800;
/// From so many on also without a pause.
const HOLD_FROM: u64 = 1000;
/// Writers are held back at most so long.
const HOLD: Duration = Duration::from_millis(100);
/// How long the write lock is waited for.
const PATIENCE: Duration = Duration::from_millis(200);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// After one that did not come to the end of the log although writers were held back: others read for longer.
const PAUSE_FOR_READERS: Duration = Duration::from_secs(1);

/// Two connections: for checkpoints, and for the write lock.
pub(super) struct Keeper {
    checkpoints: Connection,
    lock: Connection,
    held_until: Option<Instant>,
    next_try: Instant,
}

impl Keeper {
    /// Opens them.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        Ok(Self {
            checkpoints: open(path, Duration::ZERO)?,
            lock: open(path, PATIENCE)?,
            held_until: None,
            next_try: Instant::now(),
        })
    }

    /// Whether the log is so long that it should be folded in, and is not.
    pub fn is_due(&self, index: &Index) -> bool {
        index.frames >= FOLD_FROM && index.folded < index.frames && Instant::now() >= self.next_try
    }

    /// Whether it is so long that writers may be held back for it.
    pub fn may_hold(&self, index: &Index) -> bool {
        index.frames >= HOLD_FROM
    }

    /// Folds in what no reader keeps back. Whether that was all.
    ///
    /// # Errors
    /// If SQLite refuses for another reason than that others are at it.
    pub fn fold(&self) -> rusqlite::Result<bool> {
        let told = self.checkpoints.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        });
        match told {
            Ok((busy, all, folded)) => Ok(busy == 0 && all == folded),
            Err(error) if is_busy(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Plans the next try after one that was in vain because others read, or after another.
    pub fn tried(&mut self, others_read: bool) {
        self.next_try = Instant::now() + if others_read { PAUSE_FOR_READERS } else { PAUSE };
    }

    /// Holds writers back, until [`Self::release_writers`]. Whether it could.
    ///
    /// # Errors
    /// If SQLite refuses for another reason than that somebody writes.
    pub fn hold_writers(&mut self) -> rusqlite::Result<bool> {
        if self.held_until.is_some() {
            return Ok(true);
        }
        match self.lock.execute_batch("BEGIN IMMEDIATE") {
            Ok(()) => {
                self.held_until = Some(Instant::now() + HOLD);
                Ok(true)
            }
            Err(error) if is_busy(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// When they have to be released at the latest.
    pub fn holds_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// Releases them, if they are held.
    ///
    /// # Errors
    /// If SQLite refuses; then the process has to end.
    pub fn release_writers(&mut self) -> rusqlite::Result<()> {
        self.held_until = None;
        if self.lock.is_autocommit() { Ok(()) } else { self.lock.execute_batch("ROLLBACK") }
    }
}
