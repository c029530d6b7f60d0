//! Stopping a platform by its stop hook, and starting it again on every way out.
//!
//! Hooks run in `/`, by `/bin/sh -c`. What the start hook says goes to `/dev/null`, because it leaves a
//! daemon behind, which must not lose its output with us.
//!
//! Crash story: [`Undo::Start`] is journalled before the stop hook is started, and amended with the stop
//! hook's process before that begins to work (it waits at a gate, and ends there if we die). From then on the
//! start hook runs on every way out: thaw, drop, a failing stop hook, watchdog, `thaw`, next run; always
//! after the stop hook has ended. It may so be run although the platform runs: it must bear that, as
//! `systemctl start` does.

use std::{sync::Arc, time::Duration};

use model::{
    id::SourceId,
    plan::HoldClass,
    port::{Failure, FailureKind, Frozen, Hold, Journal},
    problem::Problem,
    time::Deadline,
    undo::{Hook, ProcessRef, Ticket, Undo},
    verdict::Stillness,
};

use crate::{
    clock::{deadline_in, left},
    command::{Command, CommandError, GRACE, Outcome},
    undo,
};

/// A platform that is stopped and started by commands of the inventory.
pub struct StopHook {
    stop: Hook,
    start: Hook,
    journal: Arc<dyn Journal>,
}

impl StopHook {
    /// A hold by these hooks.
    #[must_use]
    pub fn new(stop: Hook, start: Hook, journal: Arc<dyn Journal>) -> Self {
        Self { stop, start, journal }
    }
}

impl Hold for StopHook {
    fn name(&self) -> String {
        "stop-hook".to_owned()
    }

    fn class(&self) -> HoldClass {
        HoldClass::StopHook
    }

    fn sources(&self) -> Vec<SourceId> {
        Vec::new()
    }

    fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
        Ok(Vec::new())
    }

    /// Runs the stop hook within its own timeout, whatever `until` says; what is left until `until` now is how
    /// long the platform may then stay stopped before the watchdog starts it.
    fn freeze(&mut self, until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
        let allowed = left(until);
        if allowed.is_zero() {
            return Err(Failure::new(FailureKind::TimedOut, "no time is left to stop the platform", ""));
        }
        let deadline = deadline_in(self.stop.timeout + 2 * GRACE + allowed);
        let (stop, start) = (self.stop.clone(), self.start.clone());
        let intent = Undo::Start { start: start.clone(), ends: None };
        let ticket = Some(self.journal.intend(intent, Some(deadline))?);
        let journal = Arc::clone(&self.journal);
        let mut stopped = Stopped { stop, start, journal, ticket, ends: None, deadline };
        let outcome = stopped.run_stop_hook();
        match outcome {
            Ok(()) => {
                stopped.settle(allowed)?;
                Ok(Box::new(stopped))
            }
            Err(failure) => Err(match stopped.end() {
                Ok(()) => failure,
                Err(worse) => {
                    let what = format!("{}, and then {}", failure.in_full(), worse.in_full());
                    Failure::new(FailureKind::Other, what, "")
                }
            }),
        }
    }
}

/// A platform that we stopped.
struct Stopped {
    stop: Hook,
    start: Hook,
    journal: Arc<dyn Journal>,
    ticket: Option<Ticket>,
    ends: Option<ProcessRef>,
    deadline: Deadline,
}

impl Stopped {
    fn undo(&self) -> Undo {
        Undo::Start { start: self.start.clone(), ends: self.ends }
    }

    fn amend(&self) -> Result<(), Failure> {
        self.ticket.map_or(Ok(()), |ticket| self.journal.amend(ticket, self.undo(), Some(self.deadline)))
    }

    fn run_stop_hook(&mut self) -> Result<(), Failure> {
        let failed = |error: CommandError| {
            Failure::new(FailureKind::Other, "cannot run the stop hook", "check it in the inventory")
                .because(error)
        };
        let mut running = Command::gated_hook(&self.stop).directory("/").start().map_err(failed)?;
        self.ends = Some(running.process());
        self.amend()?;
        running.open_gate().map_err(failed)?;
        let outcome = running.wait().map_err(failed)?;
        if outcome.is_success() { Ok(()) } else { Err(self.unsuccessful(&outcome)) }
    }

    /// Never transient, not even for want of time: each attempt would stop and start the platform once more.
    fn unsuccessful(&self, outcome: &Outcome) -> Failure {
        let what = format!("the stop hook `{}` did not succeed: {}", self.stop.run, outcome.in_short());
        let remedy = "run it by hand to see why, or allow it more time in the inventory";
        Failure::new(FailureKind::Other, what, remedy)
    }

    /// The stop hook has ended: nothing of it is to be ended any more, and the time that is allowed begins.
    fn settle(&mut self, allowed: Duration) -> Result<(), Failure> {
        self.ends = None;
        self.deadline = deadline_in(allowed);
        self.amend()
    }

    fn end(&mut self) -> Result<(), Failure> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        undo::perform(&self.undo()).map_err(|error| {
            let remedy = format!("start the platform by hand: {}", self.start.run);
            Failure::new(FailureKind::Other, "the platform was stopped and is not started again", remedy)
                .because(error)
        })?;
        self.journal.done(ticket);
        Ok(())
    }
}

impl Frozen for Stopped {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        if left(self.deadline).is_zero() {
            let what = "the watchdog may have started the platform at the deadline";
            return Err(Failure::new(FailureKind::Lost, what, "allow a longer stall_budget"));
        }
        let how = format!("stop hook `{}` succeeded, start hook not begun", self.stop.run);
        Ok(Stillness::WritersFrozen(how))
    }

    fn thaw(mut self: Box<Self>) -> Result<(), Failure> {
        self.end()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            tracing::error!("{}", failure.in_full());
        }
    }
}
