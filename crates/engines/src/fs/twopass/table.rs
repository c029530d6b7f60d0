//! What is already known or staged, by path.
//!
//! Crash story: memory only; it ends with the run, and so does what it speaks of.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    num::NonZeroU32,
    path::Path,
};

use model::entry::Stamp;

/// Where the content of a file with this stamp is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a parent of the backup: stored by the backup before, or ahead of this cut.
    Parent,
    /// In the staging directory.
    Staged {
        /// Its number.
        number: u32,
        /// No other path has this copy, so it may be brought up to date in place.
        own: bool,
    },
}

/// The mark of a file that is stored ahead.
pub(super) const AHEAD: NonZeroU32 = NonZeroU32::MAX;

impl Place {
    /// As a mark in a census, where the table is not at hand.
    pub(super) fn mark(self) -> Option<NonZeroU32> {
        match self {
            Self::Parent => Some(NonZeroU32::MIN),
            Self::Staged { number, .. } => {
                number.checked_add(2).and_then(NonZeroU32::new).filter(|mark| *mark < AHEAD)
            }
        }
    }

    /// As [`Self::mark`], of what is only going to be in a parent, when it has been stored ahead.
    pub(super) fn mark_ahead(self) -> Option<NonZeroU32> {
        if self == Self::Parent { Some(AHEAD) } else { self.mark() }
    }

    /// The place that a mark means; whose copy it is, it does not say.
    pub(super) fn of_mark(mark: NonZeroU32) -> Option<Self> {
        match mark.get() {
            1 => Some(Self::Parent),
            _ if mark == AHEAD => Some(Self::Parent),
            staged => Some(Self::Staged { number: staged.checked_sub(2)?, own: false }),
        }
    }
}

/// What is known of one file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub stamp: Stamp,
    /// An equal stamp seen later proves the same content.
    pub settled: bool,
    pub place: Place,
}

/// [`Seen`], with a hash in place of the stamp.
#[derive(Debug)]
struct Kept {
    stamp: u64,
    place: Place,
    settled: bool,
}

/// 32 bytes and the table's slack for each large file; of small ones nothing stands here as long as their marks in the
/// census say all. Paths and stamps are kept as 64-bit
/// hashes, with keys that nobody can know, so that nobody can make two of them meet.
#[derive(Debug, Default)]
pub(super) struct Table {
    seen: HashMap<u64, Kept>,
    hasher: RandomState,
}

impl Table {
    pub(super) fn insert(&mut self, path: &Path, seen: Seen) {
        let Seen { stamp, settled, place } = seen;
        let kept = Kept { stamp: self.hasher.hash_one(stamp), place, settled };
        self.seen.insert(self.hasher.hash_one(path), kept);
    }

    pub(super) fn remove(&mut self, path: &Path) {
        self.seen.remove(&self.hasher.hash_one(path));
    }

    /// Where the content is that was brought in last.
    pub(super) fn place(&self, path: &Path) -> Option<Place> {
        self.seen.get(&self.hasher.hash_one(path)).map(|seen| seen.place)
    }

    /// Where the content is, if this stamp proves that it is the content of now.
    pub(super) fn trusted(&self, path: &Path, stamp: &Stamp) -> Option<Place> {
        let seen = self.seen.get(&self.hasher.hash_one(path))?;
        (seen.settled && seen.stamp == self.hasher.hash_one(stamp)).then_some(seen.place)
    }

    /// Forgets what was staged, when the staging directory is gone.
    pub(super) fn forget_staged(&mut self) {
        self.seen.retain(|_, seen| seen.place == Place::Parent);
    }
}
