//! Storing a backup: the port [`Store`].
//!
//! Crash story: a session holds a shared lock from the first question about the parent until the backup is
//! listed, so nobody can remove meanwhile what it builds on. What is archived names no backup until
//! [`Store::publish`] writes the snapshot, last of all; whatever ends us before leaves bytes that no backup
//! names. Another program may store at the same time under its own shared lock: at worst both store the same
//! bytes twice.

use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Kind, Manifest, Meta, Role},
    id::BackupId,
    known::Known,
    port::{Draft, Failure, Progress, Stage, Store},
    problem::{Effect, Problem},
    record::{BackupRecord, CutRecord},
    reference::Reading,
    size::Bytes,
};
use rustic_core::{
    Id, TreeId,
    repofile::{SnapshotFile, SnapshotId},
};

use super::{
    backend::Backend,
    carry::Compared,
    compare::compare,
    error::{RepositoryError, while_doing},
    feed::Feed,
    lock::{Lock, LockKind},
    open::Repository,
    snapshot,
};
use crate::archiver::{Archiver, Base, Blobs, Carry, Name, Pass, packs};

/// What lasts from the first question about the parent until the backup is listed.
pub(super) struct Session {
    lock: Lock,
    pub(super) archiver: Arc<Archiver>,
    /// The newest backup of ours, and what can be carried over from it.
    pub(super) parent: Option<(SnapshotId, Base)>,
    /// What was stored ahead.
    ahead: Option<Base>,
    drafts: HashMap<u64, Pending>,
    notes: Vec<Problem>,
    written_before: u64,
    /// Bytes of files that were read ahead.
    read_ahead: u64,
    /// How files are read, if a reference is used or kept.
    pub(super) reading: Option<Reading>,
    /// What is read is compared with this, once.
    pub(super) compared: Compared,
}

impl Session {
    /// What can be carried over, the newest first.
    fn bases(&self) -> Vec<Base> {
        let parent = self.parent.iter().map(|(_, base)| base);
        self.ahead.iter().chain(parent).cloned().collect()
    }
}

