//! Pinners of the simulated machine: directories by two passes or by a snapshot, and databases.
//!
//! Crash story: in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Harvest, Kind, Manifest, Meta, Role, Stamp},
    id::SourceId,
    known::Known,
    port::{Clock, Difference, Failure, FailureKind, Journal, Pin, Pinner, Progress},
    size::Bytes,
    time::Deadline,
    undo::{Ticket, Undo},
    verdict::Stillness,
};

use super::world::World;

/// How a source is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A directory, file by file; the first pass is stored ahead.
    TwoPassCopy,
    /// A directory, file by file; nothing is stored ahead.
    TwoPassReflink,
    /// A directory, at once.
    Snapshot,
    /// A database, in two halves between which time passes: it relies on its lock.
    Database,
}

/// So many files of the first pass are handed over together.
const PART: usize = 3;

/// A pinner.
pub struct FakePinner {
    world: World,
    journal: Arc<dyn Journal>,
    source: SourceId,
    path: PathBuf,
    way: Way,
    lies: bool,
    first: BTreeMap<PathBuf, Stamp>,
    first_at: Timestamp,
    known: BTreeMap<PathBuf, Stamp>,
    staging: Option<Arc<Staging>>,
    /// What of the first pass is still to be stored ahead.
    ahead: VecDeque<Entry>,
}

impl FakePinner {
    /// A pinner of what lies at `path`.
    #[must_use]
    pub fn new(world: &World, journal: Arc<dyn Journal>, source: &SourceId, path: &Path, way: Way) -> Self {
        Self {
            world: world.clone(),
            journal,
            source: source.clone(),
            path: path.to_owned(),
            way,
            lies: false,
            first: BTreeMap::new(),
            first_at: Timestamp::UNIX_EPOCH,
            known: BTreeMap::new(),
            staging: None,
            ahead: VecDeque::new(),
        }
    }

    /// The same pinner, which always says that nothing has changed.
    #[must_use]
    pub fn lying(mut self) -> Self {
        self.lies = true;
        self
    }

    /// A file whose content the vault has: in the parent backup, or stored ahead by the first pass.
    fn is_carried(&self, path: &Path, stamp: &Stamp) -> bool {
        let ahead = self.way == Way::TwoPassCopy
            && self.first.get(path) == Some(stamp)
            && stamp.is_settled_at(self.first_at);
        ahead || self.known.get(path) == Some(stamp)
    }

    fn file(&self, path: &Path, meta: Meta, bytes: Vec<u8>) -> Entry {
        let carried = self.way != Way::Database && self.is_carried(path, &meta.stamp());
        let body = if carried { Body::Carried } else { Body::Inline(bytes) };
        Entry { path: path.to_owned(), kind: Kind::File, meta, body, role: Role::Content }
    }

    /// A few files of the first pass.
    fn part_of_ahead(&mut self) -> Option<Manifest> {
        let part: Vec<Entry> = self.ahead.drain(..self.ahead.len().min(PART)).collect();
        (!part.is_empty()).then(|| Manifest::merge(self.first_at, part))
    }

    fn pin_directory(&self) -> Vec<Entry> {
        let names: Vec<PathBuf> = self.world.stamps(&self.path).into_keys().collect();
        let mut entries = ancestors(&self.world, &self.path, Role::Content);
        for (nth, name) in names.iter().enumerate() {
            // A snapshot is there at once; everything else takes its time between files.
            if self.way != Way::Snapshot && nth % 4 == 0 {
                self.world.work();
            }
            if let Some((meta, bytes)) = self.world.read(name) {
                entries.push(self.file(name, meta, bytes));
            }
        }
        entries
    }

    fn pin_database(&self) -> Vec<Entry> {
        let mut rows = self.world.rows(&self.source);
        self.world.work();
        let half = rows.keys().nth(rows.len() / 2).cloned();
        if let Some(half) = half {
            rows.retain(|key, _| *key < half);
            rows.extend(self.world.rows(&self.source).split_off(&half));
        }
        let bytes = serde_json::to_vec(&rows).expect("rows are text");
        let meta = self.world.plain_meta(bytes.len() as u64);
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let mut entries = ancestors(&self.world, parent, Role::Ancestor);
        entries.push(self.file(&self.path, meta, bytes));
        entries
    }
}

