//! Holding processes by SIGSTOP, where nothing better is allowed. Their parents notice (SIGCHLD).
//!
//! Crash story: every process is journalled, with the deadline, before it gets SIGSTOP, and crossed off after
//! it was seen to be continued; watchdog, `thaw` and the next run send SIGCONT. A process that somebody else
//! had stopped before is not ours to continue.

use std::{collections::BTreeSet, io, sync::Arc, thread, time::Duration};

use model::{
    port::{Failure, FailureKind, Frozen, Journal},
    time::Deadline,
    undo::{ProcessRef, Ticket, Undo},
    verdict::Stillness,
};
use rustix::process::Signal;

use super::{
    HeldList,
    targets::{Targets, describe_thread, thread_states},
};
use crate::{
    clock::{deadline_in, left},
    process,
};

const STEP: Duration = Duration::from_micros(100);
const CONTINUING: Duration = Duration::from_millis(500);

/// Processes that we stopped.
pub(super) struct Stopped {
    targets: Targets,
    /// All that have to stand still.
    all: BTreeSet<ProcessRef>,
    /// Those of them that are ours to continue.
    ours: Vec<ProcessRef>,
    until: Deadline,
    journal: Arc<dyn Journal>,
    ticket: Option<Ticket>,
    held: HeldList,
}

/// Stops them.
pub(super) fn hold(
    targets: Targets,
    journal: Arc<dyn Journal>,
    until: Deadline,
    held: HeldList,
) -> Result<Box<dyn Frozen>, Failure> {
    let (all, ours) = (BTreeSet::new(), Vec::new());
    let mut stopped = Stopped { targets, all, ours, until, journal, ticket: None, held };
    // A look that finds nobody new, begun when all known stood still, is the end.
    while stopped.stop_newcomers()? {
        stopped.wait()?;
    }
    // Who ended before all stood still is not missed by the proof.
    stopped.all.retain(|process| process::alive(*process));
    stopped.held.fill(stopped.all.clone());
    Ok(Box::new(stopped))
}

/// A thread that could run; `None` if the process stands still or has ended.
fn running_thread(process: ProcessRef) -> Option<u32> {
    let still = |state: u8| matches!(state, b'T' | b't' | b'Z' | b'X' | b'x');
    thread_states(process).into_iter().find(|(_, state)| !still(*state)).map(|(tid, _)| tid)
}

impl Stopped {
    fn stop_newcomers(&mut self) -> Result<bool, Failure> {
        let new: Vec<ProcessRef> = self.targets.find()?.difference(&self.all).copied().collect();
        if new.is_empty() {
            return Ok(false);
        }
        let to_stop: Vec<ProcessRef> = new.iter().copied().filter(|p| running_thread(*p).is_some()).collect();
        self.all.extend(new);
        self.ours.extend(&to_stop);
        let undo = Undo::Continue { processes: self.ours.clone() };
        match self.ticket {
            None => self.ticket = Some(self.journal.intend(undo, Some(self.until))?),
            Some(ticket) => self.journal.amend(ticket, undo, Some(self.until))?,
        }
        for process in to_stop {
            process::signal(process, Signal::STOP).map_err(|error| {
                let what = format!("cannot stop process {}", process.pid);
                Failure::new(FailureKind::Refused, what, "run as root or as the application's user")
                    .because(error)
            })?;
        }
        Ok(true)
    }

    fn wait(&self) -> Result<(), Failure> {
        loop {
            let running = self.all.iter().find_map(|p| Some((p.pid, running_thread(*p)?)));
            let Some((pid, tid)) = running else { return Ok(()) };
            if left(self.until).is_zero() {
                let what = format!("{} did not stop in time", describe_thread(pid, tid));
                return Err(Failure::new(FailureKind::TimedOut, what, ""));
            }
            thread::sleep(STEP);
        }
    }

    fn end(&mut self) -> Result<(), Failure> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        self.held.clear();
        resume(&self.ours).map_err(|(process, error)| {
            let remedy = format!("run kill -CONT {}, or stillpoint thaw", process.pid);
            Failure::new(FailureKind::Other, format!("cannot continue process {}", process.pid), remedy)
                .because(error)
        })?;
        self.journal.done(ticket);
        Ok(())
    }
}

/// Continues all of them, and waits until they are seen to be so. An error names the first that is not.
pub(crate) fn resume(processes: &[ProcessRef]) -> Result<(), (ProcessRef, io::Error)> {
    let mut failed = None;
    for process in processes {
        if let Err(error) = process::signal(*process, Signal::CONT) {
            failed.get_or_insert((*process, error));
        }
    }
    let until = deadline_in(CONTINUING);
    for process in processes {
        while process::alive(*process) && thread_states(*process).iter().any(|(_, state)| *state == b'T') {
            if left(until).is_zero() {
                let error = io::Error::other("it is still stopped; did somebody else stop it?");
                failed.get_or_insert((*process, error));
                break;
            }
            thread::sleep(STEP);
        }
    }
    failed.map_or(Ok(()), Err)
}

impl Frozen for Stopped {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        let lost = |what: String| Err(Failure::new(FailureKind::Lost, what, ""));
        if left(self.until).is_zero() {
            return lost("the watchdog may have continued the processes at the deadline".to_owned());
        }
        let mut threads = 0;
        for process in &self.all {
            if let Some(tid) = running_thread(*process) {
                return lost(format!("{} was not stopped to the end", describe_thread(process.pid, tid)));
            }
            if !process::alive(*process) {
                return lost(format!("process {} ended while it was stopped", process.pid));
            }
            threads += process::threads(process.pid).len();
        }
        if let Some(new) = self.targets.find()?.difference(&self.all).next() {
            return lost(format!("process {} came while the others were stopped", new.pid));
        }
        Ok(self.targets.shown(threads, self.all.len(), "stopped"))
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
