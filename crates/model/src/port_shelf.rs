//! The port of the log shelf: what this machine has of an application's log archive, and what its repository has.
//!
//! Crash story: [`LogShelf::store`] leaves the snapshot before in its place until the new one is listed, and what is
//! discarded here is in the repository by then; so a stop anywhere loses nothing, and the next call goes on.

use std::collections::BTreeSet;

use crate::{
    id::{BackupId, EpochId, SourceId},
    logs::{Epoch, LogKind, SegmentRecord},
    logs_retention::LogsPlan,
    port::{Failure, Progress},
    problem::Problem,
};

/// The log of one source, as the spool or a repository holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldLog {
    /// Whose.
    pub source: SourceId,
    /// What it consists of.
    pub kind: LogKind,
    /// Its epochs, in the order in which they follow one another.
    pub epochs: Vec<Epoch>,
    /// The closed segments whose bytes are there.
    pub closed: BTreeSet<(EpochId, u64)>,
}

/// What became of storing.
#[derive(Debug, Clone, PartialEq)]
pub struct Shelved {
    /// The snapshot that holds the archive now; nothing if there is nothing to hold.
    pub snapshot: Option<BackupId>,
    /// Whether it was written now; otherwise nothing had changed.
    pub is_new: bool,
    /// How many superseded snapshots could not be removed yet, because others use the repository.
    pub left: u64,
    /// What is missing of the archive.
    pub problems: Vec<Problem>,
}

/// A segment that is not proven to be in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unproven {
    /// Its epoch.
    pub epoch: EpochId,
    /// Its number.
    pub number: u64,
    /// What was found.
    pub what: String,
}

/// The log archive of one application, here and in its repository. Its writers may be at work meanwhile.
pub trait LogShelf {
    /// What is here.
    ///
    /// # Errors
    /// If the spool cannot be listed. What is damaged is in the answer.
    fn here(&mut self) -> Result<Vec<HeldLog>, Failure>;

    /// What the repository holds; nothing if no archive is stored.
    ///
    /// # Errors
    /// If it cannot be reached or read. What is damaged is in the answer.
    fn there(&mut self) -> Result<Option<Vec<HeldLog>>, Failure>;

    /// Stores what is here together with what the repository has already, as one snapshot that takes the place of the one
    /// before. Nothing is written if nothing has changed. Given up when `progress` says so.
    ///
    /// # Errors
    /// If the repository cannot be reached or written, or it was given up: the snapshot before stands then.
    fn store(&mut self, progress: &dyn Progress) -> Result<Shelved, Failure>;

    /// Reads these segments back and says which of them are not in the repository with their SHA-256; and the snapshot that
    /// holds all others.
    ///
    /// # Errors
    /// If no archive is stored, or the repository cannot be reached or read.
    fn unproven(
        &mut self,
        source: &SourceId,
        segments: &[SegmentRecord],
    ) -> Result<(BackupId, Vec<Unproven>), Failure>;

    /// Removes a closed segment from here, because this snapshot holds it.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn discard(
        &mut self,
        source: &SourceId,
        epoch: &EpochId,
        number: u64,
        stored_in: &BackupId,
    ) -> Result<(), Failure>;

    /// Removes what a plan drops, here first and then from the repository.
    ///
    /// # Errors
    /// If here or there cannot be written. It may be called again.
    fn forget(&mut self, plan: &LogsPlan) -> Result<(), Failure>;
}
