//! What the log archive holds, as values: for each source its epochs with all segments, what is damaged, how far it is.
//!
//! Crash story: reads only, while others write: an epoch is there once its record is, a segment once its head is. A closed
//! segment whose sidecar is not there yet is described from its own bytes, as the open one is.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use model::{
    id::{BackupId, EpochId, SourceId},
    logs::{Beginning, Epoch, EpochRecord, LogKind, LogStatus, SegmentHead, SegmentRecord},
};
use serde::{Deserialize, Serialize};

use super::{LogsError, Spool, Tail, Tails, names, scan};

/// All of a log archive.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    /// The log of each source, ordered by source.
    pub sources: Vec<SourceLog>,
    /// Directories that are no source's, or whose `source.json` is damaged: name and what was found.
    pub strange: Vec<(String, String)>,
}

impl Catalogue {
    /// The log of a source.
    #[must_use]
    pub fn of(&self, source: &SourceId) -> Option<&SourceLog> {
        self.sources.iter().find(|log| log.source == *source)
    }
}

/// The log of one source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceLog {
    /// Whose.
    pub source: SourceId,
    /// What it consists of.
    pub kind: LogKind,
    /// Where it lies.
    pub dir: PathBuf,
    /// Its epochs, in the order in which they follow one another.
    pub epochs: Vec<Epoch>,
    /// How far it is, as its writer said last: while it runs, `at` is at most some seconds ago.
    pub status: Option<LogStatus>,
    /// Directories whose record is damaged, and a damaged status: file and what was found.
    pub damaged: Vec<(PathBuf, String)>,
}

impl SourceLog {
    /// The directory of an epoch.
    #[must_use]
    pub fn epoch_dir(&self, epoch: &EpochId) -> PathBuf {
        self.dir.join(epoch.as_str())
    }

    /// Where a segment lies, open or closed; nothing if it was discarded because a backup holds it (see
    /// [`stored_in`](Self::stored_in)), or is missing.
    #[must_use]
    pub fn segment_path(&self, epoch: &EpochId, number: u64) -> Option<PathBuf> {
        let dir = self.epoch_dir(epoch);
        let paths = [names::SEGMENT, names::OPEN].map(|kind| names::file(&dir, number, kind));
        paths.into_iter().find(|path| path.exists())
    }

    /// Which backup held a segment when it was discarded here.
    #[must_use]
    pub fn stored_in(&self, epoch: &EpochId, number: u64) -> Option<BackupId> {
        let mark = names::file(&self.epoch_dir(epoch), number, names::STORED);
        BackupId::new(std::fs::read_to_string(mark).ok()?.trim_end()).ok()
    }
}

/// `source.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceFile {
    pub(crate) version: u32,
    pub(crate) source: SourceId,
    pub(crate) kind: LogKind,
}

pub(super) fn read(spool: &Spool, tails: Tails<'_>) -> Result<Catalogue, LogsError> {
    let mut catalogue = Catalogue::default();
    for name in names::list(spool.dir())? {
        let dir = spool.dir().join(&name);
        if !dir.is_dir() {
            continue;
        }
        match names::read_json::<SourceFile>(&dir.join(names::SOURCE)) {
            Ok(Some(file)) => catalogue.sources.push(source(dir, file, tails)?),
            Ok(None) => catalogue.strange.push((name, "has no source.json".into())),
            Err(error) => catalogue.strange.push((name, error.to_string())),
        }
    }
    catalogue.sources.sort_by(|a, b| a.source.cmp(&b.source));
    Ok(catalogue)
}

fn source(dir: PathBuf, file: SourceFile, tails: Tails<'_>) -> Result<SourceLog, LogsError> {
    let mut damaged = Vec::new();
    let tail = tails(file.kind);
    let mut epochs = Vec::new();
    for record in records(&dir, &mut damaged)? {
        let path = dir.join(record.epoch.as_str());
        epochs.push(epoch(&path, record, tail.as_ref())?);
    }
    let path = dir.join(names::STATUS);
    let status = names::read_json(&path).unwrap_or_else(|error| {
        damaged.push((path, error.to_string()));
        None
    });
    Ok(SourceLog { source: file.source, kind: file.kind, dir, epochs, status, damaged })
}

