//! A machine in virtual time: directories, databases, and writers whose rows name files.
//!
//! Each writer stores a file under a new name, then puts a row that names it, then removes the file that the
//! row named before. So at every instant each row has its file, and a copy that mixes two instants does not.
//!
//! Crash story: in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use model::{
    entry::{Meta, Stamp},
    id::SourceId,
    plan::HoldClass,
    port::Clock,
    size::Bytes,
    time::Moment,
    undo::Undo,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::journal::MemoryJournal;

mod writers;

/// The wall clock at moment 0 of every world.
const EPOCH_NANOS: i128 = 1_800_000_000_000_000_000;
/// The longest that one step of a fake takes, in nanoseconds.
const STEP_NANOS: u64 = 1_500_000;

/// What directories and databases hold at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Files by path.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// Rows by database and key; each names the path of a file.
    pub rows: BTreeMap<(SourceId, String), PathBuf>,
}

/// Who is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Whoever wants to write to this database.
    Database(SourceId),
    /// Everybody.
    Everybody,
}

/// One change, as the world's log keeps it.
#[derive(Debug, Clone)]
enum Change {
    File(PathBuf, Option<Vec<u8>>),
    Row(SourceId, String, PathBuf),
}

#[derive(Debug, Clone)]
struct LiveFile {
    bytes: Vec<u8>,
    changed: u64,
    inode: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Store,
    Name,
    Remove,
}

#[derive(Debug)]
struct Writer {
    directory: PathBuf,
    database: Option<SourceId>,
    phase: Phase,
    next: u64,
    waiting_since: Option<u64>,
    count: u64,
    stored: PathBuf,
    replaced: Option<PathBuf>,
}

#[derive(Debug)]
struct Barrier {
    reach: Reach,
    name: String,
    lost: bool,
}

#[derive(Debug)]
struct State {
    now: u64,
    random: StdRng,
    files: BTreeMap<PathBuf, LiveFile>,
    rows: BTreeMap<(SourceId, String), PathBuf>,
    log: Vec<(u64, Change)>,
    writers: Vec<Writer>,
    barriers: BTreeMap<u64, Barrier>,
    things: BTreeMap<u64, (String, Undo)>,
    obstacles: u32,
    next_id: u64,
    worst_wait: u64,
    complaints: Vec<String>,
}

/// The machine. Clones are the same machine.
#[derive(Debug, Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
    /// The journal that this machine's drivers write; whatever is made without it is complained of.
    pub journal: Arc<MemoryJournal>,
}

