//! Frozen copies in snapshots of thin logical volumes: comparing the one that was kept with the one that a backup reads
//! from, and keeping the latter.
//!
//! A file has the same bytes in both where it has the same addresses in both and their pool has one block for both
//! ([`os::lvm::same_ranges`]). That is so as long as nobody writes to either, by which also a filesystem is meant that
//! puts its log in order when it is mounted: first both are mounted, for reading only, then everything is written to
//! their devices, then the pool is asked; and a device to which anything was written since proves nothing. The older
//! one is what was stored by LVM's UUID, its number in the pool, and the stamps of its files (`docs/format/reference.md`).
//!
//! What is kept is a snapshot of the snapshot that the files were read from, which goes with its pin.
//!
//! Crash story: mounts and snapshots are guards of `os`, in the journal before they are made. A kept snapshot leaves the
//! journal when the record names it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{
    port::{Failure, Journal},
    problem::{Effect, Problem},
    reference::ReferenceVolume,
    size::Bytes,
};
use os::{
    clock::deadline_in,
    lvm::{self, LogicalVolume, LvSnapshot, Ready, bytes_written, same_ranges},
    mounted::{Mounted, options_beside},
    mounts::Mounts,
};

/// A pool that is fuller than this, of 1, keeps no snapshot for another day.
const FULL: f64 = 0.7;
/// How long making a snapshot may take.
const MAKING: Duration = Duration::from_mins(2);

/// The snapshots that files of a backup are read from.
pub(crate) struct Volumes {
    journal: Arc<dyn Journal>,
    /// Those of the backup before.
    older: Vec<ReferenceVolume>,
    /// By mount point; nothing if it is none that can be kept.
    seen: Mutex<BTreeMap<PathBuf, Option<Arc<Pinned>>>>,
}

/// A mounted snapshot that files are read from.
pub(crate) struct Pinned {
    point: PathBuf,
    volume: LogicalVolume,
    origin: String,
    filesystem: String,
    /// That of the backup before, or why it is no use.
    before: Result<Before, String>,
}

/// A kept snapshot, mounted.
struct Before {
    name: String,
    mounted: Mounted,
    /// Where both devices hold the same.
    same: Vec<Range<u64>>,
    /// What had been written to both devices when that was found out.
    written: [Bytes; 2],
}

