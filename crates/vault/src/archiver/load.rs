//! Loads the index of a repository, and finds the packs that a killed run left.
//!
//! Packs are listed first, then locks are looked at, then index files are read. A pack of the list that no
//! index names was written by a process that held a shared lock; if nobody but us holds one after the listing,
//! that process is gone, and the pack is an orphan. If another is at work, no pack is taken for an orphan: its
//! index is still to come.
//!
//! What a cache has of them ([`super::cache`]) is taken from there, and of their files only the names are proven.
//!
//! Crash story: reads only.

use std::{
    collections::HashSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustic_core::{FileType, Id};

use super::{
    cache::IndexCache,
    cores,
    index::{Index, Standing},
    name::Name,
    pack,
    records::IndexRecords,
};
use crate::repository::{
    backend::Backend,
    crypt::SecretKey,
    error::{RepositoryError, StorageError},
};

/// Loads the index as it is now. `alone` says, when it is asked, whether nobody else holds a lock.
///
/// # Errors
/// If an index file cannot be read; with part of the index missing, everything would be stored again.
pub(crate) fn load(
    backend: &Backend,
    key: &SecretKey,
    cache: Option<&IndexCache>,
    alone: impl FnOnce() -> Result<bool, RepositoryError>,
) -> Result<Index, RepositoryError> {
    let packs = packs(backend)?;
    let alone = alone()?;
    let files = backend.files(FileType::Index)?;
    let (index, known) = begun(key, cache, &packs, &files);
    let expected = Expected(files.iter().map(|(_, size)| size).sum());
    each(&files, Scratch::default, |scratch, (id, size)| {
        let name = Name::from_id(id);
        if known.contains(&name) {
            return backend.read_into(FileType::Index, id, &mut scratch.sealed);
        }
        scratch.read(backend, key, id)?;
        index.add_records(name, &scratch.records, expected.blobs(scratch.records.len(), *size));
        Ok(())
    })?;
    if alone {
        each(
            &index.orphans(),
            || (),
            |(), (name, size)| {
                match pack::read_header(backend, key, name, *size) {
                    Ok(blobs) => index.add_pack(*name, Standing::Orphan, &blobs),
                    // Of no use to us; `check` names it and `prune` frees it.
                    Err(error) => tracing::warn!("a pack that no index names is of no use: {error}"),
                }
                Ok(())
            },
        )?;
    }
    Ok(index)
}

/// An index with what a cache has of these index files, and which of them that are.
fn begun(
    key: &SecretKey,
    cache: Option<&IndexCache>,
    packs: &[(Name, u64)],
    files: &[(Id, u64)],
) -> (Index, HashSet<Name>) {
    let new = || {
        let index = Index::default();
        index.note_packs(packs);
        index
    };
    if let Some(cache) = cache {
        let index = new();
        match cache.fill(key, files, &index) {
            Ok(known) => return (index, known),
            Err(why) => tracing::debug!("the whole index is read, for its cache is of no use: {why}"),
        }
    }
    (new(), HashSet::new())
}

/// The packs that are there, with their sizes in bytes.
///
/// # Errors
/// If they cannot be listed.
pub(crate) fn packs(backend: &Backend) -> Result<Vec<(Name, u64)>, StorageError> {
    Ok(backend.files(FileType::Pack)?.iter().map(|(id, size)| (Name::from_id(id), *size)).collect())
}

/// The size of all index files in bytes.
struct Expected(u64);

impl Expected {
    /// How many blobs all of them name, if one of this size names so many; not more than a name each would fit into them.
    fn blobs(&self, named: usize, size: u64) -> usize {
        let as_many = u128::from(self.0) * named as u128 / u128::from(size.max(1));
        as_many.min(u128::from(self.0) / size_of::<Name>() as u128) as usize
    }
}

/// What a thread reads index files into, one after the other.
#[derive(Default)]
struct Scratch {
    sealed: Vec<u8>,
    unpacked: Vec<u8>,
    records: IndexRecords,
}

impl Scratch {
    fn read(&mut self, backend: &Backend, key: &SecretKey, id: &Id) -> Result<(), StorageError> {
        let damaged = |what: String| StorageError::Damaged { path: backend.path(FileType::Index, id), what };
        backend.read_into(FileType::Index, id, &mut self.sealed)?;
        let plain = key.open_file(&mut self.sealed, &mut self.unpacked);
        let plain = plain.map_err(|error| damaged(error.to_string()))?;
        self.records.read(plain).map_err(|error| damaged(error.to_string()))
    }
}

/// Does something with each of these, on all cores, each of which has its own scratch; ends early at the first error.
fn each<T: Sync, S>(
    items: &[T],
    scratch: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, &T) -> Result<(), StorageError> + Sync,
) -> Result<(), StorageError> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        let mut scratch = scratch();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = task(&mut scratch, item) {
                next.store(items.len(), Ordering::Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        (1..cores().min(items.len())).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
