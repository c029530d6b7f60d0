//! Undoing what a run held or pinned, from the values that it journalled.
//!
//! Crash story: every undo may be repeated, cut short, or done by two at once (watchdog and `thaw`): it names
//! its object precisely and is done when that object is gone. A process is named by id *and* start time and
//! signalled through a pidfd; paths are only touched if they bear the marks of what we make. A start hook
//! must bear being run while the platform runs.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use model::{
    pathtext,
    undo::{Hook, ProcessRef, Undo},
};
use rustix::process::Signal;

use crate::{
    clock::{deadline_in, left},
    command::{Command, CommandError, GRACE, Helper, end_group},
    hold::{cgroup::ControlGroup, freezer, stop},
    lvm::{self, LvmError},
    mounted::{self, MountedError},
    process,
    site::{self, SwapError},
    staging::{self, StagingError},
    subvolume::{self, SubvolumeError},
    zfs::{self, ZfsError},
};

/// How long a killed process may take to end.
const ENDING: Duration = Duration::from_secs(1);
/// How long a server may take to answer.
const ANSWERING: Duration = Duration::from_secs(10);
/// How long a server may take to put databases back: it drops as many as were loaded, and may have to wait for others.
const EXCHANGING: Duration = Duration::from_secs(3600);
/// The helper role that undoes what was done to a server: one [`Undo::ServerVariable`] or [`Undo::ServerExchange`] in,
/// one `Result<(), String>` out.
pub const SERVER_ROLE: &str = "server-undo";

