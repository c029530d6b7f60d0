//! Pinning a btrfs subvolume by a read-only snapshot: one atomic step.
//!
//! A subvolume nested in it gets a snapshot of its own, a moment later; then a scan of the live tree has to show
//! that nothing changed since. Another filesystem mounted in it is not in any snapshot and is missing: the
//! planner pins such trees in two passes.
//!
//! Crash story: each snapshot is journalled before it is made, and crossed off when it is deleted. Nothing else
//! is written.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    entry::{Harvest, Manifest},
    id::SourceId,
    known::Known,
    pathtext,
    plan::TreePlan,
    port::{Clock, Difference, Failure, FailureKind, Journal, Pin, Pinner, Progress, Stage},
    problem::Problem,
    time::Deadline,
    verdict::Stillness,
};
use os::{
    durable::create_dirs,
    mounts::Mounts,
    subvolume::{Snapshot, is_subvolume},
    tree::{Resolved, Vanished, clock_of_stamps, resolve, said},
};

use super::{
    copied::{Copied, add_foreign},
    difference::changed_since,
    scope::{Copy, Manner, Scope},
    twopass::way,
};

/// Pins a directory that is a btrfs subvolume.
pub struct SnapshotPinner {
    source: SourceId,
    scope: Arc<Scope>,
    parent: PathBuf,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    known: Arc<Known>,
    /// Subvolumes inside the source, by real path.
    nested: Vec<PathBuf>,
}

impl SnapshotPinner {
    /// A pinner of this subvolume. The snapshots are made in `parent`, a directory of the same filesystem.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] for an exclude pattern that is not understood.
    pub fn new(
        source: SourceId,
        plan: &TreePlan,
        parent: PathBuf,
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Failure> {
        let scope = Arc::new(Scope::new(plan)?);
        Ok(Self { source, scope, parent, journal, clock, known: Arc::default(), nested: Vec::new() })
    }

    fn failure(&self, error: &io::Error) -> Failure {
        let root = pathtext::show(&self.scope.root);
        let what = format!("no snapshot of {root} can be made: {}", said(error));
        Failure::new(FailureKind::Other, what, "see that it is there and that this user may read it")
    }

    /// Writes dirty pages, so that the snapshot, which has to write them too, is quick.
    fn warm_up(&self) -> Result<(), Failure> {
        let synced = File::open(&self.scope.root).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.map_err(|error| self.failure(&error))
    }

    fn snapshot(&self, of: PathBuf) -> Result<Part, Failure> {
        let device = rustix::fs::stat(&of).map_err(|error| self.failure(&error.into()))?.st_dev;
        let snapshot = Snapshot::create(&self.journal, &of, &self.parent, "snapshot")?;
        Ok(Part { of, device, snapshot })
    }
}

impl Pinner for SnapshotPinner {
    fn source(&self) -> SourceId {
        self.source.clone()
    }

    fn prepare(&mut self, known: &Known) -> Result<Option<Manifest>, Failure> {
        create_dirs(&self.parent, 0o700).map_err(|error| self.failure(&error))?;
        let real = resolve(&self.scope.root).map_err(|error| self.failure(&error))?.real;
        if !is_subvolume(&real).map_err(|error| self.failure(&error))? {
            let what = format!("{} is not the root of a btrfs subvolume", pathtext::show(&real));
            return Err(Failure::new(FailureKind::Refused, what, "plan again"));
        }
        let mounts = Mounts::read().map_err(|error| self.failure(&error))?;
        self.nested.clear();
        let mut inside = Vec::new();
        self.scope.count(&mut |dir, inode| {
            // Subvolume roots have this inode, but directories of other filesystems may have it too.
            if inode == 256 && dir != real {
                inside.push(dir.to_owned());
            }
        })?;
        for path in inside {
            if mounts.at(&path).is_none() && is_subvolume(&path).map_err(|error| self.failure(&error))? {
                self.nested.push(path);
            }
        }
        self.known = Arc::new(known.clone());
        self.warm_up()?;
        Ok(None)
    }

