//! MariaDB servers without a filesystem that could pin them: a copy by mariadb-backup, and the binary logs from there to
//! the cut ([`PhysicalPinner`], [`ReplayPlan`]).
//!
//! mariadb-backup takes locks of its own and would wait for ours, so it runs before the freeze; it says where in the
//! binary log its copy stands (Q). Under the lock the cut's place (P) is read and the logs Q to P are opened: a purge
//! cannot take an open file away, and what is before P never changes. After the thaw they are copied up to P, and the
//! copy is prepared. A restore starts the copy privately and replays Q to P.
//!
//! Without a binary log, or with an encrypted one, which mariadb-binlog cannot read from its file, the copy is of a
//! moment before the cut: the source is weaker, and says so.
//!
//! What a binary log does not tell is not replayed either: statements under `sql_log_bin=0`, and the binary log's own
//! state. Non-deterministic statements under `binlog_format=STATEMENT` may give other rows, as on a replica.
//!
//! Crash story: see [`PhysicalPinner`] and [`ReplayPlan`].

mod forward;
mod logs;
mod pinner;
mod place;
mod replay;
mod tool;

pub use forward::Forward;
pub use pinner::PhysicalPinner;
pub use replay::{ReplayPlan, replay_plan};
