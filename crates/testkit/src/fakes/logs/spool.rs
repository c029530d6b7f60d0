//! The disk of the fake archive: what was synced survives [`World::crash`], of the rest any part may.
//!
//! Crash story: in memory.

use jiff::Timestamp;
use model::{
    id::{BackupId, EpochId},
    logs::{
        Added, Epoch, EpochRecord, LOGS_VERSION, LogPlace, LogStatus, SegmentHead, SegmentRecord, Span,
        WholePart,
    },
    port::{Clock, Failure, FailureKind},
    port_logs::LogSink,
    server::Gtids,
    size::Bytes,
};
use rand::Rng;
use sha2::{Digest, Sha256};

use super::{
    State, World,
    event::{Event, events, whole},
};

#[derive(Debug, Default)]
pub(super) struct DiskState {
    pub(super) epochs: Vec<DiskEpoch>,
    pub(super) is_full: bool,
    /// Transactions that counted at some time.
    pub(super) counted: std::collections::BTreeSet<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct DiskEpoch {
    pub(super) record: EpochRecord,
    pub(super) segments: Vec<DiskSegment>,
}

#[derive(Debug, Clone)]
pub(super) struct DiskSegment {
    number: u64,
    head: SegmentHead,
    written_at: Timestamp,
    /// Nothing if it was discarded.
    pub(super) bytes: Option<Vec<u8>>,
    synced: usize,
    pub(super) closed: Option<SegmentRecord>,
    pub(super) stored_in: Option<BackupId>,
}

impl DiskSegment {
    /// What it holds, described by its sidecar or else by its own bytes.
    fn describe(&self, epoch: &DiskEpoch) -> Option<SegmentRecord> {
        if let Some(record) = &self.closed {
            return Some(record.clone());
        }
        let bytes = self.bytes.as_ref()?;
        let whole = whole(&self.head, bytes);
        (whole.bytes > 0).then(|| record(epoch, self, &whole))
    }
}

fn record(epoch: &DiskEpoch, segment: &DiskSegment, whole: &WholePart) -> SegmentRecord {
    let bytes = segment.bytes.as_deref().unwrap_or_default();
    let counted = &bytes[..usize::try_from(whole.bytes).unwrap_or(bytes.len())];
    let first = segment.head.begun_at;
    SegmentRecord {
        version: LOGS_VERSION,
        epoch: epoch.record.epoch.clone(),
        number: segment.number,
        from: segment.head.from.clone(),
        to: whole.to.clone(),
        lead: segment.head.lead,
        bytes: Bytes(whole.bytes),
        sha256: hex::encode(Sha256::digest(counted)),
        transactions: whole.transactions,
        gtid_state: whole.gtid_state.clone(),
        commits: whole.commits,
        received: Span { first, last: segment.written_at.max(first) },
    }
}

impl DiskEpoch {
    pub(super) fn segment(&self, number: u64) -> Option<&DiskSegment> {
        self.segments.iter().find(|segment| segment.number == number)
    }
}

impl DiskState {
    /// Puts on disk what was written: what the repository has is never lost here.
    pub(super) fn sync(&mut self) {
        let open = self.epochs.iter_mut().flat_map(|epoch| &mut epoch.segments);
        for segment in open.filter(|segment| segment.closed.is_none()) {
            segment.synced = segment.bytes.as_ref().map_or(0, Vec::len);
        }
    }

    pub(super) fn segment_mut(&mut self, epoch: &EpochId, number: u64) -> Option<&mut DiskSegment> {
        let epoch = self.epochs.iter_mut().find(|it| it.record.epoch == *epoch)?;
        epoch.segments.iter_mut().find(|segment| segment.number == number)
    }

