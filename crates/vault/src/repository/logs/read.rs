//! Reading the log archive back from the repository.
//!
//! Crash story: reads under restic's shared lock, so that nobody deletes meanwhile; a repository that cannot be written to is
//! read without. Fetched segments are complete under their names when [`Repository::fetch_logs`] returns.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use model::{
    id::{BackupId, EpochId, SourceId},
    logs::{Epoch, EpochRecord, SegmentRecord},
    logs_store::{LOGS_ROOT, LogsRecord},
    pathtext,
    port_shelf::Unproven,
};
use rustic_core::{
    BlobId, TreeId,
    repofile::{BlobType, Node},
};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::{
    super::{
        crypt::name_of,
        error::{RepositoryError, StorageError, while_doing},
        lock::{Lock, LockKind},
        node,
        open::{Indexed, Repository},
        snapshot,
    },
    wanted::{epoch_path, segment_path},
};
use crate::logs::{Catalogue, SourceFile, SourceLog, in_order};

/// The log archive as the repository holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredLogs {
    /// The snapshot.
    pub snapshot: BackupId,
    /// What it says of itself.
    pub record: LogsRecord,
    /// What it holds. `dir` of its sources are paths inside of the snapshot.
    pub catalogue: Catalogue,
}

/// A segment that could not be read back whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its number.
    pub number: u64,
    /// What was found.
    pub what: String,
}

/// The newest snapshot, open for reading.
pub(in super::super) struct Shelf {
    index: Indexed,
    files: BTreeMap<PathBuf, Node>,
    snapshot: BackupId,
    record: LogsRecord,
    /// Directories that cannot be read.
    lost: Vec<(PathBuf, String)>,
    _lock: Option<Lock>,
}

impl Repository {
    /// What the newest snapshot of the log archive says of itself: cheap, reads no directory of it.
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub fn log_record(&self) -> Result<Option<(BackupId, LogsRecord)>, RepositoryError> {
        let newest = self.log_snapshots()?.into_iter().next();
        newest.map(|newest| Ok((snapshot::backup_id(&newest.id)?, newest.record))).transpose()
    }

    /// The log archive as the repository holds it: all epochs and segments with their sidecars; nothing if none is stored.
    ///
    /// # Errors
    /// If the repository cannot be read. Damage is in the catalogue.
    pub fn log_catalogue(&mut self) -> Result<Option<StoredLogs>, RepositoryError> {
        Ok(self.log_shelf()?.map(|shelf| StoredLogs {
            catalogue: shelf.catalogue(),
            snapshot: shelf.snapshot,
            record: shelf.record,
        }))
    }

    /// Writes segments of an epoch, as `{number}.seg`, into a directory that exists, and `base.db` if it has one and
    /// `with_base`. Each is compared with its sidecar; what is not whole is in the result and not in the directory.
    ///
    /// # Errors
    /// If no archive is stored, or the directory cannot be written.
    pub fn fetch_logs(
        &mut self,
        source: &SourceId,
        epoch: &EpochId,
        numbers: &[u64],
        with_base: bool,
        into: &Path,
    ) -> Result<Vec<Unreadable>, RepositoryError> {
        let shelf = self.log_shelf()?.ok_or_else(|| self.no_logs())?;
        let mut wrong = Vec::new();
        for &number in numbers {
            match shelf.segment(source, epoch, number) {
                Ok(bytes) => write(&into.join(format!("{number:08}.seg")), &bytes)?,
                Err(what) => wrong.push(Unreadable { number, what }),
            }
        }
        let base = epoch_path(source, epoch).join("base.db");
        if with_base && let Some(node) = shelf.files.get(&base) {
            shelf.stream(node, &into.join("base.db"))?;
        }
        Ok(wrong)
    }

    /// Which of these segments cannot be read back from the newest snapshot with the SHA-256 that the spool knows: all
    /// others are proven to be there.
    ///
    /// # Errors
    /// If no archive is stored, or the repository cannot be read.
    pub fn unproven_logs(
        &mut self,
        source: &SourceId,
        segments: &[SegmentRecord],
    ) -> Result<(BackupId, Vec<Unproven>), RepositoryError> {
        let shelf = self.log_shelf()?.ok_or_else(|| self.no_logs())?;
        let unproven = |segment: &SegmentRecord| {
            let what = match shelf.segment(source, &segment.epoch, segment.number) {
                Ok(bytes) if hex::encode(Sha256::digest(&bytes)) == segment.sha256 => return None,
                Ok(_) => "it is another one in the repository".to_owned(),
                Err(what) => what,
            };
            Some(Unproven { epoch: segment.epoch.clone(), number: segment.number, what })
        };
        Ok((shelf.snapshot.clone(), segments.iter().filter_map(unproven).collect()))
    }