/// A draft, until it is published.
struct Pending {
    tree: TreeId,
    cut: CutRecord,
    /// What becomes the reference.
    carry: Option<Carry>,
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
    fn begun(&mut self) -> Result<&mut Session, RepositoryError> {
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
                let archiver = Archiver::begin(&self.backend, &self.locks.key, opened.config(), alone)?;
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
    fn base(
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

    fn try_store_ahead(
        &mut self,
        manifest: Arc<Manifest>,
        progress: &dyn Progress,
    ) -> Result<(), RepositoryError> {
        let session = self.session()?;
        let (archiver, bases) = (session.archiver.clone(), session.bases());
        let total = manifest.bytes();
        let feed = Feed::new(manifest, Vec::new(), known_of(&bases), self.gentle.clone());
        let ahead = self.archive(&feed, &bases, None, (progress, Stage::StoringAhead, total), |pass| {
            archiver.store_ahead(pass)
        })?;
        let read = feed.bytes_read();
        // What was stored ahead before is to be added to, not copied.
        drop((feed, bases));
        let session = self.session()?;
        session.ahead = Some(match session.ahead.take() {
            Some(before) => before.and(ahead),
            None => ahead,
        });
        session.read_ahead += read;
        Ok(())
    }

    fn try_store(
        &mut self,
        manifest: Arc<Manifest>,
        cut: &CutRecord,
        progress: &dyn Progress,
    ) -> Result<Draft, RepositoryError> {
        let session = self.session()?;
        let (archiver, bases) = (session.archiver.clone(), session.bases());
        let total = manifest.bytes();
        let feed = Feed::new(manifest, record_entries(cut)?, known_of(&bases), self.gentle.clone());
        let carry = self.begin_carry()?;
        let made =
            self.archive(&feed, &bases, carry.as_ref(), (progress, Stage::Storing, total), |pass| {
                archiver.store(pass)
            })?;
        let root = made.root();
        if let Some(carry) = &carry {
            carry.carried(&feed, &bases);
        }

        progress.begin(Stage::Comparing, None);
        archiver.index.note_packs(&packs(&self.backend)?);
        let blobs = Blobs { backend: &self.backend, key: &self.locks.key, index: &archiver.index };
        let tally = compare(&made, blobs, root, &cut.path())?;
        drop(made);
        progress.end();

        let bytes_added = self.backend.written();
        let session = self.session()?;
        let token = session.drafts.len() as u64 + 1;
        let learnt = carry.as_ref().map(Carry::problems).unwrap_or_default();
        let learnt = learnt.into_iter().chain(feed.gentle().problem());
        session.drafts.insert(token, Pending { tree: root.id().into(), cut: cut.clone(), carry });
        Ok(Draft {
            token,
            files: tally.files,
            bytes: tally.bytes,
            bytes_added: Bytes(bytes_added.saturating_sub(session.written_before)),
            bytes_read: Bytes(session.read_ahead + feed.bytes_read()),
            problems: session.notes.iter().cloned().chain(tally.problems).chain(learnt).collect(),
        })
    }

    /// Stores a manifest that is no backup on top of one tree, in a session of its own that goes on until
    /// [`Self::end_session`]. What is [`Body::Carried`] must have the very stamp that it has in that tree. Nothing is
    /// listed; what the tree lacks is the second result.
    pub(super) fn archive_apart(
        &mut self,
        manifest: Manifest,
        parent: Option<TreeId>,
        progress: &dyn Progress,
    ) -> Result<(TreeId, Vec<Problem>), RepositoryError> {
        let archiver = self.session()?.archiver.clone();
        // What of the parent cannot be read is missing from the new tree, which is compared below.
        let bases: Vec<Base> = parent
            .map(|tree| {
                let root = Name::from_id(&tree.into_inner());
                self.base(&archiver, root, &HashSet::new(), &mut Vec::new())
            })
            .into_iter()
            .collect();
        let total = manifest.bytes();
        let feed = Feed::new(Arc::new(manifest), Vec::new(), Vec::new(), self.gentle.clone());
        let made = self
            .archive(&feed, &bases, None, (progress, Stage::Storing, total), |pass| archiver.store(pass))?;
        let root = made.root();
        archiver.index.note_packs(&packs(&self.backend)?);
        let blobs = Blobs { backend: &self.backend, key: &self.locks.key, index: &archiver.index };
        let tally = compare(&made, blobs, root, Path::new(""))?;
        Ok((root.id().into(), tally.problems))
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

    /// Does a pass over a feed as a stage that can be stopped.
    fn archive<'s, T>(
        &'s self,
        feed: &'s Feed,
        bases: &'s [Base],
        carry: Option<&'s Carry>,
        (progress, stage, total): (&dyn Progress, Stage, Bytes),
        pass: impl FnOnce(Pass<'s>) -> Result<T, RepositoryError>,
    ) -> Result<T, RepositoryError> {
        let (backend, meter) = (self.backend.as_ref(), &self.meter);
        let stoppable = Stopping { progress, feed, backend };
        let whole = Pass { backend, key: &self.locks.key, meter, feed, bases, carry };
        let archived = self.meter.watch(&stoppable, stage, Some(total), || pass(whole));
        // The first failed write says more than what it led to.
        match self.backend.failed() {
            Some(error) => Err(error.into()),
            None => archived.inspect_err(|_| self.backend.stop()),
        }
    }

    fn try_publish(&mut self, draft: &Draft, record: &BackupRecord) -> Result<BackupId, RepositoryError> {
        let session = self.session.as_mut().ok_or_else(no_session)?;
        let pending = session.drafts.remove(&draft.token).ok_or_else(no_session)?;
        if !session.lock.stands() {
            return Err(RepositoryError::LockLost { dir: self.backend.dir().into() });
        }
        let parent = session.parent.as_ref().map(|(id, _)| *id);
        let listed = snapshot::listed(pending.tree, parent, &pending.cut, record, &self.locks.me)?;
        let id = snapshot::backup_id(&self.list(listed)?)?;
        if let Some(carry) = pending.carry {
            self.keep_reference(&id, pending.cut.cut_at, carry);
        }
        Ok(id)
    }

    /// Writes a snapshot, and returns its id.
    pub(super) fn list(&self, snapshot: SnapshotFile) -> Result<Id, RepositoryError> {
        self.opened()?.save_snapshots(vec![snapshot]).map_err(while_doing("listing the backup"))?;
        self.backend
            .last_snapshot()
            .ok_or_else(|| RepositoryError::Damaged { what: "the snapshot was not written".into() })
    }

    /// Ends the session, whose work is done or has failed; a lock that cannot be removed stays in the
    /// journal for the next run.
    fn close(&mut self) {
        if let Err(error) = self.end_session() {
            tracing::warn!("{error}: the next run removes it");
        }
    }

    fn closing_on_failure<T>(&mut self, result: Result<T, RepositoryError>) -> Result<T, Failure> {
        if result.is_err() {
            self.close();
        }
        result.map_err(Failure::from)
    }
}

impl Store for Repository {
    fn known(&mut self) -> Result<Known, Failure> {
        // The application's files are looked at while the lock waits for its second look.
        let known = self.begun().map(|session| {
            session.parent.as_ref().map_or_else(Known::default, |(_, base)| base.known.as_ref().clone())
        });
        self.closing_on_failure(known)
    }

    fn store_ahead(&mut self, manifest: Arc<Manifest>, progress: &dyn Progress) -> Result<(), Failure> {
        let stored = self.try_store_ahead(manifest, progress);
        self.closing_on_failure(stored)
    }

    fn store(
        &mut self,
        manifest: Arc<Manifest>,
        cut: &CutRecord,
        progress: &dyn Progress,
    ) -> Result<Draft, Failure> {
        let stored = self.try_store(manifest, cut, progress);
        self.closing_on_failure(stored)
    }

    fn publish(&mut self, draft: Draft, record: &BackupRecord) -> Result<BackupId, Failure> {
        let published = self.try_publish(&draft, record);
        self.close();
        Ok(published?)
    }
}

/// Feeds nothing more once somebody asked to stop, and lets no write through, so that what is archived by then
/// is a failure.
struct Stopping<'a> {
    progress: &'a dyn Progress,
    feed: &'a Feed,
    backend: &'a Backend,
}

impl Progress for Stopping<'_> {
    fn begin(&self, stage: Stage, total: Option<Bytes>) {
        self.progress.begin(stage, total);
    }

    fn advance(&self, bytes: Bytes) {
        self.progress.advance(bytes);
        if self.progress.is_stopped() {
            self.feed.stop();
            self.backend.stop();
        }
    }

    fn end(&self) {
        self.progress.end();
    }

    fn is_stopped(&self) -> bool {
        self.progress.is_stopped()
    }
}

fn no_session() -> RepositoryError {
    RepositoryError::Refused {
        what: "this draft is not of this session".into(),
        remedy: "store it again".into(),
    }
}

fn known_of(bases: &[Base]) -> Vec<Arc<Known>> {
    bases.iter().map(|base| base.known.clone()).collect()
}

fn unreadable_parent(path: &Path, error: &RepositoryError) -> Problem {
    let what = format!("the backup before cannot be read here, so all is read again: {error}");
    Problem::new(Effect::Note, Some(path.into()), what, error.remedy())
}

/// The cut record as a file of the tree, with the directories above it.
fn record_entries(cut: &CutRecord) -> Result<Vec<Entry>, RepositoryError> {
    let path = cut.path();
    let unwritable = |error| RepositoryError::Damaged { what: format!("the cut record: {error}") };
    let mut text = serde_json::to_vec_pretty(cut).map_err(unwritable)?;
    text.push(b'\n');
    let mut entries: Vec<Entry> = path
        .ancestors()
        .skip(1)
        .filter(|p| p.file_name().is_some())
        .map(|p| directory(p, cut.cut_at))
        .collect();
    entries.reverse();
    let meta = Meta { size: Bytes(text.len() as u64), ..own_meta(0o100_600, cut.cut_at) };
    entries.push(Entry { path, kind: Kind::File, meta, body: Body::Inline(text), role: Role::Content });
    Ok(entries)
}

/// A directory above the record: as it is on this machine, else as a package would make it.
pub(super) fn directory(path: &Path, cut_at: Timestamp) -> Entry {
    let mut meta = own_meta(0o040_755, cut_at);
    if let Ok(real) = std::fs::symlink_metadata(path)
        && real.is_dir()
    {
        let time = |seconds, nanos: i64| {
            Timestamp::new(seconds, i32::try_from(nanos).unwrap_or(0)).unwrap_or(cut_at)
        };
        meta.mode = real.mode();
        (meta.uid, meta.gid) = (real.uid(), real.gid());
        meta.mtime = time(real.mtime(), real.mtime_nsec());
        meta.atime = time(real.atime(), real.atime_nsec());
        meta.ctime = time(real.ctime(), real.ctime_nsec());
        (meta.inode, meta.device, meta.links) = (real.ino(), real.dev(), real.nlink());
    }
    Entry { path: path.into(), kind: Kind::Dir, meta, body: Body::Nothing, role: Role::Ancestor }
}

pub(super) fn own_meta(mode: u32, time: Timestamp) -> Meta {
    Meta {
        mode,
        uid: 0,
        gid: 0,
        size: Bytes(0),
        mtime: time,
        atime: time,
        ctime: time,
        inode: 0,
        device: 0,
        links: 1,
        xattrs: Vec::new(),
    }
}
