//! Writing that survives a crash: a temporary name, fsync, rename, fsync of the directory.
//!
//! Crash story: until the rename a reader sees what was there before, after it all of the new content; a
//! stop in between leaves a file named `.stillpoint-tmp-…` beside the target, which nothing reads and
//! [`remove_leftovers`] removes. Two writers of one path do not mix: each writes its own temporary file, the
//! last rename wins ([`replace`]) or the second fails ([`write_new`]). Locks are `flock` locks: the kernel
//! ends them with their holder.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, FlockOperation, Mode, RenameFlags, flock, renameat_with},
    io::Errno,
};

use crate::{direct, staging::random_hex};

/// How the names of unfinished files begin.
const TEMPORARY: &str = ".stillpoint-tmp-";

/// Writes a file that must not exist yet, with these permission bits whatever the umask is.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if there is something at `path`; else what the filesystem says. Then
/// nothing is left behind.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_temporary(path, bytes, mode)?;
    let placed = rename_new(&temporary, path);
    finish(path, &temporary, placed)
}

/// Writes a file in place of what is there, if anything is, with these permission bits whatever the umask is.
///
/// # Errors
/// What the filesystem says; then what was there is untouched.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_temporary(path, bytes, mode)?;
    let placed = std::fs::rename(&temporary, path);
    finish(path, &temporary, placed)
}

/// Writes a file that must not exist yet, and that has no name at all before all of it is on disk: a stop in between leaves
/// nothing. The name itself may be gone after a crash of the machine, for it is for files that mean nothing then. Where the
/// filesystem has no files without names it is written as [`replace`] does.
///
/// # Errors
/// As [`replace`].
pub fn write_unseen(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let written = || -> io::Result<()> {
        let flags = libc::O_TMPFILE;
        let file = OpenOptions::new().write(true).custom_flags(flags).mode(0o600).open(parent(path))?;
        direct::write_new(&file, bytes)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        file.sync_all()?;
        // open(2): so a file gets its first name, without a privilege.
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    };
    written().or_else(|error| {
        tracing::debug!(path = %path.display(), %error, "written under a temporary name");
        replace(path, bytes, mode)
    })
}

/// Renames a file or directory to a name that must be free, durably.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if the name is taken; else what the filesystem says.
pub fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    rename_new(from, to)?;
    sync_dir(parent(from))?;
    sync_dir(parent(to))
}

/// Swaps two names at once (`renameat2` with `RENAME_EXCHANGE`), durably.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] where the filesystem cannot do it; else what the filesystem says.
pub fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?;
    sync_dir(parent(a))?;
    sync_dir(parent(b))
}

/// Writes the names in a directory to disk.
///
/// # Errors
/// What the filesystem says. A filesystem that cannot sync directories (`EINVAL`) has nothing to write.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    match rustix::fs::fsync(File::open(path)?) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes a directory and whatever is missing above it, durably, with these permission bits for each that is
/// made, whatever the umask is.
///
/// # Errors
/// What the filesystem says.
pub fn create_dirs(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_dirs(parent(path), mode)?;
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => rustix::fs::chmod(path, Mode::from_raw_mode(mode))?,
        Err(Errno::EXIST) if path.is_dir() => {}
        Err(error) => return Err(error.into()),
    }
    sync_dir(parent(path))
}

/// Removes the temporary files that dead writers left in a directory. Only for whoever is known to be the only
/// writer there, such as the holder of its lock.
///
/// # Errors
/// What the filesystem says.
pub fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let ours = entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes());
        if ours && entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// How long a process may take between its beginning and its becoming another program, on a machine in need.
const BECOMING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// An exclusive `flock` on a file: it ends when this is dropped or its process ends.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

impl Drop for FileLock {
    /// Not by closing alone: what another thread is just starting has a copy of all descriptors until it is another program.
    fn drop(&mut self) {
        // If that fails, closing unlocks.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl FileLock {
    /// Takes the lock on this file, which is made (0600) if it is missing, or answers `None` at once if
    /// another holds it.
    ///
    /// # Errors
    /// If the file can be neither made nor opened, or the filesystem has no locks.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // Its last holder may have removed the file between our opening and locking it.
            if is_still_at(&file, path)? {
                return Ok(Some(Self { file }));
            }
        }
    }

    /// The same after a process that is known by its number. If the lock is taken and that process is gone, it was killed
    /// just when it started another program, which has copies of its descriptors for a moment; that is waited for.
    ///
    /// # Errors
    /// As [`Self::try_exclusive`].
    pub fn try_exclusive_after(path: &Path, holder: impl Fn() -> Option<u32>) -> io::Result<Option<Self>> {
        let until = Instant::now() + BECOMING;
        let is_gone = || holder().is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        loop {
            match Self::try_exclusive(path)? {
                None if Instant::now() < until && is_gone() => thread::sleep(LOOK),
                locked => return Ok(locked),
            }
        }
    }

    /// The locked file, open for reading and writing.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