    /// Opens the newest snapshot under a shared lock, or without one if none can be written.
    fn log_shelf(&self) -> Result<Option<Shelf>, RepositoryError> {
        let lock = match self.locks.take(LockKind::Shared) {
            Ok(lock) => Some(lock),
            Err(RepositoryError::Storage(_)) => None,
            Err(error) => return Err(error),
        };
        self.log_shelf_under(lock)
    }

    /// The same, if a lock is held already.
    pub(in super::super) fn log_shelf_under(
        &self,
        lock: Option<Lock>,
    ) -> Result<Option<Shelf>, RepositoryError> {
        let Some(newest) = self.log_snapshots()?.into_iter().next() else { return Ok(None) };
        let index = self.indexed()?;
        let (files, lost) = walk(&index, newest.snapshot.tree);
        let snapshot = snapshot::backup_id(&newest.id)?;
        Ok(Some(Shelf { index, files, snapshot, record: newest.record, lost, _lock: lock }))
    }
}

impl Repository {
    /// Why it cannot be said that no log archive is stored, although none is found: a snapshot that cannot be read may be its.
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub fn log_doubt(&self) -> Result<Option<RepositoryError>, RepositoryError> {
        let is_doubtful =
            self.log_snapshots()?.is_empty() && self.snapshots()?.iter().any(|it| it.snapshot.is_err());
        Ok(is_doubtful.then(|| self.no_logs()))
    }

    /// That nothing is stored, or nothing that can be read.
    fn no_logs(&self) -> RepositoryError {
        let unreadable = self.snapshots().ok().and_then(|listed| {
            let error = listed.into_iter().find_map(|listed| listed.snapshot.err())?;
            Some(format!(", but a snapshot cannot be read, which may be its: {}", snapshot::told(&error)))
        });
        let remedy = match &unreadable {
            Some(_) => "bring that file back from another tier; a log archive that still runs is stored anew",
            None => "`stillpoint log` stores it every minute",
        };
        RepositoryError::Refused {
            what: format!(
                "no log archive is stored in {}{}",
                pathtext::show(self.dir()),
                unreadable.unwrap_or_default()
            ),
            remedy: remedy.into(),
        }
    }
}

impl Shelf {
    /// Where a closed segment stands in the snapshot.
    pub(in super::super) fn path(source: &SourceId, epoch: &EpochId, number: u64) -> PathBuf {
        segment_path(source, epoch, number, "seg")
    }