/// Why something could not be undone.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// A process is still stopped.
    #[error("cannot continue process {}; run kill -CONT {}", .process.pid, .process.pid)]
    Continue {
        /// The process.
        process: ProcessRef,
        /// Why not.
        source: io::Error,
    },
    /// A control group is still frozen.
    #[error("cannot thaw the control group {}; write 0 to its cgroup.freeze, or THAWED to its freezer.state", pathtext::show(.path))]
    Thaw {
        /// The control group.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A process of ours still runs.
    #[error("cannot end process {}; run kill -KILL {}", .process.pid, .process.pid)]
    End {
        /// The process.
        process: ProcessRef,
        /// Why not.
        source: io::Error,
    },
    /// The start hook could not be run.
    #[error("cannot run the start hook; run it by hand: {run}")]
    StartHook {
        /// The start hook.
        run: String,
        /// Why not.
        source: CommandError,
    },
    /// The start hook ran and failed.
    #[error("the start hook did not succeed ({ended}); run it by hand: {run}")]
    NotStarted {
        /// The start hook.
        run: String,
        /// How it ended.
        ended: String,
    },
    /// It does not bear the marks of what we make.
    #[error("{} is not removed: {rule}", pathtext::show(.path))]
    Foreign {
        /// The path.
        path: PathBuf,
        /// What is expected of it.
        rule: &'static str,
    },
    /// A file is left.
    #[error("cannot remove {}; remove it by hand", pathtext::show(.path))]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A server did not take its variable back.
    #[error("`{by_hand}` did not succeed ({why}); run it by hand")]
    Variable {
        /// What to do by hand.
        by_hand: String,
        /// What it said.
        why: String,
    },
    /// Databases are as an unfinished restore left them.
    #[error(
        "the databases {databases} of the server at {address} are as an unfinished restore left them ({why}); see that the \
         server runs and nobody holds their tables"
    )]
    Exchange {
        /// The server.
        address: String,
        /// The databases.
        databases: String,
        /// What it said.
        why: String,
    },
    /// Pinned copies are left.
    #[error(transparent)]
    Tree(#[from] StagingError),
    /// A snapshot is left.
    #[error(transparent)]
    Subvolume(#[from] SubvolumeError),
    /// A snapshot is still mounted.
    #[error(transparent)]
    Mounted(#[from] MountedError),
    /// A logical volume is left.
    #[error(transparent)]
    Lvm(#[from] LvmError),
    /// A ZFS snapshot is left.
    #[error(transparent)]
    Zfs(#[from] ZfsError),
    /// What an unfinished restore moved aside is not back, or what it had written is left.
    #[error(transparent)]
    Swap(#[from] SwapError),
}

impl UndoError {
    /// Whether some names that a restore replaced are new and some are old: nobody should be started on that.
    #[must_use]
    pub fn is_mixed(&self) -> bool {
        matches!(self, Self::Swap(SwapError::Rename { .. } | SwapError::Sync(..)))
    }
}

/// Undoes it. Done already, or never made, is success.
///
/// # Errors
/// If something is left; says what to do by hand.
pub fn perform(undo: &Undo) -> Result<(), UndoError> {
    match undo {
        Undo::Continue { processes } => {
            stop::resume(processes).map_err(|(process, source)| UndoError::Continue { process, source })
        }
        Undo::ThawCgroup { cgroup } => thaw(cgroup),
        Undo::Start { start, ends } => begin(start, *ends),
        Undo::End { process } => end(*process).map_err(|source| UndoError::End { process: *process, source }),
        Undo::RemoveLock { path } => remove_lock(path),
        Undo::RemoveTree { path } => Ok(staging::remove(path)?),
        Undo::SwapBack { moves, staging } => Ok(site::swap_back(moves, staging)?),
        Undo::DeleteSubvolume { path } => Ok(subvolume::delete(path)?),
        Undo::Unmount { path } => Ok(mounted::unmount(path)?),
        Undo::RemoveLogicalVolume { group, name } => Ok(lvm::remove(group, name)?),
        Undo::ReleasePoolMetadata { group, pool, root } => Ok(lvm::release_metadata(group, pool, *root)?),
        Undo::DestroyZfsSnapshot { dataset, snapshot } => Ok(zfs::destroy(dataset, snapshot)?),
        Undo::ServerVariable { variable, old, .. } => {
            let by_hand = format!("SET GLOBAL {variable} = {old}");
            by_helper(undo, ANSWERING).map_err(|why| UndoError::Variable { by_hand, why })
        }
        Undo::ServerExchange { access, databases, .. } => {
            let (address, databases) = (access.address.to_string(), databases.join(", "));
            by_helper(undo, EXCHANGING).map_err(|why| UndoError::Exchange { address, databases, why })
        }
    }
}

/// The helper that speaks to servers: this crate does not.
fn by_helper(undo: &Undo, within: Duration) -> Result<(), String> {
    let ask = || {
        let mut child = Helper::this_program().spawn(SERVER_ROLE, &[])?;
        child.send(undo)?;
        child.receive::<Result<(), String>>(within)
    };
    ask().map_err(|error| error.to_string())?
}

fn thaw(path: &Path) -> Result<(), UndoError> {
    match ControlGroup::at(path).and_then(|group| freezer::thaw(&group)) {
        Err(error) if is_gone(&error) => Ok(()),
        other => other.map_err(|source| UndoError::Thaw { path: path.to_owned(), source }),
    }
}

/// ENODEV is what the files of a control group say that was removed while they were open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Ends the stop hook if it still runs, then runs the start hook, even if the former fails: a platform that
/// may be half stopped is better started.
fn begin(start: &Hook, ends: Option<ProcessRef>) -> Result<(), UndoError> {
    let ended = ends.map_or(Ok(()), |process| {
        end_group(process, GRACE).map_err(|source| UndoError::End { process, source })
    });
    let run = start.run.clone();
    let outcome = Command::hook(start)
        .directory("/")
        .discard_output()
        .run()
        .map_err(|source| UndoError::StartHook { run: run.clone(), source })?;
    if !outcome.is_success() {
        return Err(UndoError::NotStarted { run, ended: outcome.in_short() });
    }
    ended
}

fn end(process: ProcessRef) -> io::Result<()> {
    process::signal(process, Signal::KILL)?;
    let until = deadline_in(ENDING);
    while process::alive(process) {
        if left(until).is_zero() {
            return Err(io::Error::other("it does not end by SIGKILL: it waits in the kernel"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Repositories keep their locks as files in a directory of this name, see restic's design document.
fn remove_lock(path: &Path) -> Result<(), UndoError> {
    let foreign = |rule| UndoError::Foreign { path: path.to_owned(), rule };
    if path.parent().and_then(Path::file_name) != Some(OsStr::new("locks")) {
        return Err(foreign("a lock lies in a directory named locks"));
    }
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => return Err(foreign("a lock is a regular file")),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(UndoError::Remove { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        process::{Child, Command, Stdio},
        time::Duration,
    };

    use model::undo::{Hook, ProcessRef, Undo};
    use rustix::process::Signal;

    use super::{UndoError, perform};
    use crate::process::{alive, process_ref, signal, stat};

    fn sleeper() -> (Child, ProcessRef) {
        let child = Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().unwrap();
        let process = process_ref(child.id()).unwrap();
        (child, process)
    }

    fn wait_for_state(process: ProcessRef, wanted: fn(u8) -> bool) {
        for _ in 0..1000 {
            if wanted(stat::read(process.pid).unwrap().state) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("process {} is in state {}", process.pid, char::from(stat::read(process.pid).unwrap().state));
    }

    #[test]
    fn exactly_the_stopped_process_is_continued() {
        let (mut child, process) = sleeper();
        assert!(signal(process, Signal::STOP).unwrap());
        wait_for_state(process, |state| state == b'T');
        let other = ProcessRef { start: process.start + 1, ..process };
        perform(&Undo::Continue { processes: vec![other] }).unwrap();
        assert_eq!(stat::read(process.pid).unwrap().state, b'T', "another process was meant");
        for _ in 0..2 {
            perform(&Undo::Continue { processes: vec![process] }).unwrap();
            wait_for_state(process, |state| state == b'S');
        }
        child.kill().unwrap();
        child.wait().unwrap();
        perform(&Undo::Continue { processes: vec![process] }).unwrap();
    }

    #[test]
    fn exactly_the_child_is_ended() {
        let (mut child, process) = sleeper();
        perform(&Undo::End { process: ProcessRef { start: process.start + 1, ..process } }).unwrap();
        assert!(alive(process));
        for _ in 0..2 {
            perform(&Undo::End { process }).unwrap();
            assert!(!alive(process));
        }
        child.wait().unwrap();
    }

    #[test]
    fn only_files_among_locks_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let locks = dir.path().join("locks");
        fs::create_dir_all(locks.join("inner")).unwrap();
        let (lock, other) = (locks.join("abc"), dir.path().join("config"));
        fs::write(&lock, "").unwrap();
        fs::write(&other, "").unwrap();
        for _ in 0..2 {
            perform(&Undo::RemoveLock { path: lock.clone() }).unwrap();
            assert!(!lock.exists());
        }
        for path in [other.clone(), locks.join("inner"), locks.join("..")] {
            let error = perform(&Undo::RemoveLock { path }).unwrap_err();
            assert!(matches!(error, UndoError::Foreign { .. }), "{error}");
        }
        assert!(other.exists() && locks.join("inner").exists());
    }

    #[test]
    fn a_group_that_is_gone_is_thawed() {
        perform(&Undo::ThawCgroup { cgroup: "/sys/fs/cgroup/no-such-group".into() }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        perform(&Undo::ThawCgroup { cgroup: dir.path().into() }).unwrap_err();
    }

    #[test]
    fn a_start_hook_that_fails_says_what_to_do() {
        let start = Hook { run: "exit 7".into(), timeout: Duration::from_secs(10) };
        let error = perform(&Undo::Start { start, ends: None }).unwrap_err().to_string();
        assert_eq!(error, "the start hook did not succeed (exit status: 7); run it by hand: exit 7");
    }

    #[test]
    fn a_stop_hook_ends_before_the_start_hook_runs() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let stop = format!(
            "trap 'sleep 0.1; echo ended >>{0}; exit 1' TERM; while :; do sleep 0.01; done",
            log.display()
        );
        let hook = Hook { run: stop, timeout: Duration::from_secs(100) };
        let mut running = crate::command::Command::gated_hook(&hook).start().unwrap();
        running.open_gate().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let start =
            Hook { run: format!("echo started >>{}", log.display()), timeout: Duration::from_secs(10) };
        perform(&Undo::Start { start, ends: Some(running.process()) }).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "ended\nstarted\n");
    }
}