fn is_still_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(named) => Ok(named.ino() == held.ino() && named.dev() == held.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let temporary = parent(path).join(format!("{TEMPORARY}{}", random_hex()?));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = direct::write_new(&file, bytes)
        .and_then(|()| Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?))
        .and_then(|()| file.sync_all());
    match written {
        Ok(()) => Ok(temporary),
        Err(error) => {
            remove_quietly(&temporary);
            Err(error)
        }
    }
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // Some filesystems lack RENAME_NOREPLACE; a hard link refuses a taken name as well, but directories
        // cannot have one.
        Err(Errno::INVAL | Errno::NOSYS) if !from.is_dir() => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        Err(error) => Err(error.into()),
    }
}

fn finish(path: &Path, temporary: &Path, placed: io::Result<()>) -> io::Result<()> {
    match placed {
        Ok(()) => sync_dir(parent(path)),
        Err(error) => {
            remove_quietly(temporary);
            Err(error)
        }
    }
}

fn remove_quietly(temporary: &Path) {
    if let Err(error) = std::fs::remove_file(temporary) {
        tracing::warn!(path = %temporary.display(), %error, "a temporary file is left behind");
    }
}

/// The directory that holds `path`; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs, io,
        os::unix::fs::PermissionsExt,
        process::{self, Command},
        thread,
        time::Duration,
    };

    use super::{FileLock, create_dirs, exchange, remove_leftovers, replace, write_new, write_unseen};

    #[test]
    fn a_new_file_is_whole_and_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_new(&path, b"one", 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        let second = write_new(&path, b"two", 0o600).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn what_is_written_unseen_is_whole_with_its_mode_and_may_be_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        for _ in 0..2 {
            write_unseen(&path, b"one", 0o640).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
            assert_eq!(fs::read(&path).unwrap(), b"one");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        }
        write_unseen(&dir.path().join("none/lock"), b"one", 0o600).unwrap_err();
    }

    #[test]
    fn replacing_takes_the_new_content_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::create_dir(&path).unwrap();
        replace(&path, b"one", 0o600).unwrap_err();
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_dead_writers_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".stillpoint-tmp-00"), b"half").unwrap();
        fs::write(dir.path().join("kept"), b"whole").unwrap();
        fs::create_dir(dir.path().join(".stillpoint-tmp-dir")).unwrap();
        remove_leftovers(dir.path()).unwrap();
        assert!(!dir.path().join(".stillpoint-tmp-00").exists());
        assert!(dir.path().join("kept").exists());
        assert!(dir.path().join(".stillpoint-tmp-dir").exists());
    }

    #[test]
    fn a_lock_has_one_holder_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = FileLock::try_exclusive(&path).unwrap().unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        // As a process has it that was started, and is not yet another program.
        let copy = first.file().try_clone().unwrap();
        drop(first);
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
        drop(copy);
    }

    #[test]
    fn what_a_killed_process_was_starting_holds_its_lock_for_a_moment_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let held = FileLock::try_exclusive(&path).unwrap().unwrap();
        let after = |pid: Option<u32>| FileLock::try_exclusive_after(&path, move || pid).unwrap();
        assert!(after(None).is_none() && after(Some(process::id())).is_none());
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                drop(held);
            });
            assert!(after(Some(gone.id())).is_some());
        });
    }

    #[test]
    fn names_are_swapped_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, b"a").unwrap();
        fs::create_dir(&b).unwrap();
        exchange(&a, &b).unwrap();
        assert!(a.is_dir());
        assert_eq!(fs::read(&b).unwrap(), b"a");
    }

    #[test]
    fn missing_directories_are_made_with_the_mode_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        create_dirs(&deep, 0o700).unwrap();
        create_dirs(&deep, 0o700).unwrap();
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o7777, 0o700);
    }
}
