//! A volume's snapshot that was taken: making it readable, giving it up, removing it.
//!
//! Crash story: every part is a guard of `os` that the journal knows. What was given up is gone already when it is
//! released.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::{
    pathtext,
    port::{Failure, FailureKind, Journal},
    server::Volume,
    size::Bytes,
    time::Deadline,
};
use os::{
    durable::create_dirs,
    lvm::{self, Fill, Gauge, LogicalVolume, LvSnapshot, Ready},
    mounted::{Mounted, options_beside},
    mounts::Mounts,
    subvolume::{self, is_subvolume},
    tree::said,
    zfs::{self, Dataset, ZfsSnapshot},
};

/// What a snapshot is made of, found before the freeze.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    Btrfs {
        subvolume: PathBuf,
        /// Where the snapshot is put.
        parent: PathBuf,
    },
    Lvm {
        volume: LogicalVolume,
        filesystem: String,
    },
    /// The dataset and those mounted inside it.
    Zfs(Vec<Dataset>),
}

impl Origin {
    /// Finds what is to be taken, and that `real` lies on it.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] if it does not, or if the volume is not what was planned.
    pub fn find(volume: &Volume, real: &Path, staging: &Path) -> Result<Self, Failure> {
        let mounts = Mounts::read().map_err(|error| unreadable(Path::new("/proc/self/mountinfo"), &error))?;
        let elsewhere = || {
            let what = format!("{} does not lie on the volume that was planned", pathtext::show(real));
            Failure::new(FailureKind::Refused, what, "plan again")
        };
        match volume {
            Volume::Btrfs { subvolume } => {
                let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
                let same = device(subvolume).is_ok_and(|top| device(real).is_ok_and(|at| at == top));
                if !is_subvolume(subvolume).unwrap_or(false) || !real.starts_with(subvolume) || !same {
                    return Err(elsewhere());
                }
                Ok(Self::Btrfs { subvolume: subvolume.clone(), parent: beside(&mounts, subvolume, staging)? })
            }
            Volume::Lvm { group, name, filesystem, .. } => {
                let found = lvm::find(real)?.filter(|lv| lv.group == *group && lv.name == *name);
                let volume = found.ok_or_else(elsewhere)?;
                lvm::warm_up(&volume);
                Ok(Self::Lvm { volume, filesystem: filesystem.clone() })
            }
            Volume::Zfs { dataset, .. } => {
                let found = mounts.of(real).and_then(|mount| zfs::dataset(&mounts, mount));
                let top = found.filter(|found| found.name == *dataset).ok_or_else(elsewhere)?;
                Ok(Self::Zfs(zfs::with_children(&mounts, &top)))
            }
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let what = format!("{} cannot be read: {}", pathtext::show(path), said(error));
    Failure::new(FailureKind::Other, what, "see that it is there and that this user may read it")
}

/// A directory of the same btrfs in which a snapshot of `subvolume` disturbs least: in our own staging, beside it, or in
/// it at the last.
fn beside(mounts: &Mounts, subvolume: &Path, staging: &Path) -> Result<PathBuf, Failure> {
    let here = mounts.of(subvolume).map(|mount| mount.device.clone());
    let same = |dir: &&Path| {
        let mount = mounts.of(dir).filter(|mount| mount.filesystem == "btrfs");
        dir.is_absolute() && mount.is_some_and(|mount| Some(&mount.device) == here.as_ref())
    };
    if same(&staging) {
        create_dirs(staging, 0o700).map_err(|error| unreadable(staging, &error))?;
        return Ok(staging.to_owned());
    }
    let outside = subvolume.parent().into_iter().chain([subvolume]).find(same);
    Ok(outside.unwrap_or(subvolume).to_owned())
}

/// A directory of the live tree, and where its state of the cut stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub of: PathBuf,
    pub at: PathBuf,
}

/// Why a snapshot is no longer to be relied on.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub what: String,
    pub remedy: String,
}

enum Kind {
    Btrfs {
        subvolume: PathBuf,
        snapshot: subvolume::Snapshot,
    },
    Lvm {
        filesystem: String,
        snapshot: LvSnapshot,
        mounted: Option<Mounted>,
    },
    Zfs {
        snapshot: ZfsSnapshot,
        held: bool,
    },
    /// Given up, or released.
    Gone,
}

/// A snapshot that was taken.
pub(super) struct Taken {
    name: String,
    kind: Mutex<Kind>,
    lost: Mutex<Option<Lost>>,
}

