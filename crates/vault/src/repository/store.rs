//! Storing a backup: the port [`Store`].
//!
//! Crash story: a session holds a shared lock from the first question about the parent until the backup is
//! listed, so nobody can remove meanwhile what it builds on. What is archived names no backup until
//! [`Store::publish`] writes the snapshot, last of all; whatever ends us before leaves bytes that no backup
//! names. Another program may store at the same time under its own shared lock: at worst both store the same
//! bytes twice.

use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Kind, Manifest, Meta, Role, Stamp},
    id::BackupId,
    known::Known,
    port::{Draft, Failure, Progress, Silent, Stage, Store},
    problem::{Effect, Problem},
    record::{BackupRecord, CutRecord},
    size::Bytes,
};
use rustic_core::{
    BackupOptions, FileType, Id, TreeId,
    repofile::{Node, SnapshotFile, SnapshotId},
};

use super::{
    backend::Backend,
    compare::{Stored, compare},
    error::{RepositoryError, while_doing},
    lock::{Lock, LockKind},
    node,
    open::{Indexed, Repository},
    snapshot,
    source::Feed,
};

/// What lasts from the first question about the parent until the backup is listed.
pub(super) struct Session {
    lock: Lock,
    /// The index, until something was stored that it does not know.
    index: Option<Indexed>,
    parent: Option<Base>,
    ahead: Option<Base>,
    drafts: HashMap<u64, Pending>,
    notes: Vec<Problem>,
    written_before: u64,
}

/// A snapshot that files can be carried over from.
#[derive(Clone)]
struct Base {
    id: SnapshotId,
    known: Arc<Known>,
}

/// A draft, until it is published.
struct Pending {
    tree: TreeId,
    cut: CutRecord,
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

    fn session(&mut self) -> Result<&mut Session, RepositoryError> {
        if self.session.is_none() {
            let lock = self.locks.take(LockKind::Shared)?;
            self.backend.forget();
            let index = self.indexed()?;
            let mut notes = Vec::new();
            let parent = self.parent(&index, &mut notes)?;
            let written_before = self.backend.written();
            self.session = Some(Session {
                lock,
                index: Some(index),
                parent,
                ahead: None,
                drafts: HashMap::new(),
                notes,
                written_before,
            });
        }
        self.session.as_mut().ok_or_else(no_session)
    }

    /// The newest backup of ours, with the stamps of its files.
    fn parent(&self, index: &Indexed, notes: &mut Vec<Problem>) -> Result<Option<Base>, RepositoryError> {
        let ours = self.snapshots()?.into_iter().filter_map(|listed| {
            let snapshot = listed.snapshot.ok()?;
            snapshot::record(&snapshot).map(|_| (listed.id, snapshot))
        });
        let Some((id, newest)) = ours.max_by_key(|(id, snapshot)| (snapshot.time.timestamp(), *id)) else {
            return Ok(None);
        };
        let known = match Stored::walk(index, newest.tree) {
            Ok(stored) => stamps(stored, index, notes),
            Err(error) => {
                notes.push(unreadable_parent(Path::new("/"), &error));
                Known::default()
            }
        };
        Ok(Some(Base { id: id.into(), known: Arc::new(known) }))
    }

    /// Takes the index out of the session, loading it if it is stale.
    fn take_index(&mut self) -> Result<Indexed, RepositoryError> {
        match self.session()?.index.take() {
            Some(index) => Ok(index),
            None => self.indexed(),
        }
    }

    fn try_store_ahead(
        &mut self,
        manifest: Arc<Manifest>,
        progress: &dyn Progress,
    ) -> Result<(), RepositoryError> {
        let session = self.session()?;
        let parents: Vec<Base> = session.parent.iter().cloned().collect();
        let total = manifest.bytes();
        let feed = Feed::new(manifest, Vec::new(), known_of(&parents));
        let empty = SnapshotFile { hostname: self.locks.me.hostname.clone(), ..SnapshotFile::default() };
        let paths = vec![PathBuf::from("/")];
        let stored = self.archive(&feed, &parents, empty, &paths, (progress, Stage::StoringAhead, total))?;
        let known = Arc::new(feed.settled());
        self.session()?.ahead = Some(Base { id: stored.id, known });
        Ok(())
    }

    fn try_store(
        &mut self,
        manifest: Arc<Manifest>,
        cut: &CutRecord,
        progress: &dyn Progress,
    ) -> Result<Draft, RepositoryError> {
        let session = self.session()?;
        let parents: Vec<Base> = session.ahead.iter().chain(&session.parent).cloned().collect();
        let total = manifest.bytes();
        let more = record_entries(cut)?;
        let feed = Feed::new(manifest, more, known_of(&parents));
        let unlisted = snapshot::unlisted(cut, &self.locks.me);
        let paths = snapshot::root_paths(&snapshot::roots(cut));
        let stored = self.archive(&feed, &parents, unlisted, &paths, (progress, Stage::Storing, total))?;

        progress.begin(Stage::Comparing, None);
        let index = self.indexed()?;
        let packs: HashMap<Id, u64> = self.backend.files(FileType::Pack)?.into_iter().collect();
        let tally = compare(&feed, &index, stored.tree, &packs, &cut.path())?;
        progress.end();

        let bytes_added = Bytes(self.backend.written());
        let session = self.session()?;
        session.index = Some(index);
        let token = session.drafts.len() as u64 + 1;
        session.drafts.insert(token, Pending { tree: stored.tree, cut: cut.clone() });
        Ok(Draft {
            token,
            files: tally.files,
            bytes: tally.bytes,
            bytes_added: Bytes(bytes_added.0.saturating_sub(session.written_before)),
            problems: session.notes.iter().cloned().chain(tally.problems).collect(),
        })
    }

