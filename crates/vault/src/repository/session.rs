//! Writing sessions: what lasts from the first question about the parent until a backup is listed.
//!
//! Crash story: a session holds a shared lock, so nobody can remove meanwhile what it builds on; the lock is in the journal. What
//! it begins with is read before the lock's second look, and nothing is written before that showed nobody: whoever wants to
//! write either waits for it ([`Repository::session`]), or has the backend wait ([`Repository::settling`]).

use std::{
    collections::{HashMap, HashSet},
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use model::{
    port::Failure,
    problem::{Effect, Problem},
    record::CutRecord,
    reference::Reading,
};
use rustic_core::{TreeId, repofile::SnapshotId};

use super::{
    carry::Compared,
    error::RepositoryError,
    lock::{Lock, LockKind, Look},
    open::Repository,
    snapshot,
};
use crate::archiver::{Archiver, Base, Carry, Name};

/// What lasts from the first question about the parent until the backup is listed.
pub(super) struct Session {
    pub(super) lock: Lock,
    pub(super) archiver: Arc<Archiver>,
    /// The newest backup of ours, and what can be carried over from it.
    pub(super) parent: Option<(SnapshotId, Base)>,
    /// What was stored ahead.
    pub(super) ahead: Option<Base>,
    pub(super) drafts: HashMap<u64, Pending>,
    pub(super) notes: Vec<Problem>,
    pub(super) written_before: u64,
    /// Bytes of files that were read ahead.
    pub(super) read_ahead: u64,
    /// How files are read, if a reference is used or kept.
    pub(super) reading: Option<Reading>,
    /// What is read is compared with this, once.
    pub(super) compared: Compared,
}

impl Session {
    /// What can be carried over, the newest first.
    pub(super) fn bases(&self) -> Vec<Base> {
        let parent = self.parent.iter().map(|(_, base)| base);
        self.ahead.iter().chain(parent).cloned().collect()
    }
}

/// A draft, until it is published.
pub(super) struct Pending {
    pub(super) tree: TreeId,
    pub(super) cut: CutRecord,
    /// What becomes the reference.
    pub(super) carry: Option<Carry>,
}

impl Repository {
    /// Ends a writing session and gives its lock back.
    pub(crate) fn end_session(&mut self) -> Result<(), RepositoryError> {
        if let Some(session) = self.session.take() {
            self.backend.forget();
            session.lock.release()?;
        }
        Ok(())
    }

    /// The session, in which things may be stored: its lock's second look showed nobody.
    pub(super) fn session(&mut self) -> Result<&mut Session, RepositoryError> {
        match self.begun()?.lock.settle() {
            Ok(()) => {}
            // What was read is not to be believed. What was asked of it meanwhile may stand: a file that is not in the new
            // parent as it was in the old one is read.
            Err(RepositoryError::Locked { .. }) => {
                self.end_session()?;
                self.begun()?.lock.settle()?;
            }
            Err(error) => return Err(error),
        }
        self.session.as_mut().ok_or_else(no_session)
    }

    /// The session, in which nothing may be stored yet.
    pub(super) fn begun(&mut self) -> Result<&mut Session, RepositoryError> {
        if self.session.is_none() {
            let session = self.begin(true)?;
            self.session = Some(session);
        }
        self.session.as_mut().ok_or_else(no_session)
    }

    /// Begins what a backup begins with, while nothing may be stored yet: takes the lock and reads what the repository
    /// holds.
    ///
    /// # Errors
    /// If somebody is in the way, or it cannot be read.
    pub fn begin_backup(&mut self) -> Result<(), Failure> {
        let begun = self.begun().map(drop);
        self.closing_on_failure(begun)
    }

    /// Begins a session, in which the newest backup is the parent if one is asked for.
    fn begin(&self, with_parent: bool) -> Result<Session, RepositoryError> {
        self.backend.forget();
        let (lock, (archiver, parent, notes, reading, compared)) =
            self.locks.take_unsettled(LockKind::Shared, |own| {
                let opened = self.opened()?;
                // Chosen before the index is read, which then has all of it.
                let newest = if with_parent { self.newest()? } else { None };
                let alone = || self.locks.is_alone(own);
                let archiver = {
                    let cache = self.index_cache.clone();
                    Archiver::begin(&self.backend, &self.locks.key, opened.config(), cache, alone)?
                };
                let mut notes = Vec::new();
                let (reading, reference) = match with_parent {
                    true => self.reading(newest.as_ref().map(|(id, _)| id))?,
                    false => Default::default(),
                };
                let files = reference.iter().flat_map(|reference| &reference.files);
                let wanted: HashSet<PathBuf> = files.map(|file| file.path.clone()).collect();
                let parent = newest.map(|(id, root)| (id, self.base(&archiver, root, &wanted, &mut notes)));
                let compared = match (&parent, reference) {
                    (Some((_, base)), Some(reference)) => Compared::proven(&base.wanted, reference),
                    _ => Compared::default(),
                };
                Ok((archiver, parent, notes, reading, compared))
            })?;
        Ok(Session {
            lock,
            archiver: Arc::new(archiver),
            parent,
            ahead: None,
            drafts: HashMap::new(),
            notes,
            written_before: self.backend.written(),
            read_ahead: 0,
            reading,
            compared,
        })
    }

    /// The newest backup of ours and its tree.
    fn newest(&self) -> Result<Option<(SnapshotId, Name)>, RepositoryError> {
        let ours = self.snapshots()?.into_iter().filter_map(|listed| {
            let snapshot = listed.snapshot.ok()?;
            snapshot::record(&snapshot).map(|_| (listed.id, snapshot))
        });
        let newest = ours.max_by_key(|(id, snapshot)| (snapshot.time.timestamp(), *id));
        Ok(newest.map(|(id, snapshot)| (id.into(), Name::from_id(&snapshot.tree.into_inner()))))
    }

    /// What can be carried over from a stored tree; what of it cannot be read is noted.
    pub(super) fn base(
        &self,
        archiver: &Archiver,
        root: Name,
        wanted: &HashSet<PathBuf>,
        notes: &mut Vec<Problem>,
    ) -> Base {
        let (base, unreadable) = archiver.base(&self.backend, &self.locks.key, root, wanted);
        notes.extend(unreadable.iter().map(|(path, error)| unreadable_parent(path, error)));
        base
    }

    /// Begins a session that looks for no parent: for what is no backup.
    pub(super) fn begin_apart(&mut self) -> Result<(), RepositoryError> {
        self.end_session()?;
        let session = self.begin(false)?;
        self.session = Some(session);
        Ok(())
    }

    /// Whether the lock of the session is still there.
    pub(super) fn session_stands(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.lock.stands())
    }

    /// Does something while a lock's second look is still to come. Nothing is written before it showed nobody.
    pub(super) fn settling<T>(
        &self,
        look: Option<Look>,
        task: impl FnOnce() -> Result<T, RepositoryError>,
    ) -> Result<T, RepositoryError> {
        let Some(look) = look else { return task() };
        let backend = &self.backend;
        backend.hold();
        let (seen, done) = thread::scope(|scope| {
            let looking =
                scope.spawn(|| look.wait().inspect(|()| backend.let_go()).inspect_err(|_| backend.stop()));
            let done = task();
            (looking.join().unwrap_or_else(|panic| resume_unwind(panic)), done)
        });
        // Who is in the way says more than what came of it.
        seen.and(done)
    }

    /// Ends the session, whose work is done or has failed; a lock that cannot be removed stays in the
    /// journal for the next run.
    pub(super) fn close(&mut self) {
        if let Err(error) = self.end_session() {
            tracing::warn!("{error}: the next run removes it");
        }
    }

    pub(super) fn closing_on_failure<T>(&mut self, result: Result<T, RepositoryError>) -> Result<T, Failure> {
        if result.is_err() {
            self.close();
        }
        result.map_err(Failure::from)
    }
}

pub(super) fn no_session() -> RepositoryError {
    RepositoryError::Refused {
        what: "this draft is not of this session".into(),
        remedy: "store it again".into(),
    }
}

fn unreadable_parent(path: &Path, error: &RepositoryError) -> Problem {
    let what = format!("the backup before cannot be read here, so all is read again: {error}");
    Problem::new(Effect::Note, Some(path.into()), what, error.remedy())
}