impl World {
    /// A machine with nobody on it. The same seed gives the same world.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            now: 10_000_000_000,
            random: StdRng::seed_from_u64(seed),
            files: BTreeMap::new(),
            rows: BTreeMap::new(),
            log: vec![],
            writers: vec![],
            barriers: BTreeMap::new(),
            things: BTreeMap::new(),
            obstacles: 0,
            next_id: 0,
            worst_wait: 0,
            complaints: vec![],
        };
        Self { state: Arc::new(Mutex::new(state)), journal: Arc::new(MemoryJournal::default()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock only says that an injected panic passed by.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a writer of files into `directory`, naming them in `database` if there is one.
    pub fn add_writer(&self, directory: &Path, database: Option<&SourceId>) {
        let mut state = self.lock();
        let next = state.now + state.random.random_range(1..20_000_000);
        state.writers.push(Writer {
            directory: directory.to_owned(),
            database: database.cloned(),
            phase: Phase::Store,
            next,
            waiting_since: None,
            count: 0,
            stored: PathBuf::new(),
            replaced: None,
        });
    }

    /// Writes one file now, as somebody whom nobody holds.
    pub fn write_file(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.lock();
        let now = state.now;
        state.write(now, path, bytes.to_vec());
    }

    /// Removes one file now, as somebody whom nobody holds.
    pub fn remove_file(&self, path: &Path) {
        let mut state = self.lock();
        let now = state.now;
        state.remove(now, path);
    }

    /// Puts one row now, as somebody whom nobody holds.
    pub fn put_row(&self, database: &SourceId, key: &str, names: &Path) {
        let mut state = self.lock();
        let now = state.now;
        state.put(now, database, key.to_owned(), names.to_owned());
    }

    /// Lets `duration` pass.
    pub fn pass(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let mut state = self.lock();
        let until = state.now.saturating_add(nanos);
        state.run_until(until);
    }

    /// Works for a short random time.
    pub fn work(&self) {
        let mut state = self.lock();
        let until = state.now + state.random.random_range(1_000..STEP_NANOS);
        state.run_until(until);
    }

    /// A new number.
    #[must_use]
    pub fn number(&self) -> u64 {
        let mut state = self.lock();
        state.next_id += 1;
        state.next_id
    }

    /// Holds writers back; complains if `undo` is not open in the journal.
    pub fn bar(&self, name: &str, reach: Reach, undo: &Undo) -> u64 {
        self.expect_intent(name, undo);
        let id = self.number();
        let mut state = self.lock();
        let everybody = state.barriers.values().find(|b| !b.lost && b.reach == Reach::Everybody);
        if let (Some(stopped), Reach::Database(_)) = (everybody, &reach)
            && !may_precede_locks(&stopped.name)
        {
            let what = format!("{name} was taken after {}: a stopped writer keeps its lock", stopped.name);
            state.complaints.push(what);
        }
        state.barriers.insert(id, Barrier { reach, name: name.to_owned(), lost: false });
        id
    }

    /// Lets them go.
    pub fn unbar(&self, id: u64) {
        let mut state = self.lock();
        let later: Vec<String> =
            state.barriers.range(id + 1..).filter(|(_, b)| !b.lost).map(|(_, b)| b.name.clone()).collect();
        if let Some(barrier) = state.barriers.remove(&id)
            && !later.is_empty()
        {
            let what = format!("{} was thawed out of order, before {}", barrier.name, later.join(", "));
            state.complaints.push(what);
        }
        state.release_waiting();
    }

    /// Whether this barrier has stood without interruption.
    #[must_use]
    pub fn stands(&self, id: u64) -> bool {
        self.lock().barriers.get(&id).is_some_and(|b| !b.lost)
    }

    /// Ends every barrier behind its owner's back.
    pub fn lose_barriers(&self) {
        let mut state = self.lock();
        for barrier in state.barriers.values_mut() {
            barrier.lost = true;
        }
        state.release_waiting();
    }

    /// Ends one barrier behind its owner's back.
    pub fn lose(&self, id: u64) {
        let mut state = self.lock();
        if let Some(barrier) = state.barriers.get_mut(&id) {
            barrier.lost = true;
        }
        state.release_waiting();
    }

    /// The names of the holds that hold somebody back.
    #[must_use]
    pub fn held(&self) -> Vec<String> {
        self.lock().barriers.values().filter(|b| !b.lost).map(|b| b.name.clone()).collect()
    }

    /// Whether somebody with this reach would be held back now.
    #[must_use]
    pub fn is_held(&self, reach: &Reach) -> bool {
        self.lock().barriers.values().any(|b| !b.lost && (b.reach == Reach::Everybody || b.reach == *reach))
    }

    /// Gets in the way of every hold, until the returned value is dropped.
    #[must_use]
    pub fn obstruct(&self) -> Obstacle {
        self.lock().obstacles += 1;
        Obstacle(self.clone())
    }

    /// Whether somebody is in the way.
    #[must_use]
    pub fn is_obstructed(&self) -> bool {
        self.lock().obstacles > 0
    }

    /// Makes something that has to be removed; complains if `undo` is not open in the journal.
    pub fn make(&self, what: &str, undo: &Undo) -> u64 {
        self.expect_intent(what, undo);
        let id = self.number();
        self.lock().things.insert(id, (what.to_owned(), undo.clone()));
        id
    }

    /// Removes it.
    pub fn unmake(&self, id: u64) {
        self.lock().things.remove(&id);
    }

    /// What was made and is not removed, with its undo.
    #[must_use]
    pub fn things(&self) -> Vec<(String, Undo)> {
        self.lock().things.values().cloned().collect()
    }

    fn expect_intent(&self, what: &str, undo: &Undo) {
        if !self.journal.is_open(undo) {
            self.lock().complaints.push(format!("{what} was made, but {undo:?} is not in the journal"));
        }
    }

    /// What was done against the rules.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.lock().complaints.clone()
    }

    /// The longest that any writer has waited so far, those still waiting included.
    #[must_use]
    pub fn worst_wait(&self) -> Duration {
        let state = self.lock();
        let waiting = state.writers.iter().filter_map(|w| w.waiting_since);
        let longest = waiting.map(|since| state.now - since).max().unwrap_or(0);
        Duration::from_nanos(longest.max(state.worst_wait))
    }

    /// Forgets how long writers waited, before another run.
    pub fn forget_waits(&self) {
        self.lock().worst_wait = 0;
    }

    /// The rows of one database now.
    #[must_use]
    pub fn rows(&self, database: &SourceId) -> BTreeMap<String, PathBuf> {
        let state = self.lock();
        state
            .rows
            .iter()
            .filter(|((db, _), _)| db == database)
            .map(|((_, k), v)| (k.clone(), v.clone()))
            .collect()
    }

    /// The stamps of all files below `root` now.
    #[must_use]
    pub fn stamps(&self, root: &Path) -> BTreeMap<PathBuf, Stamp> {
        let state = self.lock();
        state
            .files
            .iter()
            .filter(|(path, _)| path.starts_with(root))
            .map(|(path, file)| (path.clone(), file.meta().stamp()))
            .collect()
    }

    /// A file's attributes and bytes now.
    #[must_use]
    pub fn read(&self, path: &Path) -> Option<(Meta, Vec<u8>)> {
        self.lock().files.get(path).map(|file| (file.meta(), file.bytes.clone()))
    }

    /// The truth: what everything held at `time`, changes of that very instant included.
    #[must_use]
    pub fn at(&self, time: Timestamp) -> Contents {
        let nanos = u64::try_from(time.as_nanosecond() - EPOCH_NANOS).unwrap_or(0);
        let mut contents = Contents::default();
        for (_, change) in self.lock().log.iter().take_while(|(when, _)| *when <= nanos) {
            match change.clone() {
                Change::File(path, Some(bytes)) => drop(contents.files.insert(path, bytes)),
                Change::File(path, None) => drop(contents.files.remove(&path)),
                Change::Row(database, key, names) => drop(contents.rows.insert((database, key), names)),
            }
        }
        contents
    }

    /// How many changes there were.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.lock().log.len()
    }

    /// The attributes of a directory or of a database file, which nobody compares.
    #[must_use]
    pub fn plain_meta(&self, size: u64) -> Meta {
        LiveFile { bytes: vec![0; usize::try_from(size).unwrap_or(0)], changed: 0, inode: 1 }.meta()
    }
}

