//! A backup's use of the reference: what it compares with, and what it leaves for the next one.
//!
//! Crash story: see [`crate::reference`]. The reference is replaced when the backup is listed; what goes wrong then makes the next
//! backup read more, and is told besides.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use model::{
    id::BackupId,
    pace::Pace,
    problem::Problem,
    reference::{Kept, Reading, Reference, ReferenceFile, ReferenceVolume, reading},
};
use rustic_core::repofile::SnapshotId;

use super::{error::RepositoryError, gentle::Gentle, open::Repository, snapshot};
use crate::{
    archiver::{Archiver, Carry, Frozen, Older, Stored},
    reference::{self, Keeper, Listed, Referencing},
};

/// What a repository is told of the reference, and what it tells.
#[derive(Default)]
pub(super) struct ReferenceState {
    pub(super) referencing: Option<Referencing>,
    /// What went wrong when the reference was replaced.
    problems: Vec<Problem>,
    /// The record of copies that restores may be cloned from.
    restored_from: Option<PathBuf>,
}

/// What a session compares with.
#[derive(Default)]
pub(super) struct Compared {
    older: Vec<Older>,
    volumes: Vec<ReferenceVolume>,
}

impl Compared {
    /// The files of a reference that are what the newest backup has.
    pub(super) fn proven(wanted: &HashMap<PathBuf, Stored>, reference: Reference) -> Self {
        let Reference { files, volumes, .. } = reference;
        let proven = |file: ReferenceFile| Older::proven(wanted.get(&file.path)?, file);
        let older: Vec<Older> = files.into_iter().filter_map(proven).collect();
        Self { older, volumes: if wanted.is_empty() { Vec::new() } else { volumes } }
    }
}

impl Repository {
    /// From now on backups use this reference and replace it. Whoever says so holds the lock of the application's runs.
    pub fn use_reference(&mut self, referencing: Referencing) {
        self.reference.referencing = Some(referencing);
    }

    /// From now on files are read and stored at this pace.
    pub fn go_at(&mut self, pace: Pace) {
        self.gentle = Gentle::new(pace);
    }

    /// From now on a backup that is opened to be restored tells which frozen copies of its files this record has.
    pub fn restore_from(&mut self, record: PathBuf) {
        self.reference.restored_from = Some(record);
    }

    /// The frozen copies that are recorded for this very backup.
    pub(super) fn kept_copies(&self, backup: &BackupId) -> Vec<ReferenceFile> {
        match self.reference.restored_from.as_deref().map(reference::read) {
            Some(Kept::There(kept)) if kept.backup == *backup => kept.files,
            _ => Vec::new(),
        }
    }

    /// What went wrong when the reference was replaced by that of a listed backup; once.
    pub fn reference_problems(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.reference.problems)
    }

    /// How the session reads, and the reference that it compares with.
    pub(super) fn reading(
        &self,
        newest: Option<&SnapshotId>,
    ) -> Result<(Option<Reading>, Option<Reference>), RepositoryError> {
        let Some(Referencing { record, choice, now, .. }) = &self.reference.referencing else {
            return Ok(Default::default());
        };
        let newest = newest.map(|id| snapshot::backup_id(id)).transpose()?;
        let kept = reference::read(record);
        let decided = reading(*choice, &kept, newest.as_ref(), *now);
        let compared = match (&decided, kept) {
            (Reading::Changed { .. } | Reading::All { proves: true, .. }, Kept::There(reference)) => {
                Some(reference)
            }
            _ => None,
        };
        Ok((Some(decided), compared))
    }

    /// What the files of this session are compared with; nothing if no copies are kept.
    pub(super) fn begin_carry(&mut self) -> Result<Option<Carry>, RepositoryError> {
        let journal = Arc::clone(&self.locks.journal);
        let session = self.begun()?;
        let proves = match &session.reading {
            None | Some(Reading::All { keeps: false, .. }) => return Ok(None),
            Some(Reading::All { proves, .. }) => *proves,
            Some(Reading::Changed { .. }) => false,
        };
        let Compared { older, volumes } = std::mem::take(&mut session.compared);
        Ok(Some(Carry::new(older, proves, Keeper::new(journal, volumes))))
    }

    /// The frozen copies of a listed backup become the reference.
    pub(super) fn keep_reference(&mut self, backup: &BackupId, cut_at: Timestamp, carry: Carry) {
        let (Some(referencing), Some(session)) = (&self.reference.referencing, &self.session) else { return };
        let before = match reference::read(&referencing.record) {
            Kept::There(reference) => Some(reference.read_all_at),
            Kept::Nothing | Kept::Unreadable(_) => None,
        };
        let read_all_at = match &session.reading {
            Some(Reading::Changed { .. }) => before.unwrap_or(cut_at),
            _ => cut_at,
        };
        let archiver: &Archiver = &session.archiver;
        let digest = |frozen: &Frozen| frozen.digest(&archiver.index);
        let (frozen, keeper) = carry.into_kept();
        let listed = Listed { backup: backup.clone(), read_all_at, frozen, keeper, digest: &digest };
        let problems = reference::keep(referencing, listed);
        self.reference.problems.extend(problems);
    }
}
