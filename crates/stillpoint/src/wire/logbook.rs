//! The journal of a run: written to its file first, then told to the watchdog.
//!
//! Crash story: an entry is durable before the watchdog hears of it, and the watchdog knows of it before
//! anything is held. Stopped between the two, the next run finds an undo of something that never was, which
//! is harmless. The watchdog is started with the first entry that is urgent: a run that holds nobody back
//! has none.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use model::{
    id::RunId,
    port::{Failure, FailureKind, Journal},
    time::Deadline,
    undo::{Ticket, Undo},
};
use os::{command::Helper, watchdog::Watchdog};
use vault::journal::FileJournal;

use crate::signals::Interrupt;

/// File and watchdog as one journal.
pub struct Logbook {
    file: FileJournal,
    helper: Helper,
    interrupt: Interrupt,
    guard: Mutex<Guard>,
}

#[derive(Default)]
struct Guard {
    watchdog: Option<Watchdog>,
    /// What the watchdog was told and has not been told to forget.
    told: BTreeSet<Ticket>,
}

impl Logbook {
    /// Begins the journal of this run.
    ///
    /// # Errors
    /// If its file cannot be made.
    pub fn begin(state: &Path, run: &RunId, helper: Helper, interrupt: Interrupt) -> Result<Self, Failure> {
        let file = FileJournal::create(state, run).map_err(Failure::from)?;
        Ok(Self { file, helper, interrupt, guard: Mutex::default() })
    }

    /// Process id of the watchdog, which must not be held; starts it if it does not run yet.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn watchdog_pid(&self) -> Result<u32, Failure> {
        let mut guard = self.lock();
        Ok(guard.watchdog(&self.helper)?.process().pid)
    }

    /// Ends the run's journal: the watchdog leaves, and the file goes if nothing in it is open.
    ///
    /// # Errors
    /// If the watchdog does not leave, or something could not be let go: whoever held it has told why.
    pub fn end(&self) -> Result<(), Failure> {
        let mut guard = self.lock();
        let Some(watchdog) = guard.watchdog.take() else { return Ok(()) };
        if guard.told.is_empty() {
            return watchdog.dismiss().map_err(Failure::from);
        }
        // At the end of its pipe it undoes what is open.
        drop(watchdog);
        let what = "somebody could not be let go, as told of the application; the watchdog tries once more";
        Err(Failure::new(FailureKind::Other, what, "then run `stillpoint thaw` as root to see what is left"))
    }

    /// A panic elsewhere must not keep anyone from undoing: what is in here is never half-way.
    fn lock(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    fn watchdog(&mut self, helper: &Helper) -> Result<&mut Watchdog, Failure> {
        match &mut self.watchdog {
            Some(watchdog) => Ok(watchdog),
            none => Ok(none.insert(Watchdog::spawn(helper).map_err(Failure::from)?)),
        }
    }
}

impl Journal for Logbook {
    /// Once somebody has asked us to stop, nothing more is begun: this is the safe point.
    fn intend(&self, undo: Undo, until: Option<Deadline>) -> Result<Ticket, Failure> {
        if self.interrupt.is_asked() {
            return Err(Failure::new(FailureKind::Other, "interrupted", "start the command again"));
        }
        let mut guard = self.lock();
        let ticket = self.file.intend(undo.clone(), until)?;
        if undo.is_urgent() {
            let told = guard
                .watchdog(&self.helper)
                .and_then(|watchdog| watchdog.intend(ticket, &undo, until).map_err(Failure::from));
            if let Err(failure) = told {
                self.file.done(ticket);
                return Err(failure);
            }
            guard.told.insert(ticket);
        }
        Ok(ticket)
    }

    fn amend(&self, ticket: Ticket, undo: Undo, until: Option<Deadline>) -> Result<(), Failure> {
        let mut guard = self.lock();
        self.file.amend(ticket, undo.clone(), until)?;
        if guard.told.contains(&ticket) {
            guard.watchdog(&self.helper)?.amend(ticket, &undo, until).map_err(Failure::from)?;
        }
        Ok(())
    }

    fn done(&self, ticket: Ticket) {
        let mut guard = self.lock();
        if guard.told.remove(&ticket)
            && let Some(watchdog) = &mut guard.watchdog
            && let Err(error) = watchdog.done(ticket)
        {
            // It would undo what is undone already, which is harmless.
            tracing::warn!(%error, "the watchdog did not hear that something is undone");
        }
        self.file.done(ticket);
    }
}
