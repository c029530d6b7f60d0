//! Every byte Stillpoint persists.
//!
//! Crash story: each module tells its own.

// The unit tests share helpers with the integration tests, which know the crate by its name.
#[cfg(test)]
extern crate self as vault;

mod archiver;
pub mod history;
pub mod journal;
pub mod logs;
pub mod reference;
pub mod repository;
mod thin;