    /// All of it as a catalogue.
    pub(in super::super) fn catalogue(&self) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for (path, node) in self.files.iter().filter(|(path, _)| path.ends_with("source.json")) {
            let Some(dir) = path.parent() else { continue };
            match self.json::<SourceFile>(node) {
                Ok(file) => catalogue.sources.push(self.source(dir, file)),
                Err(what) => catalogue.strange.push((pathtext::show(dir), what)),
            }
        }
        catalogue.sources.sort_by(|a, b| a.source.cmp(&b.source));
        catalogue
    }

    fn source(&self, dir: &Path, file: SourceFile) -> SourceLog {
        let mut damaged: Vec<(PathBuf, String)> =
            self.lost.iter().filter(|(path, _)| path.starts_with(dir)).cloned().collect();
        let mut records: Vec<EpochRecord> = Vec::new();
        let here = self.files.range(dir.to_owned()..).take_while(|(path, _)| path.starts_with(dir));
        for (path, node) in here.filter(|(path, _)| path.ends_with("epoch.json")) {
            match self.json(node) {
                Ok(record) => records.push(record),
                Err(what) => damaged.push((path.clone(), what)),
            }
        }
        let epochs = in_order(records).into_iter().map(|record| self.epoch(&file.source, record)).collect();
        SourceLog { source: file.source, kind: file.kind, dir: dir.into(), epochs, status: None, damaged }
    }

    fn epoch(&self, source: &SourceId, record: EpochRecord) -> Epoch {
        let dir = epoch_path(source, &record.epoch);
        let mut epoch = Epoch { record, segments: Vec::new(), damaged: Vec::new() };
        let files = self.files.range(dir.clone()..).take_while(|(path, _)| path.starts_with(&dir));
        let sidecars = files.filter_map(|(path, node)| {
            let number: u64 = path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()?;
            Some((number, path, node))
        });
        for (number, path, node) in sidecars {
            // Segments before the first were dropped because no backup needs them; there is no gap after it.
            let next = epoch.segments.last().map_or(number, |last: &SegmentRecord| last.number + 1);
            epoch
                .damaged
                .extend((next..number).map(|lost| (lost, "is missing, with its sidecar".to_owned())));
            match self.json::<SegmentRecord>(node) {
                Ok(segment) => {
                    let there =
                        ["seg", "open"].iter().find_map(|kind| self.files.get(&path.with_extension(kind)));
                    match there {
                        None => epoch.damaged.push((number, "is missing".into())),
                        Some(found) if found.meta.size != segment.bytes.0 => {
                            let what =
                                format!("has {} bytes instead of {}", found.meta.size, segment.bytes.0);
                            epoch.damaged.push((number, what));
                        }
                        Some(_) => {}
                    }
                    epoch.segments.push(segment);
                }
                Err(what) => epoch.damaged.push((number, what)),
            }
        }
        epoch
    }

    fn json<T: DeserializeOwned>(&self, node: &Node) -> Result<T, String> {
        let text = contents(&self.index, node)?;
        serde_json::from_slice(&text).map_err(|error| format!("is not understood: {error}"))
    }

    /// The bytes of a segment, compared with its sidecar.
    pub(in super::super) fn segment(
        &self,
        source: &SourceId,
        epoch: &EpochId,
        number: u64,
    ) -> Result<Vec<u8>, String> {
        let file = |kind| self.files.get(&segment_path(source, epoch, number, kind));
        let sidecar: SegmentRecord = self.json(file("json").ok_or("has no sidecar in the repository")?)?;
        let node = file("seg").or_else(|| file("open")).ok_or("is not in the repository")?;
        let bytes = contents(&self.index, node)?;
        if hex::encode(Sha256::digest(&bytes)) == sidecar.sha256 {
            Ok(bytes)
        } else {
            Err("its bytes in the repository are not what was written (SHA-256)".into())
        }
    }

    /// Writes a file of any size.
    fn stream(&self, node: &Node, path: &Path) -> Result<(), RepositoryError> {
        use std::io::Write as _;
        let failed = |source| StorageError::write(path, source);
        let mut file = create(path).map_err(failed)?;
        for id in node.content.iter().flatten() {
            let part = part(&self.index, id).map_err(|what| RepositoryError::Damaged { what })?;
            file.write_all(&part).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        Ok(())
    }
}

/// The files of the log archive in a stored tree, and which of its directories cannot be read and why.
pub(super) fn walk(index: &Indexed, root: TreeId) -> (BTreeMap<PathBuf, Node>, Vec<(PathBuf, String)>) {
    let (mut files, mut lost) = (BTreeMap::new(), Vec::new());
    let mut todo = vec![(PathBuf::from("/"), root)];
    while let Some((dir, tree)) = todo.pop() {
        match index.get_tree(&tree).map_err(while_doing("reading a stored directory")) {
            Ok(read) => {
                for node in read.nodes {
                    let path = node::child(&dir, &node);
                    match node.subtree {
                        Some(tree) => todo.push((path, tree)),
                        None if node.is_file() && path.starts_with(LOGS_ROOT) => {
                            files.insert(path, node);
                        }
                        None => {}
                    }
                }
            }
            Err(error) => lost.push((dir, format!("cannot be read in the repository: {error}"))),
        }
    }
    (files, lost)
}

/// The content of a stored file, each part compared with its name.
pub(super) fn contents(index: &Indexed, node: &Node) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for id in node.content.iter().flatten() {
        bytes.extend_from_slice(&part(index, id)?);
    }
    Ok(bytes)
}

fn part(index: &Indexed, id: &rustic_core::DataId) -> Result<bytes::Bytes, String> {
    let doing = while_doing("reading a part of the log archive");
    let part = index.get_blob_cached(&BlobId::from(**id), BlobType::Data);
    let part = part.map_err(|error| doing(error).to_string())?;
    if name_of(&part) == id.to_hex().as_str() {
        Ok(part)
    } else {
        Err("a part of it has another content than its name".into())
    }
}

fn create(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), RepositoryError> {
    os::durable::replace(path, bytes, 0o600).map_err(|source| StorageError::write(path, source).into())
}
