//! One snapshot for all sources on a volume.
//!
//! Crash story: see `taken`; the snapshot goes when the last use of it is released or dropped.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use jiff::Timestamp;
use model::{
    port::{Clock, Failure, FailureKind, Journal},
    server::Volume,
    size::Bytes,
    time::Deadline,
};
use os::{lvm::Ready, tree::clock_of_stamps};

use super::{
    taken::{Lost, Origin, Place, Taken, ready},
    watch::{Watch, Watched},
};

/// The volumes of one cut, each with at most one snapshot at a time.
pub struct Volumes {
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    staging: PathBuf,
    shared: Mutex<BTreeMap<Volume, Weak<Inner>>>,
}

impl Volumes {
    /// None yet. Snapshots of logical volumes are mounted in `staging`, which is made when it is needed, and those of
    /// btrfs are put there if it is on the same filesystem.
    #[must_use]
    pub fn new(journal: Arc<dyn Journal>, clock: Arc<dyn Clock>, staging: PathBuf) -> Self {
        Self { journal, clock, staging, shared: Mutex::default() }
    }

    /// What all sources on this volume share. The largest `size` that any of them asks for is made.
    pub fn share(&self, volume: &Volume, size: Option<Bytes>) -> SharedVolume {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let known = shared.get(volume).and_then(Weak::upgrade);
        let inner = known.unwrap_or_else(|| {
            Arc::new(Inner {
                volume: volume.clone(),
                journal: Arc::clone(&self.journal),
                clock: Arc::clone(&self.clock),
                staging: self.staging.clone(),
                state: Mutex::default(),
            })
        });
        shared.insert(volume.clone(), Arc::downgrade(&inner));
        let mut state = inner.state();
        state.size = state.size.max(size);
        drop(state);
        SharedVolume(inner)
    }
}

/// A volume whose snapshot several sources share.
#[derive(Clone)]
pub struct SharedVolume(Arc<Inner>);

struct Inner {
    volume: Volume,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    staging: PathBuf,
    state: Mutex<State>,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    size: Option<Bytes>,
    origin: Option<Origin>,
    /// What was written down before the freeze, so that it need not be under it.
    ready: Option<Ready>,
    now: Option<Now>,
}

/// The snapshot that there is now.
struct Now {
    taken: Arc<Taken>,
    /// The kernel's clock of stamps when it was taken.
    floor: Timestamp,
    uses: usize,
    /// Ends when the snapshot is about to be released.
    watch: Option<Watch>,
}

