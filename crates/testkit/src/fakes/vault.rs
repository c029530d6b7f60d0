//! A repository in memory, with its store and its shelf.
//!
//! Crash story: in memory. A store that is dropped with a draft leaves it unlisted.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Kind, Manifest, Stamp},
    id::BackupId,
    known::Known,
    port::{Clock, Draft, Failure, FailureKind, Progress, Shelf, Store},
    problem::Problem,
    record::{BackupRecord, CutRecord, StoredBackup},
    size::Bytes,
};

use super::world::World;

/// Where the bytes of live and pinned files come from, and the time.
#[derive(Debug, Clone)]
pub enum Origin {
    /// Files of a simulated machine.
    World(World),
    /// Files on disk, as the conformance suites make them.
    Disk,
}

impl Origin {
    fn live(&self, path: &Path) -> Option<(Stamp, Vec<u8>)> {
        match self {
            Self::World(world) => world.read(path).map(|(meta, bytes)| (meta.stamp(), bytes)),
            Self::Disk => {
                let meta = fs::symlink_metadata(path).ok()?;
                let nanos = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
                let stamp = Stamp {
                    size: Bytes(meta.len()),
                    mtime: nanos(meta.mtime(), meta.mtime_nsec()),
                    ctime: nanos(meta.ctime(), meta.ctime_nsec()),
                    inode: meta.ino(),
                };
                Some((stamp, fs::read(path).ok()?))
            }
        }
    }

    fn work(&self) {
        if let Self::World(world) = self {
            world.work();
        }
    }

    fn now(&self) -> Timestamp {
        match self {
            Self::World(world) => world.now(),
            Self::Disk => Timestamp::now(),
        }
    }
}

/// A backup as the repository keeps it.
#[derive(Debug, Clone)]
struct Kept {
    listed: StoredBackup,
    files: BTreeMap<PathBuf, Vec<u8>>,
    stamps: BTreeMap<PathBuf, Stamp>,
}

#[derive(Debug, Default)]
struct State {
    kept: Vec<Kept>,
    drafts: BTreeMap<u64, Kept>,
    next: u64,
    garbage: u64,
    spoiled: Option<PathBuf>,
}

/// The repository. Clones are the same repository.
#[derive(Debug, Clone)]
pub struct FakeVault {
    state: Arc<Mutex<State>>,
    origin: Origin,
}

impl FakeVault {
    /// An empty repository.
    #[must_use]
    pub fn new(origin: Origin) -> Self {
        Self { state: Arc::default(), origin }
    }

    /// Opens it for storing.
    #[must_use]
    pub fn store(&self) -> FakeStore {
        FakeStore { vault: self.clone(), ahead: BTreeMap::new() }
    }

    /// Opens it for listing.
    #[must_use]
    pub fn shelf(&self) -> FakeShelf {
        FakeShelf { vault: self.clone() }
    }

    /// From now on this file cannot be read when it is stored.
    pub fn spoil(&self, path: &Path) {
        self.lock().spoiled = Some(path.to_owned());
    }

