//! The ports of the log archive: a server whose log is followed, and where it is put.
//!
//! Crash story: nothing that a [`LogSource`] gives is lost by losing it: it is read again. What [`LogSink::sync`] has returned for
//! stays; after any error of a sink [`LogSink::resume`] is called, and reading goes on from [`LogSink::reached`].

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    logs::{Added, EpochRecord, LogPlace, LogServer, LogStatus, SegmentHead},
    port::Failure,
    server::{BinlogPosition, Gtids},
};

/// A server, as it is before its log is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Who it is.
    pub server: LogServer,
    /// Its log's files, oldest first, with their sizes in bytes.
    pub files: Vec<(String, u64)>,
    /// The state of GTIDs in its log now, if it has any.
    pub gtid_state: Option<Gtids>,
    /// GTIDs before the place that the archive has reached, if the server still has that place and says so.
    pub before_reached: Option<Gtids>,
    /// GTIDs before its oldest file, if it says so.
    pub before_oldest: Option<Gtids>,
}

/// Where to begin following.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// At this place.
    Place(BinlogPosition),
    /// After these transactions, wherever that is.
    After(Gtids),
}

/// What came of following.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// An event that lies in the log.
    Event(LogEvent),
    /// Nothing came in the time that was given.
    Quiet,
    /// The server says that nothing comes because we have everything.
    CaughtUp,
    /// It cannot begin there: that part of its log is gone.
    Gone(String),
}

/// An event of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEvent {
    /// Its bytes, as they are in the file.
    pub bytes: Vec<u8>,
    /// Where it begins.
    pub start: BinlogPosition,
    /// Offset of its end in the same file.
    pub end: u64,
    /// What ends with it is whole: no transaction is open.
    pub is_boundary: bool,
    /// If a transaction ends with it: the time of that.
    pub commit: Option<Timestamp>,
    /// The server waits for its being on disk.
    pub wants_ack: bool,
}

/// A server whose log can be followed.
pub trait LogSource {
    /// Looks at the server. `reached` is the place that the archive has reached on it.
    ///
    /// # Errors
    /// If it cannot be reached or asked, or writes no log.
    fn look(&mut self, reached: Option<&BinlogPosition>) -> Result<Seen, Failure>;

    /// Where its log ends, and the state of GTIDs there if it has any.
    ///
    /// # Errors
    /// If it cannot be reached or asked.
    fn end(&mut self) -> Result<(BinlogPosition, Option<Gtids>), Failure>;

    /// Begins to follow its log. `gtid_state` is the state before `start`, as far as it is known.
    ///
    /// # Errors
    /// If it cannot be reached or refuses.
    fn follow(&mut self, start: &Start, gtid_state: Option<&Gtids>) -> Result<Box<dyn LogStream>, Failure>;
}

/// A log that is being followed.
pub trait LogStream {
    /// What comes next; waits no longer than this.
    ///
    /// # Errors
    /// If the connection is lost, or what comes is no log.
    fn next(&mut self, within: Duration) -> Result<Next, Failure>;

    /// What a segment needs before an event that is not the first of its file.
    fn lead(&self, first: &LogEvent) -> Vec<u8>;

    /// State of GTIDs after the event that came last, if it is known.
    fn gtid_state(&self) -> Option<Gtids>;

    /// Whether the file in which it began is the one whose segment begins with these bytes; nothing as long as that is not
    /// known.
    fn is_file_of(&self, segment: &[u8]) -> Option<bool>;

    /// Whether the server waits for us at commits, now.
    fn is_acknowledging(&self) -> bool;

    /// Tells the server that everything up to the end of an event that wanted it is on disk.
    ///
    /// # Errors
    /// If the connection is lost.
    fn acknowledge(&mut self, place: &BinlogPosition) -> Result<(), Failure>;
}

/// Where a log is put.
pub trait LogSink {
    /// The epoch that is being written; nothing before the first.
    fn epoch(&self) -> Option<EpochRecord>;

    /// Everything before this place counts.
    fn reached(&self) -> Option<LogPlace>;

    /// State of GTIDs there, if it is known.
    fn gtid_state(&self) -> Option<Gtids>;

    /// The first bytes of the segment in which that place is, if it is here.
    fn first_bytes(&self, count: usize) -> Option<Vec<u8>>;

    /// The open segment's head and its bytes so far.
    fn segment(&self) -> Option<(SegmentHead, u64)>;

    /// Begins an epoch, and ends the one before.
    ///
    /// # Errors
    /// If it cannot be written.
    fn begin_epoch(&mut self, record: EpochRecord) -> Result<(), Failure>;

    /// Begins a segment, and closes the one before.
    ///
    /// # Errors
    /// If it cannot be written.
    fn begin_segment(&mut self, head: SegmentHead, lead: &[u8]) -> Result<(), Failure>;

    /// Appends to the open segment. Nothing counts before [`sync`](Self::sync).
    ///
    /// # Errors
    /// If it cannot be written.
    fn append(&mut self, bytes: &[u8], added: &Added) -> Result<(), Failure>;

    /// Puts on disk what was appended; then all whole transactions of it count.
    ///
    /// # Errors
    /// If it cannot be written: what counted before still does, and nothing else.
    fn sync(&mut self, gtid_state: Option<Gtids>) -> Result<(), Failure>;

    /// Closes the open segment, if there is one; it must end with a whole transaction.
    ///
    /// # Errors
    /// If it does not, or cannot be written.
    fn close_segment(&mut self) -> Result<(), Failure>;

    /// Writes down how far we are.
    ///
    /// # Errors
    /// If it cannot be written.
    fn status(&mut self, status: &LogStatus) -> Result<(), Failure>;

    /// Takes stock again after an error: what does not count is cut off.
    ///
    /// # Errors
    /// If something cannot be read or written. It may be called again.
    fn resume(&mut self) -> Result<(), Failure>;
}
