//! Drivers for other people's systems: databases and filesystems. No driver imports another.
//!
//! Crash story: each module tells its own.

pub mod fs;
pub mod server;
pub mod sqlite;
