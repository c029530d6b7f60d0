//! The log archive on disk: `logs/` of an application. Written form: `docs/format/logs.md`.
//!
//! - [`Spool`] is the directory. [`Spool::catalogue`] says what all of it holds, holes and damage as values;
//!   [`Spool::verify`] reads every byte.
//! - [`Writer`] is the one that writes the log of one source: [`Spool::writer`]. After *any* error of it the caller stops
//!   reading, calls [`Writer::resume`] when it tries again, and goes on from [`Writer::reached`].
//! - [`Tail`] reads a segment: the only thing that binary logs and SQLite's logs do differently here.
//!
//! Crash story: what [`Writer::sync`] has returned for is never lost nor changed. Everything after it may be cut off, by the
//! next [`Spool::writer`] or [`Writer::resume`], and is read from the source again. Readers need no lock: closed segments do
//! not change, sidecars appear complete, and of the open one they see its last whole transaction.

mod catalogue;
mod error;
mod forget;
mod names;
mod scan;
mod verify;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
};

use model::{
    id::{BackupId, EpochId, SourceId},
    logs::{LogKind, LogStatus, SegmentHead, WholePart},
    logs_retention::LogsPlan,
};
use os::durable;

pub use catalogue::{Catalogue, SourceLog};
pub(crate) use catalogue::{SourceFile, in_order};
pub use error::LogsError;
pub use model::logs::Added;
pub use names::source_dir_name;
pub(crate) use scan::digest;
pub use verify::Wrong;
pub use writer::Writer;

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How segments of one kind of log are read.
pub trait Tail: Send {
    /// Reads a segment from its beginning and says what is whole of it. What is no event or record, or torn, ends it; that
    /// is no error.
    ///
    /// # Errors
    /// If it cannot be read.
    fn whole(&self, head: &SegmentHead, segment: &mut dyn io::Read) -> io::Result<WholePart>;
}

/// For each kind of log how it is read; `stillpoint` wires the engines' readers.
pub type Tails<'a> = &'a dyn Fn(LogKind) -> Box<dyn Tail>;

/// The `logs/` directory of an application.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
}

impl Spool {
    /// The one at this path, which is made when something is first written.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Its path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of a source's logs.
    #[must_use]
    pub fn source_dir(&self, source: &SourceId) -> PathBuf {
        self.dir.join(source_dir_name(source))
    }

    /// The directory of an epoch.
    #[must_use]
    pub fn epoch_dir(&self, source: &SourceId, epoch: &EpochId) -> PathBuf {
        self.source_dir(source).join(epoch.as_str())
    }

    /// Becomes the writer of a source's log, after having cut off what an earlier one left unfinished.
    ///
    /// # Errors
    /// [`LogsError::Busy`] if another one writes it; if something cannot be read or written, or an epoch's record is not ours.
    pub fn writer(&self, source: &SourceId, kind: LogKind, tail: Box<dyn Tail>) -> Result<Writer, LogsError> {
        Writer::open(self, source, kind, tail)
    }

    /// What all of it holds. Never fails because of one source, epoch or segment: what is wrong with them is a value.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn catalogue(&self, tails: Tails<'_>) -> Result<Catalogue, LogsError> {
        catalogue::read(self, tails)
    }

    /// Puts on disk what a catalogue says of open segments, whose writers may not have done so yet.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn sync_open(&self, catalogue: &Catalogue) -> Result<(), LogsError> {
        for log in &catalogue.sources {
            let Some(epoch) = log.epochs.last() else { continue };
            let id = &epoch.record.epoch;
            let Some(path) = epoch.segments.last().and_then(|it| log.segment_path(id, it.number)) else {
                continue;
            };
            match std::fs::File::open(&path).and_then(|segment| segment.sync_data()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(LogsError::io("synced", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads every closed segment that is here and compares it with its sidecar. `each` is called with the bytes read so far.
    ///
    /// # Errors
    /// If the directory cannot be listed. What is wrong is the answer.
    pub fn verify(&self, catalogue: &Catalogue, each: &mut dyn FnMut(u64)) -> Result<Vec<Wrong>, LogsError> {
        verify::all(catalogue, each)
    }

    /// Removes a closed segment from here because a backup holds it; its sidecar stays. A reader that has it open goes on.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn discard(
        &self,
        source: &SourceId,
        epoch: &EpochId,
        number: u64,
        stored_in: &BackupId,
    ) -> Result<(), LogsError> {
        let dir = self.epoch_dir(source, epoch);
        let mark = names::file(&dir, number, names::STORED);
        durable::replace(&mark, format!("{stored_in}\n").as_bytes(), FILE_MODE)
            .map_err(LogsError::io("written", &mark))?;
        let segment = names::file(&dir, number, names::SEGMENT);
        match std::fs::remove_file(&segment) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LogsError::io("removed", &segment)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes what a plan drops, which the repository still holds as `stored_in`: see [`LogsPlan::drops`].
    ///
    /// # Errors
    /// If something cannot be removed. It may be called again.
    pub fn forget(&self, plan: &LogsPlan, stored_in: &BackupId) -> Result<(), LogsError> {
        forget::forget(self, plan, stored_in)
    }

    /// Whether anything was ever written.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// How far the writer of each source was when it last said so. One that cannot be read is left out.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn statuses(&self) -> Result<Vec<LogStatus>, LogsError> {
        let dirs = names::list(&self.dir)?.into_iter().map(|name| self.dir.join(name));
        Ok(dirs.filter_map(|dir| names::read_json(&dir.join(names::STATUS)).ok().flatten()).collect())
    }
}
