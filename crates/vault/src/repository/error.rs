//! What can go wrong with a repository, and how it is told.
//!
//! Crash story: plain values, no effects.

use std::{error::Error, io, path::PathBuf, sync::Arc};

use model::{
    id::BackupId,
    pathtext,
    port::{Failure, FailureKind},
};
use rustic_core::{ErrorKind, RusticError};

use super::lock::Holder;

/// Why a repository could not do what it was asked. `Display` says what and where, [`Self::remedy`] what to
/// do; convert into [`Failure`] at the port boundary.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// Nothing is there.
    #[error("there is no repository at {}", pathtext::show(dir))]
    NoRepository {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// Something is there, but not a repository.
    #[error("{} is not a repository: {why}", pathtext::show(dir))]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// What was found instead.
        why: String,
    },
    /// There is a repository already.
    #[error("there is a repository at {} already", pathtext::show(dir))]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// No key of the repository opens with this password.
    #[error("the password opens none of the keys of {}", pathtext::show(dir))]
    WrongPassword {
        /// The repository.
        dir: PathBuf,
    },
    /// Somebody else uses the repository.
    #[error("{} is locked by {holder}", pathtext::show(dir))]
    Locked {
        /// The repository.
        dir: PathBuf,
        /// Who.
        holder: Box<Holder>,
    },
    /// Our own lock is gone: somebody took it for dead and removed it.
    #[error("our lock of {} was removed by somebody else while we wrote", pathtext::show(dir))]
    LockLost {
        /// The repository.
        dir: PathBuf,
    },
    /// A file of the repository could not be written, read or removed, or is not what it should be.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// There is no such backup.
    #[error("there is no backup {} in {}", id.short(), pathtext::show(dir))]
    NoSuchBackup {
        /// The repository.
        dir: PathBuf,
        /// What was asked for.
        id: BackupId,
    },
    /// Something stored does not fit together.
    #[error("{what}")]
    Damaged {
        /// What, and where.
        what: String,
    },
    /// It will not be done as things are.
    #[error("{what}")]
    Refused {
        /// What and why.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The library that reads and writes the repository's format failed.
    #[error("{doing} failed")]
    Library {
        /// What it was doing.
        doing: &'static str,
        /// What it said.
        source: LibraryError,
    },
    /// The journal could not be written, so nothing was begun.
    #[error("the lock of the repository could not be written to the journal")]
    Journal {
        /// Why.
        source: Failure,
    },
}

/// What rustic_core said, in one line: its own types never leave this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LibraryError(pub String);

/// A file of a repository that could not be written, read or removed, or is not what it should be.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// Writing failed.
    #[error("{} cannot be written", pathtext::show(path))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// Reading failed.
    #[error("{} cannot be read", pathtext::show(path))]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// Removing failed.
    #[error("{} cannot be removed", pathtext::show(path))]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// The content is not what it should be.
    #[error("{} is damaged: {what}", pathtext::show(path))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Nothing more is written after a first failed write.
    #[error("nothing more is written to {} after the first write failed", pathtext::show(dir))]
    Stopped {
        /// The repository.
        dir: PathBuf,
    },
}

impl StorageError {
    /// A failed write.
    pub(crate) fn write(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Write { path: path.into(), source: Arc::new(source) }
    }

    /// A failed read.
    pub(crate) fn read(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Read { path: path.into(), source: Arc::new(source) }
    }

    /// A failed removal.
    pub(crate) fn remove(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Remove { path: path.into(), source: Arc::new(source) }
    }

    /// Whether there was no space (or no quota) left.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Write { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::Write { .. } if self.is_no_space() => FailureKind::NoSpace,
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                FailureKind::Refused
            }
            Self::Read { .. } | Self::Damaged { .. } => FailureKind::Damaged,
            _ => FailureKind::Other,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Write { .. } if self.is_no_space() => {
                "make space on its filesystem (`stillpoint prune` frees what no backup needs) and try again; \
                 what was stored before is untouched"
            }
            Self::Write { .. } | Self::Remove { .. } => {
                "see that its filesystem is mounted writable and that we may write there"
            }
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as the user to whom the repository belongs"
            }
            Self::Read { .. } | Self::Damaged { .. } => {
                "run `stillpoint check --read-data` for what is affected; then bring the file back from \
                 another tier, or drop what is lost with `restic repair`"
            }
            Self::Stopped { .. } => "see the first failure",
        }
    }
}

