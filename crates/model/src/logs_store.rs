//! The log archive in a repository, as values: what a snapshot of it says of itself, and what two copies of it have
//! together. Written form: `docs/format/logs.md`, section "In the repository".
//!
//! Crash story: pure functions, no effects.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    id::{AppName, BackupId, EpochId, SourceId},
    logs::{Beginning, Epoch, EpochRecord, LogKind, LogPlace, SegmentRecord},
    size::Bytes,
};

/// Where the archive stands inside its snapshot.
pub const LOGS_ROOT: &str = "/var/lib/stillpoint/logs";

/// What a snapshot of the log archive says of itself: its description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsRecord {
    /// Format version, [`crate::logs::LOGS_VERSION`].
    pub version: u32,
    /// Whose archive it is.
    pub application: AppName,
    /// When the archive was looked at, by this machine's clock.
    pub stored_at: Timestamp,
    /// SHA-256 over what the spool held then: an equal one need not be stored again.
    pub fingerprint: String,
    /// What it holds of each source.
    pub sources: Vec<LogsStored>,
    /// Older snapshots that stay listed, because something in them could not be carried over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<BackupId>,
}

/// What a snapshot of the log archive holds of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsStored {
    /// Whose log.
    pub source: SourceId,
    /// What it consists of.
    pub kind: LogKind,
    /// The newest epoch.
    pub epoch: EpochId,
    /// Everything of that epoch before this place is stored.
    pub to: LogPlace,
    /// When the last of it was received by the archive; nothing if the epoch has no segment yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Timestamp>,
    /// Epochs.
    pub epochs: u64,
    /// Segments, the open one among them.
    pub segments: u64,
    /// Bytes in them.
    pub bytes: Bytes,
}

impl LogsStored {
    /// What these epochs of a source, in their order, come to; nothing if there are none.
    #[must_use]
    pub fn of(source: &SourceId, kind: LogKind, epochs: &[Epoch]) -> Option<Self> {
        let newest = epochs.last()?;
        let segments = || epochs.iter().flat_map(|epoch| &epoch.segments);
        Some(Self {
            source: source.clone(),
            kind,
            epoch: newest.record.epoch.clone(),
            to: newest.reached().clone(),
            received: newest.segments.last().map(|segment| segment.received.last),
            epochs: epochs.len() as u64,
            segments: segments().count() as u64,
            bytes: segments().map(|segment| segment.bytes).sum(),
        })
    }
}

/// Where a segment can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whence {
    /// In the spool of this machine.
    Spool,
    /// In the repository.
    Repository,
}

/// One epoch as spool and repository have it together.
#[derive(Debug, Clone, PartialEq)]
pub struct United {
    /// All that either has.
    pub epoch: Epoch,
    /// Where each of its segments that is whole is to be read.
    pub whence: BTreeMap<u64, Whence>,
    /// Segments that are damaged or missing in one and whole in the other: number and what was found.
    pub healed: Vec<(u64, String)>,
}

/// What the spool and the repository have together of one source. `is_here` says whether the spool still has the bytes of
/// a segment that it has a sidecar of. A segment that is whole in the spool is read there; damage in one is healed by the
/// other; of an open segment the longer one counts. Each epoch comes after the one that it follows, else by their names,
/// which begin with a time.
#[must_use]
pub fn unite(spool: &[Epoch], repository: &[Epoch], is_here: &dyn Fn(&EpochId, u64) -> bool) -> Vec<United> {
    let alone = repository.iter().filter(|stored| !spool.iter().any(|local| is_same(local, stored)));
    let mut united: Vec<United> =
        alone.map(|stored| one(stored.record.clone(), None, Some(stored), is_here)).collect();
    for local in spool {
        let stored = repository.iter().find(|stored| is_same(local, stored));
        united.push(one(local.record.clone(), Some(local), stored, is_here));
    }
    in_order(united)
}

fn in_order(mut found: Vec<United>) -> Vec<United> {
    found.sort_by(|a, b| a.epoch.record.epoch.cmp(&b.epoch.record.epoch));
    let known: BTreeSet<EpochId> = found.iter().map(|united| united.epoch.record.epoch.clone()).collect();
    let mut ordered: Vec<United> = Vec::new();
    while !found.is_empty() {
        let is_next = |united: &United| match &united.epoch.record.beginning {
            Beginning::Continues { after } | Beginning::Hole { after, .. } if known.contains(after) => {
                ordered.iter().any(|done| done.epoch.record.epoch == *after)
            }
            _ => true,
        };
        // A circle cannot be, but must not hang us.
        let next = found.iter().position(is_next).unwrap_or(0);
        ordered.push(found.remove(next));
    }
    ordered
}

fn is_same(a: &Epoch, b: &Epoch) -> bool {
    a.record.epoch == b.record.epoch
}

fn one(
    record: EpochRecord,
    local: Option<&Epoch>,
    stored: Option<&Epoch>,
    is_here: &dyn Fn(&EpochId, u64) -> bool,
) -> United {
    let id = record.epoch.clone();
    let mut united = United {
        epoch: Epoch { record, segments: Vec::new(), damaged: Vec::new() },
        whence: BTreeMap::new(),
        healed: Vec::new(),
    };
    let numbers: BTreeSet<u64> = [local, stored]
        .into_iter()
        .flatten()
        .flat_map(|epoch| {
            let damaged = epoch.damaged.iter().map(|(number, _)| *number);
            epoch.segments.iter().map(|segment| segment.number).chain(damaged)
        })
        .collect();
    // The repository drops the beginning of an epoch when no backup needs it any more; the sidecars here stay.
    let dropped = |number: u64| {
        let first = stored.and_then(|epoch| epoch.segments.first()).map_or(0, |segment| segment.number);
        number < first && !is_here(&id, number)
    };
    for number in numbers.into_iter().filter(|number| !dropped(*number)) {
        let here = local.and_then(|epoch| whole(epoch, number)).filter(|_| is_here(&id, number));
        let there = stored.and_then(|epoch| whole(epoch, number));
        let wrong = [local, stored].into_iter().flatten().find_map(|epoch| fault(epoch, number));
        let chosen = match (here, there) {
            (Some(here), Some(there)) if there.bytes > here.bytes => Some((there, Whence::Repository)),
            (Some(here), _) => Some((here, Whence::Spool)),
            (None, Some(there)) => Some((there, Whence::Repository)),
            (None, None) => None,
        };
        match chosen {
            Some((segment, whence)) => {
                united.epoch.segments.push(segment.clone());
                united.whence.insert(number, whence);
                united.healed.extend(wrong.map(|what| (number, what.to_owned())));
            }
            None => lost(&mut united.epoch, number, local.or(stored), wrong),
        }
    }
    united
}

/// A segment that neither has whole.
fn lost(united: &mut Epoch, number: u64, known: Option<&Epoch>, wrong: Option<&str>) {
    let described = known.and_then(|epoch| epoch.segments.iter().find(|segment| segment.number == number));
    united.segments.extend(described.cloned());
    let gone = "is neither in the spool nor in the repository";
    united.damaged.push((number, wrong.unwrap_or(gone).to_owned()));
}

fn whole(epoch: &Epoch, number: u64) -> Option<&SegmentRecord> {
    epoch.segments.iter().find(|segment| segment.number == number).filter(|_| fault(epoch, number).is_none())
}

fn fault(epoch: &Epoch, number: u64) -> Option<&str> {
    epoch.damaged.iter().find(|(damaged, _)| *damaged == number).map(|(_, what)| what.as_str())
}

#[cfg(test)]
pub(crate) mod tests;
