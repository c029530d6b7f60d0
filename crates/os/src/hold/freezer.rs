//! Holding processes by the control group freezer, where ptrace is refused.
//!
//! Crash story: journalled with its deadline before the freeze begins, crossed off after the group is shown
//! to be thawed; watchdog, `thaw` and the next run undo it. A group that somebody else froze is left alone.

use std::{collections::BTreeSet, io, path::Path, sync::Arc, thread, time::Duration};

use model::{
    port::{Failure, FailureKind, Frozen, Journal},
    time::Deadline,
    undo::{ProcessRef, Ticket, Undo},
    verdict::Stillness,
};

use super::{
    HeldList,
    cgroup::{ControlGroup, State},
    targets::Targets,
};
use crate::{
    clock::{deadline_in, left},
    process,
};

const STEP: Duration = Duration::from_micros(200);
const THAWING: Duration = Duration::from_secs(1);

/// A control group that we froze.
pub(super) struct FrozenGroup {
    group: ControlGroup,
    targets: Targets,
    processes: BTreeSet<ProcessRef>,
    until: Deadline,
    journal: Arc<dyn Journal>,
    ticket: Option<Ticket>,
    held: HeldList,
}

/// Freezes the group of this directory.
pub(super) fn hold(
    directory: &Path,
    targets: Targets,
    journal: Arc<dyn Journal>,
    until: Deadline,
    held: HeldList,
) -> Result<Box<dyn Frozen>, Failure> {
    let group = ControlGroup::at(directory).map_err(|error| failed(directory, error))?;
    targets.find()?;
    if group.state().map_err(|error| failed(directory, error))? != State::Thawed {
        let what = format!("the control group {} is frozen by somebody else", directory.display());
        return Err(Failure::new(FailureKind::Busy, what, "thaw it, or wait until it is thawed"));
    }
    let undo = Undo::ThawCgroup { cgroup: directory.to_owned() };
    let ticket = Some(journal.intend(undo, Some(until))?);
    let mut frozen = FrozenGroup { group, targets, processes: BTreeSet::new(), until, journal, ticket, held };
    frozen.check_members()?;
    frozen.freeze()?;
    frozen.processes = frozen.check_members()?;
    frozen.held.fill(frozen.processes.clone());
    Ok(Box::new(frozen))
}

fn failed(directory: &Path, error: io::Error) -> Failure {
    let what = format!("cannot use the freezer of the control group {}", directory.display());
    Failure::new(FailureKind::Other, what, "").because(error)
}

impl FrozenGroup {
    fn failed(&self, error: io::Error) -> Failure {
        failed(self.group.directory(), error)
    }

    /// That the group holds all that it should, and nobody who must stay free. Gives who should be held.
    fn check_members(&self) -> Result<BTreeSet<ProcessRef>, Failure> {
        let members = self.group.members().map_err(|error| self.failed(error))?;
        self.targets.check(members.iter().copied())?;
        let processes = self.targets.find()?;
        match processes.iter().find(|p| !members.contains(&p.pid)) {
            None => Ok(processes),
            Some(outside) => {
                let group = self.group.directory().display();
                let what = format!("process {} is not in the control group {group}", outside.pid);
                Err(Failure::new(FailureKind::Lost, what, ""))
            }
        }
    }

    fn freeze(&self) -> Result<(), Failure> {
        self.group.freeze().map_err(|error| self.failed(error))?;
        while self.group.state().map_err(|error| self.failed(error))? != State::Frozen {
            if left(self.until).is_zero() {
                let what = format!("{} did not freeze in time", self.targets.name());
                return Err(Failure::new(FailureKind::TimedOut, what, ""));
            }
            thread::sleep(STEP);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Failure> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        self.held.clear();
        thaw(&self.group).map_err(|error| {
            let remedy = "run stillpoint thaw";
            Failure::new(FailureKind::Other, format!("cannot thaw {}", self.targets.name()), remedy)
                .because(error)
        })?;
        self.journal.done(ticket);
        Ok(())
    }
}

/// Thaws a group and waits until it is thawed.
pub(crate) fn thaw(group: &ControlGroup) -> io::Result<()> {
    group.thaw()?;
    let until = deadline_in(THAWING);
    while group.state()? != State::Thawed {
        if left(until).is_zero() {
            // A group around it is frozen too, perhaps by somebody else.
            return Err(io::Error::other("it does not thaw; is a group around it frozen?"));
        }
        thread::sleep(STEP);
    }
    Ok(())
}

impl Frozen for FrozenGroup {
    fn prove(&mut self) -> Result<Stillness, Failure> {
        let lost = |what: String| Err(Failure::new(FailureKind::Lost, what, ""));
        if left(self.until).is_zero() {
            return lost("the watchdog may have thawed the processes at the deadline".to_owned());
        }
        if self.group.state().map_err(|error| self.failed(error))? != State::Frozen {
            return lost(format!("{} was not frozen to the end", self.targets.name()));
        }
        if let Some(ended) = self.processes.iter().find(|p| !process::alive(**p)) {
            return lost(format!("process {} ended while it was frozen", ended.pid));
        }
        self.check_members()?;
        let threads = self.processes.iter().map(|p| process::threads(p.pid).len()).sum();
        let how = format!("frozen in {}", self.group.directory().display());
        Ok(self.targets.shown(threads, self.processes.len(), &how))
    }

    fn thaw(mut self: Box<Self>) -> Result<(), Failure> {
        self.end()
    }
}

impl Drop for FrozenGroup {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            tracing::error!("{}", failure.in_full());
        }
    }
}
