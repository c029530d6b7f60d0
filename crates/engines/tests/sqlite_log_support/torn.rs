//! An archive that asks for a new base just when a writer is stopped in the middle of changing the index, while others commit.

use std::{cell::Cell, path::Path, thread, time::Duration};

use engines::sqlite::wal::Archive;
use jiff::Timestamp;
use model::{
    logs::{HoleCause, WalPosition},
    port::Failure,
};

use crate::sqlite_log_support::{Files, Process, open, post};

/// Many polls of the helper, but less than the time for which it waits for an index that cannot be read.
const POLLS: Duration = Duration::from_millis(300);

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    AskForABase,
    Commit,
    Nothing,
}

/// Plain files, and what an application does meanwhile.
pub struct Torn<'a> {
    files: Files,
    path: &'a Path,
    step: Cell<Step>,
}

impl<'a> Torn<'a> {
    pub fn new(files: Files, path: &'a Path) -> Self {
        Self { files, path, step: Cell::new(Step::AskForABase) }
    }
}

impl Archive for Torn<'_> {
    fn reached(&self) -> Option<WalPosition> {
        self.files.reached()
    }

    fn begin(
        &mut self,
        at: WalPosition,
        by: Timestamp,
        hole: Option<(HoleCause, String)>,
        base: &mut dyn FnMut(&Path) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.files.begin(at, by, hole, base)
    }

    fn append(&mut self, bytes: &[u8], ends: Option<(WalPosition, Timestamp)>) -> Result<(), Failure> {
        self.files.append(bytes, ends)
    }

    /// These commits come after what the helper has looked at, and before it reads that a base is wanted.
    fn sync(&mut self, at: Timestamp) -> Result<(), Failure> {
        if self.step.replace(Step::Nothing) == Step::Commit {
            let mut db = open(self.path);
            for _ in 0..9 {
                post(&mut db, 100, 2);
            }
        }
        self.files.sync(at)
    }

    fn idle(&mut self, at: Timestamp) -> Result<(), Failure> {
        self.files.idle(at)
    }

    /// The helper cannot read the index when it next looks, begins to read once the commit has made it whole, and tells that
    /// commit.
    fn wants_new_base(&self) -> bool {
        if self.files.reached().is_none() || self.step.get() != Step::AskForABase {
            return false;
        }
        let db = open(self.path);
        db.execute_batch("BEGIN IMMEDIATE; PRAGMA user_version = 7").expect("a transaction");
        Process::tear(&self.path.with_file_name("app.db-shm"));
        thread::sleep(POLLS);
        self.step.set(Step::Commit);
        db.execute_batch("COMMIT").expect("committed");
        true
    }
}
