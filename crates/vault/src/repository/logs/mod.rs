//! The log archive in the repository: one snapshot that holds all of it and takes the place of the one before.
//!
//! It is no backup: it has no record of a cut, is not listed, is nobody's parent, and retention of backups does not see it.
//! What it looks like: `docs/format/logs.md`, "In the repository".
//!
//! Crash story: the new snapshot is written last of all under a shared lock, and the old one is removed after that, under
//! an exclusive lock which is taken only if nobody is in the way. So at any moment one of them is listed and whole; two are
//! after a crash or beside a backup, and the newest counts. The next time removes all others. What could not be carried
//! over from the one before (its directories or packs are damaged) makes that one stay: [`LogsRecord::beside`].

mod port;
mod read;
mod wanted;

use std::{
    fs::File,
    thread,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use model::{
    id::{AppName, BackupId, ServerName},
    logs::LOGS_VERSION,
    logs_retention::LogsPlan,
    logs_store::{LOGS_ROOT, LogsRecord, LogsStored},
    port::Progress,
    problem::{Effect, Problem},
    size::Bytes,
};
use rustic_core::{
    FileType, Id, TreeId,
    repofile::{SnapshotFile, SnapshotId},
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

pub(super) use self::read::Shelf;
use self::wanted::{Before, Wanted};
pub use self::{
    port::Archive,
    read::{StoredLogs, Unreadable},
};
use super::{
    error::{RepositoryError, StorageError},
    lock::LockKind,
    open::Repository,
    snapshot,
};
use crate::logs::Catalogue;

/// How long another process may be storing the archive.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Whose archive is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOwner {
    /// The application.
    pub application: AppName,
    /// Where it runs.
    pub server: ServerName,
}

/// What became of storing the archive.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreOutcome {
    /// The snapshot that holds it now; nothing if there is nothing to hold.
    pub snapshot: Option<BackupId>,
    /// What it says of itself.
    pub record: Option<LogsRecord>,
    /// Whether it was written now; otherwise nothing had changed.
    pub is_new: bool,
    /// How many superseded snapshots could not be removed yet, because others use the repository.
    pub left: u64,
    /// What the repository grew by.
    pub bytes_added: Bytes,
    /// What is missing of the archive.
    pub problems: Vec<Problem>,
}

/// A snapshot of the log archive.
pub(super) struct Shelved {
    pub(super) id: Id,
    pub(super) snapshot: SnapshotFile,
    pub(super) record: LogsRecord,
}

impl Repository {
    /// Stores the log archive: what the spool holds, and what the snapshot before holds of segments that are not in the
    /// spool any more, without what `plan` drops. Nothing is written if nothing has changed. It is given up when `progress`
    /// says that somebody asked to stop.
    ///
    /// # Errors
    /// [`model::port::FailureKind::Locked`] if somebody deletes at this moment; if the spool cannot be read or the
    /// repository not be written, or it was given up. The snapshot before stands then.
    pub fn store_logs(
        &mut self,
        owner: &LogOwner,
        spool: &Catalogue,
        plan: &LogsPlan,
        progress: &dyn Progress,
    ) -> Result<StoreOutcome, RepositoryError> {
        let _turn = self.turn(progress)?;
        let fingerprint = fingerprint(spool, plan);
        let mut before = self.log_snapshots()?.into_iter();
        let newest = before.next();
        let mut outcome = match newest {
            Some(newest) if newest.record.fingerprint == fingerprint => StoreOutcome {
                snapshot: Some(snapshot::backup_id(&newest.id)?),
                record: Some(newest.record),
                is_new: false,
                left: 0,
                bytes_added: Bytes(0),
                problems: Vec::new(),
            },
            newest => {
                self.begin_apart()?;
                let stored = self.store_on(owner, (spool, plan), newest, fingerprint, progress);
                if stored.is_err() {
                    self.backend.stop();
                }
                let ended = self.end_session();
                let stored = stored?;
                if let Err(error) = ended {
                    tracing::warn!("{error}: the next run removes it");
                }
                stored
            }
        };
        outcome.left = self.supersede(&outcome)?;
        Ok(outcome)
    }