    /// The epochs as a catalogue says them.
    pub(super) fn catalogue(state: &State) -> Vec<Epoch> {
        let one = |epoch: &DiskEpoch| Epoch {
            record: epoch.record.clone(),
            segments: epoch.segments.iter().filter_map(|segment| segment.describe(epoch)).collect(),
            damaged: Vec::new(),
        };
        state.disk.epochs.iter().map(one).collect()
    }
}

impl World {
    /// `kill -9` of the archive, or of the machine: what was not synced is there in part, or not at all.
    pub fn crash(&self) {
        let mut state = self.lock();
        let State { disk, random, .. } = &mut *state;
        for segment in disk.epochs.iter_mut().flat_map(|epoch| &mut epoch.segments) {
            if let (None, Some(bytes)) = (&segment.closed, &mut segment.bytes) {
                let left = random.random_range(segment.synced..=bytes.len());
                bytes.truncate(left);
            }
        }
    }
}

/// The archive's writer on the fake disk.
#[derive(Debug)]
pub struct FakeSpool {
    world: World,
    /// What is whole of the open segment, and what of it counts.
    open: Option<(WholePart, WholePart)>,
    is_broken: bool,
}

impl FakeSpool {
    /// The next writer, which finds what the one before has left.
    #[must_use]
    pub fn open(world: &World) -> Self {
        let mut writer = Self { world: world.clone(), open: None, is_broken: true };
        writer.take_stock();
        writer
    }

    fn take_stock(&mut self) {
        self.open = None;
        self.is_broken = false;
        let mut state = self.world.lock();
        let Some(epoch) = state.disk.epochs.last_mut() else { return };
        let Some(segment) = epoch.segments.last_mut().filter(|segment| segment.closed.is_none()) else {
            return;
        };
        let bytes = segment.bytes.get_or_insert_default();
        let found = whole(&segment.head, bytes);
        if found.bytes <= segment.head.lead {
            epoch.segments.pop();
            return;
        }
        bytes.truncate(usize::try_from(found.bytes).unwrap_or(0));
        segment.synced = bytes.len();
        let counted = unique(bytes);
        state.disk.counted.extend(counted);
        self.open = Some((found.clone(), found));
    }

    fn guarded<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        if self.is_broken {
            return Err(Failure::new(FailureKind::Other, "it was not resumed after an error", ""));
        }
        let done = run(self);
        self.is_broken = done.is_err();
        done
    }

    fn room(&self) -> Result<(), Failure> {
        match self.world.lock().disk.is_full {
            true => Err(Failure::new(FailureKind::NoSpace, "the disk is full", "")),
            false => Ok(()),
        }
    }

    fn close(&mut self) -> Result<(), Failure> {
        let Some((found, _)) = &self.open else { return Ok(()) };
        let found = found.clone();
        let is_whole = self.with_open(|segment| segment.bytes.as_ref().map(Vec::len)).flatten();
        if is_whole != usize::try_from(found.bytes).ok() {
            return Err(Failure::new(FailureKind::Other, "a segment ends with a whole transaction", ""));
        }
        self.sync_with(found.gtid_state)?;
        let Some((_, counted)) = self.open.take() else { return Ok(()) };
        let mut state = self.world.lock();
        let Some(epoch) = state.disk.epochs.last() else { return Ok(()) };
        let sidecar = epoch.segments.last().map(|segment| record(epoch, segment, &counted));
        if let Some(segment) = state.disk.epochs.last_mut().and_then(|epoch| epoch.segments.last_mut()) {
            segment.closed = sidecar;
        }
        Ok(())
    }

    fn sync_with(&mut self, gtid_state: Option<Gtids>) -> Result<(), Failure> {
        self.room()?;
        let counted = self.with_open(|segment| {
            let bytes = segment.bytes.get_or_insert_default();
            segment.synced = bytes.len();
            unique(bytes)
        });
        if let (Some((found, counts)), Some(counted)) = (&mut self.open, counted) {
            found.gtid_state = gtid_state;
            *counts = found.clone();
            self.world.lock().disk.counted.extend(counted);
        }
        Ok(())
    }

    fn with_open<T>(&self, run: impl FnOnce(&mut DiskSegment) -> T) -> Option<T> {
        let mut state = self.world.lock();
        let segment = state.disk.epochs.last_mut()?.segments.last_mut()?;
        Some(run(segment))
    }
}

/// The whole transactions in these bytes.
pub(super) fn unique(bytes: &[u8]) -> Vec<u64> {
    let ends = events(bytes).into_iter().filter_map(|event| match event {
        Event::End(id) => Some(id.unique),
        _ => None,
    });
    ends.collect()
}

