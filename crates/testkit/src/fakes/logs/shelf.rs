//! The repository of the fake archive, and the spool beside it.
//!
//! Crash story: in memory. A snapshot is listed before the one that it supersedes is removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use model::{
    id::{BackupId, EpochId, SourceId},
    logs::{Epoch, EpochRecord, LogKind, SegmentRecord},
    logs_retention::LogsPlan,
    port::{Failure, FailureKind, Progress, Silent},
    port_shelf::{HeldLog, LogShelf, Shelved, Unproven},
};
use sha2::{Digest, Sha256};

use super::{
    State, World,
    spool::{DiskEpoch, DiskState},
};
use crate::faults::Injected;

#[derive(Debug, Default)]
pub(super) struct RepositoryState {
    pub(super) is_away: bool,
    pub(super) is_crowded: bool,
    /// The next store is killed between two of its steps.
    is_doomed: bool,
    /// Oldest first; the newest counts.
    pub(super) snapshots: Vec<Snapshot>,
    written: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) id: BackupId,
    pub(super) epochs: Vec<StoredEpoch>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredEpoch {
    pub(super) record: EpochRecord,
    pub(super) segments: BTreeMap<u64, (SegmentRecord, Vec<u8>)>,
}

impl RepositoryState {
    pub(super) fn calm(&mut self) {
        (self.is_away, self.is_crowded, self.is_doomed) = (false, false, false);
    }

    /// The bytes of a segment in the newest snapshot.
    pub(super) fn bytes(&self, epoch: &EpochId, number: u64) -> Option<&Vec<u8>> {
        let newest = self.snapshots.last()?;
        let epoch = newest.epochs.iter().find(|stored| stored.record.epoch == *epoch)?;
        epoch.segments.get(&number).map(|(_, bytes)| bytes)
    }
}

impl World {
    /// How many snapshots of the archive are listed.
    #[must_use]
    pub fn snapshots(&self) -> usize {
        self.lock().repository.snapshots.len()
    }

    /// The next store is killed between two of its steps.
    pub fn doom_the_next_store(&self) {
        self.lock().repository.is_doomed = true;
    }

    /// Flips a bit of a stored segment.
    pub fn damage_stored(&self, epoch: &EpochId, number: u64) {
        let mut state = self.lock();
        let newest = state.repository.snapshots.last_mut();
        let epoch = newest.and_then(|newest| newest.epochs.iter_mut().find(|it| it.record.epoch == *epoch));
        if let Some((_, bytes)) = epoch.and_then(|epoch| epoch.segments.get_mut(&number)) {
            bytes[0] ^= 1;
        }
    }
}

/// Spool and repository of the fake archive.
#[derive(Debug)]
pub struct FakeLogs(pub World);

impl FakeLogs {
    fn there<T>(&self, run: impl FnOnce(&mut State) -> Result<T, Failure>) -> Result<T, Failure> {
        self.0.pass(Duration::from_millis(20));
        let mut state = self.0.lock();
        if state.repository.is_away {
            return Err(Failure::new(FailureKind::Other, "the repository cannot be reached", ""));
        }
        run(&mut state)
    }

    /// Writes a snapshot of what is here and there, without what a plan drops, and removes those before.
    fn write(&self, plan: &LogsPlan, progress: &dyn Progress) -> Result<Shelved, Failure> {
        if progress.is_stopped() {
            return Err(Failure::new(FailureKind::Other, "it was given up", ""));
        }
        let source = self.0.source();
        let (is_new, snapshot) = self.there(|state| {
            state.disk.sync();
            let before = state.repository.snapshots.last().cloned();
            let epochs = merged(state, before.as_ref(), &source, plan);
            if epochs.is_empty() {
                return Ok((false, None));
            }
            if let Some(before) = before.filter(|before| before.epochs == epochs) {
                return Ok((false, Some(before.id)));
            }
            state.repository.written += 1;
            let id = format!("{:064x}", state.repository.written);
            let id = BackupId::new(id).unwrap_or_else(|wrong| panic!("{wrong:?}"));
            state.repository.snapshots.push(Snapshot { id: id.clone(), epochs });
            Ok((true, Some(id)))
        })?;
        if std::mem::take(&mut self.0.lock().repository.is_doomed) {
            std::panic::panic_any(Injected);
        }
        let left = self.there(|state| {
            let old = state.repository.snapshots.len().saturating_sub(1);
            if state.repository.is_crowded {
                return Ok(old as u64);
            }
            state.repository.snapshots.drain(..old);
            Ok(0)
        })?;
        Ok(Shelved { snapshot, is_new, left, problems: Vec::new() })
    }
}

