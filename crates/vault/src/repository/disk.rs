//! Writing and removing the files of a repository.
//!
//! Crash story: a file appears under its name only when it is whole and on disk: see [`os::durable`]. If we
//! stop in between, a temporary file is left, whose name restic and rustic ignore; freeing space sweeps
//! those, under the exclusive lock. Two writers of one name write the same bytes, for a name is the hash of
//! its content.

use std::{fs, io, path::Path};

use os::durable;

/// Mode of a repository's files.
pub(crate) const FILE_MODE: u32 = 0o600;

/// Mode of a repository's directories.
pub(crate) const DIR_MODE: u32 = 0o700;

/// The effects that a repository has on its directory; a trait so that a test can let one fail.
pub(crate) trait Disk: Send + Sync {
    /// Puts a whole, durable file in place.
    fn put(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Puts a whole new file in place of which nothing may be left half-done, if that can be had; it need not outlive the machine.
    fn put_unseen(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.put(path, content)
    }
    /// Removes a file durably.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The real one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn put(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        // Some copying tools leave empty directories behind, and with them those that nothing was in yet.
        path.parent().map_or(Ok(()), |dir| durable::create_dirs(dir, DIR_MODE))?;
        durable::replace(path, content, FILE_MODE)
    }

    fn put_unseen(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        path.parent().map_or(Ok(()), |dir| durable::create_dirs(dir, DIR_MODE))?;
        durable::write_unseen(path, content, FILE_MODE)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)?;
        path.parent().map_or(Ok(()), durable::sync_dir)
    }
}
