//! Bringing the older frozen copies up to date, once nothing is compared with them any more: when the backup is listed they are
//! spare, and the next one clones over them. What they lack is known here to the chunk, and while directories are stored
//! a core has nothing to do; the next cut then waits for one night's changes instead of two.
//!
//! Crash story: from the first clone on an older copy is of no backup. Its change time tells that, so neither a backup nor a
//! restore takes it for what the record says, whatever ends us; if this backup is never listed, the next one reads
//! these files whole. The copies are changed under the lock of the application's runs, by one thread, which has ended
//! before this guard has; and not before the lock of the repository showed nobody, since whatever else is done until then
//! may have to be done again.

use std::{
    fs::OpenOptions,
    io,
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use model::reference::ReferenceFile;
use os::{
    extents::{clone_range, skips_what_is_shared},
    tree::stamp_of,
};

use crate::{reference::has_room, repository::backend::Backend};

/// So many extents for each range that differs are better passed over than left out (measured on XFS: 12 µs for each time that
/// something is cloned, and 1.5 for an extent that is shared already).
const PASSED_OVER: usize = 6;

/// No more than so many bytes are cloned at once, since restores from the copy wait meanwhile.
const PIECE: u64 = 16 << 20;

/// An older copy, and what a newer one has that it has not.
pub(super) struct Behind {
    pub(super) older: ReferenceFile,
    /// Where the newer one is.
    pub(super) newer: PathBuf,
    /// Outside of these bytes both are the same.
    pub(super) ranges: Vec<Range<u64>>,
    /// How many extents the newer one has.
    pub(super) extents: usize,
}

/// A thread that does it; dropping this stops it.
pub(super) struct CatchUp {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl CatchUp {
    /// Begins as soon as the repository may be written. Whatever cannot be done is left to the next backup, for which it is only
    /// more work.
    pub(super) fn begin(behind: Vec<Behind>, backend: Arc<Backend>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            if !backend.goes_on() {
                return;
            }
            for one in &behind {
                if let Err(error) = one.catch_up(&stopped) {
                    tracing::debug!(copy = %one.older.copy.display(), %error, "it is not brought up to date");
                }
            }
        };
        Self { stop, thread: thread::Builder::new().name("catch-up".into()).spawn(run).ok() }
    }

    /// Waits until all is done.
    pub(super) fn finish(mut self) {
        self.join();
    }

    fn join(&mut self) {
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("bringing frozen copies up to date ended in a panic");
        }
    }
}

impl Drop for CatchUp {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.join();
    }
}

impl Behind {
    /// What is cloned at once. To be asked costs the kernel as much as to pass over some extents that are the same.
    fn in_pieces(&self) -> Vec<Range<u64>> {
        let passes_over = self.extents <= PASSED_OVER * self.ranges.len();
        let mut pieces: Vec<Range<u64>> = Vec::new();
        for range in &self.ranges {
            match pieces.last_mut() {
                Some(piece) if passes_over && range.end - piece.start <= PIECE => piece.end = range.end,
                _ => {
                    let parts = range.clone().step_by(PIECE as usize);
                    pieces.extend(parts.map(|start| start..(start + PIECE).min(range.end)));
                }
            }
        }
        pieces
    }

    /// Clones what it lacks, unless it is not the copy that it was, or would be no use as a spare one.
    fn catch_up(&self, stopped: &AtomicBool) -> io::Result<()> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let newer = OpenOptions::new().read(true).custom_flags(flags).open(&self.newer)?;
        let older = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.older.copy)?;
        let is_of_use = skips_what_is_shared(&older)? && self.older.copy.parent().is_some_and(has_room);
        if !is_of_use || stamp_of(&older.metadata()?) != self.older.stamp() {
            return Ok(());
        }
        let size = newer.metadata()?.len();
        if size < self.older.size.0 {
            older.set_len(size)?;
        }
        let within = self.in_pieces().into_iter().map(|range| range.start..range.end.min(size));
        within
            .filter(|range| range.start < range.end)
            .take_while(|_| !stopped.load(Ordering::Relaxed))
            .try_for_each(|range| clone_range(&newer, &older, range))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use model::{reference::ReferenceFile, size::Bytes};

    use super::{Behind, PIECE};

    fn pieces(extents: usize, ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let (path, copy) = (PathBuf::new(), PathBuf::new());
        let (content, size) = (String::new(), Bytes(0));
        let older = ReferenceFile {
            path,
            copy,
            volume: None,
            size,
            inode: 0,
            ctime: 0,
            mtime: 0,
            blob: 0,
            content,
            map: None,
        };
        let ranges = ranges.iter().map(|(start, end)| *start..*end).collect();
        let behind = Behind { older, newer: PathBuf::new(), ranges, extents };
        behind.in_pieces().into_iter().map(|piece| (piece.start, piece.end)).collect()
    }

    #[test]
    fn what_lies_together_is_cloned_at_once_and_no_more_than_a_piece() {
        let here_and_there = [(0, 10), (20, 30), (PIECE - 5, PIECE), (PIECE + 20, PIECE + 30)];
        assert_eq!(pieces(24, &here_and_there), [(0, PIECE), (PIECE + 20, PIECE + 30)]);
        assert_eq!(pieces(25, &here_and_there), here_and_there, "there is too much in between");
        let large = [(5, 2 * PIECE + 6), (3 * PIECE, 3 * PIECE + 1)];
        let parts = [(5, PIECE + 5), (PIECE + 5, 2 * PIECE + 5), (2 * PIECE + 5, 2 * PIECE + 6)];
        assert_eq!(pieces(100, &large), [&parts[..], &large[1..]].concat());
    }
}
