//! The plan of a restore, as a value: what is written where, what is swapped with what, and what a person
//! should know before.
//!
//! Nothing is ever written into what is there: everything is first written beside it, compared, and then put
//! in its place by renaming. `--dry-run` prints the very [`RestorePlan`] that a run executes.
//!
//! Crash story: plain values, pure functions, no effects.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    entry::{Kind, Meta},
    id::{AppName, BackupId, CutId},
    pathtext,
    port::{Failure, FailureKind},
    problem::{Effect, Problem},
    record::StoredBackup,
    reference::ReferenceFile,
    size::Bytes,
    verdict::Verdict,
};

mod choose;
mod copies;
mod describe;
mod listing;
mod make;
mod places;
mod server;
mod work;

pub use choose::{Choice, choose};
pub use copies::Cloned;
pub use listing::{Listed, Listing, Weight};
pub use make::{plan, still_open};
pub use places::{databases, places};
pub use server::{ServerAct, ServerPart, ServerSource, is_server_file, server_files, still_running};
pub use work::{Work, work};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The application.
    pub application: AppName,
    /// Which backup, from [`choose`].
    pub backup: StoredBackup,
    /// Where to.
    pub target: Target,
    /// Paths that `--to` must keep out of: the application's sources, the backup partition.
    pub keep_out: Vec<PathBuf>,
    /// Whether the application has hooks that stop and start it; they are run around the swap.
    pub has_hooks: bool,
    /// Restore in place although the backup is known to lack something.
    pub accept_incomplete: bool,
    /// The database servers of the backup.
    pub servers: Vec<ServerSource>,
    /// To a directory: only these roots and database files of the backup; empty for everything.
    pub only: Vec<PathBuf>,
    /// To a directory: read everything back from disk, too. In place that is always done.
    pub read_back: bool,
    /// To a directory: do not read what is cloned from frozen copies. In place it is always read.
    pub trust_copies: bool,
}

/// Where a backup is restored to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "to")]
pub enum Target {
    /// Below this directory, everything under its original absolute path.
    Directory {
        /// The directory.
        #[serde(with = "pathtext")]
        dir: PathBuf,
    },
    /// In place of what is there now.
    InPlace {
        /// Keep what was there.
        keep_old: bool,
    },
}

/// One object that is to be put somewhere as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its path in the backup; `/` for everything.
    pub from: PathBuf,
    /// Where it goes.
    pub to: PathBuf,
    /// What it is.
    pub kind: PlaceKind,
}

/// Kinds of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceKind {
    /// A directory with all it holds.
    Tree,
    /// A database file; its sidecars go with it.
    Database,
    /// Any other single file.
    File,
    /// A symbolic link on the way to one of the others.
    Link,
}

/// What was found on the target machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteFacts {
    /// Owners, devices and all attributes can be set.
    pub privileged: bool,
    /// One for each place asked for, in the same order.
    pub places: Vec<PlaceFacts>,
    /// Which processes have watched files open.
    pub open: Vec<Opened>,
    /// Frozen copies of what the backup holds that are as they were stored, each with the device number of its filesystem.
    pub copies: Vec<(ReferenceFile, u64)>,
}

/// A file that a process has open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Opened {
    /// Process id.
    pub pid: u32,
    /// Name of its program; may be empty.
    pub program: String,
    /// The file.
    #[serde(with = "pathtext")]
    pub path: PathBuf,
}

/// What was found at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceFacts {
    /// The place with the symbolic links in its parent resolved; as asked if the parent does not exist.
    pub real: PathBuf,
    /// What is there.
    pub found: Found,
    /// The directory above it.
    pub parent: ParentFacts,
    /// Names directly in it can be changed by this user.
    pub writable: bool,
    /// Why it cannot be renamed although its parent is writable: "it is a mount point".
    pub fixed: Option<String>,
    /// Mount points and subvolumes below it, which cannot be replaced by renaming what is above them.
    pub nested: Vec<PathBuf>,
    /// Device number of the filesystem that is written to, for adding up.
    pub device: u64,
    /// Its type, such as `xfs`.
    pub filesystem: String,
    /// Free bytes for this user.
    pub free: Bytes,
    /// Free inodes, where the filesystem counts them.
    pub free_inodes: Option<u64>,
    /// What would be replaced.
    pub census: Census,
}

/// What is at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// A directory with so many names in it.
    Dir(u64),
    /// A symbolic link and what it says.
    Symlink(PathBuf),
    /// Anything else.
    Other,
}

