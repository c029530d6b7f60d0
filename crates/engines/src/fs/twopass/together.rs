//! Several files are cloned at once, by all processors.
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

/// What became of each job, in their order; nothing of those that were not begun because it got late.
pub(super) fn clone_all(
    copies: &Copies,
    jobs: &[Job],
    when: When<'_>,
) -> Vec<Option<Result<Taken, Untaken>>> {
    // The largest first, so that no thread is left alone with it at the end.
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|at| jobs.get(*at).map(|job| std::cmp::Reverse(job.size.0)));
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        while let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            let Some(job) = jobs.get(at) else { break };
            if (when.late)() {
                break;
            }
            done.push((at, copies.take(&job.path, Way::Clone, job.old, when)));
        }
        done
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(MOST_THREADS).min(jobs.len().div_ceil(PER_THREAD));
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
        for (at, result) in done {
            if let Some(place) = results.get_mut(at) {
                *place = Some(result);
            }
        }
    });
    results
}