impl Taken {
    /// Takes it: one step, given up at `until`. `ready` is what was written down for a logical volume's.
    ///
    /// # Errors
    /// If it cannot be taken; then nothing is left, or will be as soon as a late program has ended.
    pub fn take(
        journal: &Arc<dyn Journal>,
        origin: &Origin,
        ready: Option<Ready>,
        until: Deadline,
    ) -> Result<Self, Failure> {
        let (name, kind) = match origin {
            Origin::Btrfs { subvolume, parent } => {
                let snapshot = subvolume::Snapshot::create(journal, subvolume, parent, "snapshot")?;
                let name = format!("btrfs snapshot {}", pathtext::show(snapshot.path()));
                (name, Kind::Btrfs { subvolume: subvolume.clone(), snapshot })
            }
            Origin::Lvm { volume, filesystem } => {
                let ready = match ready {
                    Some(ready) => ready,
                    None => Ready::new(journal, volume.clone(), None)?,
                };
                let snapshot = ready.make(until)?;
                let name = format!("LVM snapshot {}", snapshot.full_name());
                (name, Kind::Lvm { filesystem: filesystem.clone(), snapshot, mounted: None })
            }
            Origin::Zfs(datasets) => {
                let snapshot = ZfsSnapshot::create(journal, datasets.clone(), until)?;
                (format!("ZFS snapshot {}", snapshot.full_name()), Kind::Zfs { snapshot, held: false })
            }
        };
        Ok(Self { name, kind: Mutex::new(kind), lost: Mutex::new(None) })
    }

    /// Unique among all snapshots.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the fill of a logical volume's is read.
    pub fn gauge(&self) -> Option<Gauge> {
        match &*self.kind() {
            Kind::Lvm { snapshot, .. } => Some(snapshot.gauge()),
            _ => None,
        }
    }

    fn kind(&self) -> MutexGuard<'_, Kind> {
        self.kind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it is not to be relied on, if so.
    pub fn lost(&self) -> Option<Lost> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes it readable, and says where the directory `real` and what else of the volume is mounted inside it stand in
    /// it; the directory itself first. Never under a freeze: mounting a logical volume puts the log of its filesystem
    /// in order.
    ///
    /// # Errors
    /// If it was given up, or cannot be mounted.
    pub fn open(
        &self,
        journal: &Arc<dyn Journal>,
        real: &Path,
        staging: &Path,
    ) -> Result<Vec<Place>, Failure> {
        let mounts = Mounts::read().map_err(|error| unreadable(Path::new("/proc/self/mountinfo"), &error))?;
        let mut kind = self.kind();
        let one = |at: PathBuf| vec![Place { of: real.to_owned(), at }];
        if let Some(lost) = self.lost() {
            return Err(self.unreadable(lost));
        }
        match &mut *kind {
            Kind::Btrfs { subvolume, snapshot } => {
                let below = real.strip_prefix(&*subvolume).unwrap_or(Path::new(""));
                Ok(one(joined(snapshot.path(), below)))
            }
            Kind::Lvm { filesystem, snapshot, mounted } => {
                let mounted = match mounted {
                    Some(mounted) => mounted,
                    None => mounted.insert(mount(journal, snapshot, filesystem, staging)?),
                };
                Ok(one(joined(mounted.point(), &inside(&mounts, real))))
            }
            Kind::Zfs { snapshot, held } => {
                if !*held {
                    snapshot.hold()?;
                    *held = true;
                }
                Ok(places_of_datasets(snapshot, &mounts, real))
            }
            Kind::Gone => {
                Err(Failure::new(FailureKind::Lost, format!("the {} was released already", self.name), ""))
            }
        }
    }

    fn unreadable(&self, lost: Lost) -> Failure {
        let what = format!("the {} cannot be read: {}", self.name, lost.what);
        Failure::new(FailureKind::Lost, what, lost.remedy)
    }

    /// Whether somebody else has taken it away, or it became worthless just now.
    pub fn has_vanished(&self) -> bool {
        match &*self.kind() {
            Kind::Btrfs { snapshot, .. } => !snapshot.path().exists(),
            Kind::Lvm { snapshot, .. } => !snapshot.device().exists() || has_overflowed(&snapshot.gauge()),
            Kind::Zfs { snapshot, .. } => matches!(snapshot.is_there(), Ok(false)),
            Kind::Gone => false,
        }
    }

