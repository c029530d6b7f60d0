//! A recovery as a value: what `--dry-run` prints and a run executes.
//!
//! Crash story: pure functions, no effects.

use jiff::{Timestamp, tz::Offset};
use serde::Serialize;

use super::{BackupId, Base, Goal, Gtids, Leg, LogPlace, Route, SourceId, Stop};
use crate::{id::AppName, logs::LogPlace::Binlog, size::Bytes};

/// What brings one application to a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecoveryPlan {
    /// The application.
    pub application: AppName,
    /// What was asked for.
    pub goal: Goal,
    /// The moment that this is.
    pub moment: Timestamp,
    /// The backup that files, and databases without an archive, come from.
    pub backup: BackupId,
    /// Its instant.
    pub backup_time: Timestamp,
    /// By how many seconds the files are older than the databases.
    pub files_older_s: i64,
    /// The databases that are brought to the moment.
    pub databases: Vec<Recovery>,
    /// Databases without a log archive: they are as of the backup.
    pub as_of_backup: Vec<SourceId>,
}

/// What brings one database to a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// The database.
    pub source: SourceId,
    /// What is restored first.
    pub base: Base,
    /// The segments that are replayed, in order.
    pub legs: Vec<Leg>,
    /// Where the replay begins, in bytes of the first segment's file.
    pub start_offset: u64,
    /// Where it stops, in bytes of the last segment's file.
    pub stop_offset: u64,
    /// Where the database is then.
    pub reached: Reached,
}

/// Where a database stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// The place in its log.
    pub place: LogPlace,
    /// Binary logs: GTID state there.
    pub gtid_state: Option<Gtids>,
    /// The time of the last transaction that is in it, if one is replayed from the last segment.
    pub last: Option<Timestamp>,
    /// The time of the first transaction that is not in it, if the archive has one.
    pub next: Option<Timestamp>,
}

impl Recovery {
    /// The recovery along this route: to this stop, which is in that leg, or to the end of all. `gtid_state` is that of the
    /// stop, if it is known.
    #[must_use]
    pub fn new(route: Route, stop: Option<(usize, Stop)>, gtid_state: Option<Gtids>) -> Self {
        let Route { base, mut legs, .. } = route;
        let end = legs.last().map_or(base.place.clone(), |leg| leg.segment.to.clone());
        let reached = match stop {
            None => Reached {
                place: end,
                gtid_state,
                last: legs.last().and_then(|leg| Some(leg.segment.commits?.last)),
                next: None,
            },
            Some((leg, stop)) => {
                legs.truncate(leg + 1);
                let (last, next) = (stop.last.map(|last| last.time), stop.next.map(|next| next.time));
                Reached { place: stop.place, gtid_state, last, next }
            }
        };
        // A segment of which nothing is replayed is not needed.
        while legs.len() > 1 && legs.last().is_some_and(|leg| leg.segment.from == reached.place) {
            legs.pop();
        }
        let start_offset = legs.first().map_or(0, |leg| leg.offset(&base.place));
        let stop_offset = legs.last().map_or(0, |leg| leg.offset(&reached.place));
        Self { source: base.source.clone(), base, legs, start_offset, stop_offset, reached }
    }

    /// Bytes of log that are replayed.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        let all: u64 = self.legs.iter().map(|leg| leg.segment.bytes.0).sum();
        let behind = self.legs.last().map_or(0, |leg| leg.segment.bytes.0.saturating_sub(self.stop_offset));
        Bytes(all.saturating_sub(behind).saturating_sub(self.start_offset))
    }

    /// Nothing is to be replayed: the base is the moment.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.legs.is_empty() || self.base.place == self.reached.place
    }

    /// In a line for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let base = self.base.name();
        let mut text =
            format!("{}: {base} of {} stands at {}", self.source, utc(self.base.time), self.base.place);
        if self.is_nothing() {
            text.push_str("; nothing is to be replayed");
        } else {
            let one = if self.legs.len() == 1 { "segment" } else { "segments" };
            text.push_str(&format!(
                "; {} {one} of its log ({}) replayed up to {}",
                self.legs.len(),
                self.bytes(),
                self.reached.place
            ));
        }
        text.push_str(&self.reached.describe());
        text
    }
}

impl Reached {
    fn describe(&self) -> String {
        let mut text = String::new();
        if let Some(gtids) = &self.gtid_state {
            text.push_str(&format!(", GTID state {gtids}"));
        }
        if let Some(last) = self.last {
            text.push_str(&format!("; the last transaction in it is of {}", utc(last)));
        }
        match self.next {
            Some(next) => text.push_str(&format!("; the first that is not is of {}", utc(next))),
            None => text.push_str("; the archive has none after it"),
        }
        text
    }
}

impl Leg {
    /// Where a place of the log is in the segment's file, in bytes; a place of another file is its beginning.
    #[must_use]
    pub fn offset(&self, place: &LogPlace) -> u64 {
        match (place, &self.segment.from) {
            (Binlog(place), Binlog(from)) if place.file == from.file => {
                (place.offset + self.segment.lead).saturating_sub(from.offset).max(4)
            }
            _ => self.segment.lead.max(4),
        }
    }
}

impl RecoveryPlan {
    /// What is done, line by line.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let mut lines = vec![format!("to {}: {}", self.goal, utc(self.moment))];
        lines.extend(self.databases.iter().map(Recovery::describe));
        for source in &self.as_of_backup {
            lines.push(format!("{source}: no log archive: as of the backup of {}", utc(self.backup_time)));
        }
        lines.push(format!(
            "files come from backup {} of {}, {} before",
            self.backup.short(),
            utc(self.backup_time),
            duration(self.files_older_s)
        ));
        lines
    }
}

fn utc(time: Timestamp) -> String {
    time.display_with_offset(Offset::UTC).to_string()
}

/// A length of time for people.
#[must_use]
pub fn duration(seconds: i64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s} s"),
        (0, 0, _) => format!("{m} min {s} s"),
        (0, _, _) => format!("{h} h {m} min"),
        _ => format!("{d} d {h} h"),
    }
}
