//! The plan of a backup: which holds, in which order, and which pins, with the reason for each.
//!
//! [`Facts`] are what was found out about the machine; a pure function turns them and the inventory into a
//! [`CutPlan`]; `plan` and `--dry-run` print that very value; the run executes it without further decisions.
//!
//! Crash story: plain values, no effects.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{AppName, Relpath, SourceId},
    inventory::{Hooks, ProcessSelector},
    pathtext,
    problem::Problem,
    server::{EngineUse, Flavor, RootRole, ServerAccess, ServerFacts, ServerVersion, Volume, VolumeFacts},
    size::Bytes,
    time::Millis,
    undo::{Hook, ProcessRef},
    verdict::Verdict,
};

/// What was found out about one application's sources and processes before anything is held.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Facts {
    /// One for each directory of the application that was looked at.
    pub directories: Vec<DirectoryFacts>,
    /// One for each SQLite database.
    pub sqlite: Vec<SqliteFacts>,
    /// One for each database server.
    pub servers: Vec<ServerFacts>,
    /// The processes to hold, if any are named.
    pub process: Option<ProcessFacts>,
}

/// What a directory's filesystem can do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DirectoryFacts {
    /// The source.
    pub source: SourceId,
    /// Its path as given.
    #[serde(with = "pathtext")]
    pub path: PathBuf,
    /// Filesystem type as in `/proc/self/mountinfo`: `ext4`, `xfs`, `btrfs`, `overlay`, `tmpfs` and so on.
    pub filesystem: String,
    /// The path is the root of a btrfs subvolume and we may make a snapshot of it.
    pub subvolume: bool,
    /// `FICLONE` works from the directory's filesystem into `staging`.
    pub reflink: bool,
    /// Where pinned copies can be put: on the same filesystem if `reflink`, anywhere otherwise.
    #[serde(with = "pathtext::option")]
    pub staging: Option<PathBuf>,
    /// Mount points below the path: each is stored as part of the directory, pinned by its own means.
    #[serde(skip)]
    pub nested_mounts: Vec<PathBuf>,
    /// Btrfs subvolumes below the path: each is stored as part of the directory, and none can be replaced along with it.
    #[serde(skip)]
    pub nested_subvolumes: Vec<PathBuf>,
    /// How many names a walk found, for the predicted stall.
    pub entries: u64,
    /// The volume that it lies on, if that makes snapshots of all it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeFacts>,
    /// Why it cannot be backed up at all, with the remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

/// What an SQLite database is like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SqliteFacts {
    /// The source.
    pub source: SourceId,
    /// Its path as given.
    #[serde(with = "pathtext")]
    pub path: PathBuf,
    /// How it journals.
    pub journal: JournalMode,
    /// Size of the database file.
    pub bytes: Bytes,
    /// Size of its `-wal`.
    pub wal_bytes: Bytes,
    /// Extents of database and `-wal` where `FIEMAP` tells them, for the predicted stall.
    pub extents: Option<u64>,
    /// `FICLONE` works from its filesystem into `staging`.
    pub reflink: bool,
    /// Where the pinned copy can be put.
    #[serde(with = "pathtext::option")]
    pub staging: Option<PathBuf>,
    /// Why it cannot be backed up at all, with the remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

impl SqliteFacts {
    /// Why its log cannot be archived, with the remedy, if so.
    #[must_use]
    pub fn no_log(&self) -> Option<String> {
        (self.refusal.is_none() && self.journal == JournalMode::Rollback).then(|| {
            format!(
                "{} is in rollback-journal mode, which has no log that `stillpoint log` could follow: it can be restored \
                 as of its backups only; `PRAGMA journal_mode=WAL` on it once, which lasts, changes that",
                pathtext::show(&self.path)
            )
        })
    }
}

/// How an SQLite database journals; byte 18 of its header, <https://www.sqlite.org/fileformat2.html>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalMode {
    /// Write-ahead log.
    Wal,
    /// Any rollback journal: delete, truncate or persist.
    Rollback,
}

/// The processes that were found for `[application.process]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProcessFacts {
    /// Process ids at the time of planning.
    pub pids: Vec<u32>,
    /// How they can be held.
    pub method: Option<ProcessMethod>,
    /// Why a better method cannot be used, or why none can.
    pub why: String,
    /// It cannot be told who they are, for the reason in `why`: somebody may run whom nobody holds.
    pub unknown: bool,
}

/// How processes are held, best first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum ProcessMethod {
    /// `PTRACE_SEIZE` and `PTRACE_INTERRUPT` on every thread: ends with its holder.
    Ptrace,
    /// The control group freezer.
    Freezer {
        /// The group's directory.
        #[serde(with = "pathtext")]
        cgroup: PathBuf,
    },
    /// SIGSTOP.
    Stop,
}

