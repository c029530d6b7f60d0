//! Binary logs of MariaDB and MySQL.
//!
//! - [`event`] reads events, [`group`] finds transactions in them, [`read`] reads segments and files.
//! - [`Server`] follows the log of a running server, as a replica would.
//!
//! Crash story: each module tells its own.

pub mod event;
mod follow;
pub mod group;
pub mod read;
mod stream;
mod wire;

pub use event::{Body, Event, Format, Header, MAGIC, Wrong, kind};
pub use group::{Begun, Grouper, Part};
pub use read::{Events, Transaction, Transactions, time_of, whole};
pub use stream::Server;
