//! Opening a copy of a server: privately, fenced, and without ever touching the original.
//!
//! **The fence.** [`Private`] has no network, no replication, no events, no init file, no binary log and a socket in
//! a directory that is closed to everyone else. That is not enough: seen on MariaDB 10.11, the *redo log* of a copy
//! names tablespaces outside of the data directory by their absolute paths, and crash recovery writes there, whatever
//! the copy's `.isl` files say. So, where we are root, the server runs in a mount namespace of its own, in which the
//! copy's directories lie over the original ones: no path at all leads to the original.
//!
//! **Links.** [`relocate`] rewrites `.isl` files and symbolic links to where the copy lies, and refuses a copy of
//! which anything leads out of it.
//!
//! Crash story: the server is journalled before it begins (it waits at a gate), and is killed when its guard is
//! dropped, by the watchdog when we die, or by `thaw`. Its mounts go with its namespace, which goes with it. Its own
//! files lie in a journalled directory. A copy that was being opened is only good for being opened again.

mod account;
mod check;
mod copy;
mod fenced;
mod fresh;
mod links;
mod log;
mod options;
mod private;
mod program;
mod settle;

pub use check::{Checked, PositionFound};
pub use copy::{Placement, ServerCopy};
pub use fresh::fresh;
pub use links::{Relocated, relocate};
pub use options::{FENCE, option_file};
pub use private::Private;
pub use settle::{needs_settling, settle};
