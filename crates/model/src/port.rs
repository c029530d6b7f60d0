//! The ports: what order in time needs of drivers, as traits.
//!
//! Each has a conformance suite in `testkit` that fakes and real drivers both pass.
//!
//! Crash story of every guard ([`Frozen`], [`Pin`]): it is written to the [`Journal`] before it is made and
//! crossed off after it is undone. Consuming methods (`thaw`, `release`) are the way to undo it; `Drop` does
//! the same as a last resort and can only log what fails. Dead processes are cleaned up after by the
//! watchdog, `thaw` or the next run, from the journal.

use std::{collections::HashMap, error::Error, fmt, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    entries::Entries,
    entry::{Harvest, Manifest},
    id::{BackupId, SourceId},
    known::Known,
    plan::HoldClass,
    problem::Problem,
    record::{BackupRecord, CutRecord, StoredBackup},
    size::Bytes,
    time::{Deadline, Moment},
    undo::{Ticket, Undo},
    verdict::Stillness,
};

/// Why a driver could not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// What kind of failure, for deciding whether to try again and for the exit status.
    pub kind: FailureKind,
    /// What failed and where, as a sentence without its final stop.
    pub what: String,
    /// What a person can do; may be empty.
    pub remedy: String,
    /// The cause, if another error is behind it; not repeated in `what`.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

/// Kinds of failure that are treated differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Somebody else holds what is needed; another try may succeed.
    Busy,
    /// The deadline came first; another try may succeed.
    TimedOut,
    /// A hold or lock that was ours is gone.
    Lost,
    /// It will not be done as things are: encrypted, foreign, exclusive, unsafe.
    Refused,
    /// No space left.
    NoSpace,
    /// No such repository.
    NoRepository,
    /// Locked by another run.
    Locked,
    /// Wrong password.
    WrongPassword,
    /// Stored bytes are not what they should be.
    Damaged,
    /// Anything else.
    Other,
}

