//! Databases as SQL: transactions opened under the lock and read after it ([`DumpPinner`]), and their way back
//! ([`load`]).
//!
//! **The instant.** While the server's commits are blocked, several other sessions open a transaction with a
//! consistent snapshot each: no commit can come between them, so all see the one instant, in InnoDB and in MyRocks.
//! Each touches the tables that it will read, which keeps their definitions until they are read. Tables without
//! transactions are read under the lock while they are small, and otherwise make the source weaker, by name.
//!
//! **Exactness.** See the module `literal`: every value comes back bit by bit. A dump says how many rows each table
//! has, and loading counts them.
//!
//! **Restoring.** [`load`] loads a restored dump into a server that has none of its databases: a private one, or a new
//! one. [`SwapPlan`] replaces databases of a running server and touches no other: the dump is loaded into new databases
//! beside the live ones, whose tables are then exchanged by one `RENAME TABLE`; what was there is kept until the
//! end, and put back if anything fails.
//!
//! Crash story: see [`DumpPinner`] and [`SwapPlan`].

mod catalog;
pub(super) mod confirm;
pub(super) mod entries;
mod files;
mod layout;
mod literal;
mod load;
mod obstacles;
mod pin;
mod pinner;
mod programs;
mod recovery;
mod rows;
mod schema;
mod session;
mod swap;
pub(super) mod tool;
mod worker;

pub use files::read_index;
pub use layout::{ACCOUNTS, DumpIndex, DumpedDatabase, DumpedTable, INDEX};
pub use load::{Loaded, Target, load};
pub use pinner::DumpPinner;
pub use recovery::{recover, undo_exchange};
pub use swap::{Exchanged, SwapPlan};
pub(super) use worker::create;
