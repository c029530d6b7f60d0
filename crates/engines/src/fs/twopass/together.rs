//! Several files are cloned at once: by all processors while everybody is held, and before that by half of them.
//!
//! Files of one directory lie in one allocation group of XFS for the most part, and there one thread waits for the other at every
//! extent (measured with two: a tenth of a second more in all, and a fifth more of processor time). Under the freeze it is worth it all
//! the same, for it is not always so.
//!
//! Crash story: as its parent; threads that end before the call does. A panic in one is handed on.

use std::{
    num::NonZero,
    panic::resume_unwind,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use model::size::Bytes;

use super::copies::{Copies, Taken, Untaken, Way, When};

/// More threads than this wait for one another in the filesystem's log.
const MOST_THREADS: usize = 8;
/// So many files are worth another thread.
const PER_THREAD: usize = 4;

/// A file to be cloned.
pub(super) struct Job {
    pub path: PathBuf,
    pub size: Bytes,
    /// The copy of an earlier round.
    pub old: Option<u32>,
}

/// What became of each job, in their order; nothing where there is none, and of those that were not begun because it
/// got late.
pub(super) fn clone_all(
    copies: &Copies,
    jobs: &[Option<Job>],
    when: When<'_>,
) -> Vec<Option<Result<Taken, Untaken>>> {
    // The largest first, so that no thread is left alone with it at the end.
    let at = |at: usize| jobs.get(at).and_then(Option::as_ref);
    let mut order: Vec<usize> = (0..jobs.len()).filter(|place| at(*place).is_some()).collect();
    order.sort_by_key(|place| at(*place).map(|job| std::cmp::Reverse(job.size)));
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        while let Some(place) = order.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            let Some(job) = at(place).filter(|_| !(when.late)()) else { break };
            done.push((place, copies.take(&job.path, Way::Clone, job.old, when)));
        }
        done
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let cores = if when.frozen { cores } else { cores.div_ceil(2) };
    let threads = cores.min(MOST_THREADS).min(order.len().div_ceil(PER_THREAD));
    let mut results: Vec<Option<Result<Taken, Untaken>>> = Vec::new();
    results.resize_with(jobs.len(), || None);
    thread::scope(|scope| {
        // Where no thread can be made, those that are there do the work.
        let others: Vec<_> =
            (1..threads).filter_map(|_| thread::Builder::new().spawn_scoped(scope, run).ok()).collect();
        let mut done = run();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        for (place, result) in done {
            if let Some(slot) = results.get_mut(place) {
                *slot = Some(result);
            }
        }
    });
    results
}
