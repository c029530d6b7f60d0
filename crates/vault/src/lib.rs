//! Every byte Stillpoint persists.
//!
//! Crash story: each module tells its own.

pub mod history;
pub mod journal;
pub mod repository;