impl Volumes {
    pub(crate) fn new(journal: Arc<dyn Journal>, older: Vec<ReferenceVolume>) -> Self {
        Self { journal, older, seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Option<Arc<Pinned>>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thin snapshot of ours that is mounted here, if there is one. Whoever asks first waits until it is compared with
    /// the one of the backup before.
    pub(crate) fn under(&self, point: &Path) -> Option<Arc<Pinned>> {
        let mut seen = self.seen();
        if let Some(known) = seen.get(point) {
            return known.clone();
        }
        let found = self.look(point).map(Arc::new);
        seen.insert(point.to_owned(), found.clone());
        found
    }

    fn look(&self, point: &Path) -> Option<Pinned> {
        let volume = lvm::find(point).ok()??;
        let filesystem = Mounts::read().ok()?.at(&point.canonicalize().ok()?)?.filesystem.clone();
        let is_ours = volume.is_tagged() && lvm::is_ours(&volume.name) && volume.thin_pool().is_some();
        let origin = volume.origin.clone().filter(|_| is_ours)?;
        let older = self.older.iter().find(|older| older.group == volume.group && older.origin == origin);
        let before = match older {
            Some(older) => Before::open(&self.journal, older, &volume, point),
            None => Err("no snapshot of its volume was kept".into()),
        };
        Some(Pinned { point: point.to_owned(), volume, origin, filesystem, before })
    }

    /// The snapshot of this backup that is one of the same volume as this one of the backup before.
    fn successor(&self, name: &str) -> Option<Arc<Pinned>> {
        let older = self.older.iter().find(|older| older.name == name)?;
        let seen = self.seen();
        let mut pinned = seen.values().flatten();
        pinned.find(|new| new.volume.group == older.group && new.origin == older.origin).cloned()
    }
}

impl Before {
    fn open(
        journal: &Arc<dyn Journal>,
        recorded: &ReferenceVolume,
        newer: &LogicalVolume,
        point: &Path,
    ) -> Result<Self, String> {
        let in_full = |failure: Failure| failure.in_full();
        let older = lvm::named(&recorded.group, &recorded.name).map_err(|error| in_full(error.into()))?;
        let older = older.ok_or("the snapshot that it lies in is gone")?;
        let is_it = older.uuid == recorded.uuid && older.thin_id == Some(recorded.thin_id);
        if !is_it || !older.is_tagged() {
            return Err(format!("{} is another volume than the one that was kept", older.full_name()));
        }
        let (Some(options), Some(parent)) = (options_beside(&recorded.filesystem), point.parent()) else {
            return Err(format!("{} is not mounted beside its original", recorded.filesystem));
        };
        let mounted = Mounted::read_only(journal, &older.device(), parent, &recorded.filesystem, options);
        let mounted = mounted.map_err(|error| in_full(error.into()))?;
        let io = |error: std::io::Error| format!("its snapshots cannot be compared: {error}");
        for volume in [&older, newer] {
            File::open(volume.device()).and_then(|device| device.sync_all()).map_err(io)?;
        }
        let written = written([mounted.point(), point]).map_err(io)?;
        let same = same_ranges(journal, &older, newer).map_err(|error| in_full(error.into()))?;
        Ok(Self { name: recorded.name.clone(), mounted, same, written })
    }
}

fn written(points: [&Path; 2]) -> std::io::Result<[Bytes; 2]> {
    Ok([bytes_written(points[0])?, bytes_written(points[1])?])
}

impl Pinned {
    /// Opens a file of the snapshot that was kept by this name, by its path in there; and where its device holds the same
    /// as this one's.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub(crate) fn open_before(
        &self,
        name: &str,
        inner: &Path,
        open: impl FnOnce(&Path) -> std::io::Result<File>,
    ) -> Result<(File, &[Range<u64>]), String> {
        let before = self.before.as_ref().map_err(Clone::clone)?;
        if before.name != name {
            return Err("it lies in a snapshot of another volume".into());
        }
        let unopened = |error| format!("it cannot be opened: {error}");
        let file = open(&outer(before.mounted.point(), inner)).map_err(unopened)?;
        let devices =
            file.metadata().and_then(|file| Ok((file.dev(), before.mounted.point().metadata()?.dev())));
        let (file_on, snapshot_on) = devices.map_err(unopened)?;
        if file_on != snapshot_on {
            return Err("a link leads out of its snapshot".into());
        }
        Ok((file, &before.same))
    }

    /// Whether nothing was written to either device since they were compared.
    pub(crate) fn is_untouched(&self) -> bool {
        let now = |before: &Before| written([before.mounted.point(), &self.point]).ok();
        self.before.as_ref().is_ok_and(|before| now(before) == Some(before.written))
    }

    /// Keeps what it holds: takes a snapshot of it.
    fn keep(&self, journal: &Arc<dyn Journal>) -> Result<(ReferenceVolume, LvSnapshot), Failure> {
        let made = Ready::new(journal, self.volume.clone(), None)?.make(deadline_in(MAKING))?;
        let found = lvm::named(&self.volume.group, made.name())?;
        let known = found.and_then(|found| Some((found.thin_id?, found.uuid)));
        let (thin_id, uuid) = known.ok_or_else(|| lvm::LvmError::NotOurs(made.full_name()))?;
        let (group, name) = (self.volume.group.clone(), made.name().to_owned());
        let (origin, filesystem) = (self.origin.clone(), self.filesystem.clone());
        Ok((ReferenceVolume { group, name, uuid, thin_id, origin, filesystem }, made))
    }

    /// Why its pool has no room to keep it.
    fn is_crowded(&self) -> Option<String> {
        let (group, pool) = (&self.volume.group, self.volume.thin_pool()?);
        let fill = match lvm::look_at_pool(group, pool) {
            Ok(found) => found.data.max(found.metadata),
            Err(error) => return Some(Failure::from(lvm::LvmError::from(error)).in_full()),
        };
        (fill > FULL).then(|| format!("the thin pool {group}/{pool} is {:.0} % full", fill * 100.0))
    }
}

/// A path in the filesystem that is mounted here.
fn outer(point: &Path, inner: &Path) -> PathBuf {
    point.join(inner.strip_prefix("/").unwrap_or(inner))
}

/// What a frozen copy lies in.
#[derive(Clone)]
pub(crate) enum Home {
    /// A directory of ours, or one that becomes ours.
    Directory,
    /// The snapshot that it was read from.
    Pinned(Arc<Pinned>),
    /// The snapshot of this name that was kept of the backup before; its path is that in there.
    Kept(String),
}

/// What is kept for the next backup.
pub(crate) struct Keeping<'a> {
    volumes: &'a Volumes,
    /// Of which pins by their mount points; nothing if it could not be.
    made: BTreeMap<PathBuf, Option<(ReferenceVolume, LvSnapshot)>>,
    /// Those of the backup before that stay.
    stays: BTreeSet<String>,
    problems: Vec<Problem>,
}

