//! What a pinner needs for pinning and can use again for the next attempt: a place for the copy, and a reader.
//!
//! Crash story: the place is a journalled staging directory; the reader is journalled, dies with our pipe, and
//! holds no writer back, only checkpoints. Dropping a kit removes both.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use model::{
    plan::JournalMode,
    port::{Failure, Journal, Progress},
    time::Deadline,
    undo::{Ticket, Undo},
};
use os::staging::Staging;

use super::{
    Means,
    child::Child,
    error::SqliteError,
    helper::READER_ROLE,
    protocol::{Reply, Request},
};

/// How long the copy may take between two signs of progress.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(600);
/// How long a reader may take to end its transaction.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(1);

/// A place for the copy, and a reader where the copy is made by one.
pub(super) struct Kit {
    staging: Staging,
    pub reader: Option<Reader>,
}

impl Kit {
    /// Makes a place in `parent` for the copy of the database `real`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn make(means: &Means, parent: &Path, real: &Path) -> Result<Self, SqliteError> {
        let staging = Staging::create(&means.journal, parent, "sqlite")
            .map_err(|source| SqliteError::Staging { path: real.to_owned(), source })?;
        Ok(Self { staging, reader: None })
    }

    /// The copy's path.
    pub fn copy(&self) -> PathBuf {
        self.staging.path().join("database")
    }

    /// Removes it all.
    ///
    /// # Errors
    /// If something is left; it stays in the journal.
    pub fn release(self) -> Result<(), Failure> {
        drop(self.reader);
        Ok(self.staging.release()?)
    }
}

/// Opens a copy for writing, readable to nobody else.
///
/// # Errors
/// If it cannot be opened or made.
pub(super) fn open_copy(path: &Path, truncate: bool) -> Result<File, SqliteError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(truncate).mode(0o600);
    options.open(path).map_err(|source| SqliteError::Io {
        path: path.to_owned(),
        what: "cannot be made as a copy",
        source,
    })
}

/// A helper in the reader's role.
pub(super) struct Reader {
    child: Option<Child>,
    ticket: Ticket,
    journal: Arc<dyn Journal>,
    real: PathBuf,
}

impl Reader {
    /// Starts a reader and writes it down.
    ///
    /// # Errors
    /// If it cannot be started or written down.
    pub fn start(means: &Means, real: &Path) -> Result<Self, Failure> {
        let child = Child::start(&means.helper, READER_ROLE, real)?;
        let ticket = means.journal.intend(Undo::End { process: child.process() }, None)?;
        let journal = Arc::clone(&means.journal);
        Ok(Self { child: Some(child), ticket, journal, real: real.to_owned() })
    }

    fn child(&mut self) -> Result<&mut Child, SqliteError> {
        let real = &self.real;
        self.child.as_mut().ok_or_else(|| SqliteError::Lost {
            path: real.clone(),
            what: "the process that reads it has ended".into(),
        })
    }

    /// Takes the snapshot. Under the write lock, so that it is that of the cut.
    ///
    /// # Errors
    /// If it cannot be taken by the deadline, or the database has no WAL any more.
    pub fn snapshot(&mut self, means: &Means, until: Deadline) -> Result<(), SqliteError> {
        let real = self.real.clone();
        let child = self.child()?;
        let left = until.left(means.clock.moment());
        match child.ask(&Request::Snapshot { give_up: until.0 }, left)? {
            Some(Reply::Begun { journal: JournalMode::Wal, moved: false }) => Ok(()),
            Some(Reply::Begun { moved: true, .. }) => {
                Err(SqliteError::Lost { path: real, what: "it was moved or replaced by another file".into() })
            }
            Some(Reply::Begun { .. }) => Err(super::pin::mode_changed(&real)),
            Some(other) => Err(child.unexpected(&other)),
            None => Err(child.silent()),
        }
    }

    /// Copies what the snapshot shows.
    ///
    /// # Errors
    /// If the reader has ended or the copy cannot be written.
    pub fn copy(&mut self, to: &Path, progress: &dyn Progress) -> Result<(), SqliteError> {
        let child = self.child()?;
        child.send(&Request::Copy { to: to.to_owned() })?;
        loop {
            match child.next(PATIENCE)? {
                Some(Reply::Copied { bytes }) => progress.advance(bytes),
                Some(Reply::Done) => return Ok(()),
                Some(other) => return Err(child.unexpected(&other)),
                None => return Err(child.silent()),
            }
        }
    }

    /// Ends the snapshot. Whether the reader can be used again.
    pub fn rest(&mut self) -> bool {
        let asked = self.child.as_mut().map(|child| child.ask(&Request::Thaw, ANSWER));
        matches!(asked, Some(Ok(Some(Reply::Thawed))))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            child.quit();
        }
        self.journal.done(self.ticket);
    }
}
