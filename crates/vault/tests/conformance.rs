//! The vault's drivers pass the suites that the fakes pass.

mod common;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use common::Place;
use model::{
    id::{BackupId, RunId},
    port::{Journal, Shelf, Store},
    undo::{Ticket, Undo},
};
use testkit::conformance;
use vault::journal::{FileJournal, dead_runs};

impl conformance::store::Bench for Place {
    fn store(&self) -> Box<dyn Store> {
        Box::new(self.repository())
    }
    fn shelf(&self) -> Box<dyn Shelf> {
        Box::new(self.repository())
    }
    fn scratch(&self) -> PathBuf {
        Place::scratch(self)
    }
    fn read_back(&self, backup: &BackupId) -> BTreeMap<PathBuf, Vec<u8>> {
        Place::read_back(self, backup)
    }
}

#[test]
fn the_repository_is_a_store() {
    conformance::store::suite(|| Box::new(Place::new()));
}

#[test]
fn the_repository_is_a_shelf() {
    conformance::shelf::suite(|| Box::new(Place::new()));
}

struct Journals(tempfile::TempDir);

impl conformance::journal::Bench for Journals {
    fn journal(&self) -> Arc<dyn Journal> {
        Arc::new(FileJournal::create(self.0.path(), &RunId::new("run-1").unwrap()).unwrap())
    }
    fn survivors(&self, journal: Arc<dyn Journal>) -> Vec<(Ticket, Undo)> {
        // Dropping the value is what the kernel does with the lock of a killed process; a journal with open
        // undos keeps its file, and only such a one has anything to tell.
        drop(journal);
        let mut runs = dead_runs(self.0.path()).unwrap();
        assert!(runs.len() <= 1);
        runs.pop().map_or_else(Vec::new, |run| {
            assert_eq!(run.run(), "run-1");
            assert_eq!(run.problems(), []);
            run.open_undos()
        })
    }
}

#[test]
fn the_file_journal_is_a_journal() {
    conformance::journal::suite(|| Box::new(Journals(tempfile::tempdir().unwrap())));
}
