//! The watchdog: a process of its own that undoes what a dead run holds.
//!
//! [`Watchdog`] is the run's side: it starts the watchdog before anything is held and tells it every intent;
//! each call returns when the watchdog has acknowledged, so that no hold begins unknown to it. [`main`] is
//! the other side.
//!
//! Crash story: if the run dies at any point, the kernel closes its pipe and the watchdog undoes whatever is
//! urgent and open; if a deadline passes, it undoes what is due although the run lives, and again at the end
//! of the pipe, since the run may have been about to hold it just then. Only [`Watchdog::done`] crosses off.
//! If the watchdog dies, the next call fails and nothing new is held; if both die, the journal is left for
//! `thaw`. The watchdog runs in a session of its own and takes no TERM, INT, HUP or QUIT; a kill of the run's
//! process group or the loss of its terminal does not reach it, but systemd's kill of a whole unit does.

mod board;
mod serve;

use std::{
    ffi::OsString,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use model::{
    port::{Failure, FailureKind},
    time::Deadline,
    undo::{ProcessRef, Ticket, Undo},
};
use serde::{Deserialize, Serialize};

pub use self::serve::main;
use crate::command::{CommandError, Helper, HelperChild};

/// The watchdog's role among the helpers.
pub const ROLE: &str = "watchdog";

/// How long the watchdog may take to answer. It answers from memory, also while it undoes something slow.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the watchdog could not be told.
#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    /// It cannot be started, has ended, or does not answer.
    #[error("the watchdog cannot be reached, so nothing may be held")]
    Unreachable(#[from] CommandError),
    /// It did not take what it was told.
    #[error("the watchdog refuses: {0}")]
    Refused(String),
}

impl From<WatchdogError> for Failure {
    fn from(error: WatchdogError) -> Self {
        Failure::new(FailureKind::Other, "the watchdog does not guard this run", "").because(error)
    }
}

/// What the run says, a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "say")]
enum Say {
    /// This is about to be made.
    Intend { ticket: Ticket, undo: Undo, until: Option<Deadline> },
    /// More is known about it.
    Amend { ticket: Ticket, undo: Undo, until: Option<Deadline> },
    /// It has been undone.
    Done { ticket: Ticket },
    /// The run is over.
    Dismiss,
}

/// What the watchdog says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
enum Reply {
    /// It guards.
    Ready,
    /// It has noted what was said last.
    Noted,
    /// It has not.
    Refused { why: String },
    /// It undid something at its deadline.
    Undone(Undone),
}

/// Something that the watchdog undid, at a deadline, while the run was alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// What.
    pub ticket: Ticket,
    /// Why it could not be undone wholly; nothing if it was.
    pub error: Option<String>,
}

/// The run's side. Dropping it closes the pipe: then the watchdog undoes what is open, and ends.
#[derive(Debug)]
pub struct Watchdog {
    inner: Mutex<Option<Inner>>,
    process: ProcessRef,
}

#[derive(Debug)]
struct Inner {
    child: HelperChild,
    undone: Vec<Undone>,
}

impl Watchdog {
    /// Starts the watchdog; when this returns, it guards.
    ///
    /// # Errors
    /// If it cannot be started. Then nothing may be held.
    pub fn spawn(helper: &Helper) -> Result<Self, WatchdogError> {
        Self::start(helper, &[])
    }

    /// The same, and it writes what it undoes to this file.
    ///
    /// # Errors
    /// If it cannot be started or the file cannot be written. Then nothing may be held.
    pub fn spawn_logging(helper: &Helper, log: &Path) -> Result<Self, WatchdogError> {
        Self::start(helper, &[log.as_os_str().to_owned()])
    }

    fn start(helper: &Helper, args: &[OsString]) -> Result<Self, WatchdogError> {
        let mut child = helper.spawn_sessionless(ROLE, args)?;
        match child.receive::<Reply>(PATIENCE)? {
            Reply::Ready => {
                let process = child.process();
                Ok(Self { inner: Mutex::new(Some(Inner { child, undone: Vec::new() })), process })
            }
            Reply::Refused { why } => Err(WatchdogError::Refused(why)),
            Reply::Noted | Reply::Undone(_) => Err(WatchdogError::Refused("it is not ready".to_owned())),
        }
    }

    /// The watchdog's process, which must not be held.
    #[must_use]
    pub fn process(&self) -> ProcessRef {
        self.process
    }

    /// Tells what is about to be made, and until when it may last.
    ///
    /// # Errors
    /// If the watchdog does not acknowledge it. Then it may not be made.
    pub fn intend(&self, ticket: Ticket, undo: &Undo, until: Option<Deadline>) -> Result<(), WatchdogError> {
        self.say(&Say::Intend { ticket, undo: undo.clone(), until })
    }

    /// Replaces what was told under a ticket.
    ///
    /// # Errors
    /// If the watchdog does not acknowledge it.
    pub fn amend(&self, ticket: Ticket, undo: &Undo, until: Option<Deadline>) -> Result<(), WatchdogError> {
        self.say(&Say::Amend { ticket, undo: undo.clone(), until })
    }

    /// Tells what has been undone.
    ///
    /// # Errors
    /// If the watchdog does not acknowledge it; it may then undo it once more.
    pub fn done(&self, ticket: Ticket) -> Result<(), WatchdogError> {
        self.say(&Say::Done { ticket })
    }

    /// What the watchdog undid at deadlines, as far as it has reported, each told once.
    #[must_use]
    pub fn undone(&self) -> Vec<Undone> {
        let mut guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inner) = guard.as_mut() else { return Vec::new() };
        while let Ok(Reply::Undone(undone)) = inner.child.receive(Duration::ZERO) {
            inner.undone.push(undone);
        }
        std::mem::take(&mut inner.undone)
    }

    /// Ends the watchdog, if nothing that holds anybody is open.
    ///
    /// # Errors
    /// If something is open: the watchdog then undoes it, as if the run had died.
    pub fn dismiss(self) -> Result<(), WatchdogError> {
        self.say(&Say::Dismiss)?;
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut inner) = inner
            && inner.child.wait(PATIENCE)?.is_none()
        {
            return Err(WatchdogError::Refused("it does not end".to_owned()));
        }
        Ok(())
    }

    fn say(&self, say: &Say) -> Result<(), WatchdogError> {
        let mut guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken only by what consumes it.
        let Some(inner) = guard.as_mut() else { return Ok(()) };
        inner.child.send(say)?;
        loop {
            match inner.child.receive(PATIENCE)? {
                Reply::Noted => return Ok(()),
                Reply::Refused { why } => return Err(WatchdogError::Refused(why)),
                Reply::Undone(undone) => inner.undone.push(undone),
                Reply::Ready => {}
            }
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Never killed: it has to undo what is open.
        if let Some(inner) = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            inner.child.leave();
        }
    }
}
