//! Holding an application's processes, or the whole application, back.
//!
//! Crash story: each way tells its own. [`ProcessHold`] by ptrace ends with us by the kernel's doing; by the
//! freezer or SIGSTOP it is journalled with a deadline before anybody is held; so is [`StopHook`]. In all of
//! them the deadline handed to `freeze` is the end of the hold: at the latest then writers run again, and
//! `prove` says that the hold was lost.

pub(crate) mod cgroup;
pub(crate) mod freezer;
mod hooks;
mod ptrace;
pub(crate) mod stop;
mod targets;
mod trace;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use model::{
    id::SourceId,
    inventory::ProcessSelector,
    plan::{HoldClass, ProcessMethod},
    port::{Failure, FailureKind, Frozen, Hold, Journal},
    problem::{Effect, Problem},
    time::Deadline,
    undo::ProcessRef,
};

pub use self::hooks::StopHook;
use self::targets::Targets;
pub(crate) use self::trace::ptrace_is_allowed;
use crate::process;

/// Holds the processes of an application, or of a database server.
pub struct ProcessHold {
    targets: Targets,
    method: ProcessMethod,
    journal: Arc<dyn Journal>,
    /// Who ran when it was prepared.
    known: Vec<ProcessRef>,
    held: Arc<Mutex<Vec<ProcessRef>>>,
    /// The source that these processes serve; else they are the application's.
    serves: Option<SourceId>,
}

impl ProcessHold {
    /// A hold of these processes by this method. It is refused at the freeze if it would hold ourselves, our
    /// ancestors, or one of `except`: the watchdog, and children that have to answer meanwhile.
    #[must_use]
    pub fn new(
        selector: ProcessSelector,
        method: ProcessMethod,
        except: impl IntoIterator<Item = u32>,
        journal: Arc<dyn Journal>,
    ) -> Self {
        Self {
            targets: Targets::new(selector, except),
            method,
            journal,
            known: Vec::new(),
            held: Arc::default(),
            serves: None,
        }
    }

    /// The same for the process of a database server: it is held last, and let go before its locks are proven.
    #[must_use]
    pub fn serving(mut self, source: SourceId) -> Self {
        self.serves = Some(source);
        self
    }

    /// More processes that have to answer while the others are held.
    pub fn add_exceptions(&mut self, pids: impl IntoIterator<Item = u32>) {
        self.targets.add_exceptions(pids);
    }

    /// The processes that are held at the moment, for whoever asks what they have mapped. Empty when none is.
    #[must_use]
    pub fn held(&self) -> Arc<Mutex<Vec<ProcessRef>>> {
        Arc::clone(&self.held)
    }
}

impl Hold for ProcessHold {
    fn name(&self) -> String {
        match &self.serves {
            Some(source) => format!("server:{source}"),
            None => format!("processes:{}", self.targets.name()),
        }
    }

    fn class(&self) -> HoldClass {
        match self.serves {
            Some(_) => HoldClass::ServerFreezer,
            None => HoldClass::ProcessFreezer,
        }
    }

    fn sources(&self) -> Vec<SourceId> {
        self.serves.iter().cloned().collect()
    }

    /// # Errors
    /// [`FailureKind::Refused`] if no process runs or one must not be held.
    fn prepare(&mut self) -> Result<Vec<Problem>, Failure> {
        let processes: Vec<ProcessRef> = self.targets.find()?.into_iter().collect();
        if processes.is_empty() {
            let what = format!("no process of {} runs", self.targets.name());
            let remedy = "start the application, or correct [application.process] in the inventory";
            return Err(Failure::new(FailureKind::Refused, what, remedy));
        }
        let hidden = process::unreadable_maps(&processes);
        self.known.clone_from(&processes);
        let problem = |p: &ProcessRef| {
            let what = format!("what process {} has mapped into memory cannot be seen", p.pid);
            let remedy = "run as root, or as the application's user";
            Problem::new(Effect::Weaker, None, what, remedy)
        };
        Ok(hidden.iter().map(problem).collect())
    }

    /// Holds whoever runs, until `until` at the latest. That nobody runs any more, because a stop hook came
    /// first, is no failure, but shows nothing.
    fn freeze(&mut self, until: Deadline) -> Result<Box<dyn Frozen>, Failure> {
        let (targets, held) = (self.targets.clone(), HeldList(Arc::clone(&self.held)));
        let journal = Arc::clone(&self.journal);
        match &self.method {
            ProcessMethod::Ptrace => ptrace::hold(targets, self.known.clone(), until, held),
            ProcessMethod::Freezer { cgroup } => freezer::hold(cgroup, targets, journal, until, held),
            ProcessMethod::Stop => stop::hold(targets, journal, until, held),
        }
    }
}

/// The shared list of who is held, emptied with the guard.
struct HeldList(Arc<Mutex<Vec<ProcessRef>>>);

impl HeldList {
    fn set(&mut self, processes: Vec<ProcessRef>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = processes;
    }

    fn fill(&mut self, processes: BTreeSet<ProcessRef>) {
        self.set(processes.into_iter().collect());
    }

    fn clear(&mut self) {
        self.set(Vec::new());
    }
}

impl Drop for HeldList {
    fn drop(&mut self) {
        self.clear();
    }
}