impl RepositoryError {
    /// What kind of failure this is, for the exit status.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NoRepository { .. } => FailureKind::NoRepository,
            Self::WrongPassword { .. } => FailureKind::WrongPassword,
            Self::Locked { .. } => FailureKind::Locked,
            Self::Storage(error) => error.kind(),
            Self::Damaged { .. } => FailureKind::Damaged,
            Self::Foreign { .. } | Self::Exists { .. } | Self::Refused { .. } => FailureKind::Refused,
            Self::LockLost { .. } | Self::NoSuchBackup { .. } | Self::Library { .. } => FailureKind::Other,
            Self::Journal { source } => source.kind,
        }
    }

    /// What a person can do; may be empty.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::NoRepository { .. } => {
                "run `stillpoint init`, or see that the filesystem with the backups is mounted".into()
            }
            Self::Foreign { .. } => {
                "name another directory, or empty this one if nothing in it is needed".into()
            }
            Self::Exists { .. } => "use it as it is, or name another directory".into(),
            Self::WrongPassword { .. } => {
                "see that `password_file` names the key of this repository; the recovery sheet has it".into()
            }
            Self::Locked { holder, .. } => holder.remedy(),
            Self::LockLost { .. } => {
                "see who ran `restic unlock`, run `stillpoint check`, and take the backup again".into()
            }
            Self::Storage(error) => error.remedy().into(),
            Self::NoSuchBackup { .. } => "`stillpoint list` shows those that are there".into(),
            Self::Damaged { .. } => "run `stillpoint check --read-data` for what is affected".into(),
            Self::Refused { remedy, .. } => remedy.clone(),
            Self::Library { .. } => String::new(),
            Self::Journal { source } => source.remedy.clone(),
        }
    }

    /// What rustic_core reported while `doing` something. If one of our own storage errors is behind it,
    /// that one is told.
    pub(crate) fn library(doing: &'static str, error: &RusticError) -> Self {
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(link) = cause {
            if let Some(storage) = link.downcast_ref::<StorageError>() {
                return Self::Storage(storage.clone());
            }
            if let Some(inner) = link.downcast_ref::<Box<RusticError>>() {
                cause = Some(inner.as_ref());
                continue;
            }
            cause = link.source();
        }
        Self::Library { doing, source: LibraryError(sentence(error)) }
    }
}

/// What a chain of errors says, in one line. rustic_core's own texts have many: its `Display` goes on with
/// advice, context and a backtrace, and its `display_log` ends in the kind and the `Display` of the cause.
fn sentence(error: &RusticError) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(link) = cause {
        let rustic = link
            .downcast_ref::<RusticError>()
            .or_else(|| link.downcast_ref::<Box<RusticError>>().map(AsRef::as_ref));
        let part = rustic.map_or_else(|| first_paragraph(&link.to_string()), message);
        // Many a link repeats what is behind it.
        if !part.is_empty() && !parts.iter().any(|known| known.contains(&part)) {
            parts.push(part);
        }
        cause = link.source();
    }
    parts.join(": ")
}

/// The message of one link, without kind, code and cause.
fn message(error: &RusticError) -> String {
    let text = error.display_log();
    let text = text.strip_prefix("Error: ").unwrap_or(&text);
    let end = text.find(" (kind: related to ").unwrap_or(text.len());
    first_paragraph(&text[..end])
}

/// In one line, without its final stop.
fn first_paragraph(text: &str) -> String {
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ").trim_end_matches('.').to_owned()
}

/// Turns an error of rustic_core into ours, for use with `map_err`.
pub(crate) fn while_doing(doing: &'static str) -> impl Fn(Box<RusticError>) -> RepositoryError {
    move |error| RepositoryError::library(doing, &error)
}

/// Turns ours into one that rustic_core hands through, to be found again by [`RepositoryError::library`].
pub(crate) fn into_rustic(error: StorageError) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, "the repository's storage failed", error)
}

impl From<RepositoryError> for Failure {
    fn from(error: RepositoryError) -> Self {
        let (kind, remedy) = (error.kind(), error.remedy());
        let what = error.to_string();
        let cause: Option<Box<dyn Error + Send + Sync>> = match error {
            RepositoryError::Storage(
                StorageError::Write { source, .. }
                | StorageError::Read { source, .. }
                | StorageError::Remove { source, .. },
            ) => Some(Box::new(source)),
            RepositoryError::Library { source, .. } => Some(Box::new(source)),
            RepositoryError::Journal { source } => Some(Box::new(source)),
            _ => None,
        };
        Self { kind, what, remedy, source: cause }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustic_core::{ErrorKind, RusticError};

    use super::RepositoryError;

    #[test]
    fn what_the_library_says_is_told_in_one_line() {
        let cause = RusticError::with_source(
            ErrorKind::Cryptography,
            "The file `{file}` does not decrypt.\n\nIs it damaged?",
            io::Error::other("bad tag"),
        )
        .attach_context("file", "abab");
        let error = RusticError::with_source(ErrorKind::Internal, "The config cannot be read.", cause);
        let failure = model::port::Failure::from(RepositoryError::library("opening the repository", &error));
        assert_eq!(
            failure.in_full(),
            "opening the repository failed: The config cannot be read: The file `abab` does not decrypt: bad tag"
        );
    }
}
