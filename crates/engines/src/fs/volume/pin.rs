//! Pinning a directory by the snapshot of its volume.
//!
//! Crash story: see the module above; nothing else is made here.

use std::{fs::File, path::Path, sync::Arc};

use model::{
    entry::{Harvest, Manifest},
    id::SourceId,
    known::Known,
    pathtext,
    plan::VolumePlan,
    port::{Clock, Difference, Failure, FailureKind, Pin, Pinner, Progress, Stage},
    problem::Problem,
    time::Deadline,
    verdict::Stillness,
};
use os::tree::{Resolved, said};

use super::{
    super::{
        copied::{Copied, add_foreign},
        scope::{Copy, Scope},
        twopass::way,
    },
    shared::{SharedVolume, Use},
};

/// Pins a directory anywhere on a volume.
pub struct VolumePinner {
    source: SourceId,
    scope: Arc<Scope>,
    shared: SharedVolume,
    clock: Arc<dyn Clock>,
    known: Arc<Known>,
}

impl VolumePinner {
    /// A pinner of the plan's directory by the snapshot that `shared` takes for all on that volume.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] for an exclude pattern that is not understood.
    pub fn new(
        source: SourceId,
        plan: &VolumePlan,
        shared: SharedVolume,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Failure> {
        let scope = Arc::new(Scope::new(&plan.tree)?);
        Ok(Self { source, scope, shared, clock, known: Arc::default() })
    }

    /// Writes dirty pages, so that the snapshot, which has to write them too, is quick.
    fn warm_up(&self) -> Result<(), Failure> {
        let synced = File::open(&self.scope.root).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.map_err(|error| {
            let root = pathtext::show(&self.scope.root);
            let what = format!("what is to be written to {root} cannot be: {}", said(&error));
            Failure::new(FailureKind::Other, what, "see that it is there and that this user may read it")
        })
    }
}

impl Pinner for VolumePinner {
    fn source(&self) -> SourceId {
        self.source.clone()
    }

    fn prepare(&mut self, known: &Known) -> Result<Option<Manifest>, Failure> {
        let real = self.scope.resolve()?.real;
        self.shared.prepare(&real)?;
        self.known = Arc::new(known.clone());
        self.warm_up()?;
        Ok(None)
    }

    fn round(&mut self) -> Result<Difference, Failure> {
        self.shared.get_ready()?;
        self.warm_up()?;
        Ok(Difference::default())
    }

    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        let resolved = self.scope.resolve()?;
        Ok(Box::new(VolumePin {
            source: self.source.clone(),
            scope: Arc::clone(&self.scope),
            clock: Arc::clone(&self.clock),
            known: Arc::clone(&self.known),
            resolved,
            used: self.shared.take(until)?,
        }))
    }
}

struct VolumePin {
    source: SourceId,
    scope: Arc<Scope>,
    clock: Arc<dyn Clock>,
    known: Arc<Known>,
    resolved: Resolved,
    used: Use,
}

impl Pin for VolumePin {
    fn unchanged(&mut self, _until: Deadline) -> Result<Stillness, Failure> {
        Ok(Stillness::AtomicSnapshot(self.used.name().to_owned()))
    }

    fn harvest(&mut self, progress: &dyn Progress) -> Result<Harvest, Failure> {
        progress.begin(Stage::Scanning, None);
        let mut harvest = Harvest::default();
        let held = self.harvest_places(&mut harvest)?;
        harvest.entries.extend(way(&self.resolved));
        let remedy = "name it as a directory of its own, or exclude it";
        let has_copy = |point: &Path| held.iter().any(|of| of == point);
        add_foreign(&self.resolved.real, &has_copy, remedy, &mut harvest);
        harvest.problems = harvest.problems.into_iter().map(|p| p.of(&self.source)).collect();
        progress.end();
        Ok(harvest)
    }

    fn afterwards(&mut self) -> Vec<Problem> {
        let lost = self.used.lost().into_iter();
        lost.map(|lost| Problem::missing(&self.scope.root, lost.what, lost.remedy).of(&self.source)).collect()
    }

    fn release(self: Box<Self>) -> Result<(), Failure> {
        self.used.release()
    }
}

impl VolumePin {
    /// The directory, and what was taken with it of what is mounted inside; says where.
    fn harvest_places(&self, harvest: &mut Harvest) -> Result<Vec<std::path::PathBuf>, Failure> {
        let real = &self.resolved.real;
        let copied = Copied { scope: &self.scope, clock: &*self.clock, known: &self.known, real };
        let mut held = Vec::new();
        for place in self.used.open(real)? {
            let copy = Copy { of: &place.of, at: &place.at };
            let live = rustix::fs::stat(&place.of).or_else(|_| rustix::fs::stat(&place.at));
            let device = live.map_or(0, |stat| stat.st_dev);
            if place.of == *real {
                copied.add(&copy, device, &subvolume, harvest)?;
                continue;
            }
            // Excluded, or not there at the cut.
            let Some(point) = harvest.entries.iter().position(|entry| entry.path == place.of) else {
                continue;
            };
            let empty = harvest.entries.swap_remove(point);
            if let Err(failure) = copied.add(&copy, device, &subvolume, harvest) {
                harvest.entries.push(empty);
                harvest.problems.push(Problem::missing(&place.of, failure.what, failure.remedy));
            }
            held.push(place.of);
        }
        Ok(held)
    }
}

/// A btrfs snapshot shows an empty directory where another subvolume is.
fn subvolume(path: &Path) -> Option<Problem> {
    let what = "is another subvolume, which the snapshot does not hold";
    Some(Problem::missing(path, what, "name it as a directory of its own, or exclude it"))
}
