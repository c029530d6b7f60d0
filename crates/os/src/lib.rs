//! Everything Stillpoint does to the machine it runs on.
//!
//! Crash story: each module tells its own.

pub mod clock;
pub mod command;
pub mod direct;
pub mod durable;
pub mod extents;
pub mod hold;
pub mod lvm;
pub mod memory;
pub mod mounted;
pub mod mounts;
pub mod priority;
pub mod process;
pub mod site;
pub mod staging;
pub mod subvolume;
pub mod tools;
pub mod tree;
pub mod undo;
pub mod watchdog;
pub mod zfs;
