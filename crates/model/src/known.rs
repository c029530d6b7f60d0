//! What the backup before holds, so that unchanged files need neither be opened nor pinned.
//!
//! Crash story: plain values, no effects.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
};

use crate::entry::Stamp;

/// Stamps of the regular files of the parent backup, by path.
///
/// Paths with their stamps are kept as 64-bit hashes, so a million files take about 20 MB. Should two collide,
/// the vault, which knows better, falls back to reading the file: see [`crate::entry::Body::Carried`]. Clones share
/// them until one is changed.
#[derive(Debug, Clone, Default)]
pub struct Known {
    stamps: Arc<HashSet<u64, BuildHasherDefault<Hashed>>>,
}

impl Known {
    /// Adds what the parent holds at `path` (the original absolute path).
    pub fn insert(&mut self, path: &Path, stamp: Stamp) {
        Arc::make_mut(&mut self.stamps).insert(key(path, &stamp));
    }

    /// Adds all that another one has.
    pub fn append(&mut self, other: Self) {
        if self.stamps.is_empty() {
            *self = other;
        } else {
            Arc::make_mut(&mut self.stamps).extend(other.stamps.iter());
        }
    }

    /// Whether the parent holds this very content at `path`.
    #[must_use]
    pub fn has(&self, path: &Path, stamp: &Stamp) -> bool {
        self.stamps.contains(&key(path, stamp))
    }

    /// How many files are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stamps.len()
    }

    /// Whether nothing is known, as before the first backup.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stamps.is_empty()
    }
}

fn key(path: &Path, stamp: &Stamp) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(path.as_os_str().as_bytes());
    stamp.hash(&mut hasher);
    hasher.finish()
}

/// What is a hash already needs no other.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not used: only `u64` is hashed.
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