impl Clock for World {
    fn now(&self) -> Timestamp {
        stamp_of(self.lock().now)
    }
    fn moment(&self) -> Moment {
        Moment(self.lock().now)
    }
    fn sleep(&self, duration: Duration) {
        self.pass(duration);
    }
}

/// Somebody in the way of every hold.
#[derive(Debug)]
pub struct Obstacle(World);

impl Drop for Obstacle {
    fn drop(&mut self) {
        self.0.lock().obstacles -= 1;
    }
}

/// Stop hooks come before the locks; a process freezer does not.
fn may_precede_locks(hold: &str) -> bool {
    hold == format!("{:?}", HoldClass::StopHook)
}

fn stamp_of(nanos: u64) -> Timestamp {
    Timestamp::from_nanosecond(EPOCH_NANOS + i128::from(nanos)).expect("a world lasts no centuries")
}

impl LiveFile {
    fn meta(&self) -> Meta {
        let changed = stamp_of(self.changed);
        Meta {
            mode: 0o100_644,
            uid: 1000,
            gid: 1000,
            size: Bytes(self.bytes.len() as u64),
            mtime: changed,
            atime: changed,
            ctime: changed,
            inode: self.inode,
            device: 1,
            links: 1,
            xattrs: vec![],
        }
    }
}

impl Contents {
    /// Rows whose file is not there.
    #[must_use]
    pub fn rows_without_files(&self) -> Vec<String> {
        let named: BTreeSet<&PathBuf> = self.rows.values().collect();
        named
            .into_iter()
            .filter(|path| !self.files.contains_key(*path))
            .map(|path| path.display().to_string())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use model::{id::SourceId, port::Clock};

    use super::World;

    #[test]
    fn at_every_instant_each_row_has_its_file() {
        let world = World::new(5);
        let database = SourceId::new("sqlite", "/srv/a.db");
        for _ in 0..3 {
            world.add_writer(Path::new("/srv/d"), Some(&database));
        }
        for _ in 0..300 {
            world.pass(Duration::from_millis(7));
            let contents = world.at(world.now());
            assert_eq!(contents.rows_without_files(), Vec::<String>::new());
            assert_eq!(contents.rows.len(), world.rows(&database).len());
        }
        assert!(world.changes() > 100, "the writers hardly write");
    }

    #[test]
    fn the_same_seed_is_the_same_world() {
        let run = |seed| {
            let world = World::new(seed);
            world.add_writer(Path::new("/d"), None);
            world.pass(Duration::from_secs(2));
            world.at(world.now())
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