/// Entries of a directory and of all above it; `role` is that of the lowest.
fn ancestors(world: &World, path: &Path, role: Role) -> Vec<Entry> {
    path.ancestors()
        .filter(|p| *p != Path::new("/"))
        .map(|p| Entry {
            path: p.to_owned(),
            kind: Kind::Dir,
            meta: world.plain_meta(0),
            body: Body::Nothing,
            role: if p == path { role } else { Role::Ancestor },
        })
        .collect()
}

impl Pinner for FakePinner {
    fn source(&self) -> SourceId {
        self.source.clone()
    }

    fn prepare(&mut self, known: &Known) -> Result<Option<Manifest>, Failure> {
        self.staging = Some(Arc::new(Staging::make(&self.world, &self.journal, "staging")?));
        self.first_at = self.world.now();
        self.world.work();
        self.first = self.world.stamps(&self.path);
        self.known = self.first.clone();
        self.known.retain(|path, stamp| known.has(path, stamp));
        if self.way != Way::TwoPassCopy {
            return Ok(None);
        }
        let entries = self.first.keys().filter_map(|path| {
            let (meta, _) = self.world.read(path)?;
            let body = Body::Carried;
            Some(Entry { path: path.clone(), kind: Kind::File, meta, body, role: Role::Content })
        });
        self.ahead = entries.collect();
        Ok(self.part_of_ahead().or_else(|| Some(Manifest::merge(self.first_at, Vec::new()))))
    }

    fn more_ahead(&mut self, _known: &Known) -> Option<Manifest> {
        self.part_of_ahead()
    }

    fn round(&mut self) -> Result<Difference, Failure> {
        self.world.work();
        let now = self.world.stamps(&self.path);
        let changed = now.iter().filter(|(path, stamp)| self.first.get(*path) != Some(*stamp));
        let (files, bytes) = changed.fold((0, 0), |(n, b), (_, stamp)| (n + 1, b + stamp.size.0));
        Ok(Difference { files, bytes: Bytes(bytes) })
    }

    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        self.world.work();
        let late = || Failure::new(FailureKind::TimedOut, format!("{} is too late", self.source), "");
        if until.has_passed(self.world.moment()) {
            return Err(late());
        }
        let made = Staging::make(&self.world, &self.journal, "pin")?;
        let began = self.world.stamps(&self.path);
        let entries = if self.way == Way::Database { self.pin_database() } else { self.pin_directory() };
        if until.has_passed(self.world.moment()) {
            return Err(late());
        }
        Ok(Box::new(FakePin {
            world: self.world.clone(),
            path: self.path.clone(),
            way: self.way,
            lies: self.lies,
            began,
            entries,
            made,
            _staging: self.staging.clone(),
        }))
    }
}

struct FakePin {
    world: World,
    path: PathBuf,
    way: Way,
    lies: bool,
    began: BTreeMap<PathBuf, Stamp>,
    entries: Vec<Entry>,
    made: Staging,
    _staging: Option<Arc<Staging>>,
}

impl Pin for FakePin {
    fn unchanged(&mut self, until: Deadline) -> Result<Stillness, Failure> {
        self.world.work();
        if self.way == Way::Snapshot {
            return Ok(Stillness::AtomicSnapshot(format!("snapshot {}", self.made.id)));
        }
        if until.has_passed(self.world.moment()) {
            return Err(Failure::new(FailureKind::TimedOut, "the scan took too long", ""));
        }
        let same = match self.way {
            // Like a real database's pin, it relies on the lock.
            Way::Database => true,
            _ => self.world.stamps(&self.path) == self.began,
        };
        Ok(if same || self.lies {
            Stillness::NothingChanged("as before".into())
        } else {
            Stillness::NotShown("changed while it was being pinned".into())
        })
    }

    fn harvest(&mut self, _progress: &dyn Progress) -> Result<Harvest, Failure> {
        self.world.work();
        Ok(Harvest { entries: self.entries.clone(), ..Harvest::default() })
    }

    fn release(self: Box<Self>) -> Result<(), Failure> {
        self.world.work();
        Ok(())
    }
}

/// Something that was made, and is removed when it is dropped.
struct Staging {
    world: World,
    journal: Arc<dyn Journal>,
    ticket: Ticket,
    id: u64,
}

