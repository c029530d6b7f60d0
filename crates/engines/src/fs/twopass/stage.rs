//! One round: bringing files into the staging directory, unlocked or under the freeze.
//!
//! Crash story: as its parent. What a round did for a file is believed only if the file's stamp was the same
//! before and after; a failed attempt is forgotten.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry},
    pathtext,
    port::{Failure, FailureKind},
    problem::Problem,
    size::Bytes,
    time::Deadline,
};
use os::{
    extents::is_unsupported,
    staging::is_no_space,
    tree::{Census, Spot, read_entry_meta, said},
};

use super::{
    TreePinner,
    copies::{Copies, Taken, Untaken, Way, When},
    small::read_small,
    table::{Place, Seen},
    together::{Job, clone_all},
};

/// How often a file that changes under the freeze is tried.
const TRIES: u32 = 3;

/// What became of a file in an unlocked round.
pub(super) enum Outcome {
    /// Brought in, as it was at some time.
    Taken(Bytes),
    /// It cannot be cloned.
    CannotClone,
    /// It is gone or cannot be read: the pin looks again.
    Skipped,
}

/// What the last round brought in.
#[derive(Debug, Default)]
pub(super) struct Brought {
    /// By spot in the census, everything about files that had no mark; nothing where the content could not be had.
    pub files: HashMap<Spot, Option<Entry>>,
    pub problems: Vec<Problem>,
}

/// One round of a pinner.
pub(super) struct Round<'a> {
    pub pinner: &'a mut TreePinner,
    copies: &'a Copies,
    /// When the scan of this round began.
    started: Timestamp,
    until: Option<Deadline>,
    /// By device and inode, files with several names that this round has brought in.
    links: HashMap<(u64, u64), Taken>,
}

impl<'a> Round<'a> {
    pub(super) fn new(
        pinner: &'a mut TreePinner,
        copies: &'a Copies,
        started: Timestamp,
        until: Option<Deadline>,
    ) -> Self {
        Self { pinner, copies, started, until, links: HashMap::new() }
    }

    /// Brings one file in while it may change.
    pub(super) fn take_unlocked(&mut self, entry: &Entry, way: Way) -> Result<Outcome, Failure> {
        match self.take(entry, way) {
            Ok(taken) => Ok(Outcome::Taken(taken.bytes)),
            Err(Untaken::CannotClone(error)) => {
                self.remember_clonable(entry, &error);
                Ok(Outcome::CannotClone)
            }
            Err(Untaken::Staging(error)) => Err(self.staging_failure(&error)),
            Err(Untaken::Vanished | Untaken::Unreadable(_) | Untaken::TooLate) => Ok(Outcome::Skipped),
        }
    }

    /// A new file of the first pass that was not cloned with others; says whether it is to be stored ahead.
    ///
    /// # Errors
    /// If the staging directory is the trouble.
    pub(super) fn first_alone(&mut self, entry: &Entry) -> Result<bool, Failure> {
        let stamp = entry.meta.stamp();
        if stamp.size >= self.pinner.limits.ahead && self.pinner.clones(entry) {
            match self.take_unlocked(entry, Way::Clone)? {
                Outcome::Taken(_) | Outcome::Skipped => return Ok(false),
                Outcome::CannotClone => {}
            }
        }
        let settled = stamp.is_settled_at(self.started);
        self.pinner.table.insert(&entry.path, Seen { stamp, settled, place: Place::Parent });
        Ok(true)
    }