impl Failure {
    /// A failure without a cause behind it.
    pub fn new(kind: FailureKind, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, what: what.into(), remedy: remedy.into(), source: None }
    }

    /// The same failure with the error that caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the cut may be tried again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, FailureKind::Busy | FailureKind::TimedOut | FailureKind::Lost)
    }

    /// What failed, its causes and the remedy in one line.
    #[must_use]
    pub fn in_full(&self) -> String {
        let mut text = self.what.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        if !self.remedy.is_empty() {
            text.push_str("; ");
            text.push_str(&self.remedy);
        }
        text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

/// The clocks.
pub trait Clock: Send + Sync {
    /// Wall-clock time.
    fn now(&self) -> Timestamp;
    /// Monotonic time.
    fn moment(&self) -> Moment;
    /// Waits.
    fn sleep(&self, duration: Duration);
}

/// Where everything that is held or pinned is written down before it is made.
pub trait Journal: Send + Sync {
    /// Writes down how to undo what is about to be made, durably; urgent ones also go to the watchdog, which
    /// undoes them when this process ends or at `until`, whichever is first.
    ///
    /// # Errors
    /// If it cannot be written; then nothing may be made.
    fn intend(&self, undo: Undo, until: Option<Deadline>) -> Result<Ticket, Failure>;

    /// Replaces what was written under a ticket, when more is known.
    ///
    /// # Errors
    /// If it cannot be written.
    fn amend(&self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), Failure>;

    /// Crosses off what has been undone (or never came to be).
    fn done(&self, ticket: Ticket);
}

/// Something that can hold writers back.
pub trait Hold: Send {
    /// A name for records: `sqlite:/srv/app.db`, `processes:hydro.service`, `stop-hook`.
    fn name(&self) -> String;
    /// When it is taken.
    fn class(&self) -> HoldClass;
    /// The sources whose writers it holds back; empty if it holds the whole application back.
    fn sources(&self) -> Vec<SourceId>;
    /// Connects, starts helpers, warms up. Holds nobody back. Called once, before anything is frozen.
    ///
    /// # Errors
    /// If the hold will not be possible.
    fn prepare(&mut self) -> Result<Vec<Problem>, Failure>;
    /// Holds the writers back, or gives up before `until`. May be called again after a failure or a thaw.
    ///
    /// # Errors
    /// [`FailureKind::Busy`] or [`FailureKind::TimedOut`] if others are in the way; nobody is held then.
    fn freeze(&mut self, until: Deadline) -> Result<Box<dyn Frozen>, Failure>;
}

/// Writers held back. Dropping it lets them go.
pub trait Frozen: Send {
    /// Shows that the hold was never interrupted, on the very session or token that took it.
    ///
    /// # Errors
    /// [`FailureKind::Lost`] if it cannot be shown.
    fn prove(&mut self) -> Result<Stillness, Failure>;
    /// Lets the writers go.
    ///
    /// # Errors
    /// If it cannot be confirmed that they run again; says what to do.
    fn thaw(self: Box<Self>) -> Result<(), Failure>;
}

/// Something that can pin one source.
pub trait Pinner: Send {
    /// The source.
    fn source(&self) -> SourceId;
    /// Copies that nobody needs any more, by the paths of their originals: it may take them and clone over them, which costs
    /// less than new ones. They may be gone.
    fn reuse(&mut self, spare: Arc<HashMap<PathBuf, PathBuf>>) {
        drop(spare);
    }
    /// Looks at what it will have to look at, while what the parent holds is still being found out. What changed after
    /// `parent`, the end of the backup before, is in no parent: that may be brought in at once. What is wrong,
    /// [`Self::prepare`] says.
    fn look_ahead(&mut self, parent: Option<Timestamp>) {
        let _nothing_to_do = parent;
    }
    /// The unlocked first pass: may take as long as it needs. Returns what should be stored ahead of the
    /// cut, if this pinner works that way.
    ///
    /// # Errors
    /// If the source cannot be pinned at all.
    fn prepare(&mut self, known: &Known) -> Result<Option<Manifest>, Failure>;
    /// More of what should be stored ahead, if [`Self::prepare`] handed out a part of it; to be asked until there is
    /// nothing, with what the parent holds. Nobody keeps much in memory so.
    fn more_ahead(&mut self, _known: &Known) -> Option<Manifest> {
        None
    }
    /// One more unlocked round that shrinks the difference between source and first pass.
    ///
    /// # Errors
    /// If the source cannot be pinned at all.
    fn round(&mut self) -> Result<Difference, Failure>;
    /// Pins the source as it is now. Called with all holds taken; must give up before `until`.
    ///
    /// # Errors
    /// [`FailureKind::TimedOut`] if it would take too long. Nothing is left pinned then.
    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure>;
    /// The cut was taken: neither a round nor a pin will be asked for again. Whatever only they need is freed.
    fn rest(&mut self) {}
}

/// What a round found changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Difference {
    /// Regular files that were copied or cloned again.
    pub files: u64,
    /// Bytes in them.
    pub bytes: Bytes,
}

/// A source kept as it was at the cut. Dropping it releases it.
pub trait Pin: Send {
    /// Called after the last pin, still under all holds: whether the source can be shown not to have changed
    /// since the pinning of this source began. An atomic snapshot answers at once; a two-pass pin scans.
    ///
    /// # Errors
    /// If it cannot be found out in time.
    fn unchanged(&mut self, until: Deadline) -> Result<Stillness, Failure>;
    /// Called after the thaw: makes the pinned state readable and checks it, and hands over what is to be
    /// stored. The files named in the entries stay until `release`.
    ///
    /// # Errors
    /// If the whole source is lost. A part that is lost is a problem in the harvest.
    fn harvest(&mut self, progress: &dyn Progress) -> Result<Harvest, Failure>;
    /// As [`Self::harvest`], but the entries go into `entries`, one after the other, and not into the harvest. Of those
    /// that are there already, none is changed.
    ///
    /// # Errors
    /// As [`Self::harvest`]; nothing was added then.
    fn harvest_into(&mut self, entries: &mut Entries, progress: &dyn Progress) -> Result<Harvest, Failure> {
        let mut harvest = self.harvest(progress)?;
        entries.extend(std::mem::take(&mut harvest.entries));
        Ok(harvest)
    }
    /// Called after storing, before anything is listed: what is wrong with the pin now, so that what was read
    /// from it cannot be relied on. A snapshot can run out of space while it is read.
    fn afterwards(&mut self) -> Vec<Problem> {
        vec![]
    }
    /// Removes the pin.
    ///
    /// # Errors
    /// If something is left; says what and how to remove it. It stays in the journal.
    fn release(self: Box<Self>) -> Result<(), Failure>;
}

