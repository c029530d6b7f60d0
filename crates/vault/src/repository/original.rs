//! The file that a pinned copy was cloned from, read in its place while it provably still is what was pinned.
//!
//! A clone shares the blocks of its original on the disk but not in the page cache: what an application has just used is in
//! memory, and reading it from the clone would fetch it from the disk again. So a piece of a large file is taken from the
//! original if, and only if, it stands in the page cache there, and the original is what was pinned:
//!
//! 1. Its stamp is the one of the cut, and older than that by [`model::entry::SETTLING`], so that any later change gives
//!    another one. Whoever writes changes the stamp first, `write` as well as the first store into a mapped page since it was
//!    last on disk (`file_update_time`; for mapped pages in `page_mkwrite`), and cloning has put all of it on disk.
//! 2. Its map of extents shows the same addresses as that of the clone, on the same device: whatever made the pinned copy, it
//!    holds these bytes. Ranges whose addresses differ or say nothing are not taken from the original.
//! 3. After a piece was read the stamp still is the same. So nothing had been written when it was read.
//!
//! Where only some ranges of a file are to be read, only these are compared, and only if their beginnings and ends are in
//! memory: otherwise there is little to be had for it.
//!
//! Whatever is in doubt is read from the pinned copy. A full reading that proves what was carried over does not come here: it
//! is to see the disk.
//!
//! Crash story: reads only. The application may write, truncate or replace the original at any time.

use std::{fs::File, io::IoSliceMut, ops::Range, os::unix::fs::MetadataExt};

use jiff::Timestamp;
use model::{
    entry::{Entry, Stamp},
    extents::Map,
};
use os::{
    extents::{is_on_realtime_device, map_of, map_within},
    tree::stamp_of,
};
use rustix::io::{ReadWriteFlags, preadv2};

use super::source::open;

/// Smaller files are read faster than they are compared.
const SMALLEST: u64 = 4 << 20;

/// A live file whose bytes are those of a pinned copy as long as it has this stamp.
pub(super) struct Original {
    file: File,
    stamp: Stamp,
    /// Where nothing is known, ordered and apart.
    unknown: Vec<Range<u64>>,
}

impl Original {
    /// The original of this entry, whose pinned copy is open; nothing unless all of the above holds.
    pub(super) fn of(entry: &Entry, pinned: &File, taken_at: Timestamp) -> Option<Self> {
        let (file, stamp) = unchanged(entry, pinned, taken_at)?;
        let unknown = map_of(pinned).ok()?.differing_from(&map_of(&file).ok()?);
        let found = Self { file, stamp, unknown };
        let is_mostly_known =
            found.unknown.iter().map(|range| range.end - range.start).sum::<u64>() < stamp.size.0 / 2;
        (is_mostly_known && found.is_as_pinned()).then_some(found)
    }

    /// The same, of which only these ranges are read; `map` is that of the pinned copy.
    pub(super) fn within(
        entry: &Entry,
        pinned: &File,
        taken_at: Timestamp,
        (map, ranges): (&Map, &[Range<u64>]),
    ) -> Option<Self> {
        let (file, stamp) = unchanged(entry, pinned, taken_at)?;
        let ends = [ranges.first()?.start, ranges.last()?.end.checked_sub(1)?];
        if ends.iter().any(|at| in_memory(&file, &mut [0], *at) != Some(1)) {
            return None;
        }
        let unknown = map.differing_from(&map_within(&file, ranges).ok()?);
        let found = Self { file, stamp, unknown };
        found.is_as_pinned().then_some(found)
    }

    /// Fills the buffer with what was pinned from this byte on, if that is in memory. Whether it did; otherwise the buffer
    /// holds anything.
    pub(super) fn read(&self, buffer: &mut [u8], from: u64) -> bool {
        let to = from + buffer.len() as u64;
        let next = self.unknown.partition_point(|range| range.end <= from);
        if self.unknown.get(next).is_some_and(|range| range.start < to) {
            return false;
        }
        let length = buffer.len();
        in_memory(&self.file, buffer, from) == Some(length) && self.is_as_pinned()
    }

    fn is_as_pinned(&self) -> bool {
        self.file.metadata().is_ok_and(|now| stamp_of(&now) == self.stamp)
    }
}

/// The live file of this entry with its stamp, if it is what was pinned as far as that can be told from outside.
fn unchanged(entry: &Entry, pinned: &File, taken_at: Timestamp) -> Option<(File, Stamp)> {
    let stamp = entry.meta.stamp();
    if stamp.size.0 < SMALLEST || !stamp.is_settled_at(taken_at) {
        return None;
    }
    let (file, now) = open(&entry.path).ok()?;
    let copy = pinned.metadata().ok()?;
    let is_clone = copy.dev() == now.dev() && copy.ino() != now.ino() && copy.len() == now.len();
    (is_clone && stamp_of(&now) == stamp && !is_on_realtime_device(&file)).then_some((file, stamp))
}

/// Reads what is in the page cache (`RWF_NOWAIT`, Linux 4.14); how much that was, nothing if it could not be told.
fn in_memory(file: &File, buffer: &mut [u8], from: u64) -> Option<usize> {
    preadv2(file, &mut [IoSliceMut::new(buffer)], from, ReadWriteFlags::NOWAIT).ok()
}
