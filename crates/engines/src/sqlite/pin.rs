//! Pinning a database under its lock: [`SqlitePinner`].
//!
//! Three ways, see [`PinMethod`]: clone database and WAL; open a read transaction and copy it after the thaw;
//! or compare an unlocked copy page by page. Each makes sure, before and after, that the lock is held by our
//! child, on the file that is pinned.
//!
//! Crash story: copies lie in a journalled staging directory, readers die with our pipe. A pin that is given
//! up before its harvest leaves its place, and for a page comparison its copy, to the pinner for the next
//! attempt; whoever of the two goes last removes it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use model::{
    entry::{Harvest, Manifest},
    id::SourceId,
    known::Known,
    plan::{JournalMode, PinMethod, PinPlan},
    port::{Difference, Failure, FailureKind, Pin, Pinner, Progress, Stage},
    problem::Problem,
    size::Bytes,
    time::Deadline,
    verdict::Stillness,
};
use os::{
    extents::clone_file,
    tree::{Resolved, resolve},
};
use rustix::fs::fdatasync;

use super::{
    Fingerprint, Holder, Means,
    entries::Original,
    error::SqliteError,
    kit::{Kit, Reader, open_copy},
    names::wal_of,
    pages::{self, Updated},
    settle::{Found, Settled, settle},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    Reflink,
    Transaction,
    Pages,
}

/// Pins one SQLite database.
pub struct SqlitePinner {
    source: SourceId,
    path: PathBuf,
    parent: PathBuf,
    strategy: Strategy,
    holder: Holder,
    means: Means,
    previous: Option<Fingerprint>,
    resolved: Resolved,
    home: Home,
}

/// Where a kit waits for the next attempt.
type Home = Arc<Mutex<Option<Kit>>>;

fn at_home(home: &Mutex<Option<Kit>>) -> MutexGuard<'_, Option<Kit>> {
    // A kit is there or not; a panic elsewhere changes nothing about it.
    home.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SqlitePinner {
    /// The pinner of this plan, under the lock of `holder`. With the fingerprint of the backup before
    /// ([`Fingerprint::from_checks`]), a database that has not changed since is not checked again.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] if the plan is not about an SQLite database.
    pub fn new(
        plan: &PinPlan,
        holder: Holder,
        means: Means,
        previous: Option<Fingerprint>,
    ) -> Result<Self, Failure> {
        let (strategy, database) = match &plan.method {
            PinMethod::SqliteReflink(database) => (Strategy::Reflink, database),
            PinMethod::SqliteTransaction(database) => (Strategy::Transaction, database),
            PinMethod::SqlitePages(database) => (Strategy::Pages, database),
            _ => {
                let what = format!("{} is not an SQLite database", plan.source);
                return Err(Failure::new(FailureKind::Refused, what, ""));
            }
        };
        Ok(Self {
            source: plan.source.clone(),
            path: database.path.clone(),
            parent: plan.staging.clone(),
            strategy,
            holder,
            means,
            previous,
            resolved: Resolved { real: database.path.clone(), links: Vec::new() },
            home: Home::default(),
        })
    }

    fn real(&self) -> &Path {
        &self.resolved.real
    }

    fn make_kit(&self) -> Result<Kit, Failure> {
        let mut kit = Kit::make(&self.means, &self.parent, self.real())?;
        self.give_reader(&mut kit)?;
        Ok(kit)
    }

    fn give_reader(&self, kit: &mut Kit) -> Result<(), Failure> {
        if self.strategy == Strategy::Transaction && kit.reader.is_none() {
            kit.reader = Some(Reader::start(&self.means, self.real())?);
        }
        Ok(())
    }

    /// Unlocked work that shortens the pin.
    fn warm_up(&self, kit: &Kit) -> Result<Updated, SqliteError> {
        match self.strategy {
            Strategy::Pages => self.compare(kit, None),
            // Cloning writes the file's dirty pages first: the fewer, the shorter.
            Strategy::Reflink => {
                for path in [self.real().to_owned(), wal_of(self.real())] {
                    if let Some(file) = open_if_there(&path)? {
                        fdatasync(&file)
                            .map_err(|e| io_error(&path, "cannot be written to disk", e.into()))?;
                    }
                }
                Ok(Updated::default())
            }
            Strategy::Transaction => Ok(Updated::default()),
        }
    }

    fn compare(&self, kit: &Kit, until: Option<Deadline>) -> Result<Updated, SqliteError> {
        let live = open(self.real())?;
        let copy = open_copy(&kit.copy(), false)?;
        let goes_on = || until.is_none_or(|until| !until.has_passed(self.means.clock.moment()));
        pages::update(&live, &copy, goes_on).map_err(|e| io_error(self.real(), "cannot be copied", e))
    }

    /// Everything that is done under the lock.
    fn pin_into(&self, kit: &mut Kit, until: Deadline) -> Result<Pinned, Failure> {
        let real = self.real();
        let journal = self.holder.check(real)?;
        if (self.strategy == Strategy::Transaction) != (journal == JournalMode::Wal)
            && self.strategy != Strategy::Reflink
        {
            return Err(mode_changed(real).into());
        }
        let original =
            Original::look(&self.resolved).map_err(|e| io_error(real, "cannot be looked at", e))?;
        let fingerprint = Fingerprint::take(real, self.means.clock.now())
            .map_err(|e| io_error(real, "cannot be looked at", e))?;
        match self.strategy {
            Strategy::Reflink => clone(real, journal, &kit.copy())?,
            Strategy::Transaction => {
                self.give_reader(kit)?;
                if let Some(reader) = &mut kit.reader {
                    reader.snapshot(&self.means, until)?;
                }
            }
            Strategy::Pages => {
                let Updated { left, .. } = self.compare(kit, Some(until))?;
                if left > Bytes(0) {
                    let (path, size) = (real.to_owned(), original.bytes());
                    return Err(SqliteError::TooSlow { path, left, size }.into());
                }
            }
        }
        self.holder.check(real)?;
        let unchanged = fingerprint.is_some() && fingerprint == self.previous;
        Ok(Pinned { original, fingerprint, unchanged })
    }
}