fn merged(state: &State, before: Option<&Snapshot>, source: &SourceId, plan: &LogsPlan) -> Vec<StoredEpoch> {
    let mut all = before.map(|before| before.epochs.clone()).unwrap_or_default();
    for (disk, epoch) in state.disk.epochs.iter().zip(DiskState::catalogue(state)) {
        let at = all.iter().position(|stored| stored.record.epoch == epoch.record.epoch);
        let at = at.unwrap_or_else(|| {
            all.push(StoredEpoch { record: epoch.record.clone(), segments: BTreeMap::new() });
            all.len() - 1
        });
        for record in epoch.segments {
            if let Some(bytes) = bytes_of(disk, &record) {
                all[at].segments.insert(record.number, (record, bytes));
            }
        }
    }
    all.retain(|epoch| !plan.drops(source, &epoch.record.epoch, None));
    for epoch in &mut all {
        let id = epoch.record.epoch.clone();
        epoch.segments.retain(|number, _| !plan.drops(source, &id, Some(*number)));
    }
    all
}

fn bytes_of(epoch: &DiskEpoch, record: &SegmentRecord) -> Option<Vec<u8>> {
    let segment = epoch.segment(record.number)?;
    let bytes = segment.bytes.as_ref()?;
    bytes.get(..usize::try_from(record.bytes.0).ok()?).map(<[u8]>::to_vec)
}

impl LogShelf for FakeLogs {
    fn here(&mut self) -> Result<Vec<HeldLog>, Failure> {
        self.0.pass(Duration::from_millis(5));
        let state = self.0.lock();
        let closed = state.disk.epochs.iter().flat_map(|epoch| {
            let here = epoch.segments.iter().filter(|segment| segment.bytes.is_some());
            here.filter_map(|segment| segment.closed.as_ref()).map(|it| (it.epoch.clone(), it.number))
        });
        let closed: BTreeSet<_> = closed.collect();
        let epochs = DiskState::catalogue(&state);
        if epochs.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![HeldLog { source: self.0.source(), kind: LogKind::Binlog, epochs, closed }])
    }

    fn there(&mut self) -> Result<Option<Vec<HeldLog>>, Failure> {
        let source = self.0.source();
        Self::there(self, |state| {
            let Some(newest) = state.repository.snapshots.last() else { return Ok(None) };
            let epoch = |stored: &StoredEpoch| Epoch {
                record: stored.record.clone(),
                segments: stored.segments.values().map(|(record, _)| record.clone()).collect(),
                damaged: Vec::new(),
            };
            let epochs: Vec<Epoch> = newest.epochs.iter().map(epoch).collect();
            let all = epochs.iter().flat_map(|epoch| &epoch.segments);
            let closed = all.map(|segment| (segment.epoch.clone(), segment.number)).collect();
            Ok(Some(vec![HeldLog { source, kind: LogKind::Binlog, epochs, closed }]))
        })
    }

    fn store(&mut self, progress: &dyn Progress) -> Result<Shelved, Failure> {
        self.write(&LogsPlan::default(), progress)
    }

    fn unproven(
        &mut self,
        _source: &SourceId,
        segments: &[SegmentRecord],
    ) -> Result<(BackupId, Vec<Unproven>), Failure> {
        Self::there(self, |state| {
            let newest = state.repository.snapshots.last();
            let id = newest.map(|newest| newest.id.clone());
            let id = id.ok_or_else(|| Failure::new(FailureKind::Refused, "no archive is stored", ""))?;
            let wrong = |segment: &&SegmentRecord| {
                let bytes = state.repository.bytes(&segment.epoch, segment.number);
                bytes.is_none_or(|bytes| hex::encode(Sha256::digest(bytes)) != segment.sha256)
            };
            let unproven = segments.iter().filter(wrong).map(|segment| Unproven {
                epoch: segment.epoch.clone(),
                number: segment.number,
                what: "it is not there as it was written".into(),
            });
            Ok((id, unproven.collect()))
        })
    }

    fn discard(
        &mut self,
        _source: &SourceId,
        epoch: &EpochId,
        number: u64,
        stored_in: &BackupId,
    ) -> Result<(), Failure> {
        let mut state = self.0.lock();
        let stored = state.repository.bytes(epoch, number).cloned();
        let Some(segment) = state.disk.segment_mut(epoch, number) else { return Ok(()) };
        let is_same = segment.bytes.is_none() || segment.bytes == stored;
        (segment.bytes, segment.stored_in) = (None, Some(stored_in.clone()));
        if !is_same {
            state
                .complain(format!("segment {number} of {epoch} left the spool and is not in the repository"));
        }
        Ok(())
    }

    fn forget(&mut self, plan: &LogsPlan) -> Result<(), Failure> {
        let source = self.0.source();
        {
            let mut state = self.0.lock();
            if state.repository.snapshots.is_empty() {
                return Ok(());
            }
            state.disk.epochs.retain(|epoch| !plan.drops(&source, &epoch.record.epoch, None));
            for epoch in &mut state.disk.epochs {
                let id = epoch.record.epoch.clone();
                for segment in epoch.segments.iter_mut().filter(|segment| segment.closed.is_some()) {
                    if plan.drops(&source, &id, segment.closed.as_ref().map(|closed| closed.number)) {
                        segment.bytes = None;
                    }
                }
            }
        }
        self.write(plan, &Silent)?;
        Ok(())
    }
}
