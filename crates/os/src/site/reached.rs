//! Directories that are written in, kept open: files are written directory by directory, by a few threads, and looking
//! up the way to each anew would cost as much as making it.
//!
//! Crash story: descriptors only.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// So many are kept.
const MOST: usize = 32;

/// By the part and the path in the backup.
#[derive(Debug, Default)]
pub(super) struct Reached(Mutex<VecDeque<(usize, PathBuf, Arc<OwnedFd>)>>);

impl Reached {
    /// The directory, which is opened if it is not open.
    pub fn get(
        &self,
        part: usize,
        path: &Path,
        open: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<Arc<OwnedFd>> {
        if let Some(known) = self.all().iter().find(|known| known.0 == part && known.1 == path) {
            return Ok(Arc::clone(&known.2));
        }
        let dir = Arc::new(open()?);
        let mut all = self.all();
        all.truncate(MOST - 1);
        all.push_front((part, path.to_owned(), Arc::clone(&dir)));
        Ok(dir)
    }

    fn all(&self) -> MutexGuard<'_, VecDeque<(usize, PathBuf, Arc<OwnedFd>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
