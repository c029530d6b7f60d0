//! The list of backups: the port [`Shelf`].
//!
//! Crash story: whatever deletes holds restic's exclusive lock. Accepting a backup writes the new snapshot
//! before it removes the old one, so at worst it is listed twice. Freeing space writes new packs, then a new
//! index, then removes the old index, then the packs that nothing names: a stop in between leaves bytes that
//! the next time frees.

use std::{fs, time::SystemTime};

use model::{
    id::BackupId,
    port::{Failure, Progress, Shelf, Stage},
    record::StoredBackup,
    size::Bytes,
};
use os::durable;
use rustic_core::{FileType, Id, PruneOptions};

use super::{
    error::{RepositoryError, StorageError, while_doing},
    open::Repository,
    snapshot,
};

impl Shelf for Repository {
    fn backups(&mut self) -> Result<Vec<StoredBackup>, Failure> {
        Ok(self.listed()?)
    }

    fn remove(&mut self, backups: &[BackupId]) -> Result<(), Failure> {
        if backups.is_empty() {
            return Ok(());
        }
        Ok(self.exclusively(|repository| {
            let ids = backups.iter().map(|id| repository.existing(id)).collect::<Result<Vec<_>, _>>()?;
            ids.iter().try_for_each(|id| Ok(repository.backend.delete(FileType::Snapshot, id)?))
        })?)
    }

    fn reclaim(&mut self, progress: &dyn Progress) -> Result<Bytes, Failure> {
        Ok(self.exclusively(|repository| repository.prune(progress))?)
    }

    fn accept(&mut self, backup: &BackupId) -> Result<BackupId, Failure> {
        Ok(self.exclusively(|repository| {
            let old = repository.existing(backup)?;
            let mut snapshot = repository.snapshot(backup)?;
            snapshot::accept(&mut snapshot);
            let received = repository.received(&old)?;
            let new = repository.list(snapshot)?;
            if new == old {
                return snapshot::backup_id(&old);
            }
            repository.keep_time(&new, received)?;
            repository.backend.delete(FileType::Snapshot, &old)?;
            snapshot::backup_id(&new)
        })?)
    }
}

impl Repository {
    /// All backups, oldest first.
    pub(crate) fn listed(&self) -> Result<Vec<StoredBackup>, RepositoryError> {
        let listed = self.snapshots()?;
        let backups = listed.iter().filter(|listed| !listed.snapshot.as_ref().is_ok_and(snapshot::is_log));
        let mut backups = backups.map(snapshot::Listed::backup).collect::<Result<Vec<_>, _>>()?;
        backups.sort_by(|a, b| a.time.cmp(&b.time).then(a.id.cmp(&b.id)));
        Ok(backups)
    }

    /// Does something under an exclusive lock.
    fn exclusively<T>(
        &mut self,
        task: impl FnOnce(&mut Self) -> Result<T, RepositoryError>,
    ) -> Result<T, RepositoryError> {
        let lock = self.lock_exclusively()?;
        self.backend.forget();
        let result = task(self);
        if result.is_err() {
            // Threads of rustic_core may still be at work: nothing of theirs may land after the lock is gone.
            self.backend.stop();
        }
        let released = lock.release();
        let value = result?;
        released?;
        Ok(value)
    }

    fn prune(&self, progress: &dyn Progress) -> Result<Bytes, RepositoryError> {
        let before = self.stored_bytes()?;
        let mut options = PruneOptions::default();
        options.instant_delete = true;
        // A pack of unusual size is no reason to write its content again.
        options.no_resize = true;
        let opened = self.opened()?;
        self.meter
            .watch(progress, Stage::Reclaiming, None, || {
                let plan = opened.prune_plan(&options)?;
                opened.prune(&options, plan)
            })
            .map_err(while_doing("freeing space"))?;
        if let Some(error) = self.backend.failed() {
            return Err(error.into());
        }
        self.sweep()?;
        Ok(Bytes(before.saturating_sub(self.stored_bytes()?)))
    }

    /// Removes what interrupted writers left under temporary names; nobody else writes now.
    fn sweep(&self) -> Result<(), StorageError> {
        let dir = self.dir();
        let fan_out = (0..=255_u8).map(|n| dir.join("data").join(hex::encode([n])));
        let top = ["index", "keys", "locks", "snapshots"].into_iter().map(|name| dir.join(name));
        for dir in top.chain(fan_out).filter(|dir| dir.is_dir()) {
            durable::remove_leftovers(&dir).map_err(|source| StorageError::remove(&dir, source))?;
        }
        Ok(())
    }

    fn stored_bytes(&self) -> Result<u64, StorageError> {
        let types = [FileType::Pack, FileType::Index];
        let sizes = types.map(|tpe| Ok(self.backend.files(tpe)?.iter().map(|(_, size)| size).sum::<u64>()));
        sizes.into_iter().sum()
    }

    fn received(&self, id: &Id) -> Result<SystemTime, StorageError> {
        let path = self.backend.path(FileType::Snapshot, id);
        fs::metadata(&path).and_then(|meta| meta.modified()).map_err(|e| StorageError::read(path, e))
    }

    /// Gives a rewritten snapshot the time at which the repository received the first.
    fn keep_time(&self, id: &Id, received: SystemTime) -> Result<(), StorageError> {
        let path = self.backend.path(FileType::Snapshot, id);
        let set = fs::File::options().write(true).open(&path).and_then(|file| {
            file.set_modified(received)?;
            file.sync_all()
        });
        set.map_err(|source| StorageError::write(path, source))
    }
}
