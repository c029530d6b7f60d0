//! Reading the cut record that travels inside a backup.
//!
//! Crash story: reads only, without a lock: what a removal takes away meanwhile is reported as unreadable.

use std::ffi::OsStr;

use model::{id::BackupId, record::CutRecord};
use rustic_core::{
    BlobId,
    repofile::{BlobType, Node, SnapshotFile},
};

use super::{
    error::{RepositoryError, while_doing},
    open::{Indexed, Repository},
    snapshot::record,
};

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
        cut_of(&self.indexed()?, &snapshot, backup)
    }

    /// The same of several backups, with what cannot be read as a value.
    ///
    /// # Errors
    /// If the repository's index cannot be read.
    pub fn cut_records(
        &self,
        backups: &[BackupId],
    ) -> Result<Vec<Result<Option<CutRecord>, RepositoryError>>, RepositoryError> {
        let index = self.indexed()?;
        Ok(backups.iter().map(|backup| cut_of(&index, &self.snapshot(backup)?, backup)).collect())
    }
}

fn cut_of(
    index: &Indexed,
    snapshot: &SnapshotFile,
    backup: &BackupId,
) -> Result<Option<CutRecord>, RepositoryError> {
    let Some(ours) = record(snapshot) else { return Ok(None) };
    let damaged = |why: &str| RepositoryError::Damaged {
        what: format!("the record of cut {} in backup {} {why}", ours.cut, backup.short()),
    };
    let file = format!("{}.json", ours.cut);
    let mut tree = snapshot.tree;
    for dir in ["var", "lib", "stillpoint", "cuts"] {
        let node = child(index, tree, dir)?.ok_or_else(|| damaged("is missing"))?;
        tree = node.subtree.ok_or_else(|| damaged("is not where it should be"))?;
    }
    let node = child(index, tree, &file)?.ok_or_else(|| damaged("is missing"))?;
    let mut text = Vec::new();
    for id in node.content.unwrap_or_default() {
        let part = index
            .get_blob_cached(&BlobId::from(*id), BlobType::Data)
            .map_err(while_doing("reading the record of a cut"))?;
        text.extend_from_slice(&part);
    }
    serde_json::from_slice(&text).map(Some).map_err(|_| damaged("cannot be understood"))
}

fn child(index: &Indexed, tree: rustic_core::TreeId, name: &str) -> Result<Option<Node>, RepositoryError> {
    let read = index.get_tree(&tree).map_err(while_doing("reading a stored directory"))?;
    Ok(read.nodes.into_iter().find(|node| node.name() == OsStr::new(name)))
}