/// Why something cannot be backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What a backup of one application would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CutPlan {
    /// The application.
    pub application: AppName,
    /// Its identity.
    pub relpath: Relpath,
    /// All sources that the verdict is about.
    pub sources: Vec<SourceId>,
    /// In the order in which they are taken; released in reverse.
    pub holds: Vec<HoldPlan>,
    /// In the order in which they are taken.
    pub pins: Vec<PinPlan>,
    /// The longest stall allowed.
    pub stall_budget: Duration,
    /// What the stall is expected to be.
    pub predicted_stall: Millis,
    /// The weakest verdict that is good enough.
    pub require: Verdict,
    /// What is known to be wrong already: a refused source makes the backup `incomplete`.
    pub problems: Vec<Problem>,
    /// What a person should know about the cut, though the backup is none the worse for it.
    pub notes: Vec<String>,
    /// Why the cut is not to be taken at all: it would exceed the stall budget, or nothing is left to store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

/// One hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HoldPlan {
    /// How.
    pub method: HoldMethod,
    /// Why this way.
    pub why: String,
}

/// How writers are held back, in the order of freezing.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "hold")]
pub enum HoldMethod {
    /// Run the stop hook; the start hook is run on every way out.
    StopHook {
        /// Stops the platform.
        stop: Hook,
        /// Starts it again.
        start: Hook,
    },
    /// A child process holds `BEGIN IMMEDIATE`.
    SqliteLock {
        /// The source.
        source: SourceId,
        /// The database.
        #[serde(with = "pathtext")]
        path: PathBuf,
        /// How it journals.
        journal: JournalMode,
    },
    /// Locks of a server that may have to wait for statements: MariaDB `BACKUP STAGE START`, `FLUSH` and
    /// `BLOCK_DDL`; MySQL `LOCK INSTANCE FOR BACKUP`.
    ServerSlowLock(ServerLockPlan),
    /// The lock of the same session that stops commits: MariaDB `BACKUP STAGE BLOCK_COMMIT`; MySQL
    /// `FLUSH TABLES WITH READ LOCK`.
    ServerFinalLock(ServerLockPlan),
    /// Hold the server's process while its files are pinned. It is let go before its locks are proven: a stopped
    /// server cannot answer.
    ServerProcess {
        /// The source.
        source: SourceId,
        /// The process.
        process: ProcessRef,
        /// How.
        method: ProcessMethod,
    },
    /// Hold the application's processes.
    Processes {
        /// Whom.
        #[serde(skip)]
        selector: ProcessSelector,
        /// How.
        method: ProcessMethod,
    },
}

impl HoldMethod {
    /// When it is taken: smaller first.
    #[must_use]
    pub fn class(&self) -> HoldClass {
        match self {
            Self::StopHook { .. } => HoldClass::StopHook,
            Self::ServerSlowLock(_) => HoldClass::SlowLock,
            Self::SqliteLock { .. } | Self::ServerFinalLock(_) => HoldClass::FinalLock,
            Self::Processes { .. } => HoldClass::ProcessFreezer,
            Self::ServerProcess { .. } => HoldClass::ServerFreezer,
        }
    }

    /// The stop hook of these hooks.
    #[must_use]
    pub fn hooks(hooks: &Hooks) -> Self {
        Self::StopHook { stop: hooks.stop.clone(), start: hooks.start.clone() }
    }
}

/// The order of freezing, DESIGN.md section 3: a stopped writer keeps its lock, so locks come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldClass {
    /// Stop hooks: minutes.
    StopHook,
    /// Locks that may have to wait.
    SlowLock,
    /// Locks that end a wait of milliseconds.
    FinalLock,
    /// The process freezer, after all locks.
    ProcessFreezer,
    /// The freezer of a server that holds a lock for us: last, and let go before the locks are proven.
    ServerFreezer,
}

/// A server to lock.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerLockPlan {
    /// The source.
    pub source: SourceId,
    /// How it is reached.
    pub access: ServerAccess,
    /// What it turned out to be.
    pub flavor: Flavor,
    /// Queries in the way may be ended.
    pub end_blocking_queries: bool,
    /// `innodb_flush_log_at_trx_commit` is 0 and has to be raised for the cut: else a flush under the lock does
    /// nothing (seen).
    pub raise_flush_log: bool,
}

/// One pin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PinPlan {
    /// The source that it pins.
    pub source: SourceId,
    /// How.
    pub method: PinMethod,
    /// Where pinned copies are put.
    #[serde(with = "pathtext")]
    pub staging: PathBuf,
    /// Why this way.
    pub why: String,
}

/// How a source is kept as it was at the cut.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "pin")]
pub enum PinMethod {
    /// A read-only btrfs snapshot of the subvolume.
    BtrfsSnapshot(TreePlan),
    /// Two passes; what changed is cloned by `FICLONE`.
    TwoPassReflink(TreePlan),
    /// Two passes; the first is stored at once, what changed since is copied.
    TwoPassCopy(TreePlan),
    /// Clone database and `-wal` under the lock.
    SqliteReflink(SqlitePlan),
    /// A read transaction begun under the lock, copied after it by the backup API (WAL mode).
    SqliteTransaction(SqlitePlan),
    /// An unlocked copy, its pages compared under the lock (rollback mode).
    SqlitePages(SqlitePlan),
    /// A snapshot of the volume that the directory lies on; sources on one volume share it.
    VolumeSnapshot(VolumePlan),
    /// Snapshots of all volumes that a server's files lie on.
    ServerVolumes(ServerPlan),
    /// Two passes of clones of a server's files, the last one with the server held.
    ServerReflink(ServerPlan),
    /// A copy by mariadb-backup made before, and the binary logs from there to the cut.
    ServerPhysical(ServerPlan),
    /// Transactions opened under the lock and dumped after it.
    ServerDump(ServerPlan),
}

