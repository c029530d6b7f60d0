//! The storage under rustic_core: a directory in restic's layout.
//!
//! Two things that rustic_core's own local backend does not do: every file is durable before a write
//! returns (its directory entry too), and every error is told and the first failed write stops all later ones.
//!
//! Crash story: packs come before the index that names them, the index before the snapshot, each durable
//! before the next is begun; so whatever is left when we stop is at most bytes that no index names. Others may
//! write at the same time (shared locks): names are hashes of contents, so two writers never differ about a
//! file.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use os::durable;
use rustic_core::{ALL_FILE_TYPES, BytesList, FileType, Id, ReadBackend, RusticResult, WriteBackend};
use sha2::{Digest, Sha256};

use super::{
    disk::{self, Disk},
    error::{StorageError, into_rustic},
};

/// A repository's directory.
pub(crate) struct Backend {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
    /// Whoever is held back looks again.
    changed: Condvar,
    written: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The first write that failed; nothing is written after it.
    failed: Option<StorageError>,
    /// Whoever writes or removes waits.
    is_held: bool,
    /// The snapshot written last.
    last_snapshot: Option<Id>,
}

impl Backend {
    pub(crate) fn new(dir: &Path, disk: Arc<dyn Disk>) -> Self {
        let (state, changed, written) = Default::default();
        Self { dir: dir.into(), disk, state, changed, written }
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The effects on it.
    pub(crate) fn disk(&self) -> &dyn Disk {
        self.disk.as_ref()
    }

    /// Forgets a failed write: a new session begins.
    pub(crate) fn forget(&self) {
        *self.state() = State::default();
        self.changed.notify_all();
    }

    /// From now on whoever writes or removes waits until [`Self::let_go`] or [`Self::stop`].
    pub(crate) fn hold(&self) {
        self.state().is_held = true;
    }

    /// Whoever waits goes on.
    pub(crate) fn let_go(&self) {
        self.state().is_held = false;
        self.changed.notify_all();
    }

    /// Waits as long as whoever writes has to; whether he may.
    pub(crate) fn goes_on(&self) -> bool {
        self.writable().is_ok()
    }

    /// The id of the snapshot written last.
    pub(crate) fn last_snapshot(&self) -> Option<Id> {
        self.state().last_snapshot
    }

    /// The first write that failed.
    pub(crate) fn failed(&self) -> Option<StorageError> {
        self.state().failed.clone()
    }

    /// Lets no write through any more: threads of rustic_core may still be at work after it gave up.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        if state.failed.is_none() {
            state.failed = Some(StorageError::Stopped { dir: self.dir.clone() });
        }
        self.changed.notify_all();
    }

    /// Bytes written to disk so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Where a file is stored.
    pub(crate) fn path(&self, tpe: FileType, id: &Id) -> PathBuf {
        let name = id.to_hex();
        match tpe {
            FileType::Config => self.dir.join("config"),
            FileType::Pack => self.dir.join("data").join(&name[..2]).join(&*name),
            other => self.dir.join(other.dirname()).join(&*name),
        }
    }

    /// Makes the directories of an empty repository.
    pub(crate) fn make_dirs(&self) -> Result<(), StorageError> {
        let fan_out = (0..=255_u8).map(|n| self.dir.join("data").join(hex::encode([n])));
        let top = ALL_FILE_TYPES.into_iter().map(|tpe| self.dir.join(tpe.dirname()));
        for dir in top.chain([self.dir.join("locks")]).chain(fan_out) {
            durable::create_dirs(&dir, disk::DIR_MODE).map_err(|source| StorageError::write(&dir, source))?;
        }
        Ok(())
    }

    /// All files of a type with their sizes. Names that are no ids (temporary files) are left out.
    pub(crate) fn files(&self, tpe: FileType) -> Result<Vec<(Id, u64)>, StorageError> {
        let mut found = Vec::new();
        match tpe {
            FileType::Config => {
                let path = self.dir.join("config");
                match fs::metadata(&path) {
                    Ok(meta) => found.push((Id::default(), meta.len())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(StorageError::read(path, error)),
                }
            }
            FileType::Pack => {
                let data = self.dir.join("data");
                for entry in read_dir(&data)? {
                    let entry = entry.map_err(|e| StorageError::read(&data, e))?;
                    if entry.file_type().map_err(|e| StorageError::read(entry.path(), e))?.is_dir() {
                        list_into(&entry.path(), &mut found)?;
                    }
                }
            }
            other => list_into(&self.dir.join(other.dirname()), &mut found)?,
        }
        Ok(found)
    }

    /// Reads a whole file; one whose name is its hash is compared with it, except packs, which are compared
    /// by whoever reads them whole.
    pub(crate) fn read(&self, tpe: FileType, id: &Id) -> Result<Bytes, StorageError> {
        let mut bytes = Vec::new();
        self.read_into(tpe, id, &mut bytes)?;
        Ok(bytes.into())
    }

    /// The same, in the place of what was there.
    pub(crate) fn read_into(&self, tpe: FileType, id: &Id, bytes: &mut Vec<u8>) -> Result<(), StorageError> {
        let path = self.path(tpe, id);
        bytes.clear();
        File::open(&path)
            .and_then(|mut file| file.read_to_end(bytes))
            .map_err(|source| StorageError::read(&path, source))?;
        let named_by_hash = matches!(tpe, FileType::Index | FileType::Snapshot | FileType::Key);
        if named_by_hash && hex::encode(Sha256::digest(&*bytes)) != *id.to_hex() {
            let what = format!("its {} bytes do not have the hash that is its name", bytes.len());
            return Err(StorageError::Damaged { path, what });
        }
        Ok(())
    }

    /// Reads a part of a file.
    pub(crate) fn read_part(
        &self,
        tpe: FileType,
        id: &Id,
        at: u32,
        length: u32,
    ) -> Result<Bytes, StorageError> {
        let path = self.path(tpe, id);
        let mut bytes = vec![0; length as usize];
        let file = File::open(&path).map_err(|source| StorageError::read(&path, source))?;
        match file.read_exact_at(&mut bytes, u64::from(at)) {
            Ok(()) => Ok(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(StorageError::Damaged {
                path,
                what: format!("it ends before byte {}", u64::from(at) + u64::from(length)),
            }),
            Err(error) => Err(StorageError::read(path, error)),
        }
    }

    /// Writes a whole file, durable when this returns.
    pub(crate) fn put(&self, tpe: FileType, id: &Id, content: &[u8]) -> Result<(), StorageError> {
        {
            let mut state = self.writable()?;
            if tpe == FileType::Snapshot {
                state.last_snapshot = Some(*id);
            }
        }
        let path = self.path(tpe, id);
        if let Err(source) = self.disk.put(&path, content) {
            let error = StorageError::write(path, source);
            self.state().failed.get_or_insert_with(|| error.clone());
            return Err(error);
        }
        self.written.fetch_add(content.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Removes a file; one that is gone already is no error.
    pub(crate) fn delete(&self, tpe: FileType, id: &Id) -> Result<(), StorageError> {
        drop(self.writable()?);
        let path = self.path(tpe, id);
        match self.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let error = StorageError::remove(path, error);
                self.state().failed.get_or_insert_with(|| error.clone());
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Once nobody is held back and nothing has failed.
    fn writable(&self) -> Result<MutexGuard<'_, State>, StorageError> {
        let is_waiting = |state: &mut State| state.is_held && state.failed.is_none();
        let state = self.changed.wait_while(self.state(), is_waiting).unwrap_or_else(PoisonError::into_inner);
        match state.failed {
            None => Ok(state),
            Some(_) => Err(StorageError::Stopped { dir: self.dir.clone() }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_dir(dir: &Path) -> Result<fs::ReadDir, StorageError> {
    fs::read_dir(dir).map_err(|source| StorageError::read(dir, source))
}

fn list_into(dir: &Path, found: &mut Vec<(Id, u64)>) -> Result<(), StorageError> {
    for entry in read_dir(dir)? {
        let entry = entry.map_err(|source| StorageError::read(dir, source))?;
        let Some(id) = entry.file_name().to_str().filter(|n| n.len() == 64).and_then(|n| n.parse().ok())
        else {
            continue;
        };
        match entry.metadata() {
            Ok(meta) if meta.is_file() => found.push((id, meta.len())),
            // Gone since it was listed: another process removed it under its lock.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => {}
            Err(error) => return Err(StorageError::read(entry.path(), error)),
        }
    }
    Ok(())
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        self.dir.to_string_lossy().into_owned()
    }

    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let listed = self
            .files(tpe)
            .map_err(into_rustic)?
            .into_iter()
            // A pack is never larger than 4 GiB; one that is has a wrong size in any case.
            .map(|(id, size)| (id, u32::try_from(size).unwrap_or(u32::MAX)))
            .collect();
        Ok(listed)
    }

    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<Bytes> {
        self.read(tpe, id).map_err(into_rustic)
    }

    fn read_partial(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        self.read_part(tpe, id, offset, length).map_err(into_rustic)
    }

    fn warmup_path(&self, tpe: FileType, id: &Id) -> String {
        self.path(tpe, id).to_string_lossy().into_owned()
    }
}

impl WriteBackend for Backend {
    fn create(&self) -> RusticResult<()> {
        self.make_dirs().map_err(into_rustic)
    }

    fn write_bytes(&self, tpe: FileType, id: &Id, _cacheable: bool, content: BytesList) -> RusticResult<()> {
        self.put(tpe, id, &content.slice().concat()).map_err(into_rustic)
    }

    fn remove(&self, tpe: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        self.delete(tpe, id).map_err(into_rustic)
    }
}