impl SharedVolume {
    /// The volume.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        &self.0.volume
    }

    /// Everything slow: finds the volume under `real`, loads what the kernel needs, writes down what will be made.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] if `real` is not on the volume any more; else what its programs say.
    pub(super) fn prepare(&self, real: &Path) -> Result<(), Failure> {
        let origin = Origin::find(&self.0.volume, real, &self.0.staging)?;
        self.0.state().origin = Some(origin);
        self.get_ready()
    }

    /// Writes down what will be made, if that is not done yet.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub(super) fn get_ready(&self) -> Result<(), Failure> {
        let mut state = self.0.state();
        if state.ready.is_none()
            && state.now.is_none()
            && let Some(origin) = &state.origin
        {
            state.ready = ready(&self.0.journal, origin, state.size)?;
        }
        Ok(())
    }

    /// Takes the snapshot, or joins those for whom it was taken.
    ///
    /// # Errors
    /// [`FailureKind::TimedOut`]; [`FailureKind::Lost`] if the one there is was given up already; or what its programs
    /// say. Nothing is left then, or will be as soon as a late program has ended.
    pub(super) fn take(&self, until: Deadline) -> Result<Use, Failure> {
        let mut state = self.0.state();
        if let Some(now) = &mut state.now {
            if let Some(lost) = now.taken.lost() {
                return Err(Failure::new(FailureKind::Lost, lost.what, lost.remedy));
            }
            now.uses += 1;
            return Ok(self.used(now));
        }
        let late = |what: &str| {
            Failure::new(FailureKind::TimedOut, what, "raise the stall budget if the writers can wait longer")
        };
        if until.has_passed(self.0.clock.moment()) {
            return Err(late("there was no time left for a snapshot"));
        }
        let Some(origin) = state.origin.clone() else {
            return Err(Failure::new(FailureKind::Other, "a volume was not prepared", ""));
        };
        let (floor, ready) = (clock_of_stamps(), state.ready.take());
        let taken = Arc::new(Taken::take(&self.0.journal, &origin, ready, until)?);
        let watch = watched(&taken, &origin).map(|watched| Watch::start(Arc::clone(&taken), watched));
        let now = state.now.insert(Now { taken, floor, uses: 1, watch });
        let used = self.used(now);
        drop(state);
        if until.has_passed(self.0.clock.moment()) {
            used.leave();
            return Err(late("the snapshot took longer than the stall budget allows"));
        }
        Ok(used)
    }

    fn used(&self, now: &Now) -> Use {
        Use { shared: self.clone(), taken: Arc::clone(&now.taken), floor: now.floor, counts: true }
    }

    /// One use less; the last one removes the snapshot.
    fn leave(&self) -> Result<(), Failure> {
        let mut state = self.0.state();
        let Some(now) = &mut state.now else { return Ok(()) };
        now.uses -= 1;
        if now.uses > 0 {
            return Ok(());
        }
        let Some(now) = state.now.take() else { return Ok(()) };
        drop(state);
        drop(now.watch);
        now.taken.release()
    }
}

fn watched(taken: &Taken, origin: &Origin) -> Option<Watched> {
    match origin {
        Origin::Lvm { .. } => taken.gauge().map(Watched::Volume),
        Origin::Btrfs { subvolume, .. } => Watched::space(subvolume.clone()),
        Origin::Zfs(datasets) => Watched::space(datasets.first()?.mounted.clone()),
    }
}

/// A use of a volume's snapshot. Dropping it releases it.
pub struct Use {
    shared: SharedVolume,
    taken: Arc<Taken>,
    floor: Timestamp,
    counts: bool,
}

impl Use {
    /// Unique among all snapshots: equal for all that share one.
    #[must_use]
    pub fn name(&self) -> &str {
        self.taken.name()
    }

    /// The kernel's clock of stamps just before it was taken.
    #[must_use]
    pub fn floor(&self) -> Timestamp {
        self.floor
    }

    /// Where the directory `real` stands in the snapshot, and what is mounted inside it and was taken with it.
    pub(super) fn open(&self, real: &Path) -> Result<Vec<Place>, Failure> {
        let inner = &self.shared.0;
        self.taken.open(&inner.journal, real, &inner.staging)
    }

    /// Why the snapshot is not to be relied on, if so.
    pub(super) fn lost(&self) -> Option<Lost> {
        self.taken.lost().or_else(|| {
            self.taken.has_vanished().then(|| Lost {
                what: format!(
                    "the {} is gone: it overflowed, or somebody else removed it",
                    self.taken.name()
                ),
                remedy: "see which other tool removes snapshots, and make another backup".to_owned(),
            })
        })
    }

    /// Ends this use; the last one removes the snapshot.
    ///
    /// # Errors
    /// If something is left; then it stays in the journal.
    pub fn release(mut self) -> Result<(), Failure> {
        self.counts = false;
        self.shared.leave()
    }

    /// As [`Self::release`], without waiting: for when writers are still held.
    fn leave(mut self) {
        self.counts = false;
        let shared = self.shared.clone();
        std::thread::spawn(move || {
            if let Err(failure) = shared.leave() {
                tracing::warn!(failure = %failure.in_full(), "a snapshot is left behind, for `thaw`");
            }
        });
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if self.counts
            && let Err(failure) = self.shared.leave()
        {
            tracing::warn!(failure = %failure.in_full(), "a snapshot is left behind, for `thaw`");
        }
    }
}
