//! Who writes the server's files, and whether all of them are held.
//!
//! Found by who has the files open, not by what a plan says: a server that was restarted, or a second one on the
//! same directory by mistake, would otherwise go on writing while its files are pinned.
//!
//! Crash story: reads only.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use model::{
    id::SourceId,
    plan::ServerPlan,
    port::{Failure, FailureKind},
    server::RootRole,
    undo::ProcessRef,
};
use os::process::{alive, open_by, this_process};

use crate::fs::Held;

/// The processes that have files of the server open.
#[derive(Clone)]
pub(super) struct Writers {
    source: SourceId,
    roots: Vec<PathBuf>,
    held: Held,
    found: Arc<BTreeSet<ProcessRef>>,
}

impl Writers {
    pub(super) fn new(source: &SourceId, plan: &ServerPlan, held: Held) -> Self {
        let keys = |role: RootRole| role == RootRole::Keyring;
        let roots = plan.roots.iter().filter(|root| !keys(root.role)).map(|root| root.tree.root.clone());
        Self { source: source.clone(), roots: roots.collect(), held, found: Arc::default() }
    }

    /// Looks who has files open that lie directly in one of the directories: a running server has its control file,
    /// system tablespace and redo log open all the time. Holds nobody, and takes some milliseconds.
    ///
    /// # Errors
    /// If it cannot be told who we are.
    pub(super) fn look(&mut self) -> Result<(), Failure> {
        let ourselves = this_process().map_err(|error| {
            Failure::new(FailureKind::Other, "/proc cannot be read", "mount it").because(error)
        })?;
        let files: Vec<PathBuf> = self.roots.iter().flat_map(|root| files_in(root)).collect();
        let open = open_by(&files).into_iter().map(|(process, _)| process);
        self.found = Arc::new(open.filter(|process| *process != ourselves).collect());
        Ok(())
    }

    /// # Errors
    /// [`FailureKind::Refused`] if somebody writes who is not held, or nobody is known to write;
    /// [`FailureKind::Lost`] if who wrote is gone.
    pub(super) fn are_held(&self) -> Result<(), Failure> {
        let failure =
            |kind, what: String, remedy: &str| Failure::new(kind, format!("{}: {what}", self.source), remedy);
        let held = (self.held)();
        if self.found.is_empty() {
            let what =
                "no process was found that has its files open, so nobody can tell that it stands still";
            let remedy = "run as root, where its process can be seen";
            return Err(failure(FailureKind::Refused, what.to_owned(), remedy));
        }
        if let Some(free) = self.found.iter().find(|process| !held.contains(process) && alive(**process)) {
            let what = format!("process {} has its files open and is not held", free.pid);
            let remedy = "end it, if it is not the server, and back up again";
            return Err(failure(FailureKind::Refused, what, remedy));
        }
        if self.found.iter().all(|process| !held.contains(process)) {
            return Err(failure(FailureKind::Lost, "its process has ended".to_owned(), ""));
        }
        Ok(())
    }

    /// For evidence: `process 4711`.
    pub(super) fn in_words(&self) -> String {
        let pids: Vec<String> = self.found.iter().map(|process| process.pid.to_string()).collect();
        match &pids[..] {
            [one] => format!("process {one}"),
            more => format!("processes {}", more.join(", ")),
        }
    }
}

fn files_in(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let ours = |entry: &fs::DirEntry| entry.file_name() != OsStr::new("lost+found");
    let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    entries.flatten().filter(|entry| ours(entry) && is_file(entry)).map(|entry| entry.path()).collect()
}
