//! Progress of rustic_core's long tasks, carried over to our port.
//!
//! Crash story: counts in memory, no effects.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use model::{
    port::{Progress, Stage},
    size::Bytes,
};
use rustic_core::{HiddenProgress, Progress as LibraryProgress, ProgressBars, ProgressType, RusticProgress};

const TICK: Duration = Duration::from_millis(100);

/// Counts the bytes that rustic_core says it has done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter(Arc<AtomicU64>);

impl ProgressBars for Meter {
    fn progress(&self, progress_type: ProgressType, _prefix: &str) -> LibraryProgress {
        match progress_type {
            ProgressType::Bytes => LibraryProgress::new(self.clone()),
            ProgressType::Spinner | ProgressType::Counter => LibraryProgress::new(HiddenProgress),
        }
    }
}

impl RusticProgress for Meter {
    fn is_hidden(&self) -> bool {
        true
    }
    fn set_length(&self, _len: u64) {}
    fn set_title(&self, _title: &str) {}
    fn inc(&self, inc: u64) {
        self.0.fetch_add(inc, Ordering::Relaxed);
    }
    fn finish(&self) {}
}

impl Meter {
    /// Counts bytes that are done.
    pub(crate) fn count(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Does `task` as a stage, telling `progress` ten times a second what was counted meanwhile. Progress
    /// cannot be handed to rustic_core itself, whose threads outlive any borrow.
    pub(crate) fn watch<T>(
        &self,
        progress: &dyn Progress,
        stage: Stage,
        total: Option<Bytes>,
        task: impl FnOnce() -> T,
    ) -> T {
        progress.begin(stage, total);
        let seen = AtomicU64::new(self.0.load(Ordering::Relaxed));
        let tell = || {
            let now = self.0.load(Ordering::Relaxed);
            let before = seen.swap(now, Ordering::Relaxed);
            if now > before {
                progress.advance(Bytes(now - before));
            }
        };
        let over = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            let teller = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    tell();
                    thread::park_timeout(TICK);
                }
            });
            // Also if the task panics, or the scope would wait for the teller for ever.
            let _end = AtEnd(|| {
                over.store(true, Ordering::Relaxed);
                teller.thread().unpark();
            });
            task()
        });
        tell();
        progress.end();
        result
    }
}

/// Does something when it goes out of scope.
struct AtEnd<F: FnMut()>(F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
