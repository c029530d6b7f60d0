//! Bringing to disk what is being written, while more of it is written: left for the end, all would wait for it.
//!
//! One thread waits while the others go on; only if the disk is slower than all of them, they wait for it.
//!
//! Crash story: changes nothing. The sync at the end is what proves that all is on disk, and is told what failed here.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::{Mode, OFlags};

/// What a disk may still have in its cache is flushed each time so much was written past the page cache, in bytes.
const DIRECT: u64 = 256 << 20;

/// What the page cache has is written each time it got so much, in bytes.
const CACHED: u64 = 128 << 20;

/// A file takes at least so much of the page cache, in bytes.
const LEAST: u64 = 4096;

/// How much was written, and what could not be brought to disk.
#[derive(Debug, Default)]
pub(super) struct Flusher {
    direct: AtomicU64,
    cached: AtomicU64,
    failed: Mutex<Option<io::Error>>,
}

impl Flusher {
    /// So many bytes more were written to this file, past the page cache.
    pub fn wrote(&self, file: &File, bytes: u64) -> io::Result<()> {
        if is_time(&self.direct, bytes, DIRECT) { file.sync_data() } else { Ok(()) }
    }

    /// So many bytes more of a file in this directory are in the page cache.
    pub fn cached(&self, dir: &OwnedFd, bytes: u64) {
        if is_time(&self.cached, bytes.max(LEAST), CACHED)
            && let Err(error) = sync(dir)
        {
            self.known().get_or_insert(error);
        }
    }

    /// What failed while nobody could be told.
    pub fn take_failure(&self) -> Option<io::Error> {
        self.known().take()
    }

    fn known(&self) -> MutexGuard<'_, Option<io::Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_time(counted: &AtomicU64, bytes: u64, each: u64) -> bool {
    let before = counted.fetch_add(bytes, Ordering::Relaxed);
    before / each != (before + bytes) / each
}

/// By a descriptor of its own: what failed on the way is told to each one once (syncfs(2)), and is to be told to the last
/// sync too.
fn sync(dir: &OwnedFd) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Without it nothing is lost but time.
    let Ok(own) = rustix::fs::openat(dir, ".", flags, Mode::empty()) else { return Ok(()) };
    Ok(rustix::fs::syncfs(own)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::is_time;

    #[test]
    fn it_is_time_once_for_each_amount() {
        let counted = AtomicU64::new(0);
        let times = (0..100).filter(|_| is_time(&counted, 7, 50)).count();
        assert_eq!(times, 14);
    }
}