    /// Makes every further reading fail and removes it, because of `why`.
    pub fn give_up(&self, why: Lost) {
        tracing::warn!(snapshot = %self.name, why = %why.what, "a snapshot is given up");
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        let mut kind = self.kind();
        if let Kind::Lvm { mounted, snapshot, .. } = &mut *kind {
            if let Some(Err(error)) = mounted.take().map(Mounted::give_up) {
                tracing::warn!(snapshot = %self.name, ?error, "it cannot be unmounted");
            }
            if let Err(error) = snapshot.try_release() {
                tracing::warn!(snapshot = %self.name, ?error, "it is still in use; its release tries again");
                return;
            }
        }
        if let Err(failure) = remove(std::mem::replace(&mut *kind, Kind::Gone)) {
            tracing::warn!(snapshot = %self.name, failure = %failure.in_full(), "it is left, for `thaw`");
        }
    }

    /// Unmounts and removes it.
    ///
    /// # Errors
    /// If something is left; then it stays in the journal.
    pub fn release(&self) -> Result<(), Failure> {
        let kind = std::mem::replace(&mut *self.kind(), Kind::Gone);
        remove(kind)
    }
}

fn remove(kind: Kind) -> Result<(), Failure> {
    match kind {
        Kind::Btrfs { snapshot, .. } => Ok(snapshot.release()?),
        Kind::Lvm { snapshot, mounted, .. } => {
            mounted.map_or(Ok(()), Mounted::release)?;
            Ok(snapshot.release()?)
        }
        Kind::Zfs { snapshot, .. } => Ok(snapshot.release()?),
        Kind::Gone => Ok(()),
    }
}

fn has_overflowed(gauge: &Gauge) -> bool {
    !gauge.is_thin() && matches!(gauge.read(), Ok(Fill::Invalid))
}

fn mount(
    journal: &Arc<dyn Journal>,
    snapshot: &LvSnapshot,
    filesystem: &str,
    staging: &Path,
) -> Result<Mounted, Failure> {
    create_dirs(staging, 0o700).map_err(|error| unreadable(staging, &error))?;
    let options = options_beside(filesystem).ok_or_else(|| {
        let what = format!("a snapshot with {filesystem} is not mounted beside the original");
        Failure::new(FailureKind::Refused, what, "plan again")
    })?;
    Ok(Mounted::read_only(journal, &snapshot.device(), staging, filesystem, options)?)
}

/// The path inside its filesystem, whatever part of it is mounted there.
fn inside(mounts: &Mounts, real: &Path) -> PathBuf {
    let Some(mount) = mounts.of(real) else { return real.to_owned() };
    joined(&mount.root, real.strip_prefix(&mount.point).unwrap_or(Path::new("")))
}

/// Without a trailing slash, and never out of `dir`.
fn joined(dir: &Path, below: &Path) -> PathBuf {
    let below = below.strip_prefix("/").unwrap_or(below);
    if below.as_os_str().is_empty() { dir.to_owned() } else { dir.join(below) }
}

fn places_of_datasets(snapshot: &ZfsSnapshot, mounts: &Mounts, real: &Path) -> Vec<Place> {
    let all = snapshot.places();
    let first = all.first().map(|(dataset, dir)| match real.strip_prefix(&dataset.mounted) {
        Ok(below) => joined(dir, below),
        Err(_) => joined(dir, &inside(mounts, real)),
    });
    let own = first.map(|at| Place { of: real.to_owned(), at });
    let below = all
        .iter()
        .skip(1)
        .filter(|(dataset, _)| dataset.mounted.starts_with(real) && dataset.mounted != real);
    let below = below.map(|(dataset, dir)| Place { of: dataset.mounted.clone(), at: dir.clone() });
    own.into_iter().chain(below).collect()
}

/// For a snapshot that has to be written down before the freeze.
pub(super) fn ready(
    journal: &Arc<dyn Journal>,
    origin: &Origin,
    size: Option<Bytes>,
) -> Result<Option<Ready>, Failure> {
    match origin {
        Origin::Lvm { volume, .. } => Ok(Some(Ready::new(journal, volume.clone(), size)?)),
        Origin::Btrfs { .. } | Origin::Zfs(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use os::mounts::Mounts;

    use super::{inside, joined};

    #[test]
    fn paths_are_found_in_a_filesystem_of_which_a_part_is_mounted() {
        let table = b"22 1 252:1 / / rw - ext4 /dev/vda rw
30 22 0:40 /data /srv rw - xfs /dev/mapper/vg-data rw
";
        let mounts = Mounts::parse(table).unwrap();
        assert_eq!(inside(&mounts, Path::new("/srv/db")), Path::new("/data/db"));
        assert_eq!(inside(&mounts, Path::new("/srv")), Path::new("/data"));
        assert_eq!(inside(&mounts, Path::new("/var")), Path::new("/var"));
        assert_eq!(joined(Path::new("/m"), Path::new("/data")), Path::new("/m/data"));
        assert_eq!(joined(Path::new("/m"), Path::new("/")), Path::new("/m"));
    }
}
