//! SQLite: a write lock held by a child process, proven from outside, and three ways to pin under it.
//!
//! **Why a child.** A POSIX lock vanishes as soon as its process closes *any* descriptor of the file
//! (<https://www.sqlite.org/howtocorrupt.html>, section 2.2). So [`SqliteLock`] starts a child that opens this
//! one database, through SQLite, and nothing else of it; the main process never opens a live database through
//! SQLite and has no POSIX lock that it could lose, so it may open and clone the files as it likes.
//!
//! **What the lock means.** `BEGIN IMMEDIATE` holds the RESERVED lock (rollback journal) or the WAL's write
//! lock. Nobody commits. Readers go on; in WAL mode a checkpoint may still copy pages that are in the WAL into
//! the database file, which changes nothing: the WAL is neither reset nor truncated while its write lock is
//! held, and folding it in writes all those pages again.
//!
//! **Transactions over several databases.** The databases of one application are locked together, all or
//! none. SQLite commits a transaction over attached databases while it holds the write locks of all of them, so
//! none of it is in the cut, or all of it. (After a crash of the writer in WAL mode SQLite itself promises
//! less: <https://www.sqlite.org/lang_attach.html>.)
//!
//! **A hot journal** that a crashed writer left is rolled back by `BEGIN IMMEDIATE`: that is the recovery that
//! any opener does, so we do it too, and the journal need not be stored.
//!
//! Crash story: the lock ends with the child, the child ends with its pipe or at its deadline, and the kernel
//! releases what it held; a transaction without writes leaves nothing to recover. Pinned copies lie in a
//! journalled staging directory. Any number of runs and applications may be beside us: whoever comes second
//! waits or gives up.

mod child;
mod entries;
mod error;
mod fingerprint;
mod header;
mod helper;
mod kit;
mod lines;
mod lock;
mod locks;
mod names;
mod pages;
mod pin;
mod probe;
mod protocol;
mod reader;
mod settle;
pub mod wal;

use std::sync::Arc;

use model::port::{Clock, Journal};
use os::command::Helper;

pub use fingerprint::Fingerprint;
pub use helper::{LOCK_ROLE, LOG_ROLE, READER_ROLE, helper_main};
pub use lock::{Holder, SqliteLock};
pub use names::sidecars;
pub use pin::SqlitePinner;
pub use probe::probe;

/// What `plan` says of every cut that locks an SQLite database.
pub const BUSY_NOTE: &str = "while the cut lasts, writers of this SQLite database wait; one without a busy \
     timeout (sqlite3_busy_timeout, PRAGMA busy_timeout) gets SQLITE_BUSY instead";

/// What `plan` says where a read transaction is copied after the thaw.
pub const CHECKPOINT_NOTE: &str = "until the copy is made, checkpoints of this SQLite database cannot go \
     beyond the instant of the cut, so its -wal grows with what is written meanwhile";

/// What drivers of this module need of the world.
#[derive(Clone)]
pub struct Means {
    /// How to start this program as a helper.
    pub helper: Helper,
    /// Where holds and pins are written down.
    pub journal: Arc<dyn Journal>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
}
