//! The workers: each does the whole way from the file to the pack by itself, into a pack of its own.
//!
//! There are twice as many as cores, so that one that waits for the disk (`fsync`) keeps no core idle. They claim
//! runs of small files, and help each other with large ones. What they are done with goes to the board, from which
//! the caller takes it in the order of the manifest.
//!
//! Crash story: see [`super::pack`]. The first failed write ends everything; a worker that panics does too.

use std::{
    collections::HashMap,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lanes::Roller;
use model::size::Bytes;
use rustic_core::repofile::BlobType;

use super::{
    Job,
    compress::Effort,
    index::{Claim, Place},
    large::{Ending, Large, Piece},
    name::Name,
    orphans,
    pack::{Packer, Sealed},
};
use crate::repository::{
    error::{RepositoryError, StorageError},
    feed::Fault,
    source::Source,
};

/// So many entries are claimed at a time, or fewer if they are large.
const RUN: usize = 16;

/// A run ends with the file that makes it this large, in bytes.
const RUN_BYTES: u64 = 1 << 20;

/// Workers are at most so many entries ahead of the caller: results wait in memory.
const AHEAD: usize = 1 << 14;

/// So many blobs of a large file get their names together: small ones still are in the processor's cache when they are
/// compressed.
const TOGETHER: usize = 12;

/// A file of whose blobs so many times more are known than not is one that changed in some places.
const MOSTLY: usize = 8;

/// How often whoever waits looks whether somebody asked to stop.
const LOOK: Duration = Duration::from_millis(100);

/// What was stored of a file; nothing if it could not be read.
pub(crate) type Stored = Option<Vec<Place>>;

struct State {
    /// The next entry to claim.
    next: usize,
    /// All entries before this one were taken by the caller.
    taken: usize,
    done: HashMap<usize, Stored>,
    /// The caller waits for this one.
    awaited: Option<usize>,
    open: Vec<(usize, Arc<Large>)>,
    busy: usize,
    failed: Option<RepositoryError>,
}

/// What is to be done and what is done.
pub(crate) struct Board {
    state: Mutex<State>,
    delivered: Condvar,
    work: Condvar,
}

enum Work {
    Run(Range<usize>),
    Help(usize, Arc<Large>),
}

/// Why a file is not stored.
enum Trouble {
    File(Fault),
    All(RepositoryError),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::File(fault)
    }
}

impl From<RepositoryError> for Trouble {
    fn from(error: RepositoryError) -> Self {
        Self::All(error)
    }
}