/// Where a copy will be found.
pub(crate) struct InVolume {
    /// The kept snapshot's name.
    pub(crate) volume: String,
    /// The path in it.
    pub(crate) inner: PathBuf,
    /// Where it is now, if that can be looked at.
    pub(crate) now: Option<PathBuf>,
}

impl<'a> Keeping<'a> {
    pub(crate) fn new(volumes: &'a Volumes) -> Self {
        Self { volumes, made: BTreeMap::new(), stays: BTreeSet::new(), problems: Vec::new() }
    }

    /// Keeps what a copy in a snapshot lies in; nothing if it is not kept, or lies in none.
    pub(crate) fn take(&mut self, home: &Home, copy: &Path) -> Option<InVolume> {
        let (pinned, inner) = match home {
            Home::Directory => return None,
            Home::Pinned(pinned) => {
                (Arc::clone(pinned), Path::new("/").join(copy.strip_prefix(&pinned.point).ok()?))
            }
            Home::Kept(name) => match self.volumes.successor(name) {
                Some(pinned) => (pinned, copy.to_owned()),
                None => {
                    self.stays.insert(name.clone());
                    return Some(InVolume { volume: name.clone(), inner: copy.to_owned(), now: None });
                }
            },
        };
        let now = outer(&pinned.point, &inner);
        let volume = self.keep(&pinned)?;
        Some(InVolume { volume, inner, now: Some(now) })
    }

    /// The name of the kept snapshot of a pin.
    fn keep(&mut self, pinned: &Pinned) -> Option<String> {
        if !self.made.contains_key(&pinned.point) {
            let made = match pinned.is_crowded() {
                Some(why) => Err(why),
                None => pinned.keep(&self.volumes.journal).map_err(|failure| failure.in_full()),
            };
            if let Err(why) = &made {
                let of = format!("{}/{}", pinned.volume.group, pinned.origin);
                let what = format!("no snapshot of {of} is kept, so the next backup reads it whole: {why}");
                let remedy = "make the thin pool larger, or leave changed_extents_only out";
                self.problems.push(Problem::new(Effect::Note, None, what, remedy));
            }
            self.made.insert(pinned.point.clone(), made.ok());
        }
        let made = self.made.get(&pinned.point)?.as_ref();
        made.map(|(volume, _)| volume.name.clone())
    }

    /// All kept snapshots, those of them that are new, and what went wrong.
    pub(crate) fn finish(self) -> (Vec<ReferenceVolume>, Vec<LvSnapshot>, Vec<Problem>) {
        let stays = self.volumes.older.iter().filter(|older| self.stays.contains(&older.name));
        let stays: Vec<ReferenceVolume> = stays.cloned().collect();
        let (made, guards): (Vec<_>, Vec<_>) = self.made.into_values().flatten().unzip();
        (stays.into_iter().chain(made).collect(), guards, self.problems)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::outer;

    #[test]
    fn a_path_of_the_snapshot_stays_below_its_mount_point() {
        let at = |inner| outer(Path::new("/m"), Path::new(inner));
        assert_eq!(at("/var/lib/a"), Path::new("/m/var/lib/a"));
        assert_eq!(at("a"), Path::new("/m/a"));
    }
}