    /// Stores a manifest that is no backup on top of one snapshot, in a session of its own that goes on until
    /// [`Self::end_session`]. What is [`Body::Carried`] must have the very stamp that it has in that snapshot. Nothing is
    /// listed; what the tree lacks is the second result.
    pub(super) fn archive_apart(
        &mut self,
        manifest: Manifest,
        parent: Option<(SnapshotId, TreeId)>,
        unlisted: SnapshotFile,
    ) -> Result<(TreeId, Vec<Problem>), RepositoryError> {
        let parents: Vec<Base> =
            parent.into_iter().map(|(id, _)| Base { id, known: Arc::default() }).collect();
        let total = manifest.bytes();
        let feed = Feed::new(Arc::new(manifest), Vec::new(), Vec::new());
        let paths = vec![PathBuf::from(model::logs_store::LOGS_ROOT)];
        let stored = self.archive(&feed, &parents, unlisted, &paths, (&Silent, Stage::Storing, total))?;
        let index = self.indexed()?;
        let packs: HashMap<Id, u64> = self.backend.files(FileType::Pack)?.into_iter().collect();
        let tally = compare(&feed, &index, stored.tree, &packs, Path::new(""))?;
        Ok((stored.tree, tally.problems))
    }

    /// Begins a session that looks for no parent: for what is no backup.
    pub(super) fn begin_apart(&mut self) -> Result<(), RepositoryError> {
        self.end_session()?;
        let lock = self.locks.take(LockKind::Shared)?;
        self.backend.forget();
        self.session = Some(Session {
            lock,
            index: None,
            parent: None,
            ahead: None,
            drafts: HashMap::new(),
            notes: Vec::new(),
            written_before: self.backend.written(),
        });
        Ok(())
    }

    /// Whether the lock of the session is still there.
    pub(super) fn session_stands(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.lock.stands())
    }

    /// Archives a feed under a snapshot that only this process sees.
    fn archive(
        &mut self,
        feed: &Feed,
        parents: &[Base],
        snapshot: SnapshotFile,
        paths: &[PathBuf],
        (progress, stage, total): (&dyn Progress, Stage, Bytes),
    ) -> Result<SnapshotFile, RepositoryError> {
        let index = self.take_index()?;
        let mut options = BackupOptions::default();
        options.no_scan = true;
        options.parent_opts.force = parents.is_empty();
        options.parent_opts.parents = parents.iter().map(|base| base.id.to_hex().to_string()).collect();
        // rustic_core compares inodes only when it is told to ignore them.
        options.parent_opts.ignore_inode = true;
        self.backend.withhold(true);
        let stoppable = Stopping { progress, feed, backend: &self.backend };
        let archived = self
            .meter
            .watch(&stoppable, stage, Some(total), || index.archive(&options, feed, snapshot, paths));
        self.backend.withhold(false);
        // A failed write may have been swallowed on its way.
        if let Some(error) = self.backend.failed() {
            return Err(error.into());
        }
        archived.map_err(|error| {
            self.backend.stop();
            RepositoryError::library("storing the backup", &error)
        })
    }

    fn try_publish(&mut self, draft: &Draft, record: &BackupRecord) -> Result<BackupId, RepositoryError> {
        let session = self.session.as_mut().ok_or_else(no_session)?;
        let pending = session.drafts.remove(&draft.token).ok_or_else(no_session)?;
        if !session.lock.stands() {
            return Err(RepositoryError::LockLost { dir: self.backend.dir().into() });
        }
        let parent = session.parent.as_ref().map(|base| base.id);
        let listed = snapshot::listed(pending.tree, parent, &pending.cut, record, &self.locks.me)?;
        let id = self.list(listed)?;
        snapshot::backup_id(&id)
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
        let known = self.session().map(|session| {
            session.parent.as_ref().map_or_else(Known::default, |base| base.known.as_ref().clone())
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

/// The stamps of all files of a stored tree that can be carried over: not smudged, and with all their parts
/// in the index.
fn stamps(stored: Stored<'_>, index: &Indexed, notes: &mut Vec<Problem>) -> Known {
    let mut known = Known::default();
    for (path, node, unreadable) in stored {
        if let Some(error) = unreadable {
            notes.push(unreadable_parent(&path, &error));
        }
        let whole = || node.content.iter().flatten().all(|part| index.get_index_entry(part).is_ok());
        if let Some(stamp) = stamp(&node).filter(|_| whole()) {
            known.insert(&path, stamp);
        }
    }
    known
}

fn stamp(node: &Node) -> Option<Stamp> {
    let meta = &node.meta;
    if !node.is_file() || node.content.is_none() || node::is_smudged(meta.ctime) {
        return None;
    }
    Some(Stamp {
        size: Bytes(meta.size),
        mtime: meta.mtime?.as_nanosecond(),
        ctime: meta.ctime?.as_nanosecond(),
        inode: meta.inode,
    })
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