impl LogSink for FakeSpool {
    fn epoch(&self) -> Option<EpochRecord> {
        self.world.lock().disk.epochs.last().map(|epoch| epoch.record.clone())
    }

    fn reached(&self) -> Option<LogPlace> {
        let state = self.world.lock();
        let epoch = state.disk.epochs.last()?;
        let closed = epoch.segments.iter().rev().find_map(|segment| segment.closed.as_ref());
        Some(match (&self.open, closed) {
            (Some((_, counted)), _) => counted.to.clone(),
            (None, Some(last)) => last.to.clone(),
            (None, None) => epoch.record.from.clone(),
        })
    }

    fn gtid_state(&self) -> Option<Gtids> {
        let state = self.world.lock();
        let epoch = state.disk.epochs.last()?;
        let closed = epoch.segments.iter().rev().find_map(|segment| segment.closed.as_ref());
        match (&self.open, closed) {
            (Some((_, counted)), _) => counted.gtid_state.clone(),
            (None, Some(last)) => last.gtid_state.clone(),
            (None, None) => epoch.record.gtid_state.clone(),
        }
    }

    fn first_bytes(&self, count: usize) -> Option<Vec<u8>> {
        self.with_open(|segment| segment.bytes.as_ref()?.get(..count).map(<[u8]>::to_vec)).flatten()
    }

    fn segment(&self) -> Option<(SegmentHead, u64)> {
        self.open.as_ref()?;
        self.with_open(|segment| {
            (segment.head.clone(), segment.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
        })
    }

    fn begin_epoch(&mut self, record: EpochRecord) -> Result<(), Failure> {
        self.guarded(|this| {
            this.close()?;
            this.room()?;
            this.world.lock().disk.epochs.push(DiskEpoch { record, segments: Vec::new() });
            Ok(())
        })
    }

    fn begin_segment(&mut self, head: SegmentHead, lead: &[u8]) -> Result<(), Failure> {
        self.guarded(|this| {
            this.close()?;
            this.room()?;
            let mut state = this.world.lock();
            let epoch = state.disk.epochs.last_mut();
            let epoch = epoch.ok_or_else(|| Failure::new(FailureKind::Other, "no epoch was begun", ""))?;
            let number = epoch.segments.last().map_or(1, |segment| segment.number + 1);
            let nothing = WholePart {
                bytes: lead.len() as u64,
                to: head.from.clone(),
                transactions: 0,
                commits: None,
                gtid_state: head.gtid_state.clone(),
            };
            epoch.segments.push(DiskSegment {
                number,
                written_at: head.begun_at,
                head,
                bytes: Some(lead.to_vec()),
                synced: 0,
                closed: None,
                stored_in: None,
            });
            this.open = Some((nothing.clone(), nothing));
            Ok(())
        })
    }

    fn append(&mut self, bytes: &[u8], added: &Added) -> Result<(), Failure> {
        self.guarded(|this| {
            if this.open.is_none() {
                return Err(Failure::new(FailureKind::Other, "no segment was begun", ""));
            }
            // Half of it may be written before there is no room.
            let full = this.room();
            let written = if full.is_ok() { bytes.len() } else { bytes.len() / 2 };
            let now = this.world.now();
            let length = this.with_open(|segment| {
                segment.written_at = now;
                let all = segment.bytes.get_or_insert_default();
                all.extend_from_slice(&bytes[..written]);
                all.len() as u64
            });
            full?;
            if let (Added::Whole { to, transactions, .. }, Some((found, _)), Some(length)) =
                (added, &mut this.open, length)
            {
                found.bytes = length;
                found.to = to.clone();
                found.transactions += transactions;
            }
            Ok(())
        })
    }

    fn sync(&mut self, gtid_state: Option<Gtids>) -> Result<(), Failure> {
        self.guarded(|this| if this.open.is_some() { this.sync_with(gtid_state) } else { Ok(()) })
    }

    fn close_segment(&mut self) -> Result<(), Failure> {
        self.guarded(Self::close)
    }

    fn status(&mut self, _status: &LogStatus) -> Result<(), Failure> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Failure> {
        self.take_stock();
        Ok(())
    }
}
