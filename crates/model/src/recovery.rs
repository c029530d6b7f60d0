//! Bringing a database to a moment between backups: which base, which segments of its log, and where to stop.
//!
//! The meaning of a moment is in `docs/POINT-IN-TIME.md`: T means all transactions before the first, in log order, whose
//! time is at or after T. [`route`] finds base and segments from catalogues alone, and in which segment the stop lies;
//! [`stop_among`] finds it there, among transactions that were read from the segment. What is in the way is a [`Gap`].
//!
//! Crash story: plain values, pure functions, no effects.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    id::{BackupId, EpochId, SourceId},
    logs::{LogPlace, SegmentRecord},
    server::{BinlogPosition, Gtids},
};

mod base;
mod find;
mod plan;
mod route;
mod runs;
mod stop;

pub use base::{Base, BaseFrom};
pub use find::find;
pub use plan::{Reached, Recovery, RecoveryPlan, duration};
pub(crate) use route::index_in;
pub use route::{Asked, Leg, Route, Search, route};
pub use runs::{Break, Piece, Run, runs};
pub use stop::{Stop, Transaction, stop_among};

/// What is to be brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// All transactions before the first whose time is at or after this one.
    At(Timestamp),
    /// The transaction with this id and all before it.
    AtGtid(Gtids),
    /// Everything before this place of a binary log.
    AtPosition(BinlogPosition),
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(time) => write!(f, "{time}"),
            Self::AtGtid(gtid) => write!(f, "transaction {gtid}"),
            Self::AtPosition(place) => write!(f, "{place}"),
        }
    }
}

/// Why a goal cannot be reached, and what can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Whose log.
    pub source: SourceId,
    /// What is in the way.
    pub why: Why,
    /// For people: what was found.
    pub detail: String,
    /// The last moment before it that can be restored.
    pub before: Option<Timestamp>,
    /// The first moment after it that can be restored.
    pub after: Option<Timestamp>,
}

/// Kinds of what is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// There is no log archive of this database.
    NoArchive,
    /// No backup, or base of an epoch, lies on the log at or before the goal.
    NoBase,
    /// A part of the log is missing between the base and the goal.
    Hole,
    /// The archive does not reach so far.
    Beyond,
    /// It is not in the archive.
    Unknown,
    /// The goal is inside of a transaction, or it names several places.
    Ambiguous,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.detail)?;
        match (self.before, self.after) {
            (None, None) => Ok(()),
            (Some(before), None) => write!(f, "; the last moment before that can be restored is {before}"),
            (None, Some(after)) => write!(f, "; the first moment after that can be restored is {after}"),
            (Some(before), Some(after)) => {
                write!(f, "; the nearest moments that can be restored are {before} and {after}")
            }
        }
    }
}

impl std::error::Error for Gap {}

#[cfg(test)]
mod tests;
