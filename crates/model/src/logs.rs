//! The log archive, as values: epochs, segments, and what ends them. Written forms: `docs/format/logs.md`.
//!
//! An *epoch* is a stretch of one source's log without a hole, cut into *segments*. What the archive cannot prove to
//! go on from what it has begins a new epoch, whose record says why.
//!
//! Crash story: plain values, no effects. A segment counts once its sidecar is written; until then it is read again from its
//! own bytes.

use std::{cmp::Ordering, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    id::{EpochId, SourceId},
    server::{BinlogPosition, Gtids, ServerVersion},
    size::Bytes,
};

/// Version of all formats of the log archive.
pub const LOGS_VERSION: u32 = 1;

/// What a log consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// Events of a MariaDB or MySQL server's binary log.
    Binlog,
    /// Committed frames of an SQLite write-ahead log.
    SqliteWal,
}

/// A place in an SQLite write-ahead log: all of its frames up to and including number `frame`, and all logs before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WalPosition {
    /// How many logs of this epoch came before: the log is begun anew after a checkpoint, under new salts.
    pub generation: u64,
    /// Both salts of the log's header, <https://www.sqlite.org/fileformat2.html#walformat>.
    pub salts: (u32, u32),
    /// Frames, counted from 1; 0 is before the first.
    pub frame: u64,
    /// Checksum of that frame, which depends on all frames of the log before it; of the log's header if there is none.
    pub checksum: (u32, u32),
}

impl WalPosition {
    /// Whether nothing lies between `end`, at which one epoch ends, and this place, at which another begins: it is the same
    /// one, or in a log that was begun anew and has no frame yet. Each epoch counts generations for itself.
    #[must_use]
    pub fn is_right_after(&self, end: &Self) -> bool {
        if self.salts != end.salts {
            return self.frame == 0;
        }
        self.frame == end.frame && (self.frame == 0 || self.checksum == end.checksum)
    }
}

/// A place in a log. Places are ordered within one epoch only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogPlace {
    /// In a binary log.
    Binlog(BinlogPosition),
    /// In a write-ahead log.
    SqliteWal(WalPosition),
}

impl LogPlace {
    /// Which of two places of one epoch comes first; nothing if they are not of one kind.
    #[must_use]
    pub fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Binlog(a), Self::Binlog(b)) => Some(binlog_order(a, b)),
            (Self::SqliteWal(a), Self::SqliteWal(b)) => {
                Some((a.generation, a.frame).cmp(&(b.generation, b.frame)))
            }
            _ => None,
        }
    }
}

impl fmt::Display for LogPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Binlog(place) => place.fmt(f),
            Self::SqliteWal(place) => write!(f, "{}:{}", place.generation, place.frame),
        }
    }
}

/// Binary logs of one server are numbered; the number has six digits until there are more than a million.
#[must_use]
pub fn binlog_order(a: &BinlogPosition, b: &BinlogPosition) -> Ordering {
    let number = |place: &BinlogPosition| {
        place.file.rsplit_once('.').and_then(|(_, digits)| digits.parse::<u64>().ok())
    };
    number(a).cmp(&number(b)).then_with(|| a.file.cmp(&b.file)).then(a.offset.cmp(&b.offset))
}

/// Why an epoch begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "because")]
pub enum Beginning {
    /// It is the first.
    First,
    /// It goes on exactly where another one ended, on another server or under other names: no hole.
    Continues {
        /// The one before.
        after: EpochId,
    },
    /// What lies between the end of another one and its beginning is lost.
    Hole {
        /// The one before.
        after: EpochId,
        /// Why.
        cause: HoleCause,
        /// For people: what was found.
        detail: String,
    },
}

/// Why something is missing from a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoleCause {
    /// The server removed its logs before they were read.
    Purged,
    /// The server's log was begun anew (`RESET MASTER`), or is another server's that shares no history.
    Reset,
    /// The server has lost what the archive holds: it was restarted after a crash with `sync_binlog` other than 1, or was
    /// restored. What the archive holds beyond that was never part of the server's later history.
    Diverged,
    /// An application began its write-ahead log anew while nobody watched.
    WalReset,
    /// The partition was full for longer than the log was kept.
    NoSpace,
    /// Stored bytes are missing or wrong.
    Damaged,
}

impl fmt::Display for HoleCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Purged => "the server removed its logs before they were read",
            Self::Reset => "the server's log was begun anew",
            Self::Diverged => "the server has lost what the archive holds",
            Self::WalReset => "the write-ahead log was begun anew while nobody watched",
            Self::NoSpace => "there was no space for the archive",
            Self::Damaged => "a stored part is missing or damaged",
        })
    }
}

/// How an epoch begins: `epoch.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Format version, [`LOGS_VERSION`].
    pub version: u32,
    /// The epoch.
    pub epoch: EpochId,
    /// Whose log it is.
    pub source: SourceId,
    /// What it consists of.
    pub kind: LogKind,
    /// When it was begun, by this machine's clock.
    pub begun_at: Timestamp,
    /// Why.
    pub beginning: Beginning,
    /// Where it begins.
    pub from: LogPlace,
    /// Binary logs: the server that they are read from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<LogServer>,
    /// Binary logs: `@@gtid_binlog_state` (MySQL: `gtid_executed`) at `from`, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gtid_state: Option<Gtids>,
    /// Write-ahead logs: the whole database as it was at `from` lies in the epoch as `base.db`, so the epoch can be restored
    /// without a backup.
    #[serde(default)]
    pub has_base: bool,
}

/// The server that a binary log is read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogServer {
    /// `@@server_id`.
    pub server_id: u32,
    /// Its version.
    pub version: ServerVersion,
    /// MySQL: `@@server_uuid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

