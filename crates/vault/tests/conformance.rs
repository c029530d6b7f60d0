//! The vault's drivers pass the suites that the fakes pass.

mod common;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::Arc,
};

use common::{
    Place, noise,
    spool::{Archive, Bytes, owner},
};
use model::{
    id::{BackupId, EpochId, RunId, SourceId},
    logs::{Beginning, SegmentRecord},
    logs_retention::LogsPlan,
    port::{Failure, Journal, Progress, Shelf, Store},
    port_shelf::{HeldLog, LogShelf, Shelved, Unproven},
    undo::{Ticket, Undo},
};
use testkit::conformance;
use vault::{
    journal::{FileJournal, dead_runs},
    logs::{Spool, Tails},
    repository,
};

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

/// A repository of its own with a spool beside it.
struct Owned {
    repository: repository::Repository,
    spool: Spool,
}

impl Owned {
    fn archive(&mut self) -> repository::Archive<'_> {
        let (spool, tails): (_, Tails<'_>) = (self.spool.clone(), &|_| Box::new(Bytes));
        repository::Archive { repository: &mut self.repository, spool, owner: owner(), tails }
    }
}

impl LogShelf for Owned {
    fn here(&mut self) -> Result<Vec<HeldLog>, Failure> {
        self.archive().here()
    }
    fn there(&mut self) -> Result<Option<Vec<HeldLog>>, Failure> {
        self.archive().there()
    }
    fn store(&mut self, progress: &dyn Progress) -> Result<Shelved, Failure> {
        self.archive().store(progress)
    }
    fn unproven(
        &mut self,
        source: &SourceId,
        segments: &[SegmentRecord],
    ) -> Result<(BackupId, Vec<Unproven>), Failure> {
        self.archive().unproven(source, segments)
    }
    fn discard(
        &mut self,
        source: &SourceId,
        epoch: &EpochId,
        n: u64,
        in_it: &BackupId,
    ) -> Result<(), Failure> {
        self.archive().discard(source, epoch, n, in_it)
    }
    fn forget(&mut self, plan: &LogsPlan) -> Result<(), Failure> {
        self.archive().forget(plan)
    }
}

struct Logs {
    place: Place,
    spool: Spool,
    archive: RefCell<Option<Archive>>,
    epochs: Cell<u8>,
}

impl Logs {
    fn new() -> Self {
        let place = Place::new();
        let spool = Spool::open(&place.dir.path().join("logs"));
        Self { place, spool, archive: RefCell::default(), epochs: Cell::new(0) }
    }

    /// The writer is there from the first epoch on.
    fn write<T>(&self, with: impl FnOnce(&mut Archive) -> T) -> T {
        let mut archive = self.archive.borrow_mut();
        with(archive.get_or_insert_with(|| Archive::new(self.spool.dir().to_owned())))
    }
}

impl conformance::log_shelf::Bench for Logs {
    fn shelf(&self) -> Box<dyn LogShelf + '_> {
        Box::new(Owned { repository: self.place.repository(), spool: self.spool.clone() })
    }
    fn begin_epoch(&self) {
        let nth = self.epochs.get() + 1;
        self.epochs.set(nth);
        let before = self.spool.catalogue(&|_| Box::new(Bytes)).unwrap().sources.pop();
        let beginning = match before.and_then(|log| log.epochs.last().map(|epoch| epoch.record.epoch.clone()))
        {
            Some(after) => Beginning::Continues { after },
            None => Beginning::First,
        };
        self.write(|archive| archive.begin_epoch(nth, beginning));
    }
    fn append(&self) {
        self.write(|archive| {
            if !archive.is_open() {
                archive.begin_segment();
            }
            archive.append(&noise(u64::from(self.epochs.get()), 5_000));
        });
    }
    fn close(&self) {
        self.write(|archive| archive.close());
    }
    fn snapshots(&self) -> usize {
        self.place.files("snapshots").len()
    }
    /// In whatever pack it lies.
    fn damage_stored(&self, epoch: &EpochId, number: u64) -> bool {
        let log = self.shelf().here().unwrap().remove(0);
        let segments: Vec<_> = log.epochs.iter().flat_map(|epoch| epoch.segments.clone()).collect();
        self.place.files("data").into_iter().any(|pack| {
            let whole = fs::read(&pack).unwrap();
            let mut bytes = whole.clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&pack, &bytes).unwrap();
            let told = self.shelf().unproven(&log.source, &segments);
            let hit =
                told.is_ok_and(|(_, wrong)| wrong.iter().any(|it| it.epoch == *epoch && it.number == number));
            if !hit {
                fs::write(&pack, &whole).unwrap();
            }
            hit
        })
    }
}

#[test]
fn the_repository_is_a_log_shelf() {
    conformance::log_shelf::suite(|| Box::new(Logs::new()));
}
