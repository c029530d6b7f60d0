//! SQLite's write-ahead log, followed without a gap: every committed transaction is captured while the application goes on,
//! and the database is never changed by us (but for checkpoints, which any connection makes).
//!
//! **Why nothing can be missed.** The log is begun anew, over its old frames, by a writer or a checkpoint that finds all of it
//! folded into the database and no reader on it. We read all the time: two connections ([`readers`]), and a read
//! transaction ends only after the next one has begun *and* everything that was committed when that one began is in the
//! archive. What one of them keeps back depends on the lock that SQLite gives it (`walTryBeginRead` in wal.c):
//!
//! - *A read mark.* The log cannot be begun anew at all: `walRestartLog` and `wal_checkpoint(RESTART | TRUNCATE)` take all
//!   read marks exclusively first.
//! - *Read lock 0*, given when the log is folded in to its end M, checked again after the lock is there. Nothing more can be
//!   folded in while it is held (`walCheckpoint` takes it exclusively). So if the log is begun anew now, it ended at M: had
//!   frames been added after M, they could not be folded in, and a log that is not folded in is not begun anew. M was
//!   captured before the previous read transaction ended. And the new log, once it has frames, cannot be begun anew in its
//!   turn, for the same reason: it cannot be folded in.
//!
//! So between two looks the log is begun anew at most once with content, and all of the one before is captured: another salt
//! means the next *generation* of the same epoch, not a hole. After a start there was no read transaction, so only a log
//! that has our last frame, with its checksum, goes on, or one that shows that it came directly after it
//! ([`frames`]); anything else is a hole, and a new base is copied at once.
//!
//! **What is committed** is what the wal-index says ([`index`]), never what merely lies in the log.
//!
//! **Checkpoints.** Because we always read, the application's own checkpoints seldom reach the end of the log, and it would
//! grow for ever. So when it is long, we fold it in ([`role`]): without holding anybody if there is a pause, else under a
//! short write lock. `wal_checkpoint(RESTART)` and `(TRUNCATE)` of an application wait for our reader, which moves on within a
//! poll or two: with a busy timeout they succeed.
//!
//! While the log is followed, our connections are open: an application that closes its last connection leaves the log as it
//! is, and `PRAGMA journal_mode = DELETE` gets SQLITE_BUSY.
//!
//! **A process of its own** ([`role`]) opens this one database, since POSIX locks vanish with any descriptor; it hands each
//! transaction to the main process ([`capture`]), which appends it to the archive.
//!
//! Crash story: the process ends with its pipe and its read transactions with it; the log stays. Started again, it goes on
//! from the last transaction in the archive, or says that it cannot.

mod capture;
mod follow;
mod frames;
mod index;
mod keeper;
mod readers;
mod record;
mod replay;
mod role;
mod stream;

pub use capture::{Capture, News};
pub use follow::{Archive, follow};
pub use record::{RecordHead, SEGMENT_LEAD, heads, whole_of};
pub use replay::{Reached, replay};
pub(super) use role::play;
