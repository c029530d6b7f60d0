//! The helper that follows a log, as the main process sees it.
//!
//! Crash story: dropping it kills the helper, which lets the application's checkpoints through at once.

use std::{
    io::{self, BufRead},
    path::Path,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use model::{
    logs::{HoleCause, WalPosition},
    plan::JournalMode,
    port::Progress,
};
use os::command::Helper;

use super::super::{
    child::Child,
    error::SqliteError,
    helper::LOG_ROLE,
    protocol::{Reply, Request},
};

/// How long a helper may be silent: it may be folding in a log that grew while nobody watched.
const SILENCE: Duration = Duration::from_secs(600);

/// A helper that follows the log of one database.
pub struct Capture {
    child: Child,
    path: std::path::PathBuf,
}

/// What a helper tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The log goes on from where the archive is.
    Continues,
    /// It does not: a base has to be copied ([`Capture::copy_base`]) before anything else is told.
    Stands {
        /// A base copied now is the database as it was here.
        at: WalPosition,
        /// All that was committed by this moment is before it.
        by: Timestamp,
        /// Why something may be missing before it, if so; for people, what was found.
        hole: Option<(HoleCause, String)>,
    },
    /// A transaction, whose record is to be read with [`Capture::read`].
    Transaction {
        /// Bytes of the record.
        bytes: u64,
        /// Where it ends.
        to: WalPosition,
        /// When it was seen.
        captured: Timestamp,
    },
    /// Everything that was committed by then was told, and waits for [`Capture::written`].
    Captured(Timestamp),
    /// Everything that was committed by then was told and written.
    Idle(Timestamp),
}

impl Capture {
    /// Starts a helper for the database at this real path, which goes on from `resume` if it can.
    ///
    /// # Errors
    /// [`SqliteError::Refused`] if the database has no write-ahead log; if it cannot be opened.
    pub fn start(helper: &Helper, path: &Path, resume: Option<WalPosition>) -> Result<Self, SqliteError> {
        let mut child = Child::start(helper, LOG_ROLE, path)?;
        match child.next(SILENCE)? {
            Some(Reply::Begun { journal: JournalMode::Wal, .. }) => {}
            Some(Reply::Begun { .. }) => return Err(no_log(path)),
            Some(other) => return Err(child.unexpected(&other)),
            None => return Err(child.silent()),
        }
        child.send(&Request::Follow { resume })?;
        Ok(Self { child, path: path.to_owned() })
    }

    /// What the helper tells next, waiting at most so long; nothing if it has nothing to tell yet.
    ///
    /// # Errors
    /// [`SqliteError::Lost`] if the log can no longer be followed; if the helper has ended.
    pub fn next(&mut self, wait: Duration) -> Result<Option<News>, SqliteError> {
        Ok(Some(match self.child.next(wait)? {
            None => return Ok(None),
            Some(Reply::Continues) => News::Continues,
            Some(Reply::Stands { at, by, cause, detail }) => {
                News::Stands { at, by, hole: cause.map(|cause| (cause, detail)) }
            }
            Some(Reply::Transaction { bytes, to, captured }) => News::Transaction { bytes, to, captured },
            Some(Reply::Captured { at }) => News::Captured(at),
            Some(Reply::Idle { at }) => News::Idle(at),
            Some(Reply::Lost { what }) => return Err(SqliteError::Lost { path: self.path.clone(), what }),
            Some(other) => return Err(self.child.unexpected(&other)),
        }))
    }

    /// Reads the record of a transaction, in pieces.
    ///
    /// # Errors
    /// Those of `each`; if the helper ends before the record is whole.
    pub fn read<E: From<SqliteError>>(
        &mut self,
        bytes: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = bytes;
        while left > 0 {
            let ended = |source| SqliteError::Io {
                path: self.path.clone(),
                what: "what its helper tells of it is incomplete",
                source,
            };
            let pipe = self.child.pipe();
            let there = pipe.fill_buf().map_err(ended)?;
            if there.is_empty() {
                return Err(ended(io::ErrorKind::UnexpectedEof.into()).into());
            }
            let taken = usize::try_from(left).unwrap_or(usize::MAX).min(there.len());
            each(&there[..taken])?;
            pipe.consume(taken);
            left -= taken as u64;
        }
        Ok(())
    }

    /// Says that all that was told is on disk.
    ///
    /// # Errors
    /// If the helper has ended.
    pub fn written(&mut self) -> Result<(), SqliteError> {
        self.child.send(&Request::Written)
    }

    /// Asks for a place from which a new epoch can begin: [`News::Stands`] comes after what is told before it.
    ///
    /// # Errors
    /// If the helper has ended.
    pub fn anew(&mut self) -> Result<(), SqliteError> {
        self.child.send(&Request::Anew)
    }

    /// After [`News::Stands`]: copies the database as it was there.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn copy_base(&mut self, to: &Path, progress: &dyn Progress) -> Result<(), SqliteError> {
        self.child.send(&Request::Copy { to: to.to_owned() })?;
        let mut heard = Instant::now();
        loop {
            match self.child.next(SILENCE)? {
                Some(Reply::Copied { bytes }) => {
                    heard = Instant::now();
                    progress.advance(bytes);
                }
                Some(Reply::Done) => return Ok(()),
                Some(other) => return Err(self.child.unexpected(&other)),
                None if heard.elapsed() < SILENCE => {}
                None => return Err(self.child.silent()),
            }
        }
    }

    /// Lets the helper close its connections and end.
    pub fn quit(self) {
        self.child.quit();
    }
}

fn no_log(path: &Path) -> SqliteError {
    SqliteError::Refused {
        path: path.to_owned(),
        what: "has no write-ahead log that could be followed: it is in rollback-journal mode".into(),
        remedy: "run `PRAGMA journal_mode=WAL` on it once, which lasts; or take backups more often".into(),
    }
}
