//! Fakes of every port over one simulated machine.
//!
//! [`world::World`] is the machine: a virtual clock, directories and databases, and writers that change both
//! while time passes. Time passes only when a fake works or the clock sleeps, so a run of minutes takes
//! milliseconds and is the same for the same seed. [`hold`], [`pinner`] and [`vault`] are drivers and a
//! repository in that world; [`journal`] is a journal in memory. [`restore`]
//! is another machine, which is restored on. [`logs`] is a server with a binary log, the disk and the repository of its archive.
//!
//! The world keeps the truth: every change with its time, every writer's wait, everything that was made
//! without an open undo in the journal. Tests compare that with what the product claims.
//!
//! Crash story: all in memory.

pub mod hold;
pub mod journal;
pub mod logs;
pub mod pinner;
pub mod restore;
pub mod vault;
pub mod world;
