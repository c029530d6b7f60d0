//! Volumes that make an atomic snapshot of all they hold: btrfs subvolumes, logical volumes, ZFS datasets.
//!
//! One snapshot serves every source on its volume: whoever pins first takes it, the others join, and it goes with the
//! last of them. While it is there it is watched: a classic LVM snapshot is extended while its volume group has room;
//! before anything overflows at which the original could suffer, or the snapshot becomes worthless unnoticed, it is
//! given up, and every source that was read from it says that it is incomplete.
//!
//! LVM is tested for real in a virtual machine, btrfs on loop devices. ZFS was driven only against a stand-in for its
//! programs.
//!
//! Crash story: snapshots and mounts are journalled before they are made and crossed off when they are gone; a dead
//! run's are unmounted and removed by `thaw` or the next run. The originals are never written.

mod pin;
mod probe;
mod shared;
mod size;
mod taken;
mod watch;

pub use pin::VolumePinner;
pub use probe::volume_of;
pub use shared::{SharedVolume, Use, Volumes};