impl Board {
    pub(crate) fn new() -> Self {
        let state = State {
            next: 0,
            taken: 0,
            done: HashMap::new(),
            awaited: None,
            open: Vec::new(),
            busy: 0,
            failed: None,
        };
        Self { state: Mutex::new(state), delivered: Condvar::new(), work: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends everything with an error; the first one stands.
    pub(crate) fn fail(&self, error: RepositoryError) {
        self.state().failed.get_or_insert(error);
        self.delivered.notify_all();
        self.work.notify_all();
    }

    fn stopped(&self, job: &Job<'_>) -> RepositoryError {
        StorageError::Stopped { dir: job.sink.backend.dir().into() }.into()
    }

    fn claim(&self, job: &Job<'_>) -> Option<Work> {
        let mut state = self.state();
        loop {
            if state.failed.is_some() {
                return None;
            }
            if job.feed.is_stopped() {
                let stopped = self.stopped(job);
                drop(state);
                self.fail(stopped);
                return None;
            }
            if state.next < job.feed.len() && state.next < state.taken + AHEAD {
                let run = run_from(job, state.next);
                state.next = run.end;
                state.busy += 1;
                return Some(Work::Run(run));
            }
            state.open.retain(|(_, large)| large.is_open());
            if let Some((place, large)) = state.open.first().cloned() {
                // The next one who comes helps another.
                state.open.rotate_left(1);
                state.busy += 1;
                return Some(Work::Help(place, large));
            }
            if state.next >= job.feed.len() && state.busy == 0 {
                return None;
            }
            state = self.work.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end_of_work(&self) {
        let mut state = self.state();
        state.busy -= 1;
        if state.busy == 0 {
            self.work.notify_all();
        }
    }

    fn deliver(&self, results: &mut Vec<(usize, Stored)>) {
        if results.is_empty() {
            return;
        }
        let mut state = self.state();
        let awaited = state.awaited.is_some_and(|place| results.iter().any(|(done, _)| *done == place));
        state.done.extend(results.drain(..));
        if awaited {
            state.awaited = None;
            self.delivered.notify_all();
        }
    }

    /// Waits for what was stored of a file. Everything else that is done by then goes to `early`.
    ///
    /// # Errors
    /// If everything ended with an error, or somebody asked to stop.
    pub(crate) fn wait(
        &self,
        job: &Job<'_>,
        place: usize,
        early: &mut HashMap<usize, Stored>,
    ) -> Result<Stored, RepositoryError> {
        if let Some(stored) = early.remove(&place) {
            return Ok(stored);
        }
        let mut state = self.state();
        loop {
            early.extend(state.done.drain());
            let full = state.next >= state.taken + AHEAD;
            state.taken = place;
            if full {
                self.work.notify_all();
            }
            if let Some(stored) = early.remove(&place) {
                return Ok(stored);
            }
            if let Some(error) = state.failed.take() {
                state.failed = Some(self.stopped(job));
                return Err(error);
            }
            state.awaited = Some(place);
            state = self.delivered.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The caller has taken all entries before this one, whether it had to wait for them or not.
    pub(crate) fn reached(&self, place: usize) {
        self.state().taken = place;
        self.work.notify_all();
    }

    /// The error that ended everything, after all workers have.
    pub(crate) fn into_result(self) -> Result<(), RepositoryError> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.failed.map_or(Ok(()), Err)
    }
}

/// The entries from here on that one worker stores.
fn run_from(job: &Job<'_>, from: usize) -> Range<usize> {
    let (mut to, mut bytes) = (from, 0);
    while to < job.feed.len() && to < from + RUN && bytes < RUN_BYTES {
        bytes += job.feed.file_size(to).map_or(0, |size| size.0);
        to += 1;
    }
    from..to
}

/// One worker of so many: works until nothing is left, and returns what is left in its pack.
pub(crate) fn work(job: &Job<'_>, board: &Board, (number, of): (usize, usize)) -> Option<Sealed> {
    let _alarm = Alarm(board);
    job.feed.gentle().settle();
    let packer = match Packer::new(BlobType::Data, job.data_pack, job.sink.levels) {
        Ok(packer) => packer.out_of_step(number + 1, of),
        Err(error) => {
            board.fail(error);
            return None;
        }
    };
    let roller = job.chunking.roller();
    let (buffer, results) = Default::default();
    let mut worker = Worker {
        job,
        board,
        packer,
        roller,
        buffer,
        results,
        effort: Effort::Quick,
        known: 0,
        fresh: 0,
        neighbours: None,
    };
    while let Some(work) = board.claim(job) {
        let worked = match work {
            Work::Run(places) => worker.run(places),
            Work::Help(place, large) => worker.drain(place, &large),
        };
        board.deliver(&mut worker.results);
        board.end_of_work();
        if let Err(error) = worked {
            board.fail(error);
        }
    }
    Some(worker.packer.end())
}

/// Ends everything if its worker panics, for nobody would wait in vain otherwise.
struct Alarm<'a>(&'a Board);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(RepositoryError::Damaged { what: "a thread of the archiver panicked".into() });
        }
    }
}

struct Worker<'a, 'b> {
    job: &'a Job<'b>,
    board: &'a Board,
    packer: Packer,
    roller: Roller,
    buffer: Vec<u8>,
    results: Vec<(usize, Stored)>,
    /// For the file that it is at.
    effort: Effort,
    /// Blobs of the file at hand that were stored before, and others.
    known: usize,
    fresh: usize,
    /// What it came to in the last file that changed in a few places, and the directory of that.
    neighbours: Option<(PathBuf, Effort)>,
}

impl Worker<'_, '_> {
    fn run(&mut self, places: Range<usize>) -> Result<(), RepositoryError> {
        for place in places {
            let Some(Bytes(size)) = self.job.feed.file_size(place) else { continue };
            if self.job.feed.is_stopped() {
                return Ok(());
            }
            if self.job.carried.content(self.job.bases, place).is_some() {
                continue;
            }
            let stored = if size <= self.job.chunking.whole() {
                self.small(place, size).map(Some)
            } else {
                self.large(place, size).map(|()| None)
            };
            match stored {
                Ok(Some(content)) => self.results.push((place, Some(content))),
                Ok(None) => {}
                Err(Trouble::File(fault)) => self.lose(place, fault),
                Err(Trouble::All(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn lose(&mut self, place: usize, fault: Fault) {
        self.job.feed.note(place, fault);
        self.results.push((place, None));
    }

    /// A file that is one blob.
    fn small(&mut self, place: usize, size: u64) -> Result<Vec<Place>, Trouble> {
        self.effort = Effort::Quick;
        Source::read_whole(self.job.feed, place, &mut self.buffer)?;
        let end = self.buffer.len();
        let content = if end == 0 { Vec::new() } else { vec![self.store(0..end)?] };
        self.job.meter.count(size);
        self.job.feed.was_read(size);
        Ok(content)
    }

    fn large(&mut self, place: usize, size: u64) -> Result<(), Trouble> {
        let source = Source::open(self.job.feed, place)?;
        let mut large = Large::begin(source, size, self.job.chunking)?;
        if let (Some(carry), Some(entry)) = (self.job.carry, self.job.feed.entry(place)) {
            self.job.meter.count(carry.compare(&entry, &mut large));
            if !carry.is_to_be_proven(&entry.path) {
                large.look_for_original();
            }
        } else {
            large.look_for_original();
        }
        let large = Arc::new(large);
        self.board.deliver(&mut self.results);
        self.board.state().open.push((place, large.clone()));
        self.board.work.notify_all();
        Ok(self.drain(place, &large)?)
    }

    /// Stores pieces of a large file until none are left.
    fn drain(&mut self, place: usize, large: &Large) -> Result<(), RepositoryError> {
        self.effort = self.effort_for(place, large);
        (self.known, self.fresh) = (0, 0);
        while !self.job.feed.is_stopped() {
            match large.claim(&self.roller, self.job.chunking.max(), &mut self.buffer) {
                Ok(Some(piece)) => {
                    let of_changes = large.is_carried_over() || self.known > MOSTLY * self.fresh;
                    self.effort = self.effort.for_changes(of_changes);
                    let places = self.piece(&piece)?;
                    large.put(&piece, places);
                }
                Ok(None) => break,
                Err(fault) => self.job.feed.note(place, fault),
            }
        }
        self.remember_effort(place, large);
        match large.ending() {
            Ok(Ending::NotYet) => {}
            Ok(Ending::Stored(content)) => {
                if let (Some(carry), Some(entry)) = (self.job.carry, self.job.feed.entry(place)) {
                    carry.stored(&entry, large, &content);
                }
                self.results.push((place, Some(content)));
            }
            Ok(Ending::Lost) => self.results.push((place, None)),
            Err(fault) => self.lose(place, fault),
        }
        Ok(())
    }

    /// How hard a file's blobs are compressed. One that changed in a few places has too few to find that out: it begins with
    /// what others in the same directory showed.
    fn effort_for(&self, place: usize, large: &Large) -> Effort {
        let dir = self.job.feed.name(place).map(|(dir, _)| dir);
        match &self.neighbours {
            Some((of, effort)) if large.is_carried_over() && dir == Some(of) => *effort,
            _ => large.effort(),
        }
    }

    fn remember_effort(&mut self, place: usize, large: &Large) {
        let Some((dir, _)) = self.job.feed.name(place).filter(|_| large.is_carried_over()) else { return };
        match &mut self.neighbours {
            Some((of, effort)) if of == dir => *effort = self.effort,
            other => *other = Some((dir.to_owned(), self.effort)),
        }
    }

    fn piece(&mut self, piece: &Piece) -> Result<Vec<Place>, RepositoryError> {
        let blobs = piece.blobs();
        let mut places = Vec::with_capacity(blobs.len());
        for some in blobs.chunks(TOGETHER) {
            let contents: Vec<&[u8]> = some.iter().map(|blob| &self.buffer[blob.clone()]).collect();
            for (blob, name) in some.iter().zip(Name::of_all(&contents)) {
                places.push(self.store_as(name, blob.clone())?);
            }
        }
        let bytes = blobs.iter().map(|blob| blob.len() as u64).sum();
        self.job.meter.count(bytes);
        self.job.feed.was_read(bytes);
        Ok(places)
    }

    /// Stores a blob that stands in the buffer, unless it is there already.
    fn store(&mut self, range: Range<usize>) -> Result<Place, RepositoryError> {
        let name = Name::of(&self.buffer[range.clone()]);
        self.store_as(name, range)
    }

    fn store_as(&mut self, name: Name, range: Range<usize>) -> Result<Place, RepositoryError> {
        let sink = &self.job.sink;
        let plain = &self.buffer[range];
        loop {
            match sink.index.claim(BlobType::Data, &name) {
                Claim::Known(place) => {
                    self.known += 1;
                    return Ok(place);
                }
                Claim::Mine(place) => {
                    self.fresh += 1;
                    self.packer.add(sink, (place, name), plain, &mut self.effort)?;
                    return Ok(place);
                }
                Claim::Orphan { pack } => orphans::look(sink, pack)?,
            }
        }
    }
}
