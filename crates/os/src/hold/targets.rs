//! Whom a hold is about, and whom it must never hold.
//!
//! Crash story: reads only.

use std::{collections::BTreeSet, path::Path};

use model::{
    inventory::ProcessSelector,
    port::{Failure, FailureKind},
    undo::ProcessRef,
    verdict::Stillness,
};

use crate::process::{self, ProcessError, select, stat};

/// The processes of an application, found anew each time.
#[derive(Debug, Clone)]
pub(super) struct Targets {
    selector: ProcessSelector,
    except: BTreeSet<u32>,
}

impl Targets {
    /// Processes `except` have to answer while the others are held.
    pub fn new(selector: ProcessSelector, except: impl IntoIterator<Item = u32>) -> Self {
        let mut except: BTreeSet<u32> = except.into_iter().collect();
        except.insert(std::process::id());
        except.extend(select::ancestors());
        Self { selector, except }
    }

    pub fn name(&self) -> String {
        process::describe(&self.selector)
    }

    pub fn add_exceptions(&mut self, pids: impl IntoIterator<Item = u32>) {
        self.except.extend(pids);
    }

    /// The processes as they are now.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] if one of them must not be held.
    pub fn find(&self) -> Result<BTreeSet<ProcessRef>, Failure> {
        let found = process::find(&self.selector).map_err(|error| self.not_found(error))?;
        self.check(found.iter().map(|p| p.pid))?;
        Ok(found.into_iter().collect())
    }

    /// The same for one who has stopped all these. Whoever stands still makes nobody, so of a pid file only
    /// the process that it names can be another.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] if one of them must not be held.
    pub fn find_beside(&self, stopped: &BTreeSet<ProcessRef>) -> Result<BTreeSet<ProcessRef>, Failure> {
        let ProcessSelector::PidFile(path) = &self.selector else { return self.find() };
        match select::root_of(path).map_err(|error| self.not_found(error))? {
            Some(root) if !stopped.contains(&root) => self.find(),
            _ => Ok(stopped.clone()),
        }
    }

    /// What it shows that so many stand still: nothing, if nobody was there to be held.
    pub fn shown(&self, threads: usize, processes: usize, how: &str) -> Stillness {
        let name = self.name();
        if processes == 0 {
            return Stillness::NotShown(format!("no process of {name} ran when they were to be held"));
        }
        Stillness::WritersFrozen(format!("{} of {name} {how}", count(threads, processes)))
    }

    fn not_found(&self, error: ProcessError) -> Failure {
        let kind = match error {
            ProcessError::Proc { .. } => FailureKind::Other,
            ProcessError::PidFile { .. }
            | ProcessError::NoPid { .. }
            | ProcessError::StalePidFile { .. }
            | ProcessError::Ambiguous { .. } => FailureKind::Refused,
        };
        Failure::new(kind, format!("cannot find the processes of {}", self.name()), "").because(error)
    }

    /// That none of these must stay free.
    pub fn check(&self, pids: impl IntoIterator<Item = u32>) -> Result<(), Failure> {
        match pids.into_iter().find(|pid| self.except.contains(pid)) {
            None => Ok(()),
            Some(pid) => Err(Failure::new(
                FailureKind::Refused,
                format!("holding {} would hold process {pid}, which this backup needs", self.name()),
                "start the backup outside the application's unit, for example from a timer unit of its own",
            )),
        }
    }
}

/// The states of all threads of a process, each with its id; empty if it is gone.
pub(super) fn thread_states(process: ProcessRef) -> Vec<(u32, u8)> {
    let state = |tid| Some((tid, stat::read_thread(process.pid, tid).ok()?.state));
    process::threads(process.pid).into_iter().filter_map(state).collect()
}

/// How many threads and processes, for people: `41 threads of 3 processes`.
fn count(threads: usize, processes: usize) -> String {
    let s = |n: usize| if n == 1 { "" } else { "s" };
    let es = if processes == 1 { "" } else { "es" };
    format!("{threads} thread{} of {processes} process{es}", s(threads))
}

/// What a person finds in `/proc` of a thread that does not stop.
pub(super) fn describe_thread(pid: u32, tid: u32) -> String {
    let name =
        std::fs::read_to_string(Path::new(&format!("/proc/{pid}/task/{tid}/comm"))).unwrap_or_default();
    let state = stat::read_thread(pid, tid).map_or('?', |stat| char::from(stat.state));
    format!("thread {tid} ({}, state {state}) of process {pid}", name.trim())
}