/// The directory above a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentFacts {
    /// It does not exist, or is no directory.
    Missing,
    /// Names in it cannot be changed by this user.
    ReadOnly,
    /// Names in it can be changed.
    Writable,
}

/// What a restore in place would replace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Census {
    /// Regular files there now.
    pub files: u64,
    /// Of these, modified later than what the backup holds under the same name.
    pub newer: u64,
    /// Names that are not in the backup: excluded, or made since.
    pub unlisted: u64,
    /// The first few of these.
    #[serde(with = "pathtext::list")]
    pub examples: Vec<PathBuf>,
}

/// What a restore will do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestorePlan {
    /// The application.
    pub application: AppName,
    /// The backup.
    pub backup: BackupId,
    /// Its cut, if it is one of ours.
    pub cut: Option<CutId>,
    /// The instant that is restored.
    pub time: Timestamp,
    /// How good the backup is.
    pub verdict: Option<Verdict>,
    /// Where to.
    pub target: Target,
    /// What is written, in this order.
    pub parts: Vec<Part>,
    /// Files that are moved away without being replaced: sidecars of databases.
    pub drops: Vec<Drop>,
    /// What is done with database servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ServerPart>,
    /// Databases and sidecars, and files of servers, that no process may have open when they are replaced.
    #[serde(with = "pathtext::list")]
    pub must_be_closed: Vec<PathBuf>,
    /// The application's hooks stop it before the swap and start it after.
    pub hooks: bool,
    /// Owners, devices and all attributes can be set.
    pub privileged: bool,
    /// Every byte is read back from the disk and compared, before anything appears in its place.
    pub read_back: bool,
    /// Frozen copies that are cloned instead of reading the repository; one that is not as it was stored any more is not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<ReferenceFile>,
    /// What is cloned is not read and compared with what the repository has.
    pub trusts_copies: bool,
    /// Regular files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: Bytes,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// One object that is written beside its place and then put there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Its path in the backup; `/` for everything.
    #[serde(with = "pathtext")]
    pub from: PathBuf,
    /// Its place.
    #[serde(with = "pathtext")]
    pub to: PathBuf,
    /// The directory in which it is written: on the same filesystem as `to`.
    #[serde(with = "pathtext")]
    pub beside: PathBuf,
    /// How it is put in place.
    pub exchange: Exchange,
    /// Names in it.
    pub entries: u64,
    /// Regular files in it.
    pub files: u64,
    /// Bytes in them.
    pub bytes: Bytes,
    /// What it replaces.
    pub replaces: Census,
}

/// How a part is put in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "by", content = "why")]
pub enum Exchange {
    /// It is renamed as a whole.
    Whole,
    /// The place itself stays (says why) and everything directly in it is exchanged name by name; its own
    /// attributes are set at the end.
    Children(String),
}

/// A file that is moved away without being replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drop {
    /// The file.
    #[serde(with = "pathtext")]
    pub path: PathBuf,
    /// The directory in which it is kept until the end.
    #[serde(with = "pathtext")]
    pub beside: PathBuf,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestoreReport {
    /// The application.
    pub application: AppName,
    /// The backup.
    pub backup: BackupId,
    /// Its cut, if it is one of ours.
    pub cut: Option<CutId>,
    /// The instant that was restored.
    pub time: Timestamp,
    /// How good the backup is.
    pub verdict: Option<Verdict>,
    /// Where to.
    pub target: Target,
    /// Where the restored objects are now.
    #[serde(with = "pathtext::list")]
    pub places: Vec<PathBuf>,
    /// Regular files that were written.
    pub files: u64,
    /// Bytes in them.
    pub bytes: Bytes,
    /// What of it was cloned from frozen copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloned: Option<Cloned>,
    /// What is missing or not as it was.
    pub problems: Vec<Problem>,
    /// Where the old state is kept.
    #[serde(with = "pathtext::list")]
    pub kept: Vec<PathBuf>,
    /// What is left for a person to do.
    pub next: Vec<String>,
    /// How long it took, in seconds.
    pub duration_s: f64,
}

impl RestoreReport {
    /// Whether everything in the backup was restored and is in its place.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.problems.iter().all(|p| p.effect != Effect::Missing)
    }
}

/// The sidecars of an SQLite database, <https://www.sqlite.org/tempfiles.html>.
#[must_use]
pub fn sidecars(database: &Path) -> [PathBuf; 3] {
    ["-wal", "-journal", "-shm"].map(|suffix| {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

fn refused(what: impl Into<String>, remedy: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Refused, what, remedy)
}

#[cfg(test)]
mod tests;