/// Storing a backup.
pub trait Store: Send {
    /// What the newest backup that can be a parent holds.
    ///
    /// # Errors
    /// If the repository cannot be read.
    fn known(&mut self) -> Result<Known, Failure>;
    /// Stores live files ahead of the cut, so that unchanged ones need not be read after it. Lists nothing.
    /// Files that cannot be read or change meanwhile are skipped: the cut looks at them again.
    ///
    /// # Errors
    /// If nothing can be stored: no space, no repository.
    fn store_ahead(&mut self, manifest: Arc<Manifest>, progress: &dyn Progress) -> Result<(), Failure>;
    /// Stores the manifest and the cut record, and compares what the tree then holds with the manifest.
    /// Nothing is listed yet.
    ///
    /// # Errors
    /// If the backup cannot be stored. Files that cannot be read are problems of the draft.
    fn store(
        &mut self,
        manifest: Arc<Manifest>,
        cut: &CutRecord,
        progress: &dyn Progress,
    ) -> Result<Draft, Failure>;
    /// Lists the draft as a backup: the last thing to be written.
    ///
    /// # Errors
    /// If the snapshot cannot be written.
    fn publish(&mut self, draft: Draft, record: &BackupRecord) -> Result<BackupId, Failure>;
}

/// A backup that is stored and compared but not yet listed.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The vault's own handle.
    pub token: u64,
    /// Regular files that the tree holds.
    pub files: u64,
    /// Bytes in them.
    pub bytes: Bytes,
    /// How many of them were read for it, ahead pass included: all others are carried over from the backup before. More
    /// than there are, if some were read twice.
    pub bytes_read: Bytes,
    /// What the repository grew by, ahead pass included.
    pub bytes_added: Bytes,
    /// Everything that the manifest names and the tree lacks or has otherwise.
    pub problems: Vec<Problem>,
}

/// The backups of one application.
pub trait Shelf: Send {
    /// All backups, oldest first.
    ///
    /// # Errors
    /// If the repository cannot be read.
    fn backups(&mut self) -> Result<Vec<StoredBackup>, Failure>;
    /// Takes backups off the list, under an exclusive lock. Their bytes stay until [`Shelf::reclaim`].
    ///
    /// # Errors
    /// [`FailureKind::Locked`] if anyone else uses the repository.
    fn remove(&mut self, backups: &[BackupId]) -> Result<(), Failure>;
    /// Frees the bytes that no backup needs, under an exclusive lock.
    ///
    /// # Errors
    /// [`FailureKind::Locked`] if anyone else uses the repository.
    fn reclaim(&mut self, progress: &dyn Progress) -> Result<Bytes, Failure>;
    /// Marks a backup as accepted by a person (promise 6). Its id changes; returns the new one.
    ///
    /// # Errors
    /// If there is no such backup or the repository cannot be written.
    fn accept(&mut self, backup: &BackupId) -> Result<BackupId, Failure>;
}

/// What a long task is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Walking live trees.
    Scanning,
    /// Storing live files ahead of the cut.
    StoringAhead,
    /// Copying databases out of their transactions.
    Copying,
    /// Checking database copies.
    Checking,
    /// Storing from the pins.
    Storing,
    /// Comparing what is stored with what was pinned.
    Comparing,
    /// Reading stored bytes back.
    Reading,
    /// Writing restored files.
    Restoring,
    /// Comparing what was restored with the backup.
    Verifying,
    /// Replaying the log archive.
    Replaying,
    /// Freeing space.
    Reclaiming,
}

/// Where progress is reported. Every method may be called from any thread.
pub trait Progress: Send + Sync {
    /// A stage begins; its size in bytes, if it is known.
    fn begin(&self, stage: Stage, total: Option<Bytes>);
    /// So many more bytes are done in this stage.
    fn advance(&self, bytes: Bytes);
    /// The stage is over.
    fn end(&self);
    /// Whether somebody asked to stop. A long stage that can be given up looks at it now and then.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Progress that nobody looks at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _stage: Stage, _total: Option<Bytes>) {}
    fn advance(&self, _bytes: Bytes) {}
    fn end(&self) {}
}
