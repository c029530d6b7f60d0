//! Reading the cut record that travels inside a backup.
//!
//! Crash story: reads only, without a lock: what a removal takes away meanwhile is reported as unreadable.

use model::{id::BackupId, record::CutRecord};
use rustic_core::repofile::SnapshotFile;

use super::{
    blobs::{Blobs, Unread},
    error::RepositoryError,
    open::Repository,
    snapshot::record,
    tree::{self, Child},
};
use crate::archiver::{Name, Place};

impl Repository {
    /// The record of the cut that a backup holds; nothing for a snapshot that another program made.
    ///
    /// # Errors
    /// If there is no such backup, or it or its record cannot be read.
    pub fn cut_record(&self, backup: &BackupId) -> Result<Option<CutRecord>, RepositoryError> {
        let snapshot = self.snapshot(backup)?;
        if record(&snapshot).is_none() {
            return Ok(None);
        }
        cut_of(&self.blobs()?, &snapshot, backup)
    }

    /// The same of several backups, with what cannot be read as a value.
    ///
    /// # Errors
    /// If the repository's index cannot be read.
    pub fn cut_records(
        &self,
        backups: &[BackupId],
    ) -> Result<Vec<Result<Option<CutRecord>, RepositoryError>>, RepositoryError> {
        let parts = self.blobs()?;
        Ok(backups.iter().map(|backup| cut_of(&parts, &self.snapshot(backup)?, backup)).collect())
    }
}

fn cut_of(
    parts: &Blobs,
    snapshot: &SnapshotFile,
    backup: &BackupId,
) -> Result<Option<CutRecord>, RepositoryError> {
    let Some(ours) = record(snapshot) else { return Ok(None) };
    let damaged = |why: &str| RepositoryError::Damaged {
        what: format!("the record of cut {} in backup {} {why}", ours.cut, backup.short()),
    };
    let file = format!("{}.json", ours.cut);
    let mut tree = Name::from_id(&snapshot.tree);
    for dir in ["var", "lib", "stillpoint", "cuts"] {
        let found = child(parts, &tree, dir)?.ok_or_else(|| damaged("is missing"))?;
        tree = found.subtree.ok_or_else(|| damaged("is not where it should be"))?;
    }
    let found = child(parts, &tree, &file)?.ok_or_else(|| damaged("is missing"))?;
    let places: Option<Vec<Place>> = found.content.iter().map(|name| parts.locate(name)).collect();
    let places = places.ok_or_else(|| damaged("is in no index"))?;
    let mut text = Vec::new();
    let read = parts.each(&places, &mut |bytes| {
        text.extend_from_slice(bytes);
        Ok(())
    });
    match read {
        Ok(()) => serde_json::from_slice(&text).map(Some).map_err(|_| damaged("cannot be understood")),
        Err(Unread::Damaged(error)) => Err(error),
        Err(Unread::Refused(failure)) => Err(damaged(&failure.what)),
    }
}

fn child(parts: &Blobs, tree: &Name, name: &str) -> Result<Option<Child>, RepositoryError> {
    let children = tree::parse(&parts.tree(tree)?).map_err(|error| RepositoryError::Damaged {
        what: format!("the stored directory {} cannot be understood: {error}", tree.short()),
    })?;
    Ok(children.into_iter().find(|child| child.name == name))
}
