//! The ports of the log archive, as decorated.
//!
//! Crash story: see the parent.

use std::time::Duration;

use model::{
    id::{BackupId, EpochId, SourceId},
    logs::{Added, EpochRecord, LogPlace, LogStatus, SegmentHead, SegmentRecord},
    logs_retention::LogsPlan,
    port::{Failure, Progress},
    port_logs::{LogEvent, LogSink, LogSource, LogStream, Next, Seen, Start},
    port_shelf::{HeldLog, LogShelf, Shelved, Unproven},
    server::{BinlogPosition, Gtids},
};

use super::Faulty;

impl<T: LogSource> LogSource for Faulty<T> {
    fn look(&mut self, reached: Option<&BinlogPosition>) -> Result<Seen, Failure> {
        self.faults.run("source.look", || self.inner.look(reached))
    }
    fn end(&mut self) -> Result<(BinlogPosition, Option<Gtids>), Failure> {
        self.faults.run("source.end", || self.inner.end())
    }
    fn follow(&mut self, start: &Start, gtid_state: Option<&Gtids>) -> Result<Box<dyn LogStream>, Failure> {
        let inner = self.faults.run("source.follow", || self.inner.follow(start, gtid_state))?;
        Ok(Box::new(Faulty { inner, faults: self.faults.clone() }))
    }
}

impl LogStream for Faulty<Box<dyn LogStream>> {
    fn next(&mut self, within: Duration) -> Result<Next, Failure> {
        self.faults.run("stream.next", || self.inner.next(within))
    }
    fn lead(&self, first: &LogEvent) -> Vec<u8> {
        self.inner.lead(first)
    }
    fn gtid_state(&self) -> Option<Gtids> {
        self.inner.gtid_state()
    }
    fn is_file_of(&self, segment: &[u8]) -> Option<bool> {
        self.inner.is_file_of(segment)
    }
    fn is_acknowledging(&self) -> bool {
        self.inner.is_acknowledging()
    }
    fn acknowledge(&mut self, place: &BinlogPosition) -> Result<(), Failure> {
        self.faults.run("stream.acknowledge", || self.inner.acknowledge(place))
    }
}

/// An injected failure of a sink leaves it as it is: its driver must be resumed all the same.
impl<T: LogSink> LogSink for Faulty<T> {
    fn epoch(&self) -> Option<EpochRecord> {
        self.inner.epoch()
    }
    fn reached(&self) -> Option<LogPlace> {
        self.inner.reached()
    }
    fn gtid_state(&self) -> Option<Gtids> {
        self.inner.gtid_state()
    }
    fn first_bytes(&self, count: usize) -> Option<Vec<u8>> {
        self.inner.first_bytes(count)
    }
    fn segment(&self) -> Option<(SegmentHead, u64)> {
        self.inner.segment()
    }
    fn begin_epoch(&mut self, record: EpochRecord) -> Result<(), Failure> {
        self.faults.run("sink.begin_epoch", || self.inner.begin_epoch(record))
    }
    fn begin_segment(&mut self, head: SegmentHead, lead: &[u8]) -> Result<(), Failure> {
        self.faults.run("sink.begin_segment", || self.inner.begin_segment(head, lead))
    }
    fn append(&mut self, bytes: &[u8], added: &Added) -> Result<(), Failure> {
        self.faults.run("sink.append", || self.inner.append(bytes, added))
    }
    fn sync(&mut self, gtid_state: Option<Gtids>) -> Result<(), Failure> {
        self.faults.run("sink.sync", || self.inner.sync(gtid_state))
    }
    fn close_segment(&mut self) -> Result<(), Failure> {
        self.faults.run("sink.close_segment", || self.inner.close_segment())
    }
    fn status(&mut self, status: &LogStatus) -> Result<(), Failure> {
        self.faults.run("sink.status", || self.inner.status(status))
    }
    fn resume(&mut self) -> Result<(), Failure> {
        self.faults.run("sink.resume", || self.inner.resume())
    }
}

impl<T: LogShelf> LogShelf for Faulty<T> {
    fn here(&mut self) -> Result<Vec<HeldLog>, Failure> {
        self.faults.run("shelf.here", || self.inner.here())
    }
    fn there(&mut self) -> Result<Option<Vec<HeldLog>>, Failure> {
        self.faults.run("shelf.there", || self.inner.there())
    }
    fn store(&mut self, progress: &dyn Progress) -> Result<Shelved, Failure> {
        self.faults.run("shelf.store", || self.inner.store(progress))
    }
    fn unproven(
        &mut self,
        source: &SourceId,
        segments: &[SegmentRecord],
    ) -> Result<(BackupId, Vec<Unproven>), Failure> {
        self.faults.run("shelf.unproven", || self.inner.unproven(source, segments))
    }
    fn discard(
        &mut self,
        source: &SourceId,
        epoch: &EpochId,
        number: u64,
        stored_in: &BackupId,
    ) -> Result<(), Failure> {
        self.faults.run("shelf.discard", || self.inner.discard(source, epoch, number, stored_in))
    }
    fn forget(&mut self, plan: &LogsPlan) -> Result<(), Failure> {
        self.faults.run("shelf.forget", || self.inner.forget(plan))
    }
}
