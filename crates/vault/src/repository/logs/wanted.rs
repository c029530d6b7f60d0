//! Which files the snapshot of the log archive is to hold, and where each comes from: the snapshot before, or the spool.
//!
//! A closed segment never changes, so one that the snapshot before has by its number and size is carried over without being
//! opened. One that is new is compared with its sidecar before it is stored.
//!
//! Crash story: reads only. A segment may be closed or discarded while we look: then storing fails, and is tried again.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use model::{
    entries::Entries,
    entry::{Body, Entry, Kind, Manifest, Meta, Role},
    id::{EpochId, SourceId},
    logs::{Epoch, LOGS_VERSION, SegmentRecord},
    logs_retention::LogsPlan,
    logs_store::LOGS_ROOT,
    problem::{Effect, Problem},
    size::Bytes,
};
use rustic_core::{Id, TreeId, repofile::Node};
use serde::Serialize;
use sha2::Digest as _;

use super::{
    super::{
        error::{RepositoryError, StorageError},
        node::meta,
        open::Indexed,
        store::{directory, own_meta},
    },
    read::{contents, walk},
};
use crate::logs::{Catalogue, SourceFile, SourceLog, digest, source_dir_name};

/// So many segments lie in one directory, so that a minute's snapshot writes few names anew.
const IN_ONE: u64 = 100;

/// Where a file of a segment stands in the snapshot.
pub(super) fn segment_path(source: &SourceId, epoch: &EpochId, number: u64, kind: &str) -> PathBuf {
    epoch_path(source, epoch).join(format!("{:06}", number / IN_ONE)).join(format!("{number:08}.{kind}"))
}

pub(super) fn epoch_path(source: &SourceId, epoch: &EpochId) -> PathBuf {
    source_path(source).join(epoch.as_str())
}

pub(super) fn source_path(source: &SourceId) -> PathBuf {
    Path::new(LOGS_ROOT).join(source_dir_name(source))
}

/// What the snapshot before holds.
#[derive(Default)]
pub(super) struct Before {
    nodes: BTreeMap<PathBuf, Node>,
    /// What of it cannot be carried over.
    pub(super) lost: Vec<Problem>,
}

impl Before {
    pub(super) fn read(index: &Indexed, tree: TreeId, packs: &HashMap<Id, u64>) -> Self {
        let mut before = Self::default();
        let (files, lost) = walk(index, tree);
        for (path, what) in lost {
            before.lose(path, format!("this directory of the log archive {what}"));
        }
        for (path, node) in files {
            match length(&node, index, packs) {
                Ok(length) if length == node.meta.size => {
                    before.nodes.insert(path, node);
                }
                Ok(length) => before.lose(path, format!("has {length} of its {} bytes", node.meta.size)),
                Err(what) => before.lose(path, what),
            }
        }
        before
    }

    fn lose(&mut self, path: PathBuf, what: String) {
        let remedy =
            "run `stillpoint check --read-data`; the snapshot that held it stays listed, for a repair";
        self.lost.push(Problem::new(Effect::Missing, Some(path), what, remedy));
    }

    /// The first segment of an epoch that it holds: those before were dropped because no backup needs them.
    fn first(&self, source: &SourceId, epoch: &EpochId) -> Option<u64> {
        let dir = epoch_path(source, epoch);
        let inside = self.nodes.range(dir.clone()..).take_while(|(path, _)| path.starts_with(&dir));
        let number = |path: &Path| path.file_name()?.to_str()?.split_once('.')?.0.parse().ok();
        inside.filter_map(|(path, _)| number(path)).min()
    }

    fn carried(&self, path: &Path) -> Option<Entry> {
        let node = self.nodes.get(path)?;
        let meta = meta(&Kind::File, node);
        Some(Entry { path: path.into(), kind: Kind::File, meta, body: Body::Carried, role: Role::Content })
    }
}

/// The files of the new snapshot.
pub(super) struct Wanted<'a> {
    before: &'a Before,
    index: &'a Indexed,
    now: Timestamp,
    files: BTreeMap<PathBuf, Entry>,
    /// What is missing although it should be there.
    pub(super) problems: Vec<Problem>,
}

