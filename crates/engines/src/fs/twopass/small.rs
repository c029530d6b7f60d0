//! Small files are read into memory under the freeze, on all cores: a copy costs ten system calls and a name in
//! the staging directory, a clone of a young file has it written out first.
//!
//! Crash story: memory only. What was not read whole, with the very stamp that the look saw, before and after, is
//! left to the ordinary way, which tells what is wrong.

use std::{
    collections::HashMap,
    io::Read,
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use model::{entry::Entry, size::Bytes};
use os::tree::Spot;

use super::copies::{open_source, stamp_of};

/// The largest file that is read into memory.
pub(super) const SMALL: Bytes = Bytes(128 << 10);
/// The most that is kept in memory for one pin.
const TOGETHER: Bytes = Bytes(32 << 20);
/// So many files are worth another thread.
const PER_THREAD: usize = 16;

/// Reads those that are small, first come first served, until there is no time left.
pub(super) fn read_small(todo: &[(Spot, Entry)], late: &(dyn Fn() -> bool + Sync)) -> HashMap<Spot, Vec<u8>> {
    let mut together = Bytes(0);
    let small: Vec<&(Spot, Entry)> = todo
        .iter()
        .filter(|(_, entry)| {
            // All names of one file shall have the same bytes.
            let fits =
                entry.meta.links <= 1 && entry.meta.size <= SMALL && together + entry.meta.size <= TOGETHER;
            if fits {
                together = together + entry.meta.size;
            }
            fits
        })
        .collect();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(small.len().div_ceil(PER_THREAD));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut read = Vec::new();
        while let Some((spot, entry)) = small.get(next.fetch_add(1, Ordering::Relaxed)) {
            if late() {
                break;
            }
            read.extend(read_whole(entry).map(|bytes| (*spot, bytes)));
        }
        read
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all: HashMap<Spot, Vec<u8>> = work().into_iter().collect();
        // Whatever a thread that panicked had read is brought in the ordinary way.
        all.extend(others.into_iter().filter_map(|other| other.join().ok()).flatten());
        all
    })
}

/// The content that belongs to this stamp; nothing if it cannot be had so.
fn read_whole(entry: &Entry) -> Option<Vec<u8>> {
    let stamp = entry.meta.stamp();
    let file = open_source(&entry.path).ok()?;
    if stamp_of(&file).ok()? != stamp {
        return None;
    }
    // One byte more than it has, so that the end is seen with the first read.
    let mut bytes = Vec::with_capacity(usize::try_from(stamp.size.0).ok()? + 1);
    (&file).take(stamp.size.0 + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 == stamp.size.0 && stamp_of(&file).ok()? == stamp).then_some(bytes)
}