impl Pinner for SqlitePinner {
    fn source(&self) -> SourceId {
        self.source.clone()
    }

    fn prepare(&mut self, _known: &Known) -> Result<Option<Manifest>, Failure> {
        self.resolved = resolve(&self.path).map_err(|e| io_error(&self.path, "cannot be found", e))?;
        let kit = self.make_kit()?;
        self.warm_up(&kit)?;
        *at_home(&self.home) = Some(kit);
        Ok(None)
    }

    fn round(&mut self) -> Result<Difference, Failure> {
        let home = Arc::clone(&self.home);
        let mut kit = at_home(&home);
        if kit.is_none() {
            *kit = Some(self.make_kit()?);
        }
        let Updated { changed, .. } = match kit.as_ref() {
            Some(kit) => self.warm_up(kit)?,
            None => Updated::default(),
        };
        Ok(Difference { files: u64::from(changed > Bytes(0)), bytes: changed })
    }

    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        if until.has_passed(self.means.clock.moment()) {
            let (path, what) = (self.real().to_owned(), "it was not pinned by the deadline".into());
            return Err(SqliteError::TimedOut { path, what }.into());
        }
        let waiting = at_home(&self.home).take();
        let mut kit = waiting.map_or_else(|| self.make_kit(), Ok)?;
        match self.pin_into(&mut kit, until) {
            Ok(pinned) => Ok(Box::new(SqlitePin {
                pinned,
                real: self.real().to_owned(),
                kit: Some(kit),
                home: Arc::downgrade(&self.home),
                harvested: false,
                holder: self.holder.clone(),
                means: self.means.clone(),
            })),
            Err(failure) => {
                put_back(&self.home, kit);
                Err(failure)
            }
        }
    }
}

/// Keeps a kit for the next attempt; its snapshot, if it has one, ends.
fn put_back(home: &Mutex<Option<Kit>>, mut kit: Kit) {
    if kit.reader.as_mut().is_some_and(|reader| !reader.rest()) {
        kit.reader = None;
    }
    *at_home(home) = Some(kit);
}

/// What was learnt under the lock.
struct Pinned {
    original: Original,
    fingerprint: Option<Fingerprint>,
    /// Nothing changed since the last check.
    unchanged: bool,
}

struct SqlitePin {
    pinned: Pinned,
    real: PathBuf,
    kit: Option<Kit>,
    home: Weak<Mutex<Option<Kit>>>,
    harvested: bool,
    holder: Holder,
    means: Means,
}

impl SqlitePin {
    fn let_go(&mut self) -> Result<(), Failure> {
        let Some(kit) = self.kit.take() else { return Ok(()) };
        match self.home.upgrade() {
            Some(home) if !self.harvested => {
                put_back(&home, kit);
                Ok(())
            }
            _ => kit.release(),
        }
    }