impl<'a> Wanted<'a> {
    /// All that the snapshot before holds and all that the spool holds, without what the plan drops.
    pub(super) fn gather(
        spool: &Catalogue,
        before: &'a Before,
        index: &'a Indexed,
        plan: &LogsPlan,
        now: Timestamp,
    ) -> Result<Self, RepositoryError> {
        let files =
            before.nodes.keys().filter_map(|path| Some((path.clone(), before.carried(path)?))).collect();
        let mut wanted = Self { before, index, now, files, problems: Vec::new() };
        for log in &spool.sources {
            let file = SourceFile { version: LOGS_VERSION, source: log.source.clone(), kind: log.kind };
            let begun = log.epochs.first().map_or(now, |epoch| epoch.record.begun_at);
            wanted.once(source_path(&log.source).join("source.json"), &file, begun)?;
            for epoch in &log.epochs {
                wanted.epoch(log, epoch)?;
            }
        }
        for source in &plan.sources {
            wanted.drop_old(plan, &source.source);
        }
        Ok(wanted)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Epochs, segments and bytes of segments of a source.
    pub(super) fn count(&self, source: &SourceId) -> (u64, u64, Bytes) {
        let root = source_path(source);
        let files = || self.files.values().filter(|entry| entry.path.starts_with(&root));
        let is = |entry: &&Entry, kinds: &[&str]| {
            kinds.iter().any(|kind| entry.path.extension().is_some_and(|found| found == *kind))
        };
        let epochs = files().filter(|entry| entry.path.ends_with("epoch.json")).count() as u64;
        let segments = || files().filter(|entry| is(entry, &["seg", "open"]));
        (epochs, segments().count() as u64, segments().map(|entry| entry.meta.size).sum())
    }

    fn epoch(&mut self, log: &SourceLog, epoch: &Epoch) -> Result<(), RepositoryError> {
        let (id, begun) = (&epoch.record.epoch, epoch.record.begun_at);
        let dir = epoch_path(&log.source, id);
        self.once(dir.join("epoch.json"), &epoch.record, begun)?;
        if epoch.record.has_base && self.before.carried(&dir.join("base.db")).is_none() {
            let local = log.epoch_dir(id).join("base.db");
            match std::fs::metadata(&local) {
                Ok(meta) => self.add(dir.join("base.db"), Bytes(meta.len()), begun, Body::At(local)),
                Err(error) => self.miss(dir.join("base.db"), format!("the base of an epoch: {error}")),
            }
        }
        for segment in &epoch.segments {
            let path = segment_path(&log.source, id, segment.number, "seg");
            let damage = epoch.damaged.iter().find(|(number, _)| *number == segment.number);
            match damage {
                Some((_, what)) if !self.files.contains_key(&path) => self.miss(path, what.clone()),
                Some(_) => {}
                None => self.segment(log, segment)?,
            }
        }
        Ok(())
    }

    fn segment(&mut self, log: &SourceLog, segment: &SegmentRecord) -> Result<(), RepositoryError> {
        let path = |kind| segment_path(&log.source, &segment.epoch, segment.number, kind);
        let is_stored =
            self.before.carried(&path("seg")).is_some_and(|entry| entry.meta.size == segment.bytes);
        if is_stored {
            self.files.remove(&path("open"));
            return Ok(());
        }
        if self.before.first(&log.source, &segment.epoch).is_some_and(|first| segment.number < first) {
            return Ok(());
        }
        let Some(local) = log.segment_path(&segment.epoch, segment.number) else {
            // It was open when it was stored last, and was closed and discarded as it was.
            if self.stored_open(&path("json")).is_some_and(|stored| stored.sha256 == segment.sha256) {
                return Ok(());
            }
            self.miss(path("seg"), "it is neither in the spool nor in the repository".into());
            return Ok(());
        };
        let length = std::fs::metadata(&local).map_or(0, |meta| meta.len());
        let is_closed = local.extension().is_some_and(|kind| kind == "seg") && length == segment.bytes.0;
        if is_closed {
            return self.closed(log, segment, local);
        }
        self.open(log, segment, &local)
    }

    fn closed(
        &mut self,
        log: &SourceLog,
        segment: &SegmentRecord,
        local: PathBuf,
    ) -> Result<(), RepositoryError> {
        let path = |kind| segment_path(&log.source, &segment.epoch, segment.number, kind);
        let found = digest(&local, segment.bytes.0).map(|digest| hex::encode(digest.finalize()));
        match found {
            Ok(found) if found == segment.sha256 => {
                self.files.remove(&path("open"));
                self.add(path("seg"), segment.bytes, segment.received.last, Body::At(local));
                self.sidecar(path("json"), segment)
            }
            Ok(_) => {
                self.miss(path("seg"), "its bytes are not what was written (SHA-256)".into());
                Ok(())
            }
            Err(error) => {
                self.miss(path("seg"), format!("it cannot be read: {error}"));
                Ok(())
            }
        }
    }

    /// The open segment up to its last whole transaction, unless the snapshot before has more of it.
    fn open(
        &mut self,
        log: &SourceLog,
        segment: &SegmentRecord,
        local: &Path,
    ) -> Result<(), RepositoryError> {
        let path = |kind| segment_path(&log.source, &segment.epoch, segment.number, kind);
        if self
            .stored_open(&path("json"))
            .is_some_and(|stored| stored.bytes > segment.bytes || stored.sha256 == segment.sha256)
        {
            return Ok(());
        }
        let unreadable = |source| RepositoryError::from(StorageError::read(local, source));
        let mut bytes = Vec::new();
        File::open(local)
            .and_then(|file| file.take(segment.bytes.0).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        if hex::encode(sha2::Sha256::digest(&bytes)) != segment.sha256 {
            return Err(RepositoryError::Refused {
                what: format!("segment {} changed while it was looked at", segment.number),
                remedy: "it is stored in a minute".into(),
            });
        }
        self.add(path("open"), segment.bytes, segment.received.last, Body::Inline(bytes));
        self.sidecar(path("json"), segment)
    }

    /// The sidecar that the snapshot before has of a segment that was open then.
    fn stored_open(&self, sidecar: &Path) -> Option<SegmentRecord> {
        self.before.nodes.get(&sidecar.with_extension("open"))?;
        let node = self.before.nodes.get(sidecar)?;
        serde_json::from_slice(&contents(self.index, node).ok()?).ok()
    }

    fn sidecar(&mut self, path: PathBuf, segment: &SegmentRecord) -> Result<(), RepositoryError> {
        let text = json(segment)?;
        self.add(path, Bytes(text.len() as u64), segment.received.last, Body::Inline(text));
        Ok(())
    }

    /// A file that never changes.
    fn once(
        &mut self,
        path: PathBuf,
        value: &impl Serialize,
        time: Timestamp,
    ) -> Result<(), RepositoryError> {
        if !self.files.contains_key(&path) {
            let text = json(value)?;
            self.add(path, Bytes(text.len() as u64), time, Body::Inline(text));
        }
        Ok(())
    }

    /// A file that is stored anew: its change time is now, so that it is not taken for one of the snapshot before.
    fn add(&mut self, path: PathBuf, size: Bytes, time: Timestamp, body: Body) {
        let meta = Meta { size, ctime: self.now, ..own_meta(0o100_600, time) };
        let entry = Entry { path: path.clone(), kind: Kind::File, meta, body, role: Role::Content };
        self.files.insert(path, entry);
    }

    fn miss(&mut self, path: PathBuf, what: String) {
        let remedy = "the time that it covers cannot be restored from here: see `stillpoint coverage`";
        self.problems.push(Problem::new(Effect::Missing, Some(path), what, remedy));
    }

    fn drop_old(&mut self, plan: &LogsPlan, source: &SourceId) {
        let root = source_path(source);
        let goes = |path: &Path| {
            let mut parts = path.strip_prefix(&root).ok()?.iter();
            let epoch = EpochId::new(parts.next()?.to_str()?).ok()?;
            let name = parts.next_back()?.to_str()?;
            let number = name.split_once('.').and_then(|(digits, _)| digits.parse().ok());
            Some(plan.drops(source, &epoch, number))
        };
        self.files.retain(|path, _| !goes(path).unwrap_or(false));
    }

    /// All of it with the directories above, in order. Directories have the time of the oldest file in them, so that those
    /// in which nothing changed are the very same.
    pub(super) fn into_manifest(self, now: Timestamp) -> Manifest {
        let mut dirs: BTreeMap<PathBuf, Timestamp> = BTreeMap::new();
        for entry in self.files.values() {
            for dir in entry.path.ancestors().skip(1).filter(|dir| dir.file_name().is_some()) {
                let oldest = dirs.entry(dir.into()).or_insert(entry.meta.mtime);
                *oldest = (*oldest).min(entry.meta.mtime);
            }
        }
        let above = dirs.into_iter().map(|(path, time)| {
            if !path.starts_with(LOGS_ROOT) {
                return directory(&path, time);
            }
            let meta = own_meta(0o040_700, time);
            Entry { path, kind: Kind::Dir, meta, body: Body::Nothing, role: Role::Content }
        });
        let settled = now.checked_add(SignedDuration::from_secs(2)).unwrap_or(now);
        Manifest::merge(settled, above.chain(self.files.into_values()).collect::<Entries>())
    }
}

/// How many bytes the stored parts of a file have together, if all of them are there.
fn length(node: &Node, index: &Indexed, packs: &HashMap<Id, u64>) -> Result<u64, String> {
    let mut length = 0;
    for part in node.content.iter().flatten() {
        let short = || part.to_hex().get(..8).unwrap_or_default().to_owned();
        let entry =
            index.get_index_entry(part).map_err(|_| format!("its part {} is in no index", short()))?;
        let end = u64::from(entry.location.offset) + u64::from(entry.location.length);
        if packs.get(&*entry.pack).is_none_or(|size| *size < end) {
            return Err(format!("the repository has lost the pack with its part {}", short()));
        }
        length += u64::from(entry.data_length());
    }
    Ok(length)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, RepositoryError> {
    let unwritable =
        |error| RepositoryError::Damaged { what: format!("a record of the log archive: {error}") };
    let mut text = serde_json::to_vec(value).map_err(unwritable)?;
    text.push(b'\n');
    Ok(text)
}
