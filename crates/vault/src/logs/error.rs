//! What can go wrong with the log archive's files.
//!
//! Crash story: plain values, no effects.

use std::{
    io,
    path::{Path, PathBuf},
};

use model::{
    id::SourceId,
    pathtext,
    port::{Failure, FailureKind},
};

/// The log archive could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The system says no.
    #[error("log archive: {} cannot be {doing}", pathtext::show(path))]
    Io {
        /// What could not be done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process writes this source's log.
    #[error("the log of {source_id} is being archived by another process")]
    Busy {
        /// The source.
        source_id: SourceId,
    },
    /// A file is not what the format says.
    #[error("log archive: {} {what}", pathtext::show(path))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The caller did not keep to the order of calls.
    #[error("log archive: {0}")]
    Order(&'static str),
}

impl LogsError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }

    /// Whether there is no room on the disk: it may pass.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl From<LogsError> for Failure {
    fn from(error: LogsError) -> Self {
        let what = error.to_string();
        let (kind, remedy) = match &error {
            error if error.is_no_space() => (
                FailureKind::NoSpace,
                "make room on the partition; the archive goes on by itself, and what it has is not touched",
            ),
            LogsError::Busy { .. } => {
                (FailureKind::Locked, "one `stillpoint log` for an application is enough")
            }
            LogsError::Damaged { .. } => (FailureKind::Damaged, "look with `stillpoint coverage`"),
            LogsError::Io { .. } | LogsError::Order(_) => (FailureKind::Other, ""),
        };
        let failure = Self::new(kind, what, remedy);
        match error {
            LogsError::Io { source, .. } => failure.because(source),
            _ => failure,
        }
    }
}
