//! The ptrace(2) requests that are used, each as one function, and the stops that waitid(2) tells.
//!
//! Crash story: whatever a thread traces is let go by the kernel when that thread ends. All of these must be
//! called from one and the same thread.

use std::{io, ptr};

/// Why a traced thread is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// By us, or as a newborn of somebody traced, or in a stop of the whole process that was there before.
    Interrupted,
    /// About to take a signal, which it only takes if we hand it on.
    Signal(i32),
    /// It has just made a thread or a process, which is traced too.
    Born(u32),
}

const OPTIONS: i32 = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;

/// `PTRACE_EVENT_STOP` of `<linux/ptrace.h>`, which the libc crate does not have for every C library.
const EVENT_STOP: i32 = 128;

/// Whether this program may use ptrace at all. Process 0 exists nowhere, so the answer is ESRCH unless a
/// seccomp filter says EPERM.
pub(crate) fn ptrace_is_allowed() -> bool {
    // SAFETY: no memory is handed over; there is no process 0.
    let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, 0, ptr::null_mut::<u8>(), ptr::null_mut::<u8>()) };
    result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

/// Begins to trace a thread without stopping it. Whatever it makes is traced from birth.
pub(super) fn seize(tid: u32) -> io::Result<()> {
    let options = ptr::without_provenance_mut::<u8>(OPTIONS as usize);
    // SAFETY: SEIZE takes the options as a number in place of the data pointer and touches no memory of ours.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, id(tid)?, ptr::null_mut::<u8>(), options) })
}

/// Stops a traced thread as soon as it leaves the kernel.
pub(super) fn interrupt(tid: u32) -> io::Result<()> {
    let none = ptr::null_mut::<u8>();
    // SAFETY: INTERRUPT takes neither address nor data.
    check(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, id(tid)?, none, none) })
}

/// Lets a stopped thread go, handing on the signal that it was about to take. A stop of its whole process
/// goes on.
pub(super) fn detach(tid: u32, signal: Option<i32>) -> io::Result<()> {
    let signal = ptr::without_provenance_mut::<u8>(usize::try_from(signal.unwrap_or(0)).unwrap_or(0));
    // SAFETY: DETACH takes the signal as a number in place of the data pointer.
    check(unsafe { libc::ptrace(libc::PTRACE_DETACH, id(tid)?, ptr::null_mut::<u8>(), signal) })
}

/// The stop that a traced thread has come to since it was last asked; `None` if it has not. Never waits, and
/// never takes the exit status of a process from its parent.
pub(super) fn stopped(tid: u32) -> io::Result<Option<Stop>> {
    // Threads of other processes are no children of ours: __WALL; what other threads of ours trace or have
    // started is none of our business: __WNOTHREAD.
    let options = libc::WSTOPPED | libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: siginfo_t is plain data, for which zeros are valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: info is a siginfo_t that lives through the call.
    let result = unsafe { libc::waitid(libc::P_PID, tid, &raw mut info, options) };
    check(result.into())?;
    // SAFETY: after a successful call these fields are those of a child's state, or zeros if there was none.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let (signal, event) = (status & 0xff, status >> 8);
    Ok(Some(match event {
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => {
            Stop::Born(born(tid)?)
        }
        EVENT_STOP => Stop::Interrupted,
        other => return Err(io::Error::other(format!("thread {tid} is in an unknown stop {other}"))),
    }))
}

/// Whether this thread traces it and it is in a stop: only then does the kernel answer. Much cheaper than
/// asking `/proc`.
pub(super) fn is_stopped(tid: u32) -> bool {
    message(tid).is_ok()
}

/// Whom a thread in a stop [`Stop::Born`] has made.
fn born(tid: u32) -> io::Result<u32> {
    u32::try_from(message(tid)?).map_err(io::Error::other)
}

fn message(tid: u32) -> io::Result<libc::c_ulong> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: GETEVENTMSG writes one unsigned long to the data pointer, which is that of a live local.
    let result =
        unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, id(tid)?, ptr::null_mut::<u8>(), &raw mut message) };
    check(result)?;
    Ok(message)
}

fn id(tid: u32) -> io::Result<libc::pid_t> {
    libc::pid_t::try_from(tid).map_err(io::Error::other)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
