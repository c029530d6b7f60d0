//! Undoing what dead runs left, from their journals: for `thaw` and for the beginning of every run.
//!
//! Crash story: an entry is crossed off after it was undone, and undoing twice is harmless. A start hook that
//! was run here and failed is told and crossed off all the same. A journal is
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
                // It has begun, which is all that is promised; one that cannot succeed must not run for ever.
                Err(error @ UndoError::NotStarted { .. }) => {
                    run.cross_off(ticket).map_err(Failure::from)?;
                    swept.left.push(given_up(&name, &error));
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

/// The hook was run and failed. Whoever reads this has to start the application: nobody tries it again.
fn given_up(run: &str, error: &UndoError) -> Problem {
    let what = format!("run {run} died, and ITS APPLICATION MAY NOT RUN: {error}");
    Problem::new(Effect::Note, None, what, "see that the application runs; its start hook is not tried again")
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
        Undo::Unmount { path } => format!("unmount the snapshot at {}", show(path)),
        Undo::RemoveLogicalVolume { group, name } => format!("remove the snapshot {group}/{name}"),
        Undo::ReleasePoolMetadata { group, pool, .. } => {
            format!("release the snapshot of the metadata of the thin pool {group}/{pool}")
        }
        Undo::DestroyZfsSnapshot { dataset, snapshot } => {
            format!("destroy the snapshot {dataset}@{snapshot}")
        }
        Undo::ServerVariable { access, variable, old, .. } => {
            format!("set {variable} of the server at {} back to {old}", access.address)
        }
        Undo::ServerExchange { access, databases, .. } => format!(
            "end the unfinished restore of the databases {} in the server at {}: what was there is put back, or dropped if \
             the restore had finished",
            databases.join(", "),
            access.address
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Duration};

    use model::{
        id::RunId,
        port::Journal,
        undo::{Hook, Move, Undo},
    };
    use vault::journal::{FileJournal, dead_runs};

    use super::{Swept, sweep};

    /// A dead run that had made these.
    fn left_by_dead(state: &Path, undos: Vec<Undo>) {
        let journal = FileJournal::create(state, &RunId::new("20261120T120000Z-1").unwrap()).unwrap();
        for undo in undos {
            journal.intend(undo, None).unwrap();
        }
    }

    fn start(dir: &Path, end: &str) -> Undo {
        let run = format!("echo start >>{}/log; {end}", dir.display());
        Undo::Start { start: Hook { run, timeout: Duration::from_secs(10) }, ends: None }
    }

    fn starts(dir: &Path) -> usize {
        fs::read_to_string(dir.join("log")).map_or(0, |log| log.lines().count())
    }

    #[test]
    fn a_start_hook_that_fails_is_run_once_and_told() {
        let dir = tempfile::tempdir().unwrap();
        left_by_dead(dir.path(), vec![start(dir.path(), "exit 7")]);
        let Swept { undone, left } = sweep(dir.path()).unwrap();
        assert!(undone.is_empty() && left.len() == 1, "{left:?}");
        assert!(left[0].to_string().contains("exit status: 7"), "{}", left[0]);
        let Swept { undone, left } = sweep(dir.path()).unwrap();
        assert!(undone.is_empty() && left.is_empty(), "{left:?}");
        assert_eq!(starts(dir.path()), 1);
    }

    #[test]
    fn a_start_hook_that_is_withheld_stays() {
        let dir = tempfile::tempdir().unwrap();
        let staging = dir.path().join(".stillpoint-restore-1");
        fs::create_dir(&staging).unwrap();
        let (live, old) = (dir.path().join("gone/live"), staging.join("old"));
        fs::write(&old, "old").unwrap();
        let moves = vec![Move { live, new: None, old, had: true }];
        let swap = Undo::SwapBack { moves, staging: vec![staging] };
        left_by_dead(dir.path(), vec![start(dir.path(), "true"), swap]);
        assert_eq!(sweep(dir.path()).unwrap().left.len(), 2);
        assert_eq!(starts(dir.path()), 0);
        assert_eq!(dead_runs(dir.path()).unwrap()[0].open_undos().len(), 2);
    }
}
