//! Why an SQLite database could not be locked, pinned or read.
//!
//! Crash story: plain values, no effects.

use std::{io, path::PathBuf};

use model::{
    pathtext,
    port::{Failure, FailureKind},
    size::Bytes,
};
use os::staging::{StagingError, is_no_space};

/// What to do about an exclusive lock that was there for long.
pub(super) const EXCLUSIVE_REMEDY: &str = "if that is one long transaction, try again when it is over; else let the \
     application use PRAGMA locking_mode=NORMAL, or name stop and start hooks that release the database";

/// Why an SQLite database could not be locked, pinned or read. Every variant names the database.
#[derive(Debug, thiserror::Error)]
pub enum SqliteError {
    /// It will not be touched as it is.
    #[error("{}: {what}", pathtext::show(.path))]
    Refused {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// Others hold the lock.
    #[error("{}: another process holds its write lock", pathtext::show(.0))]
    Busy(PathBuf),
    /// Somebody keeps all others out: with a large transaction, or for good.
    #[error("{}: another process has locked it exclusively", pathtext::show(.0))]
    Exclusive(PathBuf),
    /// The deadline came first.
    #[error("{}: {what}", pathtext::show(.path))]
    TimedOut {
        /// The database.
        path: PathBuf,
        /// What was not finished.
        what: String,
    },
    /// The lock is not, or no longer, ours.
    #[error("{}: {what}", pathtext::show(.path))]
    Lost {
        /// The database.
        path: PathBuf,
        /// How it was noticed.
        what: String,
    },
    /// A file could not be read, written or cloned.
    #[error("{}: {what}", pathtext::show(.path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A helper process could not be started or does not answer.
    #[error("the helper for {} {what}", pathtext::show(.path))]
    Helper {
        /// The database.
        path: PathBuf,
        /// What happened.
        what: String,
        /// Why, if it is known.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The place for pinned copies could not be made or removed.
    #[error("the copy of {} has no place", pathtext::show(.path))]
    Staging {
        /// The database.
        path: PathBuf,
        /// Why.
        source: StagingError,
    },
    /// Too much is left to compare.
    #[error("{}: {left} of {size} were not compared by the deadline", pathtext::show(.path))]
    TooSlow {
        /// The database.
        path: PathBuf,
        /// What was left.
        left: Bytes,
        /// Of how much.
        size: Bytes,
    },
}

impl From<SqliteError> for Failure {
    fn from(error: SqliteError) -> Self {
        let what = error.to_string();
        let (kind, remedy) = match &error {
            SqliteError::Refused { remedy, .. } => (FailureKind::Refused, remedy.clone()),
            SqliteError::Busy(_) => {
                (FailureKind::Busy, "wait for the long transaction, or raise stall_budget".into())
            }
            SqliteError::Exclusive(_) => (FailureKind::Busy, EXCLUSIVE_REMEDY.into()),
            SqliteError::TimedOut { .. } => (FailureKind::TimedOut, "raise stall_budget".into()),
            SqliteError::TooSlow { .. } => (
                FailureKind::TimedOut,
                "raise stall_budget, switch the database to WAL mode, or put it on XFS or btrfs".into(),
            ),
            SqliteError::Lost { .. } => (FailureKind::Lost, String::new()),
            SqliteError::Io { source, .. } if is_no_space(source) => {
                (FailureKind::NoSpace, "free some space".into())
            }
            SqliteError::Io { .. } | SqliteError::Helper { .. } => (FailureKind::Other, String::new()),
            SqliteError::Staging { .. } => (FailureKind::Other, String::new()),
        };
        // The cause, not the error itself: Display has said that already.
        let failure = Self::new(kind, what, remedy);
        match error {
            SqliteError::Io { source, .. } => failure.because(source),
            SqliteError::Helper { source: Some(source), .. } => failure.because(source),
            SqliteError::Staging { source, .. } => {
                let cause = Self::from(source);
                Self { kind: cause.kind, remedy: cause.remedy.clone(), ..failure }.because(cause)
            }
            _ => failure,
        }
    }
}