    /// Waits until nobody else on this machine stores the archive, by a `flock` of the repository's config: of two that
    /// build on the same snapshot, the later would lose what the earlier has added.
    fn turn(&self, progress: &dyn Progress) -> Result<File, RepositoryError> {
        let path = self.dir().join("config");
        let failed = |source| StorageError::read(&path, source);
        let file = File::open(&path).map_err(failed)?;
        let begun = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) if begun.elapsed() < PATIENCE && !progress.is_stopped() => {
                    thread::sleep(LOOK);
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(RepositoryError::Refused {
                        what: "another process is storing the log archive, and does not end".into(),
                        remedy: "wait until it has ended, or end it".into(),
                    });
                }
                Err(error) => return Err(failed(error.into()).into()),
            }
        }
    }

    /// All snapshots of the log archive that can be read, newest first.
    pub(super) fn log_snapshots(&self) -> Result<Vec<Shelved>, RepositoryError> {
        let mut found: Vec<Shelved> = self
            .snapshots()?
            .into_iter()
            .filter_map(|listed| {
                let snapshot = listed.snapshot.ok().filter(snapshot::is_log)?;
                let record = serde_json::from_str(snapshot.description.as_deref()?).ok()?;
                Some(Shelved { id: listed.id, snapshot, record })
            })
            .collect();
        found.sort_by_key(|shelved| (shelved.snapshot.time.timestamp(), shelved.id));
        found.reverse();
        Ok(found)
    }

    fn store_on(
        &mut self,
        owner: &LogOwner,
        (spool, plan): (&Catalogue, &LogsPlan),
        newest: Option<Shelved>,
        fingerprint: String,
        progress: &dyn Progress,
    ) -> Result<StoreOutcome, RepositoryError> {
        let written = self.backend.written();
        let index = self.indexed()?;
        let packs = self.backend.files(FileType::Pack)?.into_iter().collect();
        let before = match &newest {
            Some(newest) => Before::read(&index, newest.snapshot.tree, &packs),
            None => Before::default(),
        };
        let stored_at = Timestamp::now();
        let wanted = Wanted::gather(spool, &before, &index, plan, stored_at)?;
        if wanted.is_empty() {
            let (snapshot, record, problems) = (None, None, before.lost);
            return Ok(StoreOutcome {
                snapshot,
                record,
                is_new: false,
                left: 0,
                bytes_added: Bytes(0),
                problems,
            });
        }
        let record = LogsRecord {
            version: LOGS_VERSION,
            application: owner.application.clone(),
            stored_at,
            fingerprint,
            sources: sources(spool, &wanted, newest.as_ref()),
            beside: beside(newest.as_ref(), &before)?,
        };
        let parent = newest.as_ref().map(|newest| (SnapshotId::from(newest.id), newest.snapshot.tree));
        let time = after(stored_at, newest.as_ref());
        let unlisted = self.unlisted_logs(owner, time);
        let mut problems = before.lost.clone();
        problems.extend(wanted.problems.clone());
        let manifest = wanted.into_manifest(stored_at);
        let (tree, missing) = self.archive_apart(manifest, parent.map(|(_, tree)| tree), progress)?;
        // Files of the spool come and go while it is written: another time they hold still.
        if let Some(first) = missing.first() {
            return Err(RepositoryError::Refused {
                what: format!("the log archive changed while it was stored: {first}"),
                remedy: "it is stored again in a minute".into(),
            });
        }
        let id = self.list_logs(unlisted, tree, parent.map(|(id, _)| id), &record)?;
        Ok(StoreOutcome {
            snapshot: Some(snapshot::backup_id(&id)?),
            record: Some(record),
            is_new: true,
            left: 0,
            bytes_added: Bytes(self.backend.written().saturating_sub(written)),
            problems,
        })
    }

    fn unlisted_logs(&self, owner: &LogOwner, time: Timestamp) -> SnapshotFile {
        let mut snapshot = SnapshotFile {
            time: time.to_zoned(TimeZone::UTC),
            program_version: concat!("stillpoint ", env!("CARGO_PKG_VERSION")).into(),
            hostname: owner.server.as_str().into(),
            username: self.locks.me.username.clone(),
            ..SnapshotFile::default()
        };
        snapshot.paths.add(LOGS_ROOT.into());
        let tags =
            [snapshot::OURS.to_owned(), snapshot::LOG.to_owned(), format!("app={}", owner.application)];
        tags.into_iter().for_each(|tag| snapshot.tags.add(tag));
        snapshot
    }

    fn list_logs(
        &self,
        mut snapshot: SnapshotFile,
        tree: TreeId,
        parent: Option<SnapshotId>,
        record: &LogsRecord,
    ) -> Result<Id, RepositoryError> {
        let unwritable =
            |error| RepositoryError::Damaged { what: format!("the record of the log archive: {error}") };
        snapshot.tree = tree;
        snapshot.parent = parent;
        snapshot.parents = parent.into_iter().collect();
        snapshot.description = Some(serde_json::to_string(record).map_err(unwritable)?);
        if !self.session_stands() {
            return Err(RepositoryError::LockLost { dir: self.dir().into() });
        }
        self.list(snapshot)
    }

    /// Removes the snapshots that the newest one takes the place of, if nobody else uses the repository; says how many stay.
    fn supersede(&mut self, outcome: &StoreOutcome) -> Result<u64, RepositoryError> {
        let Some(record) = &outcome.record else { return Ok(0) };
        let keep: Vec<&str> = record.beside.iter().chain(&outcome.snapshot).map(BackupId::as_str).collect();
        let old: Vec<Id> = self
            .log_snapshots()?
            .into_iter()
            .map(|shelved| shelved.id)
            .filter(|id| !keep.contains(&&*id.to_hex()))
            .collect();
        if old.is_empty() {
            return Ok(0);
        }
        let lock = match self.locks.take_at_once(LockKind::Exclusive) {
            Ok(lock) => lock,
            Err(RepositoryError::Locked { .. }) => return Ok(old.len() as u64),
            Err(error) => return Err(error),
        };
        self.backend.forget();
        let removed: Result<(), StorageError> =
            old.iter().try_for_each(|id| self.backend.delete(FileType::Snapshot, id));
        let released = lock.release();
        removed?;
        released?;
        Ok(0)
    }
}

