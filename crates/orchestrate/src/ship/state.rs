//! What the log archive's loop remembers between two events.
//!
//! Crash story: plain values; whoever is killed has nothing here that the sink does not know.

use std::time::Duration;

use jiff::Timestamp;
use model::{
    gtid::GtidState,
    logs::{Beginning, LogPlace, LogServer},
    port_logs::LogEvent,
    server::{BinlogPosition, Flavor, Gtids},
    time::Moment,
};

pub(super) fn end_of(event: &LogEvent) -> BinlogPosition {
    BinlogPosition { file: event.start.file.clone(), offset: event.end }
}

/// Whether two states of GTIDs, as far as they are known, are the same.
pub(super) fn is_same_state(ours: Option<&Gtids>, theirs: Option<&Gtids>) -> bool {
    // Only MariaDB's is compared; MySQL's may have gaps that its log does not show.
    let state = |text: Option<&Gtids>| text.and_then(|text| GtidState::parse(Flavor::MariaDb, text));
    match (state(ours), state(theirs)) {
        (Some(ours), Some(theirs)) => ours.contains(&theirs) && theirs.contains(&ours),
        _ => true,
    }
}

pub(super) enum End {
    Stopped,
    /// The file of the place that was reached is another one of the same name.
    AnotherFile,
    Gone {
        said: String,
        is_certain: bool,
    },
}

/// What was found wrong with going on, by the connection before.
pub(super) enum Wrong {
    Gone(String),
    AnotherFile,
}

pub(super) struct Begin {
    pub(super) because: Beginning,
    pub(super) server: LogServer,
    pub(super) gtid_state: Option<Gtids>,
}

/// Told to stop.
pub(super) struct Last {
    /// Where the server's log ended then, if it said so.
    pub(super) to: Option<LogPlace>,
    pub(super) since: Moment,
}

pub(super) struct Unsynced {
    pub(super) since: Moment,
    /// The end of the last whole transaction.
    pub(super) to: Option<BinlogPosition>,
    pub(super) commit: Option<Timestamp>,
    pub(super) ack: Option<BinlogPosition>,
    pub(super) is_whole: bool,
}

impl Unsynced {
    pub(super) fn new(since: Moment) -> Self {
        Self { since, to: None, commit: None, ack: None, is_whole: true }
    }

    pub(super) fn with(self, event: &LogEvent) -> Self {
        Self {
            since: self.since,
            to: event.is_boundary.then(|| end_of(event)).or(self.to),
            commit: event.commit.or(self.commit),
            ack: event.wants_ack.then(|| end_of(event)).or(self.ack),
            is_whole: event.is_boundary,
        }
    }
}

pub(super) struct Progress {
    pub(super) started_at: Timestamp,
    pub(super) told: Option<Moment>,
    pub(super) caught_up_at: Option<Timestamp>,
    pub(super) lag: Duration,
    pub(super) max_lag: Duration,
    pub(super) acknowledging: bool,
    pub(super) trouble: Option<String>,
    /// No transaction is half stored.
    pub(super) is_whole: bool,
}

impl Progress {
    pub(super) fn new(now: Timestamp) -> Self {
        let (lag, max_lag) = (Duration::ZERO, Duration::ZERO);
        let (told, caught_up_at, trouble) = (None, None, None);
        Self {
            started_at: now,
            told,
            caught_up_at,
            lag,
            max_lag,
            acknowledging: false,
            trouble,
            is_whole: true,
        }
    }

    /// A transaction of this time is on disk now. While the archive reads what it has not read for long, that is no lag of
    /// ours: it counts from the start.
    pub(super) fn committed(&mut self, commit: Timestamp, now: Timestamp) {
        self.lag = Duration::try_from(now.duration_since(commit)).unwrap_or_default();
        if commit >= self.started_at {
            self.max_lag = self.max_lag.max(self.lag);
        }
    }
}
