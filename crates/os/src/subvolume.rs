//! Snapshots of btrfs subvolumes.