    /// What the check found, as checks and problems.
    fn judge(&self, found: &Found) -> (Vec<String>, Vec<Problem>) {
        let fingerprint = self.pinned.fingerprint.as_ref().map(Fingerprint::as_check);
        let good = |text: &str| std::iter::once(text.to_owned()).chain(fingerprint.clone()).collect();
        match found {
            Found::Good => (good("quick_check: ok"), Vec::new()),
            Found::NotChecked => {
                (good("quick_check: unchanged since the check of the last backup"), Vec::new())
            }
            Found::Bad(what) => {
                let what = format!("the database fails quick_check: {what}");
                let remedy = "restore an older backup, or run `.recover` of the sqlite3 program on this one";
                (Vec::new(), vec![Problem::missing(&self.real, what, remedy)])
            }
            Found::CannotTell(why) => {
                let what = format!("quick_check is not possible: {why}");
                (vec![what.clone()], vec![Problem::note(&self.real, what)])
            }
        }
    }

    fn settle(&self, copy: &Path, progress: &dyn Progress) -> Result<Settled, SqliteError> {
        progress.begin(Stage::Checking, Some(self.pinned.original.bytes()));
        let settled = settle(copy, !self.pinned.unchanged);
        progress.end();
        settled.map_err(|e| io_error(copy, "cannot be settled", e))
    }
}

impl Pin for SqlitePin {
    fn unchanged(&mut self, _until: Deadline) -> Result<Stillness, Failure> {
        self.holder.check(&self.real)?;
        Ok(Stillness::Lock("pinned under the write lock".into()))
    }

    fn harvest(&mut self, progress: &dyn Progress) -> Result<Harvest, Failure> {
        self.harvested = true;
        let Some(kit) = &mut self.kit else {
            let what = format!("{} is not pinned any more", self.pinned_name());
            return Err(Failure::new(FailureKind::Lost, what, ""));
        };
        let copy = kit.copy();
        if let Some(mut reader) = kit.reader.take() {
            progress.begin(Stage::Copying, Some(self.pinned.original.bytes()));
            let copied = open_copy(&copy, true).and_then(|_| reader.copy(&copy, progress));
            progress.end();
            copied?;
        }
        let settled = self.settle(&copy, progress)?;
        let (checks, problems) = self.judge(&settled.found);
        let entries = self.pinned.original.entries(&copy, &settled, self.means.clock.now());
        Ok(Harvest { entries, problems, checks, server: None })
    }

    fn release(mut self: Box<Self>) -> Result<(), Failure> {
        self.let_go()
    }
}

impl SqlitePin {
    fn pinned_name(&self) -> String {
        model::pathtext::show(&self.real)
    }
}

impl Drop for SqlitePin {
    fn drop(&mut self) {
        if let Err(failure) = self.let_go() {
            tracing::error!("{}", failure.in_full());
        }
    }
}

/// Clones the database, and the WAL if there is one. Without a WAL the database is whole by itself: `BEGIN
/// IMMEDIATE` rolled a hot journal back.
fn clone(real: &Path, journal: JournalMode, copy: &Path) -> Result<(), SqliteError> {
    clone_one(&open(real)?, real, copy)?;
    let (wal, wal_copy) = (wal_of(real), wal_of(copy));
    match open_if_there(&wal)? {
        Some(live) if journal == JournalMode::Wal => clone_one(&live, &wal, &wal_copy),
        _ => match fs::remove_file(&wal_copy) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error(&wal_copy, "cannot be removed", error))
            }
            _ => Ok(()),
        },
    }
}

fn clone_one(live: &File, path: &Path, to: &Path) -> Result<(), SqliteError> {
    clone_file(live, &open_copy(to, true)?).map_err(|e| io_error(path, "cannot be cloned", e))
}

fn open(path: &Path) -> Result<File, SqliteError> {
    File::open(path).map_err(|e| io_error(path, "cannot be opened", e))
}

fn open_if_there(path: &Path) -> Result<Option<File>, SqliteError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(path, "cannot be opened", error)),
    }
}

fn io_error(path: &Path, what: &'static str, source: io::Error) -> SqliteError {
    SqliteError::Io { path: path.to_owned(), what, source }
}

pub(super) fn mode_changed(real: &Path) -> SqliteError {
    SqliteError::Refused {
        path: real.to_owned(),
        what: "its journal mode was changed while the backup was being prepared".into(),
        remedy: "run the backup again".into(),
    }
}
