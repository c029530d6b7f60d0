//! Loads the index of a repository, and finds the packs that a killed run left.
//!
//! Packs are listed first, then locks are looked at, then index files are read. A pack of the list that no
//! index names was written by a process that held a shared lock; if nobody but us holds one after the listing,
//! that process is gone, and the pack is an orphan. If another is at work, no pack is taken for an orphan: its
//! index is still to come.
//!
//! Crash story: reads only.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustic_core::{FileType, Id};

use super::{
    cores,
    index::{Index, Standing},
    indexer::IndexContent,
    name::Name,
    pack,
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
    alone: impl FnOnce() -> Result<bool, RepositoryError>,
) -> Result<Index, RepositoryError> {
    let index = Index::default();
    index.note_packs(&packs(backend)?);
    let alone = alone()?;
    let files = backend.files(FileType::Index)?;
    each(&files, |(id, _)| {
        let content = read_index(backend, key, id)?;
        for record in &content.packs {
            index.add_pack(record.id, Standing::Indexed, &record.blobs());
        }
        // Marked for deletion by rustic: not to be built on, and no orphan either.
        content.packs_to_delete.iter().for_each(|pack| index.add_pack(pack.id, Standing::Indexed, &[]));
        Ok(())
    })?;
    if alone {
        each(&index.orphans(), |(name, size)| {
            match pack::read_header(backend, key, name, *size) {
                Ok(blobs) => index.add_pack(*name, Standing::Orphan, &blobs),
                // Of no use to us; `check` names it and `prune` frees it.
                Err(error) => tracing::warn!("a pack that no index names is of no use: {error}"),
            }
            Ok(())
        })?;
    }
    Ok(index)
}

/// The packs that are there, with their sizes in bytes.
///
/// # Errors
/// If they cannot be listed.
pub(crate) fn packs(backend: &Backend) -> Result<Vec<(Name, u64)>, StorageError> {
    Ok(backend.files(FileType::Pack)?.iter().map(|(id, size)| (Name::from_id(id), *size)).collect())
}

fn read_index(backend: &Backend, key: &SecretKey, id: &Id) -> Result<IndexContent, StorageError> {
    let path = || backend.path(FileType::Index, id);
    let sealed = backend.read(FileType::Index, id)?;
    let damaged = |what: String| StorageError::Damaged { path: path(), what };
    let plain = key.decrypt_file(&sealed).map_err(|error| damaged(error.to_string()))?;
    serde_json::from_slice(&plain).map_err(|error| damaged(error.to_string()))
}

/// Does something with each of these, on all cores; ends early at the first error.
fn each<T: Sync>(
    items: &[T],
    task: impl Fn(&T) -> Result<(), StorageError> + Sync,
) -> Result<(), StorageError> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = task(item) {
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
