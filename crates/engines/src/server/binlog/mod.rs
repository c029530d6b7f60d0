//! Binary logs of MariaDB and MySQL.
//!
//! - [`event`] reads events, [`group`] finds transactions in them, [`read`] reads segments and files.
//!
//! Crash story: each module tells its own.

pub mod event;
pub mod group;
pub mod read;

pub use event::{Body, Event, Format, Header, MAGIC, Wrong, kind};
pub use group::{Begun, Grouper, Part};
pub use read::{Events, Transaction, Transactions, time_of, whole};
