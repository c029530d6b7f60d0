//! A command that runs.
//!
//! Crash story: dropping it ends its process group; if we are killed, it runs on (see the module's head).

use std::{
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, ChildStderr, ChildStdout, ExitStatus},
    time::Duration,
};

use model::{time::Deadline, undo::ProcessRef};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{CommandError, Outcome, capture::Tail, group};
use crate::{clock, process};

/// A command that was started and is not yet waited for.
#[derive(Debug)]
pub struct Running {
    program: String,
    process: ProcessRef,
    child: Child,
    ended: OwnedFd,
    until: Deadline,
    stdout: (Option<ChildStdout>, Tail),
    stderr: (Option<ChildStderr>, Tail),
    waited: bool,
}

impl Running {
    pub(super) fn follow(
        mut child: Child,
        program: String,
        timeout: Duration,
        limit: usize,
    ) -> Result<Self, CommandError> {
        let until = clock::deadline_in(timeout);
        match handles(&mut child) {
            Ok((process, ended)) => {
                let stdout = (child.stdout.take(), Tail::new(limit));
                let stderr = (child.stderr.take(), Tail::new(limit));
                Ok(Self { program, process, child, ended, until, stdout, stderr, waited: false })
            }
            Err(source) => {
                give_up(&mut child);
                Err(CommandError::Follow { program, source })
            }
        }
    }

    /// The process, which leads a process group of its own.
    #[must_use]
    pub fn process(&self) -> ProcessRef {
        self.process
    }

    /// Lets a gated command begin.
    ///
    /// # Errors
    /// If its shell has ended already.
    pub fn open_gate(&mut self) -> Result<(), CommandError> {
        let Some(mut gate) = self.child.stdin.take() else { return Ok(()) };
        gate.write_all(format!("{}\n", group::mark(self.process)).as_bytes()).map_err(|e| self.failed(e))
    }

    /// Waits at most this long for its end; whether it has ended. For programs that run until they are told to
    /// end, whatever their timeout.
    ///
    /// # Errors
    /// If it cannot be followed.
    pub fn ends_within(&mut self, time: Duration) -> Result<bool, CommandError> {
        self.watch(clock::deadline_in(time)).map_err(|e| self.failed(e))
    }

    /// Waits until it has ended; ends its process group at its timeout. What it leaves behind after ending by
    /// itself (a daemon) runs on.
    ///
    /// # Errors
    /// If it cannot be followed, or does not end. It is ended then, as far as possible.
    pub fn wait(mut self) -> Result<Outcome, CommandError> {
        let timed_out = !self.watch(self.until).map_err(|e| self.failed(e))?;
        if timed_out {
            group::end_group(self.process, group::GRACE).map_err(|e| self.failed(e))?;
        }
        self.drain().map_err(|e| self.failed(e))?;
        let status = self.reap().map_err(|e| self.failed(e))?;
        let (stdout, more_output) = self.stdout.1.take();
        let (stderr, more_messages) = self.stderr.1.take();
        Ok(Outcome { status, stdout, stderr, truncated: more_output || more_messages, timed_out })
    }

    fn failed(&self, source: io::Error) -> CommandError {
        CommandError::Follow { program: self.program.clone(), source }
    }

    fn reap(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.waited = true;
        Ok(status)
    }

    /// Reads along until the process has ended (`true`) or the time is over.
    fn watch(&mut self, until: Deadline) -> io::Result<bool> {
        loop {
            let left = clock::left(until);
            let mut fds = vec![PollFd::from_borrowed_fd(self.ended.as_fd(), PollFlags::IN)];
            fds.extend(self.stdout.0.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            fds.extend(self.stderr.0.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let over = fds[0].revents().contains(PollFlags::IN);
            self.drain()?;
            if over {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    fn drain(&mut self) -> io::Result<()> {
        if let (Some(pipe), tail) = (&mut self.stdout.0, &mut self.stdout.1)
            && !tail.fill(pipe)?
        {
            self.stdout.0 = None;
        }
        if let (Some(pipe), tail) = (&mut self.stderr.0, &mut self.stderr.1)
            && !tail.fill(pipe)?
        {
            self.stderr.0 = None;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.waited {
            return;
        }
        // Without its gate it ends by itself.
        drop(self.child.stdin.take());
        if let Err(error) = group::end_group(self.process, group::GRACE) {
            tracing::error!("{}: {error}", self.program);
            return;
        }
        if let Err(error) = self.reap() {
            tracing::error!("{} cannot be waited for: {error}", self.program);
        }
    }
}

fn handles(child: &mut Child) -> io::Result<(ProcessRef, OwnedFd)> {
    for pipe in
        child.stdout.as_ref().map(AsFd::as_fd).into_iter().chain(child.stderr.as_ref().map(AsFd::as_fd))
    {
        nonblocking(pipe)?;
    }
    Ok((child_ref(child)?, child_pidfd(child)?))
}

fn nonblocking(pipe: BorrowedFd<'_>) -> io::Result<()> {
    Ok(ioctl_fionbio(pipe, true)?)
}

/// A child that has not been waited for keeps its number, also when it has ended.
pub(super) fn child_ref(child: &Child) -> io::Result<ProcessRef> {
    let stat = process::stat::read(child.id())?;
    Ok(ProcessRef { pid: child.id(), start: stat.start })
}

/// Readable once the child has ended.
pub(super) fn child_pidfd(child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("a child without a process id"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Ends a child that cannot be followed; there is nobody left to tell if this fails too.
pub(super) fn give_up(child: &mut Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::error!("process {} cannot be ended: {error}", child.id());
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
