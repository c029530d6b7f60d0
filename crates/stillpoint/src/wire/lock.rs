//! One run per application: a `flock` on `{state}/locks/{relpath}.lock`, with `/` written `%`.
//!
//! Crash story: the kernel drops the lock with its process. The file stays; its text, the pid of the holder,
//! means something only while the lock is held.

use std::{
    fs,
    io::{self, Seek, Write},
    path::{Path, PathBuf},
};

use model::{
    id::Relpath,
    pathtext,
    port::{Failure, FailureKind},
};
use os::durable::{FileLock, create_dirs};

/// The right to back up or restore one application, until it is dropped.
#[derive(Debug)]
pub struct RunLock {
    _lock: FileLock,
}

fn path(state: &Path, relpath: &Relpath) -> PathBuf {
    // A relpath has no `%`, so no two of them share a file.
    state.join("locks").join(format!("{}.lock", relpath.as_str().replace('/', "%")))
}

impl RunLock {
    /// Takes the lock, or says who has it.
    ///
    /// # Errors
    /// [`FailureKind::Locked`] if another run has it; else if the file cannot be made.
    pub fn take(state: &Path, relpath: &Relpath) -> Result<Self, Failure> {
        let path = path(state, relpath);
        let failed = |error: io::Error| {
            let what = format!("the lock {} cannot be taken", pathtext::show(&path));
            Failure::new(FailureKind::Other, what, "run it as the user who owns the partition").because(error)
        };
        create_dirs(&state.join("locks"), 0o700).map_err(failed)?;
        let holder = || fs::read_to_string(&path).ok()?.trim().parse().ok();
        match FileLock::try_exclusive_after(&path, holder).map_err(failed)? {
            Some(lock) => {
                note_holder(&lock).map_err(failed)?;
                Ok(Self { _lock: lock })
            }
            None => Err(taken(&path, relpath)),
        }
    }
}

fn note_holder(lock: &FileLock) -> io::Result<()> {
    let mut file = lock.file();
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn taken(path: &Path, relpath: &Relpath) -> Failure {
    // Between another's taking the lock and its writing of the pid, or if we may not read it, none is known.
    let pid = fs::read_to_string(path).unwrap_or_default();
    let who = match pid.trim() {
        "" => String::new(),
        pid => format!(" (process {pid})"),
    };
    let what = format!("{relpath} is locked by another run{who}");
    Failure::new(FailureKind::Locked, what, "wait until it has ended, or end it; nothing was changed")
}

#[cfg(test)]
mod tests {
    use model::{id::Relpath, port::FailureKind};

    use super::RunLock;

    #[test]
    fn a_second_run_is_told_who_has_the_lock() {
        let state = tempfile::tempdir().unwrap();
        let hydro = Relpath::new("demo.softxs.ch/hydro").unwrap();
        let first = RunLock::take(state.path(), &hydro).unwrap();
        let refused = RunLock::take(state.path(), &hydro).unwrap_err();
        assert_eq!(refused.kind, FailureKind::Locked);
        assert!(refused.what.contains(&format!("process {}", std::process::id())), "{}", refused.what);
        assert!(RunLock::take(state.path(), &Relpath::new("other").unwrap()).is_ok());
        drop(first);
        assert!(RunLock::take(state.path(), &hydro).is_ok());
    }
}
