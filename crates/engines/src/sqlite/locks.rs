//! Who holds SQLite's locks on a file, seen from outside.
//!
//! Offsets: `PENDING_BYTE` in SQLite's os.h (<https://www.sqlite.org/src/file/src/os.h>) and the lock bytes of the
//! wal-index (<https://www.sqlite.org/walformat.html>, section 2.3.1).
//!
//! Crash story: reads only. `F_OFD_GETLK` takes no lock, and this process has no POSIX lock on these files that
//! closing them could drop.

use std::{fmt, fs::File, io, ops::Range, os::fd::AsRawFd, path::Path};

use model::plan::JournalMode;

use super::names::shm_of;

const PENDING_BYTE: i64 = 0x4000_0000;
const RESERVED_BYTE: Range<i64> = PENDING_BYTE + 1..PENDING_BYTE + 2;
/// Pending byte and the range of shared locks: write-locked only by an exclusive locker.
const SHARED_RANGE: Range<i64> = PENDING_BYTE + 2..PENDING_BYTE + 512;
const WAL_WRITE_LOCK: Range<i64> = 120..121;

/// Whoever holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockHolder {
    /// A process, by the number that it has here.
    Process(u32),
    /// A process that cannot be seen from here (another container), or an open file description.
    Unknown,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Unknown => f.write_str("a process that cannot be seen from here"),
        }
    }
}

/// Who has the write lock of this database, and the name of that lock; opens the file anew, so that it speaks
/// of the file that is at `path` now.
///
/// # Errors
/// If the file, or in WAL mode its `-shm`, cannot be opened.
pub(super) fn write_lock(
    path: &Path,
    journal: JournalMode,
) -> io::Result<(Option<LockHolder>, &'static str)> {
    match journal {
        JournalMode::Rollback => {
            Ok((holder(&File::open(path)?, RESERVED_BYTE, libc::F_WRLCK)?, "RESERVED byte"))
        }
        JournalMode::Wal => {
            let shm = File::open(shm_of(path))?;
            Ok((holder(&shm, WAL_WRITE_LOCK, libc::F_WRLCK)?, "WAL write lock"))
        }
    }
}

/// Who has locked the whole database exclusively: in the middle of a commit in rollback mode, or for good with
/// `locking_mode=EXCLUSIVE`.
///
/// # Errors
/// If the kernel cannot tell.
pub(super) fn exclusive(database: &File) -> io::Result<Option<LockHolder>> {
    // A read lock conflicts with write locks only.
    holder(database, SHARED_RANGE, libc::F_RDLCK)
}

fn holder(file: &File, range: Range<i64>, kind: libc::c_int) -> io::Result<Option<LockHolder>> {
    // SAFETY: `flock` is plain data, for which all zeroes is a value; `l_pid` has to be 0 for F_OFD_GETLK.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = narrow(kind)?;
    lock.l_whence = narrow(libc::SEEK_SET)?;
    lock.l_start = range.start;
    lock.l_len = range.end - range.start;
    // SAFETY: the descriptor is open and `lock` is a valid `flock` that outlives the call. Called through libc,
    // because rustix has only F_GETLK, which does not see locks of this very process.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if lock.l_type == narrow(libc::F_UNLCK)? {
        return Ok(None);
    }
    Ok(Some(match u32::try_from(lock.l_pid) {
        Ok(pid) if pid > 0 => LockHolder::Process(pid),
        _ => LockHolder::Unknown,
    }))
}

fn narrow(value: libc::c_int) -> io::Result<libc::c_short> {
    libc::c_short::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}
