//! Undoing what dead runs left, from their journals: for `thaw` and for the beginning of every run.
//!
//! Crash story: an entry is crossed off after it was undone, and undoing twice is harmless. A journal is
//! taken by its lock, which its own run holds while it lives, so two sweepers never share one.

use std::path::Path;

use model::{
    port::Failure,
    problem::{Effect, Problem},
    undo::Undo,
};
use os::undo::{self, UndoError};
use serde::Serialize;
use vault::journal;

/// What was undone, and what could not be.
#[derive(Debug, Default, Serialize)]
pub struct Swept {
    /// Undone, for people.
    pub undone: Vec<Undone>,
    /// Still held, pinned or locked, with what to do.
    pub left: Vec<Problem>,
}

/// One thing that a dead run had left.
#[derive(Debug, Serialize)]
pub struct Undone {
    /// The run.
    pub run: String,
    /// What.
    #[serde(flatten)]
    pub undo: Undo,
}

impl Undone {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} (of run {})", words(&self.undo), self.run)
    }
}

/// Undoes everything in the journals of dead runs.
///
/// # Errors
/// If the journals cannot be listed.
pub fn sweep(state: &Path) -> Result<Swept, Failure> {
    let mut swept = Swept::default();
    for mut run in journal::dead_runs(state).map_err(Failure::from)? {
        let name = run.run().to_owned();
        swept.left.extend_from_slice(run.problems());
        let mut all_undone = true;
        let mut is_mixed = false;
        // In reverse: what was held last is let go first.
        for (ticket, undo) in run.open_undos().into_iter().rev() {
            if is_mixed && matches!(undo, Undo::Start { .. }) {
                swept.left.push(not_started(&name, &undo));
                continue;
            }
            match undo::perform(&undo) {
                Ok(()) => {
                    run.cross_off(ticket).map_err(Failure::from)?;
                    swept.undone.push(Undone { run: name.clone(), undo });
                }
                Err(error) => {
                    all_undone = false;
                    is_mixed |= error.is_mixed();
                    swept.left.push(left(&name, &undo, &error));
                }
            }
        }
        if all_undone {
            run.close().map_err(Failure::from)?;
        }
    }
    Ok(swept)
}

/// Started on files partly old and partly new, an application could spoil both.
fn not_started(run: &str, undo: &Undo) -> Problem {
    let what = format!(
        "run {run} died, and its application stays stopped until what was there before the restore is back: {}",
        words(undo)
    );
    Problem::new(Effect::Note, None, what, "mend what is in the way and run `stillpoint thaw` as root")
}

fn left(run: &str, undo: &Undo, error: &UndoError) -> Problem {
    let mut what = format!("run {run} died, and this could not be undone: {}: {error}", words(undo));
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        what.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Problem::new(Effect::Note, None, what, "run `stillpoint thaw` as root")
}

/// What an undo does, for people.
#[must_use]
pub fn words(undo: &Undo) -> String {
    use model::pathtext::show;
    match undo {
        Undo::Continue { processes } => {
            let pids: Vec<String> = processes.iter().map(|p| p.pid.to_string()).collect();
            format!("let processes {} go on", pids.join(", "))
        }
        Undo::ThawCgroup { cgroup } => format!("thaw control group {}", show(cgroup)),
        Undo::Start { start, .. } => format!("run the start hook `{}`", start.run),
        Undo::End { process } => format!("end helper process {}", process.pid),
        Undo::RemoveLock { path } => format!("remove the lock {}", show(path)),
        Undo::SwapBack { staging, .. } => {
            let dirs: Vec<String> = staging.iter().map(|dir| show(dir)).collect();
            format!("bring back what an unfinished restore moved aside, kept in {}", dirs.join(", "))
        }
        Undo::RemoveTree { path } => format!("remove the pinned copies in {}", show(path)),
        Undo::DeleteSubvolume { path } => format!("delete the snapshot {}", show(path)),
    }
}