    /// The last round: brings in every regular file of the census that has no mark, and these `again`.
    pub(super) fn finish(
        &mut self,
        census: &mut Census,
        again: &BTreeSet<PathBuf>,
    ) -> Result<Brought, Failure> {
        // What somebody has mapped may change without a trace.
        again.iter().for_each(|path| census.unmark(path));
        let mut brought = Brought::default();
        let mut todo = Vec::new();
        for spot in census.unmarked_files() {
            let Some(mut entry) = census.entry(spot) else { continue };
            match self.pinner.table.trusted(&entry.path, &entry.meta.stamp()) {
                Some(place) if !again.contains(&entry.path) => {
                    entry.body = self.copies.body(place);
                    brought.files.insert(spot, Some(entry));
                }
                _ => todo.push((spot, entry)),
            }
        }
        self.leave_the_largest(&mut todo, &mut brought);
        self.take_small(&mut todo, &mut brought);
        self.take_clones(&mut todo, &mut brought)?;
        let mut todo = todo.into_iter();
        while let Some((spot, mut entry)) = todo.next() {
            let settled = if self.is_late() { Err(Untaken::TooLate) } else { self.settle(&mut entry) };
            let (kept, problem) = match settled {
                Ok(problem) => (Some(entry), problem),
                Err(Untaken::TooLate) => {
                    let left: Vec<&Entry> =
                        std::iter::once(&entry).chain(todo.as_slice().iter().map(|(_, e)| e)).collect();
                    return Err(self.too_late(&left));
                }
                Err(Untaken::Staging(error)) => return Err(self.staging_failure(&error)),
                Err(Untaken::Vanished) => (None, Some(vanished(&entry.path))),
                Err(Untaken::Unreadable(error) | Untaken::CannotClone(error)) => {
                    (None, Some(unreadable(&entry.path, &error)))
                }
            };
            brought.files.insert(spot, kept);
            brought.problems.extend(problem);
        }
        Ok(brought)
    }

    /// Takes out what could be read into memory.
    fn take_small(&self, todo: &mut Vec<(Spot, Entry)>, brought: &mut Brought) {
        let (until, clock) = (self.until, Arc::clone(&self.pinner.clock));
        let late = move || until.is_some_and(|until| until.has_passed(clock.moment()));
        let mut small = read_small(todo, &late);
        todo.retain(|(spot, entry)| {
            let Some(bytes) = small.remove(spot) else { return true };
            let entry = Entry { body: Body::Inline(bytes), ..entry.clone() };
            brought.files.insert(*spot, Some(entry));
            false
        });
    }

    /// Takes out what could be cloned just as the look saw it.
    fn take_clones(&mut self, todo: &mut Vec<(Spot, Entry)>, brought: &mut Brought) -> Result<(), Failure> {
        let entries: Vec<&Entry> = todo.iter().map(|(_, entry)| entry).collect();
        let taken = self.clone_together(&entries)?;
        let mut taken = taken.into_iter();
        let is_as_seen = |(_, entry): &mut (Spot, Entry)| {
            let taken =
                taken.next().flatten().filter(|taken| taken.whole && taken.stamp == entry.meta.stamp());
            let Some(taken) = taken else { return false };
            entry.body = Body::At(self.copies.path_of(taken.number));
            true
        };
        let done: Vec<(Spot, Entry)> = todo.extract_if(.., is_as_seen).collect();
        brought.files.extend(done.into_iter().map(|(spot, entry)| (spot, Some(entry))));
        Ok(())
    }