    fn round(&mut self) -> Result<Difference, Failure> {
        self.warm_up()?;
        Ok(Difference::default())
    }

    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        let floor = clock_of_stamps();
        let resolved = resolve(&self.scope.root).map_err(|error| self.failure(&error))?;
        let mut parts = Vec::with_capacity(1 + self.nested.len());
        for of in std::iter::once(&resolved.real).chain(&self.nested) {
            if until.has_passed(self.clock.moment()) {
                let left = format!("{} snapshots were left", 1 + self.nested.len() - parts.len());
                return Err(self.scope.too_late(&left));
            }
            parts.push(self.snapshot(of.clone())?);
        }
        if until.has_passed(self.clock.moment()) {
            return Err(self.scope.too_late("the snapshot took longer"));
        }
        Ok(Box::new(SnapshotPin {
            source: self.source.clone(),
            scope: Arc::clone(&self.scope),
            clock: Arc::clone(&self.clock),
            known: Arc::clone(&self.known),
            resolved,
            floor,
            parts,
        }))
    }
}

/// A snapshot of one subvolume.
struct Part {
    /// The subvolume.
    of: PathBuf,
    /// Its device number: a snapshot has another.
    device: u64,
    snapshot: Snapshot,
}

struct SnapshotPin {
    source: SourceId,
    scope: Arc<Scope>,
    clock: Arc<dyn Clock>,
    known: Arc<Known>,
    resolved: Resolved,
    /// The kernel's clock of stamps when the pinning began.
    floor: Timestamp,
    /// The source's own first.
    parts: Vec<Part>,
}

impl Pin for SnapshotPin {
    fn unchanged(&mut self, until: Deadline) -> Result<Stillness, Failure> {
        if self.parts.len() == 1 {
            // Sources that name the same snapshot count as pinned by one: see `orchestrate`'s evidence.
            let name = pathtext::show(self.parts[0].snapshot.path());
            return Ok(Stillness::AtomicSnapshot(format!("btrfs snapshot {name}")));
        }
        let manner = Manner { vanished: Vanished::Expected, xattrs: false, until: Some(until) };
        let now = self.scope.scan(&*self.clock, manner)?;
        let found = changed_since(&now.entries, self.floor);
        Ok(if found.count == 0 {
            Stillness::NothingChanged(format!(
                "{} snapshots, {} names looked at, none changed since",
                self.parts.len(),
                now.entries.len()
            ))
        } else {
            Stillness::NotShown(found.in_words())
        })
    }

    fn harvest(&mut self, progress: &dyn Progress) -> Result<Harvest, Failure> {
        progress.begin(Stage::Scanning, None);
        let mut harvest = Harvest::default();
        for part in &self.parts {
            self.harvest_part(part, &mut harvest)?;
        }
        harvest.entries.extend(way(&self.resolved));
        let remedy = "plan again: such trees are pinned in two passes";
        add_foreign(&self.resolved.real, &|_| false, remedy, &mut harvest);
        harvest.problems = harvest.problems.into_iter().map(|p| p.of(&self.source)).collect();
        progress.end();
        Ok(harvest)
    }

    fn release(self: Box<Self>) -> Result<(), Failure> {
        let mut result = Ok(());
        for part in self.parts {
            if let Err(error) = part.snapshot.release() {
                result = result.and(Err(error.into()));
            }
        }
        result
    }
}

impl SnapshotPin {
    fn harvest_part(&self, part: &Part, harvest: &mut Harvest) -> Result<(), Failure> {
        let copied =
            Copied { scope: &self.scope, clock: &*self.clock, known: &self.known, real: &self.resolved.real };
        let copy = Copy { of: &part.of, at: part.snapshot.path() };
        copied.add(&copy, part.device, &|path| self.placeholder(path), harvest)
    }

    /// A snapshot shows an empty directory where another subvolume is. It has its own part, or came too late.
    fn placeholder(&self, path: &Path) -> Option<Problem> {
        let has_part = self.parts.iter().any(|part| part.of == path);
        (!has_part).then(|| {
            let what = "is a subvolume that came after the backup had begun: it is in no snapshot";
            Problem::missing(path, what, "make another backup")
        })
    }
}
