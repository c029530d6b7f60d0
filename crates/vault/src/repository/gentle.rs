//! Going easy on a machine whose applications run: all readers of a repository's files share one limit, and their threads
//! wait for everybody else's I/O, where the inventory says so.
//!
//! Crash story: waits, and nothing else.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use model::{
    pace::{Bucket, IoClass, Pace},
    port::Clock,
    problem::{Effect, Problem},
};
use os::{clock::SystemClock, priority};

/// How often whoever waits looks whether somebody asked to stop.
const LOOK: Duration = Duration::from_millis(100);

/// How hard the disks are gone at, by all who share it.
#[derive(Clone)]
pub(crate) struct Gentle(Arc<Inner>);

struct Inner {
    io_class: IoClass,
    bucket: Option<Mutex<Bucket>>,
    /// Why the kernel refused the I/O class.
    refused: OnceLock<io::Error>,
}

impl Gentle {
    pub(crate) fn new(pace: Pace) -> Self {
        let bucket = pace.read_limit.map(|limit| Mutex::new(Bucket::new(limit)));
        Self(Arc::new(Inner { io_class: pace.io_class, bucket, refused: OnceLock::new() }))
    }

    /// Gives the calling thread its class, for as long as it lives.
    pub(crate) fn settle(&self) {
        if self.0.io_class == IoClass::Idle
            && let Err(error) = priority::be_idle()
        {
            let _first = self.0.refused.set(error);
        }
    }

    /// Waits until so many bytes may be read, or somebody asked to stop.
    pub(crate) fn wait_for(&self, bytes: u64, is_stopped: impl Fn() -> bool) {
        let Some(bucket) = &self.0.bucket else { return };
        let until = bucket.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, SystemClock.moment());
        let Some(until) = until else { return };
        loop {
            let left = until.since(SystemClock.moment());
            if left.is_zero() || is_stopped() {
                return;
            }
            SystemClock.sleep(left.min(LOOK));
        }
    }

    /// What could not be done.
    pub(crate) fn problem(&self) -> Option<Problem> {
        let error = self.0.refused.get()?;
        let what = format!("the backup did not run in the idle I/O class: {error}");
        Some(Problem::new(Effect::Note, None, what, "see what refuses ioprio_set, or leave io_class out"))
    }
}

impl Default for Gentle {
    fn default() -> Self {
        Self::new(Pace::default())
    }
}
