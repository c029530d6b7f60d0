//! What the main process and its SQLite helpers say to each other: one JSON object a line.
//!
//! Both ends are the same program, so the protocol has no versions.
//!
//! Crash story: plain values, no effects.

use std::path::PathBuf;

use jiff::Timestamp;
use model::{
    logs::{HoleCause, WalPosition},
    pathtext,
    plan::JournalMode,
    size::Bytes,
    time::Moment,
};
use serde::{Deserialize, Serialize};

/// Asked of a helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub(super) enum Request {
    /// Lock role: begin the write transaction.
    Freeze {
        /// When to stop trying.
        give_up: Moment,
        /// When to let go, asked or not.
        lapse: Moment,
    },
    /// Lock role: say what state the session is in.
    Prove,
    /// Both roles: end the transaction.
    Thaw,
    /// Reader role: begin a read transaction and take its snapshot.
    Snapshot {
        /// When to stop trying.
        give_up: Moment,
    },
    /// Reader role: copy what the read transaction sees.
    Copy {
        /// Where to; an empty or missing file.
        #[serde(with = "pathtext")]
        to: PathBuf,
    },
    /// Log role: protect the log from being begun anew unseen, and say whether it goes on from there.
    Follow {
        /// Where the archive is.
        resume: Option<WalPosition>,
    },
    /// Log role: what was told is on disk in the archive.
    Written,
    /// Log role: go on as if a new epoch began now. What was captured before is told first.
    Anew,
    /// Close and exit.
    Quit,
}

/// Said by a helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "say")]
pub(super) enum Reply {
    /// The database is open.
    Ready,
    /// It was not done: others hold a lock, or the time was over.
    Busy,
    /// The transaction has begun.
    Begun {
        /// How the connection journals.
        journal: JournalMode,
        /// The file at the path is no longer the file that is open.
        moved: bool,
    },
    /// State of the session.
    State {
        /// A write transaction is open.
        writing: bool,
        /// The file at the path is no longer the file that is open.
        moved: bool,
    },
    /// No transaction is open.
    Thawed,
    /// So many more bytes are copied.
    Copied {
        /// Since the last such line.
        bytes: Bytes,
    },
    /// The copy is whole.
    Done,
    /// The log goes on exactly from where the archive is.
    Continues,
    /// It does not, or a new epoch was asked for. A copy made now is the database as it was at this place.
    Stands {
        /// The place.
        at: WalPosition,
        /// All that was committed by this moment is before it.
        by: Timestamp,
        /// Why it does not go on; absent if nothing is missing.
        cause: Option<HoleCause>,
        /// The same for people.
        detail: String,
    },
    /// A committed transaction; so many bytes of a record follow this line.
    Transaction {
        /// How many.
        bytes: u64,
        /// Where it ends.
        to: WalPosition,
        /// When it was seen.
        captured: Timestamp,
    },
    /// Everything that was committed by then was told; `Written` is waited for.
    Captured {
        /// By when.
        at: Timestamp,
    },
    /// Nothing was committed by then that was not told and written.
    Idle {
        /// By when.
        at: Timestamp,
    },
    /// The log can no longer be followed.
    Lost {
        /// What was found.
        what: String,
    },
    /// It failed for good.
    Failed {
        /// What SQLite says.
        what: String,
        /// What kind of failure it is.
        kind: Trouble,
    },
}

/// Failures that are treated differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Trouble {
    /// It is not a database, or encrypted.
    Foreign,
    /// The disk is full.
    Full,
    /// Anything else.
    Other,
}
