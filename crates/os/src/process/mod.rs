//! Processes: who they are, which belong to an application, what they have open.
//!
//! Everything is read from `/proc` ([proc(5)](https://man7.org/linux/man-pages/man5/proc.5.html)); nobody is
//! held or changed here, except by [`signal`] and [`keep_together`].
//!
//! Crash story: reads only. Processes come and go between any two lines, so a process that vanishes is left
//! out and never an error, and a signal goes through a pidfd that was checked against the start time.

mod affinity;
pub(crate) mod facts;
mod look;
pub(crate) mod select;
pub(crate) mod stat;

use std::{io, os::fd::OwnedFd, path::PathBuf};

use model::undo::ProcessRef;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub use self::{
    affinity::keep_together,
    facts::facts,
    look::{Mapping, Mappings, all_shared_writable_maps, open_by, shared_writable_maps, unreadable_maps},
    select::{describe, find, start_of_a_process_now},
};

/// Why processes could not be found.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// `/proc` could not be read.
    #[error("cannot read {}", .path.display())]
    Proc {
        /// What was read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The pid file could not be read.
    #[error("cannot read the pid file {}; check pid_file in the inventory", .path.display())]
    PidFile {
        /// The pid file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The pid file does not hold one process id.
    #[error("the pid file {} does not hold a process id; check pid_file in the inventory", .path.display())]
    NoPid {
        /// The pid file.
        path: PathBuf,
    },
    /// The pid file is older than the process that has this number now, so it names one that has ended.
    #[error(
        "the pid file {} is stale: process {pid} started after it was written; restart the application, name \
         it by its unit, or touch the file if it is right and the clock was set since",
        .path.display()
    )]
    StalePidFile {
        /// The pid file.
        path: PathBuf,
        /// Who has the number now.
        pid: u32,
    },
    /// Several control groups bear the name of the unit.
    #[error(
        "more than one control group is named {unit}: {groups}; name the application by pid_file instead"
    )]
    Ambiguous {
        /// The unit.
        unit: String,
        /// The control groups, separated by commas.
        groups: String,
    },
}

/// The process that has this id now; `None` if there is none or it has ended (a zombie).
#[must_use]
pub fn process_ref(pid: u32) -> Option<ProcessRef> {
    let stat = stat::read(pid).ok()?;
    (!stat.has_ended()).then_some(ProcessRef { pid, start: stat.start })
}

/// This very process.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn this_process() -> Result<ProcessRef, ProcessError> {
    let pid = std::process::id();
    process_ref(pid).ok_or_else(|| ProcessError::Proc {
        path: format!("/proc/{pid}/stat").into(),
        source: io::Error::other("this process is not listed; is /proc mounted?"),
    })
}

/// Whether this very process still runs (or is stopped); a zombie does not.
#[must_use]
pub fn alive(process: ProcessRef) -> bool {
    process_ref(process.pid) == Some(process)
}

/// A handle of this very process; `None` if it has ended.
///
/// # Errors
/// If the kernel gives no handle although the process is there.
pub fn pidfd(process: ProcessRef) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // Compared after opening: from here on the handle cannot mean another process.
        Ok(fd) => Ok(alive(process).then_some(fd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends a signal to this very process; `false` if it has ended already.
///
/// # Errors
/// If it may not be signalled.
pub fn signal(process: ProcessRef, signal: Signal) -> io::Result<bool> {
    let Some(fd) = pidfd(process)? else { return Ok(false) };
    match pidfd_send_signal(&fd, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The ids of all threads of a process; empty if it is gone.
#[must_use]
pub fn threads(pid: u32) -> Vec<u32> {
    stat::numbers(format!("/proc/{pid}/task").as_ref()).unwrap_or_default()
}