/// What is known when a segment is begun: `{number}.head`, there until its sidecar is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHead {
    /// Format version, [`LOGS_VERSION`].
    pub version: u32,
    /// Where it begins.
    pub from: LogPlace,
    /// See [`SegmentRecord::lead`].
    #[serde(default)]
    pub lead: u64,
    /// Binary logs: GTID state at `from`, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gtid_state: Option<Gtids>,
    /// When it was begun, by this machine's clock.
    pub begun_at: Timestamp,
}

/// What a segment holds up to the end of its last whole transaction, as its own bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholePart {
    /// Its length in the file, lead included.
    pub bytes: u64,
    /// Where it ends.
    pub to: LogPlace,
    /// Transactions.
    pub transactions: u64,
    /// Smallest and largest time of them, if the log says any.
    pub commits: Option<Span>,
    /// Binary logs: GTID state after it, if it is known.
    pub gtid_state: Option<Gtids>,
}

/// What bytes that are appended mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// The beginning or middle of a transaction.
    Part,
    /// They end a transaction, or lie between two.
    Whole {
        /// Where they end.
        to: LogPlace,
        /// How many transactions they end.
        transactions: u64,
        /// The times of these.
        commits: Option<Span>,
    },
}

/// One closed segment: its sidecar, `{number}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Format version, [`LOGS_VERSION`].
    pub version: u32,
    /// The epoch.
    pub epoch: EpochId,
    /// Counted from 1, without gaps within the epoch.
    pub number: u64,
    /// Where it begins: the end of the one before, or of the epoch's beginning.
    pub from: LogPlace,
    /// Where it ends.
    pub to: LogPlace,
    /// Binary logs: bytes before the first event of the log (magic and format description event, which every file
    /// needs to be readable by itself): offset in the log = `from.offset` + offset in the segment − `lead`.
    #[serde(default)]
    pub lead: u64,
    /// Bytes of the file, lead included.
    pub bytes: Bytes,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
    /// Transactions that begin in it.
    pub transactions: u64,
    /// Binary logs: GTID state after its last event, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gtid_state: Option<Gtids>,
    /// Smallest and largest time of its transactions, as the log says (binary logs: whole seconds, not monotonic) or as
    /// they were captured (SQLite). Absent if none begins in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commits: Option<Span>,
    /// When its first and last bytes were received, by this machine's clock.
    pub received: Span,
}

/// Two moments, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The earlier one.
    pub first: Timestamp,
    /// The later one.
    pub last: Timestamp,
}

/// How far an archive is: `status.json`, written at most once a second while it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Format version, [`LOGS_VERSION`].
    pub version: u32,
    /// Whose log it is.
    pub source: SourceId,
    /// The epoch that is being written.
    pub epoch: EpochId,
    /// Everything before this place is on disk in the archive.
    pub place: LogPlace,
    /// The archive has, or had at this moment, everything that was committed: when it last stood at the end of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caught_up_at: Option<Timestamp>,
    /// When this was written.
    pub at: Timestamp,
    /// When the archive was started.
    pub started_at: Timestamp,
    /// From the commit of the newest transaction to its being on disk here, in seconds; as coarse as the log's clock.
    pub lag_s: f64,
    /// The largest since the start, in seconds.
    pub max_lag_s: f64,
    /// Semi-synchronous: the server waits for this archive before it tells a client that it has committed.
    #[serde(default)]
    pub acknowledging: bool,
    /// Why nothing is written at this moment, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// One epoch with all its segments, as the spool or a repository holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Epoch {
    /// How it begins.
    pub record: EpochRecord,
    /// Its segments in order. The open one is among them, described from its own bytes.
    pub segments: Vec<SegmentRecord>,
    /// Segments that should be there and are missing or damaged: number and what was found.
    pub damaged: Vec<(u64, String)>,
}

impl Span {
    /// One moment.
    #[must_use]
    pub fn at(time: Timestamp) -> Self {
        Self { first: time, last: time }
    }

    /// The shortest that holds both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

impl Epoch {
    /// Where it ends.
    #[must_use]
    pub fn reached(&self) -> &LogPlace {
        self.segments.last().map_or(&self.record.from, |segment| &segment.to)
    }
}

#[cfg(test)]
mod tests {
    use super::{WalPosition, binlog_order};
    use crate::server::BinlogPosition;

    #[test]
    fn an_epoch_goes_on_only_where_the_one_before_ends() {
        let place = |salts, frame, checksum| WalPosition { generation: 0, salts, frame, checksum };
        let (one, two) = ((1, 2), (2, 9));
        let end = WalPosition { generation: 5, ..place(one, 7, (3, 3)) };
        assert!(place(one, 7, (3, 3)).is_right_after(&end));
        assert!(place(two, 0, (0, 0)).is_right_after(&end), "a log begun anew, without a frame");
        for other in
            [place(one, 16, (4, 4)), place(one, 6, (3, 3)), place(one, 7, (3, 4)), place(two, 1, (3, 3))]
        {
            assert!(!other.is_right_after(&end), "{other:?}");
        }
        assert!(place(one, 0, (0, 0)).is_right_after(&place(one, 0, (8, 8))), "nothing was ever written");
        assert!(!place(one, 0, (0, 0)).is_right_after(&end));
    }

    #[test]
    fn binary_logs_are_ordered_by_number() {
        let place = |file: &str, offset| BinlogPosition { file: file.into(), offset };
        assert!(binlog_order(&place("b.999999", 9), &place("b.1000000", 4)).is_lt());
        assert!(binlog_order(&place("b.000002", 9), &place("b.000002", 10)).is_lt());
        assert!(binlog_order(&place("b.000002", 9), &place("b.000002", 9)).is_eq());
    }
}