/// The records of all epochs of a source in their order.
pub(super) fn records(
    dir: &Path,
    damaged: &mut Vec<(PathBuf, String)>,
) -> Result<Vec<EpochRecord>, LogsError> {
    let mut found = Vec::new();
    for name in names::list(dir)? {
        let path = dir.join(&name).join(names::EPOCH);
        if EpochId::new(name.as_str()).is_err() {
            continue;
        }
        match names::read_json::<EpochRecord>(&path) {
            Ok(Some(record)) if record.epoch.as_str() == name => found.push(record),
            Ok(Some(_)) => damaged.push((path, "is the record of another epoch".into())),
            Ok(None) => {}
            Err(error) => damaged.push((path, error.to_string())),
        }
    }
    Ok(in_order(found))
}

/// Each after the one that it names, whatever the clock said; else by their names, which begin with a time.
pub(crate) fn in_order(mut found: Vec<EpochRecord>) -> Vec<EpochRecord> {
    found.sort_by(|a, b| a.epoch.cmp(&b.epoch));
    let known: BTreeSet<EpochId> = found.iter().map(|record| record.epoch.clone()).collect();
    let mut ordered: Vec<EpochRecord> = Vec::new();
    while !found.is_empty() {
        let is_next = |record: &EpochRecord| match after(record) {
            Some(before) if known.contains(before) => ordered.iter().any(|done| done.epoch == *before),
            _ => true,
        };
        // A circle cannot be, but must not hang us.
        let next = found.iter().position(is_next).unwrap_or(0);
        ordered.push(found.remove(next));
    }
    ordered
}

fn after(record: &EpochRecord) -> Option<&EpochId> {
    match &record.beginning {
        Beginning::First => None,
        Beginning::Continues { after } | Beginning::Hole { after, .. } => Some(after),
    }
}

/// Once more if a segment was closed or discarded while we looked.
fn epoch(dir: &Path, record: EpochRecord, tail: &dyn Tail) -> Result<Epoch, LogsError> {
    const TRIES: usize = 3;
    let mut epoch = look(dir, &record, tail)?;
    for _ in 1..TRIES {
        if epoch.damaged.is_empty() {
            break;
        }
        epoch = look(dir, &record, tail)?;
    }
    Ok(epoch)
}

fn look(dir: &Path, record: &EpochRecord, tail: &dyn Tail) -> Result<Epoch, LogsError> {
    let files = names::list(dir)?;
    let mut epoch = Epoch { record: record.clone(), segments: Vec::new(), damaged: Vec::new() };
    let known: BTreeSet<u64> = [names::SIDECAR, names::SEGMENT, names::HEAD, names::OPEN]
        .iter()
        .flat_map(|kind| names::numbers(&files, kind))
        .collect();
    let stored = names::numbers(&files, names::STORED);
    for number in 1..=known.last().copied().unwrap_or(0) {
        match segment(dir, record, number, tail) {
            Ok(Some(found)) => {
                if !stored.contains(&number)
                    && let Err(what) = size_is(dir, &found)
                {
                    epoch.damaged.push((number, what));
                }
                epoch.segments.push(found);
            }
            Ok(None) if Some(&number) == known.last() => {}
            Ok(None) => epoch.damaged.push((number, "is missing, with its sidecar".into())),
            Err(error) => epoch.damaged.push((number, error.to_string())),
        }
    }
    Ok(epoch)
}

/// A segment by its sidecar, or else by its own bytes; nothing if it holds nothing.
fn segment(
    dir: &Path,
    epoch: &EpochRecord,
    number: u64,
    tail: &dyn Tail,
) -> Result<Option<SegmentRecord>, LogsError> {
    if let Some(record) = names::read_json(&names::file(dir, number, names::SIDECAR))? {
        return Ok(Some(record));
    }
    let Some(head) = names::read_json::<SegmentHead>(&names::file(dir, number, names::HEAD))? else {
        return Ok(None);
    };
    for kind in [names::SEGMENT, names::OPEN] {
        let path = names::file(dir, number, kind);
        if path.exists() {
            let whole = scan::whole(&path, &head, tail)?;
            if whole.bytes > 0 {
                let digest = scan::digest(&path, whole.bytes)?;
                let last = scan::written_at(&path)?;
                return Ok(Some(scan::record(&epoch.epoch, number, &head, &whole, digest, last)));
            }
        }
    }
    Ok(None)
}

fn size_is(dir: &Path, record: &SegmentRecord) -> Result<(), String> {
    let path = names::file(dir, record.number, names::SEGMENT);
    match std::fs::metadata(&path) {
        Ok(meta) if meta.len() == record.bytes.0 => Ok(()),
        Ok(meta) => Err(format!("has {} bytes instead of {}", meta.len(), record.bytes.0)),
        Err(_) if names::file(dir, record.number, names::OPEN).exists() => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err("is missing".into()),
        Err(error) => Err(format!("cannot be looked at: {error}")),
    }
}