impl Staging {
    fn make(world: &World, journal: &Arc<dyn Journal>, what: &str) -> Result<Self, Failure> {
        let path = PathBuf::from(format!("/srv/.stillpoint-{what}-{}", world.number()));
        let undo = Undo::RemoveTree { path };
        let ticket = journal.intend(undo.clone(), None)?;
        let id = world.make(what, &undo);
        Ok(Self { world: world.clone(), journal: journal.clone(), ticket, id })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.world.unmake(self.id);
        self.journal.done(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        any::Any,
        collections::BTreeMap,
        path::{Path, PathBuf},
        sync::Arc,
        time::Duration,
    };

    use model::{
        entry::Stamp,
        id::SourceId,
        port::{Clock, Pinner},
    };

    use super::{FakePinner, Way};
    use crate::{
        conformance::pinner::{Bench, Content, suite},
        fakes::world::World,
    };

    struct Simulated {
        world: World,
        way: Way,
        lies: bool,
    }

    const DATABASE: &str = "/srv/a.db";
    const DIRECTORY: &str = "/srv/d";

    fn source() -> SourceId {
        SourceId::new("sqlite", DATABASE)
    }

    impl Simulated {
        fn bench(way: Way, lies: bool) -> Box<dyn Bench> {
            let world = World::new(1);
            world.write_file(Path::new("/srv/d/constant"), b"constant");
            Box::new(Self { world, way, lies })
        }
    }

    impl Bench for Simulated {
        fn pinner(&self) -> Box<dyn Pinner> {
            let path = Path::new(if self.way == Way::Database { DATABASE } else { DIRECTORY });
            let pinner = FakePinner::new(&self.world, self.world.journal.clone(), &source(), path, self.way);
            Box::new(if self.lies { pinner.lying() } else { pinner })
        }
        fn clock(&self) -> Arc<dyn Clock> {
            Arc::new(self.world.clone())
        }
        fn hold(&self) -> Box<dyn Any> {
            Box::new(())
        }
        fn write(&self, step: u64) {
            self.world.pass(Duration::from_millis(3));
            let path = |what: &str| PathBuf::from(format!("{DIRECTORY}/{what}"));
            self.world.write_file(&path(&format!("new-{step}")), b"new");
            self.world.write_file(&path("same-size"), format!("{step:04}").as_bytes());
            self.world.remove_file(&path(&format!("new-{}", step.wrapping_sub(2))));
            self.world.put_row(&source(), &format!("{}", step % 3), &path(&format!("new-{step}")));
        }
        fn writes_under_hold(&self) -> bool {
            self.way != Way::Database
        }
        fn live(&self) -> Content {
            if self.way == Way::Database {
                let rows = self.world.rows(&source());
                return rows.into_iter().map(|(k, v)| (k, v.display().to_string().into_bytes())).collect();
            }
            let names = self.world.stamps(Path::new(DIRECTORY)).into_keys();
            names.filter_map(|p| Some((p.display().to_string(), self.world.read(&p)?.1))).collect()
        }
        fn stored(&self, files: &BTreeMap<PathBuf, Vec<u8>>) -> Content {
            if self.way != Way::Database {
                return files.iter().map(|(p, bytes)| (p.display().to_string(), bytes.clone())).collect();
            }
            let rows: BTreeMap<String, PathBuf> =
                serde_json::from_slice(&files[Path::new(DATABASE)]).expect("rows");
            rows.into_iter().map(|(k, v)| (k, v.display().to_string().into_bytes())).collect()
        }
        fn carries(&self) -> bool {
            self.way != Way::Database
        }
        fn settle(&self) {
            self.world.pass(Duration::from_secs(2));
        }
        fn read_live(&self, path: &Path) -> Option<(Stamp, Vec<u8>)> {
            self.world.read(path).map(|(meta, bytes)| (meta.stamp(), bytes))
        }
        fn leftovers(&self) -> Vec<String> {
            self.world.things().into_iter().map(|(what, _)| what).collect()
        }
        fn open_undos(&self) -> usize {
            self.world.journal.open().len()
        }
    }

    #[test]
    fn honest_pinners_conform() {
        for way in [Way::TwoPassCopy, Way::TwoPassReflink, Way::Snapshot, Way::Database] {
            suite(|| Simulated::bench(way, false));
        }
    }

    #[test]
    fn the_suite_finds_liars() {
        for way in [Way::TwoPassCopy, Way::TwoPassReflink] {
            let run = || suite(|| Simulated::bench(way, true));
            assert!(std::panic::catch_unwind(run).is_err(), "{way:?}");
        }
    }
}