    /// Clones, by all processors, those of these files that have one name and can be cloned; what became of each,
    /// in their order. Nothing is said of the others, and of those where something went wrong: they are for the
    /// ordinary way, which tells.
    ///
    /// # Errors
    /// If the staging directory is the trouble, or it got late.
    pub(super) fn clone_together(&mut self, entries: &[&Entry]) -> Result<Vec<Option<Taken>>, Failure> {
        let jobs: Vec<Option<Job>> = entries.iter().map(|entry| self.job(entry)).collect();
        let (until, clock) = (self.until, Arc::clone(&self.pinner.clock));
        let late = move || until.is_some_and(|until| until.has_passed(clock.moment()));
        let when = When { frozen: until.is_some(), late: &late };
        let results = clone_all(self.copies, &jobs, when);
        let (mut all, mut left, mut failure) = (Vec::with_capacity(entries.len()), Vec::new(), None);
        // All are noted, whatever became of one: the copies are otherwise than the table says.
        for ((entry, job), result) in entries.iter().zip(jobs).zip(results) {
            let noted = match (job, result) {
                (None, _) => Ok(None),
                (Some(_), None) => Err(Untaken::TooLate),
                (Some(job), Some(result)) => self.note(entry, job.old, result),
            };
            match noted {
                Ok(taken) => all.push(taken),
                Err(Untaken::Staging(error)) => failure = Some(self.staging_failure(&error)),
                Err(_) => left.push(*entry),
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None if !left.is_empty() => Err(self.too_late(&left)),
            None => Ok(all),
        }
    }

    /// What is to be cloned together with others.
    fn job(&self, entry: &Entry) -> Option<Job> {
        let fits = entry.meta.links <= 1 && self.pinner.clones(entry);
        fits.then(|| Job {
            path: entry.path.clone(),
            size: entry.meta.size,
            old: self.own_or_spare_copy(entry),
        })
    }

    /// Writes down what became of a file; an error is one that concerns the whole round.
    fn note(
        &mut self,
        entry: &Entry,
        old: Option<u32>,
        result: Result<Taken, Untaken>,
    ) -> Result<Option<Taken>, Untaken> {
        match result {
            Ok(taken) => {
                self.remember(entry, taken, true);
                return Ok(Some(taken));
            }
            Err(Untaken::TooLate) => {
                self.remember_half_done(entry, old);
                return Err(Untaken::TooLate);
            }
            Err(Untaken::CannotClone(error)) => self.remember_clonable(entry, &error),
            Err(Untaken::Vanished | Untaken::Unreadable(_)) => {}
            Err(Untaken::Staging(error)) => {
                self.pinner.table.remove(&entry.path);
                return Err(Untaken::Staging(error));
            }
        }
        self.pinner.table.remove(&entry.path);
        Ok(None)
    }

    /// Takes out what is too much to be copied while everybody is held: the largest files, until the rest is
    /// within the bound. They are read from where they lie, after the thaw.
    fn leave_the_largest(&self, todo: &mut Vec<(Spot, Entry)>, brought: &mut Brought) {
        let most = self.pinner.limits.staged;
        let mut sizes: Vec<Bytes> =
            todo.iter().filter(|(_, e)| !self.pinner.clones(e)).map(|(_, e)| e.meta.size).collect();
        sizes.sort_unstable();
        let mut copied = Bytes(0);
        let Some(too_large) = sizes.into_iter().find(|size| {
            copied = copied + *size;
            copied > most
        }) else {
            return;
        };
        let is_left =
            |(_, entry): &mut (Spot, Entry)| entry.meta.size >= too_large && !self.pinner.clones(entry);
        for (spot, mut entry) in todo.extract_if(.., is_left) {
            brought.problems.push(Problem::weaker(
                &entry.path,
                format!(
                    "changed, and is too large ({}) to be copied while everybody is held: it is stored as it is \
                     afterwards, maybe a mixture of its states",
                    entry.meta.size
                ),
                "exclude it, or keep it on a filesystem that can clone (XFS, btrfs)",
            ));
            entry.body = Body::At(entry.path.clone());
            brought.files.insert(spot, Some(entry));
        }
    }

    /// Brings one file in while it should not change, and makes its entry tell of what was brought in.
    fn settle(&mut self, entry: &mut Entry) -> Result<Option<Problem>, Untaken> {
        let mut changed = false;
        for attempt in 1..=TRIES {
            let way = if self.pinner.clones(entry) { Way::Clone } else { Way::Copy };
            let taken = match self.take(entry, way) {
                Err(Untaken::CannotClone(error)) => {
                    self.remember_clonable(entry, &error);
                    self.take(entry, Way::Copy)?
                }
                taken => taken?,
            };
            entry.body = Body::At(self.copies.path_of(taken.number));
            if taken.whole && taken.stamp == entry.meta.stamp() {
                return Ok(changed.then(|| changed_meanwhile(&entry.path)));
            }
            changed = true;
            entry.meta = match read_entry_meta(&entry.path) {
                Ok((_, meta)) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Untaken::Vanished),
                Err(error) => return Err(Untaken::Unreadable(error)),
            };
            if taken.whole && taken.stamp == entry.meta.stamp() {
                return Ok(Some(changed_meanwhile(&entry.path)));
            }
            if attempt == TRIES {
                entry.meta.size = taken.bytes;
            }
        }
        Ok(Some(Problem::weaker(
            &entry.path,
            "changed all the time while it was being pinned: what is stored may be a mixture of its states",
            "hold the processes that write it, or exclude it",
        )))
    }

