//! The guestbook under load: one process as the application, its writers as children.
//!
//! Crash story: each process ends with the pipe of whoever started it: the application when the demo ends,
//! the writers when the application ends.

use std::{ffi::OsString, sync::atomic::Ordering, thread, time::Duration};

use model::port::{Failure, FailureKind};
use os::command::{CommandError, Helper, HelperChild};

use super::{
    APPLICATION, NAIVE, WRITER,
    guestbook::{Guestbook, GuestbookError},
    writer::watch_input,
};

/// How long the first uploads may take.
const FILLING: Duration = Duration::from_secs(60);
/// How long a naive copy may take.
const COPYING: Duration = Duration::from_secs(60);

fn failed(error: CommandError) -> Failure {
    Failure::new(FailureKind::Other, "the demo's guestbook does not run", "").because(error)
}

/// The running guestbook. Dropping it ends all its processes.
#[derive(Debug)]
pub struct Load {
    application: HelperChild,
}

impl Load {
    /// Starts application and writers, and waits until the guestbook is full.
    ///
    /// # Errors
    /// If they cannot be started, or end.
    pub fn start(guestbook: &Guestbook, writers: u32, seed: u64) -> Result<Self, Failure> {
        let arguments: [OsString; 3] =
            [guestbook.root().into(), writers.to_string().into(), seed.to_string().into()];
        let mut application = Helper::this_program().spawn(APPLICATION, &arguments).map_err(failed)?;
        let _full: bool = application.receive(FILLING).map_err(failed)?;
        Ok(Self { application })
    }

    /// The application's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.application.process().pid
    }

    /// Shows that the load goes on.
    ///
    /// # Errors
    /// If a writer could not write, or the application ended.
    pub fn still_runs(&mut self) -> Result<(), Failure> {
        match self.application.wait(Duration::ZERO).map_err(failed)? {
            None => Ok(()),
            Some(_) => {
                let what = format!("the demo's guestbook ended: {}", self.application.messages());
                Err(Failure::new(FailureKind::Other, what, ""))
            }
        }
    }
}

/// Copies the guestbook in another process, as ordinary practice does.
///
/// # Errors
/// If it cannot be copied.
pub fn naive_copy(from: &Guestbook, to: &Guestbook) -> Result<(), Failure> {
    let arguments: [OsString; 2] = [from.root().into(), to.root().into()];
    let mut copier = Helper::this_program().spawn(NAIVE, &arguments).map_err(failed)?;
    match copier.wait(COPYING).map_err(failed)? {
        Some(status) if status.success() => Ok(()),
        Some(_) => {
            let what = format!("the naive copy failed: {}", copier.messages());
            Err(Failure::new(FailureKind::Other, what, ""))
        }
        None => Err(Failure::new(FailureKind::TimedOut, "the naive copy takes too long", "")),
    }
}

/// The helper role of the application: starts the writers, says when all are full, and ends them when its
/// standard input ends or one of them does.
///
/// # Errors
/// If a writer cannot be started, or ends by itself.
pub fn run_application(guestbook: &Guestbook, writers: u32, seed: u64) -> Result<(), GuestbookError> {
    let ended = watch_input();
    let mut children = Vec::new();
    for number in 0..writers {
        let arguments: [OsString; 3] =
            [guestbook.root().into(), number.to_string().into(), seed.to_string().into()];
        children.push(Helper::this_program().spawn(WRITER, &arguments)?);
    }
    for child in &mut children {
        let _full: bool = child.receive(FILLING)?;
    }
    super::say_full()?;
    while !ended.load(Ordering::SeqCst) {
        for child in &mut children {
            if child.wait(Duration::ZERO)?.is_some() {
                return Err(GuestbookError::Writer(child.messages()));
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
