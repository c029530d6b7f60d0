//! Database servers: MariaDB, and MySQL, which shares its protocol.
//!
//! - [`probe`] finds out what a server is like and where its files are.
//! - [`ServerLock`] holds its writers back; pinners ask its [`Holder`].
//! - [`open`] starts a private, fenced server on a copy and checks it.
//! - [`Connection`] is a session on which nothing waits for longer than it was told to.
//!
//! **Locks.** A server is locked by one session in two steps: a slow lock, which may have to wait for statements
//! (MariaDB: `BACKUP STAGE START`, `FLUSH`, `BLOCK_DDL`), and a final one that stops commits (`BLOCK_COMMIT`). Each
//! statement is bounded by `max_statement_time`; the session's `wait_timeout` is the stall budget, so the server lets go
//! by itself if we fall silent. Letting go ends both.
//!
//! **The position** is read under the final lock, after the engines' logs were flushed: without that flush a copy can
//! have transactions that are prepared in InnoDB and that only the binary log could decide.
//!
//! Crash story: what a session holds ends with its socket, which the kernel closes however we die; a statement that still
//! waits then ends by its `max_statement_time`. What does not end by itself, a global variable that was raised, is
//! journalled before and put back by the watchdog ([`undo_main`]).

pub mod binlog;
mod connect;
pub mod dump;
mod error;
pub mod files;
mod lock;
pub mod open;
mod options;
pub mod physical;
mod position;
mod probe;
mod row;
mod undo;
mod variable;
mod version;

use std::sync::Arc;

use model::port::{Clock, Journal};
use os::command::Helper;

pub use connect::{Connection, ConnectionId, PATIENCE};
pub use error::{ServerError, code};
pub use lock::{Holder, ServerLock};
pub use options::{Credentials, Secret, credentials};
pub use probe::probe;
pub use row::Row;
pub use undo::{UNDO_ROLE, undo_main};
pub use version::{number as version_number, parse as parse_version};

/// What drivers of this module need of the world.
#[derive(Clone)]
pub struct Means {
    /// Where holds and pins are written down.
    pub journal: Arc<dyn Journal>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// How to start this program as a helper.
    pub helper: Helper,
}
