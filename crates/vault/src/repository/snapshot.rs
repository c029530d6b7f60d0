//! Backups as restic snapshots: which fields carry what is in `docs/format/repository.md`.
//!
//! Crash story: pure translation; one function reads.

use std::fs;

use jiff::{Timestamp, tz::TimeZone};
use model::{
    id::BackupId,
    pathtext,
    record::{BackupRecord, CutRecord, StoredBackup},
};
use rustic_core::{
    FileType, Id, TreeId,
    repofile::{SnapshotFile, SnapshotId},
};

use super::{
    error::{RepositoryError, StorageError, while_doing},
    lock::Me,
    open::Repository,
};

/// The tag of every snapshot of ours.
pub(crate) const OURS: &str = "stillpoint";

/// The tag of a backup that a person accepted (promise 6).
const ACCEPTED: &str = "accepted";

/// The tag of a snapshot of the log archive, which is no backup.
pub(crate) const LOG: &str = "log";

/// One snapshot file.
pub(crate) struct Listed {
    pub(crate) id: Id,
    pub(crate) received: Timestamp,
    /// The snapshot, or why it cannot be read.
    pub(crate) snapshot: Result<SnapshotFile, RepositoryError>,
}

impl Listed {
    /// The backup as the port lists it. One that cannot be read is listed as damaged, at the time it was
    /// received.
    pub(crate) fn backup(&self) -> Result<StoredBackup, RepositoryError> {
        let id = backup_id(&self.id)?;
        Ok(match &self.snapshot {
            Ok(snapshot) => StoredBackup {
                id,
                time: snapshot.time.timestamp(),
                received: self.received,
                record: record(snapshot),
                damaged: None,
                accepted: snapshot.tags.contains(ACCEPTED),
            },
            Err(error) => StoredBackup {
                id,
                time: self.received,
                received: self.received,
                record: None,
                damaged: Some(told(error)),
                accepted: false,
            },
        })
    }
}

impl Repository {
    /// All published snapshots, in no order.
    pub(crate) fn snapshots(&self) -> Result<Vec<Listed>, RepositoryError> {
        let opened = self.opened()?;
        let mut listed = Vec::new();
        for (id, _) in self.backend.files(FileType::Snapshot)? {
            let path = self.backend.path(FileType::Snapshot, &id);
            let received = match fs::metadata(&path).and_then(|meta| meta.modified()) {
                Ok(time) => Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StorageError::read(path, error).into()),
            };
            let snapshot = opened.get_file(&SnapshotId::from(id)).map_err(while_doing("reading a snapshot"));
            listed.push(Listed { id, received, snapshot });
        }
        Ok(listed)
    }

    /// One published snapshot.
    pub(crate) fn snapshot(&self, backup: &BackupId) -> Result<SnapshotFile, RepositoryError> {
        let id = self.existing(backup)?;
        self.opened()?.get_file(&SnapshotId::from(id)).map_err(while_doing("reading a snapshot"))
    }

    /// The snapshot's id, if there is a file for it.
    pub(crate) fn existing(&self, backup: &BackupId) -> Result<Id, RepositoryError> {
        let id: Id = backup.as_str().parse().map_err(while_doing("reading a backup's id"))?;
        if self.backend.path(FileType::Snapshot, &id).exists() {
            Ok(id)
        } else {
            Err(RepositoryError::NoSuchBackup { dir: self.dir().into(), id: backup.clone() })
        }
    }
}

/// An error with its cause.
pub(super) fn told(error: &RepositoryError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Whether it holds a log archive of ours.
pub(crate) fn is_log(snapshot: &SnapshotFile) -> bool {
    snapshot.tags.contains(OURS) && snapshot.tags.contains(LOG)
}

/// A snapshot's id as the rest of the program knows it.
pub(crate) fn backup_id(id: &Id) -> Result<BackupId, RepositoryError> {
    BackupId::new(id.to_hex().to_string())
        .map_err(|error| RepositoryError::Damaged { what: error.to_string() })
}

/// The record in a snapshot of ours; nothing in one that another program made.
pub(crate) fn record(snapshot: &SnapshotFile) -> Option<BackupRecord> {
    if !snapshot.tags.contains(OURS) {
        return None;
    }
    serde_json::from_str(snapshot.description.as_deref()?).ok()
}

/// The snapshot that lists a backup.
pub(crate) fn listed(
    tree: TreeId,
    parent: Option<SnapshotId>,
    cut: &CutRecord,
    record: &BackupRecord,
    me: &Me,
) -> Result<SnapshotFile, RepositoryError> {
    let description = serde_json::to_string(record).map_err(|error| RepositoryError::Damaged {
        what: format!("the record cannot be written: {error}"),
    })?;
    let mut snapshot = unlisted(cut, me);
    snapshot.tree = tree;
    snapshot.parent = parent;
    snapshot.parents = parent.into_iter().collect();
    snapshot.description = Some(description);
    let tags = [
        OURS.to_owned(),
        format!("app={}", record.application),
        format!("cut={}", record.cut),
        format!("verdict={}", record.verdict),
    ];
    tags.into_iter().for_each(|tag| snapshot.tags.add(tag));
    Ok(snapshot)
}

/// A snapshot without its record.
fn unlisted(cut: &CutRecord, me: &Me) -> SnapshotFile {
    let mut snapshot = SnapshotFile {
        time: cut.cut_at.to_zoned(TimeZone::UTC),
        program_version: concat!("stillpoint ", env!("CARGO_PKG_VERSION")).into(),
        hostname: cut.server.as_str().into(),
        username: me.username.clone(),
        ..SnapshotFile::default()
    };
    roots(cut).into_iter().for_each(|root| snapshot.paths.add(root));
    snapshot
}

/// The pinned roots, as restic shows them; where nothing was pinned, `/`.
pub(crate) fn roots(cut: &CutRecord) -> Vec<String> {
    let pinned: Vec<String> = cut.pins.iter().map(|pin| pathtext::show(&pin.path)).collect();
    if pinned.is_empty() { vec!["/".into()] } else { pinned }
}

/// Marks a snapshot as accepted.
pub(crate) fn accept(snapshot: &mut SnapshotFile) {
    snapshot.tags.add(ACCEPTED.into());
}
