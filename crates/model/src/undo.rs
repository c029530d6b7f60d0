//! How to undo whatever a run holds, as values: for the watchdog, for `thaw` and for the next run.
//!
//! Every hold and every pin is written to the journal as an [`Undo`] *before* it is made, so that whoever
//! finds the journal of a dead run can undo it. Undoing twice, or undoing what was never made, is harmless:
//! every variant names its object precisely (a process by id *and* start time) and is done when it is gone.
//!
//! Crash story: plain values; see `docs/format/journal.md` for the file they are written to.

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{pathtext, server::ServerAccess};

/// One process, safe against the reuse of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/[pid]/stat`, proc(5).
    pub start: u64,
}

/// A command of the inventory, run by `/bin/sh -c`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// The command line.
    pub run: String,
    /// How long it may take before it is ended.
    pub timeout: Duration,
}

/// One thing to undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "undo")]
pub enum Undo {
    /// Send SIGCONT to processes that we stopped with SIGSTOP.
    Continue {
        /// The processes.
        processes: Vec<ProcessRef>,
    },
    /// Thaw a control group (`cgroup.freeze` in version 2, `freezer.state` in version 1).
    ThawCgroup {
        /// The control group's directory.
        #[serde(with = "pathtext")]
        cgroup: PathBuf,
    },
    /// Run the start hook of a stopped application, once no process of ours runs its stop hook any more.
    Start {
        /// The start hook.
        start: Hook,
        /// The stop hook's process, ended first with all its process group if it still runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ends: Option<ProcessRef>,
    },
    /// End a child that holds a lock for us.
    End {
        /// The child.
        process: ProcessRef,
    },
    /// Remove our lock from a repository.
    RemoveLock {
        /// The lock file.
        #[serde(with = "pathtext")]
        path: PathBuf,
    },
    /// Remove a directory of pinned copies with all it holds.
    RemoveTree {
        /// The directory; its name begins with `.stillpoint-`, anything else is refused.
        #[serde(with = "pathtext")]
        path: PathBuf,
    },
    /// Bring back what an unfinished in-place restore moved aside, then remove what it had written beside.
    /// Without moves the restore was past its point of no return and only the old state is removed.
    SwapBack {
        /// In the order in which they were to be made; undone in reverse.
        moves: Vec<Move>,
        /// The staging directories; their names begin with `.stillpoint-`, anything else is refused.
        #[serde(with = "pathtext::list")]
        staging: Vec<PathBuf>,
    },
    /// Delete a btrfs snapshot that we made.
    DeleteSubvolume {
        /// The snapshot; its name begins with `.stillpoint-`, anything else is refused.
        #[serde(with = "pathtext")]
        path: PathBuf,
    },
    /// Unmount a snapshot that we mounted, and remove the directory that it was mounted on.
    Unmount {
        /// The mount point; its name begins with `.stillpoint-`, anything else is refused.
        #[serde(with = "pathtext")]
        path: PathBuf,
    },
    /// Remove an LVM snapshot that we made.
    RemoveLogicalVolume {
        /// Volume group.
        group: String,
        /// The snapshot; its name begins with `stillpoint-`, anything else is refused.
        name: String,
    },
    /// Give back the snapshot of a thin pool's metadata that we reserved.
    ReleasePoolMetadata {
        /// Volume group.
        group: String,
        /// The pool.
        pool: String,
        /// The block of it that the pool holds for us, once that is known; another one is not ours.
        root: Option<u64>,
    },
    /// Destroy a ZFS snapshot that we made.
    DestroyZfsSnapshot {
        /// The dataset.
        dataset: String,
        /// The part after `@`; begins with `stillpoint-`, anything else is refused.
        snapshot: String,
    },
    /// Give a server's global variable its old value back, if it still has the one that we gave it and the server
    /// has not been restarted since.
    ServerVariable {
        /// The server.
        access: ServerAccess,
        /// The variable.
        variable: String,
        /// What it was.
        old: String,
        /// What we gave it.
        new: String,
        /// When the server had been started, to the second.
        started: Timestamp,
    },
    /// Put back what an unfinished restore in place changed in a running server; if it had finished, drop what it kept.
    ServerExchange {
        /// The server.
        access: ServerAccess,
        /// The databases that were restored, by their live names.
        databases: Vec<String>,
        /// Where the server's client may find its credentials meanwhile; its name begins with `.stillpoint-`, anything
        /// else is refused.
        #[serde(with = "pathtext")]
        staging: PathBuf,
    },
}

impl Undo {
    /// Whether this holds somebody back, so that the watchdog undoes it at once when the run dies; all else
    /// waits for `thaw` or the next run.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        match self {
            Self::Continue { .. }
            | Self::ThawCgroup { .. }
            | Self::Start { .. }
            | Self::End { .. }
            | Self::RemoveLock { .. } => true,
            // An application that is started again must find the old state or the new one, never a mix.
            Self::SwapBack { moves, .. } => !moves.is_empty(),
            // Holds nobody back, but makes the server slower, and stays if nobody undoes it.
            Self::ServerVariable { .. } => true,
            // The server itself knows what is to be done, and it may take minutes.
            Self::ServerExchange { .. }
            | Self::RemoveTree { .. }
            | Self::DeleteSubvolume { .. }
            | Self::Unmount { .. }
            | Self::RemoveLogicalVolume { .. }
            | Self::ReleasePoolMetadata { .. }
            | Self::DestroyZfsSnapshot { .. } => false,
        }
    }
}

/// One name that a restore replaces: `live` is renamed to `old`, then `new` to `live`. Which of the two was
/// done is seen from which names exist, so nothing has to be written between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The name that is replaced.
    #[serde(with = "pathtext")]
    pub live: PathBuf,
    /// Where the restored object was written, in a staging directory; nothing if `live` shall be gone.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "pathtext::option")]
    pub new: Option<PathBuf>,
    /// Where what was there is kept, in the same staging directory.
    #[serde(with = "pathtext")]
    pub old: PathBuf,
    /// Whether anything was there; if not, undoing takes `live` away and puts nothing in its place.
    pub had: bool,
}

/// Names an undo within its run, for crossing it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticket(pub u64);