/// A time for the new snapshot that makes it the newest, also after a clock was set back.
fn after(now: Timestamp, newest: Option<&Shelved>) -> Timestamp {
    let before = newest.map_or(Timestamp::MIN, |newest| newest.snapshot.time.timestamp());
    now.max(before.checked_add(SignedDuration::from_millis(1)).unwrap_or(now))
}

/// Snapshots that must stay because something in them could not be carried over.
fn beside(newest: Option<&Shelved>, before: &Before) -> Result<Vec<BackupId>, RepositoryError> {
    let Some(newest) = newest else { return Ok(Vec::new()) };
    let mut beside = newest.record.beside.clone();
    if before.lost.iter().any(|problem| problem.effect == Effect::Missing) {
        beside.push(snapshot::backup_id(&newest.id)?);
    }
    Ok(beside)
}

/// What the new snapshot holds of each source: places as the spool says, or else the snapshot before.
fn sources(spool: &Catalogue, wanted: &Wanted, newest: Option<&Shelved>) -> Vec<LogsStored> {
    let local = spool.sources.iter().filter_map(|log| LogsStored::of(&log.source, log.kind, &log.epochs));
    let mut all: Vec<LogsStored> = local.collect();
    let known = newest.map(|newest| newest.record.sources.clone()).unwrap_or_default();
    for stored in known {
        if !all.iter().any(|local| local.source == stored.source) {
            all.push(stored);
        }
    }
    for stored in &mut all {
        (stored.epochs, stored.segments, stored.bytes) = wanted.count(&stored.source);
    }
    all.sort_by(|a, b| a.source.cmp(&b.source));
    all
}

/// Equal for two looks at a spool that hold the same.
fn fingerprint(spool: &Catalogue, plan: &LogsPlan) -> String {
    let mut hash = Sha256::new();
    let mut line = |text: String| {
        hash.update(text.as_bytes());
        hash.update(b"\n");
    };
    for log in &spool.sources {
        line(format!("source {}", log.source));
        for epoch in &log.epochs {
            line(format!("epoch {}", epoch.record.epoch));
            for segment in &epoch.segments {
                line(format!("{segment:?}"));
            }
            for (number, what) in &epoch.damaged {
                line(format!("{number} {what}"));
            }
        }
    }
    for source in plan.sources.iter().filter(|source| source.segments > 0 || !source.epochs.is_empty()) {
        line(format!("without {} {:?} {:?}", source.source, source.epochs, source.from));
    }
    hex::encode(hash.finalize())
}