    /// The files of a backup, its cut record among them.
    #[must_use]
    pub fn read_back(&self, id: &BackupId) -> Option<BTreeMap<PathBuf, Vec<u8>>> {
        self.lock().kept.iter().find(|k| k.listed.id == *id).map(|k| k.files.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`FakeVault::store`].
pub struct FakeStore {
    vault: FakeVault,
    ahead: BTreeMap<PathBuf, (Stamp, Vec<u8>)>,
}

impl FakeStore {
    fn carried(&self, path: &Path, stamp: &Stamp) -> Option<Vec<u8>> {
        if let Some((_, bytes)) = self.ahead.get(path).filter(|(s, _)| s == stamp) {
            return Some(bytes.clone());
        }
        let state = self.vault.lock();
        state
            .kept
            .last()
            .filter(|kept| kept.stamps.get(path) == Some(stamp))
            .and_then(|kept| kept.files.get(path).cloned())
    }

    fn bytes(&self, entry: &Entry) -> Option<Vec<u8>> {
        let stamp = entry.meta.stamp();
        if self.vault.lock().spoiled.as_ref() == Some(&entry.path) {
            return None;
        }
        match &entry.body {
            Body::Nothing => None,
            Body::Inline(bytes) => Some(bytes.clone()),
            Body::At(path) => self.vault.origin.live(path).map(|(_, bytes)| bytes),
            Body::Carried => self.carried(&entry.path, &stamp).or_else(|| {
                self.vault.origin.live(&entry.path).filter(|(s, _)| *s == stamp).map(|(_, bytes)| bytes)
            }),
        }
    }
}

impl Store for FakeStore {
    fn known(&mut self) -> Result<Known, Failure> {
        self.vault.origin.work();
        let mut known = Known::default();
        if let Some(parent) = self.vault.lock().kept.last() {
            for (path, stamp) in &parent.stamps {
                known.insert(path, *stamp);
            }
        }
        Ok(known)
    }

    fn store_ahead(&mut self, manifest: Arc<Manifest>, _progress: &dyn Progress) -> Result<(), Failure> {
        for entry in manifest.entries.iter().filter(|e| e.kind == Kind::File) {
            self.vault.origin.work();
            if let Some((stamp, bytes)) = self.vault.origin.live(&entry.path)
                && stamp == entry.meta.stamp()
            {
                self.ahead.insert(entry.path.clone(), (stamp, bytes));
            }
        }
        Ok(())
    }

    fn store(
        &mut self,
        manifest: Arc<Manifest>,
        cut: &CutRecord,
        _: &dyn Progress,
    ) -> Result<Draft, Failure> {
        self.vault.origin.work();
        let (mut files, mut stamps) = (BTreeMap::new(), BTreeMap::new());
        let mut problems = vec![];
        for entry in manifest.entries.iter().filter(|e| e.kind == Kind::File) {
            let Some(bytes) = self.bytes(&entry) else {
                problems.push(Problem::missing(&entry.path, "cannot be read", ""));
                continue;
            };
            if entry.meta.stamp().is_settled_at(manifest.taken_at) {
                stamps.insert(entry.path.clone(), entry.meta.stamp());
            }
            files.insert(entry.path.clone(), bytes);
        }
        let bytes = Bytes(files.values().map(|b| b.len() as u64).sum());
        let (count, bytes_read) = (files.len() as u64, bytes);
        let mut draft = Draft { token: 0, files: count, bytes, bytes_read, bytes_added: bytes, problems };
        files.insert(cut.path(), serde_json::to_vec(cut).expect("a record is plain text"));
        let mut state = self.vault.lock();
        state.next += 1;
        draft.token = state.next;
        let id = BackupId::new(format!("{:064x}", state.next)).expect("64 digits");
        let (time, received) = (cut.cut_at, self.vault.origin.now());
        let listed = StoredBackup { id, time, received, record: None, damaged: None, accepted: false };
        state.drafts.insert(draft.token, Kept { listed, files, stamps });
        Ok(draft)
    }

    fn publish(&mut self, draft: Draft, record: &BackupRecord) -> Result<BackupId, Failure> {
        self.vault.origin.work();
        let received = self.vault.origin.now();
        let mut state = self.vault.lock();
        let Some(mut kept) = state.drafts.remove(&draft.token) else {
            return Err(Failure::new(FailureKind::Other, "there is no such draft", ""));
        };
        kept.listed.record = Some(record.clone());
        kept.listed.received = received;
        let id = kept.listed.id.clone();
        state.kept.push(kept);
        Ok(id)
    }
}

/// See [`FakeVault::shelf`].
pub struct FakeShelf {
    vault: FakeVault,
}

fn no_such(id: &BackupId) -> Failure {
    Failure::new(FailureKind::Other, format!("there is no backup {}", id.short()), "")
}

impl Shelf for FakeShelf {
    fn backups(&mut self) -> Result<Vec<StoredBackup>, Failure> {
        let mut listed: Vec<StoredBackup> = self.vault.lock().kept.iter().map(|k| k.listed.clone()).collect();
        listed.sort_by_key(|b| b.time);
        Ok(listed)
    }

    fn remove(&mut self, backups: &[BackupId]) -> Result<(), Failure> {
        let mut state = self.vault.lock();
        if let Some(absent) = backups.iter().find(|id| !state.kept.iter().any(|k| k.listed.id == **id)) {
            return Err(no_such(absent));
        }
        let (gone, kept) =
            std::mem::take(&mut state.kept).into_iter().partition(|k| backups.contains(&k.listed.id));
        state.kept = kept;
        let gone: Vec<Kept> = gone;
        state.garbage += gone.iter().flat_map(|k| k.files.values()).map(|b| b.len() as u64).sum::<u64>();
        Ok(())
    }

    fn reclaim(&mut self, _progress: &dyn Progress) -> Result<Bytes, Failure> {
        Ok(Bytes(std::mem::take(&mut self.vault.lock().garbage)))
    }

    fn accept(&mut self, backup: &BackupId) -> Result<BackupId, Failure> {
        let mut state = self.vault.lock();
        state.next += 1;
        let id = BackupId::new(format!("{:064x}", state.next)).expect("64 digits");
        let Some(kept) = state.kept.iter_mut().find(|k| k.listed.id == *backup) else {
            return Err(no_such(backup));
        };
        kept.listed.accepted = true;
        kept.listed.id = id.clone();
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use model::{
        id::BackupId,
        port::{Shelf, Store},
    };

    use super::{FakeVault, Origin};
    use crate::conformance::{shelf, store};

    struct Memory {
        vault: FakeVault,
        scratch: tempfile::TempDir,
    }

    impl Memory {
        fn bench() -> Box<dyn store::Bench> {
            let scratch = tempfile::tempdir().expect("a temporary directory");
            Box::new(Self { vault: FakeVault::new(Origin::Disk), scratch })
        }
    }

    impl store::Bench for Memory {
        fn store(&self) -> Box<dyn Store> {
            Box::new(self.vault.store())
        }
        fn shelf(&self) -> Box<dyn Shelf> {
            Box::new(self.vault.shelf())
        }
        fn scratch(&self) -> PathBuf {
            self.scratch.path().to_owned()
        }
        fn read_back(&self, backup: &BackupId) -> BTreeMap<PathBuf, Vec<u8>> {
            self.vault.read_back(backup).expect("a listed backup")
        }
    }

    #[test]
    fn the_store_conforms() {
        store::suite(Memory::bench);
    }

    #[test]
    fn the_shelf_conforms() {
        shelf::suite(Memory::bench);
    }
}