impl PinMethod {
    /// The name of the method in records.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::BtrfsSnapshot(_) => "btrfs-snapshot",
            Self::TwoPassReflink(_) => "two-pass-reflink",
            Self::TwoPassCopy(_) => "two-pass-copy",
            Self::SqliteReflink(_) => "sqlite-reflink",
            Self::SqliteTransaction(_) => "sqlite-transaction",
            Self::SqlitePages(_) => "sqlite-pages",
            Self::VolumeSnapshot(_) => "volume-snapshot",
            Self::ServerVolumes(_) => "server-volumes",
            Self::ServerReflink(_) => "server-reflink",
            Self::ServerPhysical(_) => "server-physical",
            Self::ServerDump(_) => "server-dump",
        }
    }

    /// What a restore finds in the backup because of this pin: root directories or a database file, as given.
    #[must_use]
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            Self::BtrfsSnapshot(tree) | Self::TwoPassReflink(tree) | Self::TwoPassCopy(tree) => {
                vec![&tree.root]
            }
            Self::VolumeSnapshot(plan) => vec![&plan.tree.root],
            Self::SqliteReflink(database)
            | Self::SqliteTransaction(database)
            | Self::SqlitePages(database) => {
                vec![&database.path]
            }
            Self::ServerVolumes(plan) | Self::ServerReflink(plan) => {
                plan.roots.iter().map(|root| root.tree.root.as_path()).collect()
            }
            Self::ServerPhysical(plan) => {
                let roots = plan.roots.iter().map(|root| root.tree.root.as_path());
                roots.chain(plan.beside.as_deref()).collect()
            }
            Self::ServerDump(plan) => plan.beside.iter().map(PathBuf::as_path).collect(),
        }
    }

    /// Whether it rests on an atomic snapshot, which is taken after all pins that do not.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        matches!(self, Self::BtrfsSnapshot(_) | Self::VolumeSnapshot(_) | Self::ServerVolumes(_))
    }

    /// Whether it pins a directory: a scan can show that one stood still, which for a database it cannot.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        matches!(
            self,
            Self::BtrfsSnapshot(_) | Self::TwoPassReflink(_) | Self::TwoPassCopy(_) | Self::VolumeSnapshot(_)
        )
    }
}

/// A directory on a volume that is pinned by a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VolumePlan {
    /// The directory.
    pub tree: TreePlan,
    /// The volume.
    pub volume: Volume,
    /// How large the snapshot is to be made (classic LVM).
    pub size: Option<Bytes>,
}

/// A server to pin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerPlan {
    /// How it is reached.
    pub access: ServerAccess,
    /// What it is.
    pub version: ServerVersion,
    /// `@@server_id`.
    pub server_id: u32,
    /// Its directories, the data directory first; empty for dumps.
    pub roots: Vec<ServerRootPlan>,
    /// Its databases to dump; empty for all.
    pub databases: Vec<String>,
    /// Global variables that a copy needs.
    pub settings: BTreeMap<String, String>,
    /// Engines of its tables.
    pub engines: Vec<EngineUse>,
    /// Where in the backup dumps, or binary logs to be replayed, are put.
    #[serde(with = "pathtext::option")]
    pub beside: Option<PathBuf>,
    /// The server must be shown to be held while its files are pinned.
    pub server_held: bool,
}

/// One directory of a server to pin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerRootPlan {
    /// What it is for.
    pub role: RootRole,
    /// The directory.
    pub tree: TreePlan,
    /// The snapshot that holds it, for [`PinMethod::ServerVolumes`].
    pub volume: Option<Volume>,
    /// How large that snapshot is to be made (classic LVM).
    pub size: Option<Bytes>,
    /// Where clones are put, for [`PinMethod::ServerReflink`].
    #[serde(with = "pathtext")]
    pub staging: PathBuf,
}

/// A directory to pin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TreePlan {
    /// Its root, as given: if it is a symbolic link, link and target are both stored.
    #[serde(with = "pathtext")]
    pub root: PathBuf,
    /// Left out, relative to the root, with everything below a match.
    pub exclude: Vec<String>,
    /// Absolute paths left out because another pin stores them: databases and their sidecars.
    #[serde(skip)]
    pub carved: Vec<PathBuf>,
    /// Mount points below the root, each walked too.
    #[serde(skip)]
    pub nested_mounts: Vec<PathBuf>,
}

/// An SQLite database to pin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SqlitePlan {
    /// The database.
    #[serde(with = "pathtext")]
    pub path: PathBuf,
    /// How it journals.
    pub journal: JournalMode,
}
