//! Order in time: runs plans through ports, and through ports only, so that all of it can be simulated.
//!
//! Crash story: each module tells its own.

pub mod backup;
pub mod cut;
pub mod keep;
pub mod restore;
pub mod retire;
pub mod ship;
