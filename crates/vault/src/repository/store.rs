//! Storing a backup: the port [`Store`].
//!
//! Crash story: a session holds a shared lock from the first question about the parent until the backup is
//! listed, so nobody can remove meanwhile what it builds on. What is archived names no backup until
//! [`Store::publish`] writes the snapshot, last of all; whatever ends us before leaves bytes that no backup
//! names. Another program may store at the same time under its own shared lock: at worst both store the same
//! bytes twice.

use std::{
    collections::HashSet, os::unix::fs::MetadataExt, panic::resume_unwind, path::Path, sync::Arc, thread,
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Kind, Manifest, Meta, Role},
    id::BackupId,
    known::Known,
    port::{Draft, Failure, Progress, Stage, Store},
    problem::Problem,
    record::{BackupRecord, CutRecord},
    size::Bytes,
};
use rustic_core::{Id, TreeId, repofile::SnapshotFile};

use super::{
    backend::Backend,
    compare::{Tally, compare},
    error::{RepositoryError, while_doing},
    feed::Feed,
    open::Repository,
    session::{Pending, no_session},
    snapshot,
};
use crate::archiver::{Archiver, Base, Blobs, Carry, Made, Name, Pass, packs};

impl Repository {
    fn try_store_ahead(
        &mut self,
        manifest: Arc<Manifest>,
        progress: &dyn Progress,
    ) -> Result<(), RepositoryError> {
        let session = self.session()?;
        let (archiver, bases) = (session.archiver.clone(), session.bases());
        let total = manifest.bytes();
        let feed = Feed::new(manifest, Vec::new(), known_of(&bases), self.gentle.clone());
        let stage = (progress, Stage::StoringAhead, total);
        let ahead = self.archive(&feed, &bases, None, stage, |pass| archiver.store_ahead(pass))?;
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

    /// Stores while the lock's second look may still be to come; all once more if it shows somebody.
    fn try_store(
        &mut self,
        manifest: &Arc<Manifest>,
        cut: &CutRecord,
        progress: &dyn Progress,
    ) -> Result<Draft, RepositoryError> {
        self.begun()?;
        match self.store_unsettled(manifest, cut, progress) {
            // What was read is not to be believed, and nothing was written on the ground of it.
            Err(RepositoryError::Locked { .. }) => {
                self.end_session()?;
                self.begun()?.lock.settle()?;
                self.store_unsettled(manifest, cut, progress)
            }
            stored => stored,
        }
    }

    fn store_unsettled(
        &mut self,
        manifest: &Arc<Manifest>,
        cut: &CutRecord,
        progress: &dyn Progress,
    ) -> Result<Draft, RepositoryError> {
        let session = self.begun()?;
        let (archiver, bases) = (session.archiver.clone(), session.bases());
        let stage = (progress, Stage::Storing, manifest.bytes());
        let known = known_of(&bases);
        let feed = Feed::new(Arc::clone(manifest), record_entries(cut)?, known, self.gentle.clone());
        let carry = self.begin_carry()?;
        // Nothing comes between asking for the look and waiting for it: else the session would seem to have settled.
        let look = self.begun()?.lock.second_look();
        let made = self.settling(look, || {
            self.archive(&feed, &bases, carry.as_ref(), stage, |pass| archiver.store(pass))
        })?;
        let root = made.root();
        if let Some(carry) = &carry {
            carry.carried(&feed, &bases);
        }

        progress.begin(Stage::Comparing, None);
        let tally = self.listed_and_compared(&archiver, &made, carry.as_ref(), &cut.path())?;
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

    /// Compares what is in the packs now with what was to be stored, and writes the rest of the index meanwhile.
    fn listed_and_compared(
        &self,
        archiver: &Archiver,
        made: &Made<'_>,
        carry: Option<&Carry>,
        uncounted: &Path,
    ) -> Result<Tally, RepositoryError> {
        archiver.index.note_packs(&packs(&self.backend)?);
        let blobs = Blobs { backend: &self.backend, key: &self.locks.key, index: &archiver.index };
        let (listed, tally) = thread::scope(|scope| {
            let listing = scope.spawn(|| {
                let listed = archiver.list(made);
                if listed.is_ok() {
                    archiver.leave_index(&self.locks.key);
                }
                carry.into_iter().for_each(|carry| carry.make_digests(&archiver.index));
                listed
            });
            let tally = compare(made, blobs, made.root(), uncounted);
            (listing.join().unwrap_or_else(|panic| resume_unwind(panic)), tally)
        });
        listed.and(tally)
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
        let tally = self.listed_and_compared(&archiver, &made, None, Path::new(""))?;
        Ok((made.root().id().into(), tally.problems))
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
        let (backend, meter) = (&self.backend, &self.meter);
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
        let stored = self.try_store(&manifest, cut, progress);
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

fn known_of(bases: &[Base]) -> Vec<Arc<Known>> {
    bases.iter().map(|base| base.known.clone()).collect()
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
