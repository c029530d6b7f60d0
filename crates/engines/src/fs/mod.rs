//! Directories: what their filesystem can do, and pinning them.
//!
//! - [`probe`] finds out.
//! - [`TreePinner`] pins in two passes: an unlocked first one, rounds that shrink the difference, the last
//!   round under the freeze. The fast form clones, the plain form copies; one algorithm with both for trees that
//!   span filesystems.
//! - [`SnapshotPinner`] takes a read-only btrfs snapshot of a subvolume, and of those nested in it.
//! - [`VolumePinner`] takes a snapshot of the volume that the tree lies on (btrfs, LVM, ZFS), which other sources on
//!   that volume share; [`volume_of`] finds it.
//!
//! Crash story: staging directories and snapshots are journalled before they are made; nothing of the source is
//! ever written, except that where no other place is left, a staging directory stands in it for a while.

mod copied;
mod difference;
mod probe;
mod scope;
mod snapshot;
mod twopass;
mod volume;

pub use probe::probe;
pub use snapshot::SnapshotPinner;
pub use twopass::{Form, Held, Limits, TreePinner};
pub use volume::{SharedVolume, Use, VolumePinner, Volumes, volume_of};
