//! The same work on many things, by all processors.
//!
//! Crash story: threads that end before the call does; a panic in one is handed on.

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

/// More threads than this wait for one another in the kernel's locks.
const MOST_THREADS: usize = 16;

/// Does each piece of work, in any order, and hands back what came of them in the order of the work. `None` if
/// it got late before all was done; `late` is asked before each piece.
pub(super) fn spread<T: Sync, R: Send, W>(
    work: &[T],
    late: &(dyn Fn() -> bool + Sync),
    tools: impl Fn() -> W + Sync,
    each: impl Fn(&T, &mut W) -> Option<R> + Sync,
) -> Option<Vec<R>> {
    let next = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    let run = || {
        let mut tools = tools();
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = work.get(index) else { return done };
            if stopped.load(Ordering::Relaxed) || late() {
                stopped.store(true, Ordering::Relaxed);
                return done;
            }
            done.extend(each(piece, &mut tools).map(|result| (index, result)));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS).min(work.len());
    let mut done = thread::scope(|scope| {
        // Where no thread can be made, those that are there do the work.
        let others: Vec<_> =
            (1..threads).filter_map(|_| thread::Builder::new().spawn_scoped(scope, run).ok()).collect();
        let mut done = run();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    if stopped.load(Ordering::Relaxed) {
        return None;
    }
    done.sort_by_key(|(index, _)| *index);
    Some(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::spread;

    #[test]
    fn all_is_done_and_comes_back_in_order() {
        let work: Vec<u32> = (0..10_000).collect();
        let odd = |n: &u32, _: &mut ()| (n % 2 == 1).then_some(*n);
        let found = spread(&work, &|| false, || (), odd).unwrap();
        assert!(found.into_iter().eq((0..10_000).filter(|n| n % 2 == 1)));
    }

    #[test]
    fn what_comes_late_is_not_half_done() {
        let asked = AtomicU32::new(0);
        let late = || asked.fetch_add(1, Ordering::Relaxed) >= 5;
        assert_eq!(spread(&[1; 100], &late, || (), |n, ()| Some(*n)), None);
        assert!(asked.load(Ordering::Relaxed) < 100);
    }
}