    fn take(&mut self, entry: &Entry, way: Way) -> Result<Taken, Untaken> {
        let identity = (entry.meta.device, entry.meta.inode);
        let single = entry.meta.links <= 1;
        if let (false, Some(taken)) = (single, self.links.get(&identity))
            && taken.whole
            && taken.stamp == entry.meta.stamp()
        {
            let taken = *taken;
            self.remember(entry, taken, false);
            return Ok(taken);
        }
        let old = self.own_copy(entry).filter(|_| single);
        // Whatever happens to the old copy now, it is not what it was.
        self.pinner.table.remove(&entry.path);
        let (until, clock) = (self.until, Arc::clone(&self.pinner.clock));
        let late = move || until.is_some_and(|until| until.has_passed(clock.moment()));
        let taken = self.copies.take(&entry.path, way, old, When { frozen: until.is_some(), late: &late });
        if let Err(Untaken::TooLate) = taken {
            self.remember_half_done(entry, old);
        }
        let taken = taken?;
        self.remember(entry, taken, single);
        if !single {
            self.links.insert(identity, taken);
        }
        Ok(taken)
    }

    fn remember(&mut self, entry: &Entry, taken: Taken, own: bool) {
        let settled = taken.whole && taken.stamp.is_settled_at(self.started);
        let place = Place::Staged { number: taken.number, own };
        self.pinner.table.insert(&entry.path, Seen { stamp: taken.stamp, settled, place });
    }

    /// The copy of an earlier round that may be brought up to date in place.
    fn own_copy(&self, entry: &Entry) -> Option<u32> {
        match self.pinner.table.place(&entry.path) {
            Some(Place::Staged { number, own: true }) => Some(number),
            _ => None,
        }
    }

    /// The same, or else one that nobody needs any more.
    fn own_or_spare_copy(&self, entry: &Entry) -> Option<u32> {
        let spare = || self.copies.adopt(self.pinner.spare.get(&entry.path)?, entry.meta.size);
        self.own_copy(entry).or_else(spare)
    }

    /// An old copy that is no copy of any state now, but still most of the work.
    fn remember_half_done(&mut self, entry: &Entry, old: Option<u32>) {
        if let Some(number) = old {
            let place = Place::Staged { number, own: true };
            self.pinner.table.insert(&entry.path, Seen { stamp: entry.meta.stamp(), settled: false, place });
        }
    }

    fn remember_clonable(&mut self, entry: &Entry, error: &io::Error) {
        if is_unsupported(error) {
            self.pinner.clonable.insert(entry.meta.device, false);
        }
    }

    fn is_late(&self) -> bool {
        self.until.is_some_and(|until| until.has_passed(self.pinner.clock.moment()))
    }

    fn too_late(&self, left: &[&Entry]) -> Failure {
        let bytes: Bytes = left.iter().map(|e| e.meta.size).sum();
        self.pinner.scope.too_late(&format!("{} changed files with {bytes} were left", left.len()))
    }

    fn staging_failure(&self, error: &io::Error) -> Failure {
        let place = pathtext::show(&self.pinner.staging);
        if is_no_space(error) {
            let what = format!("there is no space left for pinned copies in {place}");
            return Failure::new(FailureKind::NoSpace, what, "free some space there");
        }
        let what = format!("pinned copies cannot be written in {place}: {}", said(error));
        Failure::new(FailureKind::Other, what, "see that this user can write there")
    }
}

fn vanished(path: &Path) -> Problem {
    Problem::weaker(
        path,
        "vanished before it could be pinned, while everything should have stood still",
        "name the processes that change it, or exclude it",
    )
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let what = format!("cannot be read: {}", said(error));
    Problem::missing(path, what, "run as a user that can read it, or exclude it")
}

fn changed_meanwhile(path: &Path) -> Problem {
    Problem::weaker(
        path,
        "changed while everything should have stood still",
        "name the processes that write it, or exclude it",
    )
}
