//! The reference on disk: frozen copies of the newest backup's large files of pages, and the record that proves them.
//! Form: `docs/format/reference.md`.
//!
//! Crash story: copies are moved into a new, journalled directory after the backup that they were stored in is listed.
//! Then the old directories go, the record is written in place of the old one, and the new directory leaves the
//! journal. Stopped between any two of these, a record names copies that are not there, or not what it says, or belongs
//! to another backup than the newest: each of these is found out, and the next backup reads everything. Directories of a
//! dead run are in its journal. Whoever changes a reference holds the lock of its application's runs.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use model::{
    entry::Stamp,
    id::{BackupId, Relpath},
    pathtext,
    port::{Failure, FailureKind, Journal},
    problem::{Effect, Problem},
    reference::{
        Choice, Kept, REFERENCE_VERSION, Reference, ReferenceFile, ReferenceVolume, Spare, SpareFile,
    },
    size::Bytes,
};
use os::{
    durable,
    extents::{clone_file, is_unsupported, look, map_of},
    lvm::{self, LvSnapshot, LvmError},
    staging::{self, Staging, StagingError},
    tree::stamp_of,
};

use crate::{
    archiver::{Frozen, recorded},
    thin::{Home, Keeping, Pinned, Volumes},
};

/// Which reference a backup uses and replaces.
#[derive(Debug, Clone)]
pub struct Referencing {
    /// Where its record is: [`record_path`].
    pub record: PathBuf,
    /// Whose it is.
    pub relpath: Relpath,
    /// What the inventory says.
    pub choice: Choice,
    /// The time now.
    pub now: Timestamp,
}

/// Where the record of an application's reference is: `{state}/reference/{relpath}.json`, with `/` written `%`.
#[must_use]
pub fn record_path(state: &Path, relpath: &Relpath) -> PathBuf {
    directory(state).join(format!("{}.json", relpath.as_str().replace('/', "%")))
}

fn directory(state: &Path) -> PathBuf {
    state.join("reference")
}

/// All records of references, whosever they are.
///
/// # Errors
/// If their directory cannot be read.
pub fn records(state: &Path) -> Result<Vec<PathBuf>, Failure> {
    let dir = directory(state);
    let failed = |error: io::Error| {
        Failure::new(FailureKind::Other, format!("{} cannot be read", pathtext::show(&dir)), "")
            .because(error)
    };
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "json") && !staging::is_ours(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a record.
#[must_use]
pub fn read(record: &Path) -> Kept {
    let bytes = match fs::read(record) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Kept::Nothing,
        Err(error) => return Kept::Unreadable(error.to_string()),
        Ok(bytes) => bytes,
    };
    match serde_json::from_slice::<Reference>(&bytes) {
        Ok(found) if found.version == REFERENCE_VERSION => Kept::There(found),
        Ok(found) => Kept::Unreadable(format!("it is of version {}", found.version)),
        Err(error) => Kept::Unreadable(error.to_string()),
    }
}

/// Removes a reference, its copies first. Done if there is none.
///
/// # Errors
/// If something is left, with what it is.
pub fn remove(record: &Path) -> Result<(), Failure> {
    if let Kept::There(reference) = read(record) {
        remove_dirs(&reference.spare.dirs)?;
        remove_dirs(&reference.dirs)?;
        remove_volumes(&reference.volumes)?;
    }
    remove_record(record).map_err(|error| {
        let what = format!("the reference {} cannot be removed", pathtext::show(record));
        Failure::new(FailureKind::Other, what, "see that this user may write there").because(error)
    })
}

fn remove_record(record: &Path) -> io::Result<()> {
    match fs::remove_file(record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_dirs(dirs: &[PathBuf]) -> Result<(), StagingError> {
    dirs.iter().try_for_each(|dir| staging::remove(dir))
}

fn remove_volumes<'a>(volumes: impl IntoIterator<Item = &'a ReferenceVolume>) -> Result<(), LvmError> {
    volumes.into_iter().try_for_each(|volume| lvm::remove(&volume.group, &volume.name))
}

/// How many bytes the copies of a reference have that their originals have not any more: what removing them would free.
/// Copies that are gone have none, those in snapshots of volumes are not counted.
#[must_use]
pub fn own_bytes(reference: &Reference) -> Bytes {
    let files: Vec<&ReferenceFile> = reference.files.iter().filter(|file| file.volume.is_none()).collect();
    let copies: HashMap<&PathBuf, &PathBuf> = files.iter().map(|file| (&file.path, &file.copy)).collect();
    let of_copy = |file: &&ReferenceFile| {
        let copy = File::open(&file.copy).ok()?;
        given_up(&copy, &file.path).or_else(|| look(&copy).ok().map(|(_, space)| space.own))
    };
    let of_spare = |spare: &SpareFile| {
        let copy = File::open(&spare.copy).ok()?;
        given_up(&copy, copies.get(&spare.path).copied().unwrap_or(&spare.path))
    };
    files.iter().filter_map(of_copy).chain(reference.spare.files.iter().filter_map(of_spare)).sum()
}

/// How much of a copy lies where a newer file has not got it any more; nothing if that cannot be told.
fn given_up(copy: &File, newer: &Path) -> Option<Bytes> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let newer = OpenOptions::new().read(true).custom_flags(flags).open(newer).ok()?;
    let ranges = map_of(copy).ok()?.differing_from(&map_of(&newer).ok()?);
    Some(Bytes(ranges.iter().map(|range| range.end - range.start).sum()))
}

/// The copies that the next ones may be cloned over, by the paths of their originals. Where space is short they are removed
/// instead. Whoever asks holds the lock of the application's runs.
#[must_use]
pub fn spare(record: &Path) -> HashMap<PathBuf, PathBuf> {
    let Kept::There(Reference { spare, .. }) = read(record) else { return HashMap::new() };
    if spare.dirs.iter().all(|dir| has_room(dir)) {
        return spare.files.into_iter().map(|file| (file.path, file.copy)).collect();
    }
    if let Err(error) = remove_dirs(&spare.dirs) {
        tracing::warn!("spare copies are left although space is short: {error}");
    }
    HashMap::new()
}

/// Whether a tenth of the filesystem is free.
pub(crate) fn has_room(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|found| found.f_bavail >= found.f_blocks / 10)
}

/// What of an older reference is spare, now that its other copies are in a newer one.
fn spared(old: &Reference) -> Spare {
    let dirs: Vec<PathBuf> = old.dirs.iter().filter(|dir| has_room(dir)).cloned().collect();
    let is_left = |file: &&ReferenceFile| {
        dirs.iter().any(|dir| file.copy.starts_with(dir)) && file.copy.symlink_metadata().is_ok()
    };
    let files = old.files.iter().filter(|file| file.volume.is_none()).filter(is_left);
    let files: Vec<SpareFile> =
        files.map(|file| SpareFile { path: file.path.clone(), copy: file.copy.clone() }).collect();
    if files.is_empty() { Spare::default() } else { Spare { dirs, files } }
}

/// New directories for frozen copies, each beside the pins that it takes them from.
pub(crate) struct Keeper {
    journal: Arc<dyn Journal>,
    places: Mutex<Places>,
    volumes: Volumes,
}

#[derive(Default)]
struct Places {
    dirs: BTreeMap<PathBuf, Staging>,
    next: u32,
}

/// A frozen copy that can be kept.
pub(crate) struct FrozenAt {
    /// Where it is now.
    pub(crate) path: PathBuf,
    /// The copy itself, if it is not the pinned one but a clone of it.
    pub(crate) file: Option<File>,
    /// The thin snapshot that it lies in.
    pub(crate) pinned: Option<Arc<Pinned>>,
}

impl Keeper {
    /// `older` are the volumes of the reference that is compared with.
    pub(crate) fn new(journal: Arc<dyn Journal>, older: Vec<ReferenceVolume>) -> Self {
        let volumes = Volumes::new(Arc::clone(&journal), older);
        Self { journal, places: Mutex::default(), volumes }
    }

    /// What can be kept of a pinned copy: itself, if it lies in a directory of ours or in a snapshot of a thin volume, or a
    /// clone of it, if it lies in another snapshot. Nothing if it is no pinned copy, or cannot be cloned.
    pub(crate) fn freeze(&self, pinned: &Path, file: &File) -> io::Result<Option<FrozenAt>> {
        let (Some(top), Some(parent)) = (ours(pinned), beside(pinned)) else { return Ok(None) };
        let device = file.metadata()?.dev();
        let path = pinned.to_owned();
        if fs::metadata(parent)?.dev() == device {
            return Ok(Some(FrozenAt { path, file: None, pinned: None }));
        }
        if fs::metadata(top)?.dev() == device
            && let Some(snapshot) = self.volumes.under(top)
        {
            return Ok(Some(FrozenAt { path, file: None, pinned: Some(snapshot) }));
        }
        let path = self.name_in(parent)?;
        let mut options = OpenOptions::new();
        let clone = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        match clone_file(file, &clone) {
            Ok(()) => Ok(Some(FrozenAt { path, file: Some(clone), pinned: None })),
            Err(error) => {
                fs::remove_file(&path)?;
                if is_unsupported(&error) { Ok(None) } else { Err(error) }
            }
        }
    }

    /// A new name in a new directory of ours in `parent`.
    fn name_in(&self, parent: &Path) -> io::Result<PathBuf> {
        // Nothing is left half-done under it.
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let number = places.next;
        places.next += 1;
        if !places.dirs.contains_key(parent) {
            let made = Staging::create(&self.journal, parent, "reference").map_err(io::Error::other)?;
            places.dirs.insert(parent.to_owned(), made);
        }
        let dir = places.dirs.get(parent).ok_or(io::ErrorKind::NotFound)?;
        Ok(dir.path().join(format!("{number:x}")))
    }

    /// Whether a copy is in a new directory already.
    fn has(&self, copy: &Path) -> bool {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.dirs.values().any(|dir| copy.starts_with(dir.path()))
    }

    fn into_dirs(self) -> Vec<Staging> {
        let places = self.places.into_inner().unwrap_or_else(PoisonError::into_inner);
        places.dirs.into_values().collect()
    }
}

/// The directory of ours that a pinned copy lies in.
fn ours(pinned: &Path) -> Option<&Path> {
    pinned.ancestors().find(|path| staging::is_ours(path))
}

/// The directory beside it.
fn beside(pinned: &Path) -> Option<&Path> {
    ours(pinned)?.parent()
}

/// A backup that was listed, and what was stored of it as it was frozen.
pub(crate) struct Listed<'a> {
    pub(crate) backup: BackupId,
    /// The last backup that read everything.
    pub(crate) read_all_at: Timestamp,
    pub(crate) frozen: Vec<Frozen>,
    pub(crate) keeper: Keeper,
    /// The digest of a content.
    pub(crate) digest: &'a dyn Fn(&Frozen) -> String,
}

/// Makes the frozen copies of a listed backup the reference, in place of the one before. What cannot be kept is told.
pub(crate) fn keep(referencing: &Referencing, listed: Listed<'_>) -> Vec<Problem> {
    let Listed { backup, read_all_at, frozen, keeper, digest } = listed;
    let mut problems = Vec::new();
    let mut files = Vec::with_capacity(frozen.len());
    let mut keeping = Keeping::new(&keeper.volumes);
    let mut moved = HashMap::new();
    for frozen in frozen {
        match take(&keeper, (&mut keeping, &mut moved), &frozen, digest(&frozen)) {
            Ok(file) => files.extend(file),
            Err(error) => {
                let what = format!("its frozen copy is not kept, so the next backup reads it whole: {error}");
                problems.push(Problem::note(&frozen.path, what));
            }
        }
    }
    let (volumes, snapshots, unkept) = keeping.finish();
    problems.extend(unkept);
    // With it the old snapshots are unmounted.
    let dirs = keeper.into_dirs();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let reference = Reference {
        version: REFERENCE_VERSION,
        relpath: referencing.relpath.clone(),
        backup,
        read_all_at,
        dirs: dirs.iter().map(|dir| dir.path().to_owned()).collect(),
        volumes,
        files,
        spare: Spare::default(),
    };
    match replace(&referencing.record, reference) {
        Ok(false) => {}
        Ok(true) => {
            drop(dirs.into_iter().map(Staging::keep).collect::<Vec<_>>());
            snapshots.into_iter().for_each(LvSnapshot::keep);
        }
        Err(failure) => {
            let what = format!(
                "no frozen copies are kept, so the next backup reads everything: {}",
                failure.in_full()
            );
            problems.push(Problem::new(Effect::Note, None, what, ""));
        }
    }
    problems
}

/// Takes one frozen copy into its new directory, or the snapshot that it lies in among those that are kept; nothing if that
/// is not.
fn take(
    keeper: &Keeper,
    (keeping, moved): (&mut Keeping<'_>, &mut HashMap<PathBuf, PathBuf>),
    frozen: &Frozen,
    content: String,
) -> io::Result<Option<ReferenceFile>> {
    let changed = || io::Error::other("it was changed since it was stored");
    if !matches!(frozen.home, Home::Directory) {
        let Some(place) = keeping.take(&frozen.home, &frozen.copy) else { return Ok(None) };
        if let Some(now) = &place.now
            && stamp_of(&File::open(now)?.metadata()?) != frozen.stamp
        {
            return Err(changed());
        }
        return file(frozen, (place.inner, Some(place.volume)), &frozen.stamp, content).map(Some);
    }
    let copy = match moved.get(&frozen.copy) {
        // For another name of the same file.
        Some(copy) => copy.clone(),
        None => {
            if stamp_of(&File::open(&frozen.copy)?.metadata()?) != frozen.stamp {
                return Err(changed());
            }
            if keeper.has(&frozen.copy) {
                frozen.copy.clone()
            } else {
                let parent = beside(&frozen.copy).ok_or(io::ErrorKind::NotFound)?;
                let name = keeper.name_in(parent)?;
                fs::rename(&frozen.copy, &name)?;
                moved.insert(frozen.copy.clone(), name.clone());
                name
            }
        }
    };
    // Being renamed is a change of the file, but of nothing in it.
    let stamp = stamp_of(&File::open(&copy)?.metadata()?);
    if (stamp.size, stamp.mtime, stamp.inode) != (frozen.stamp.size, frozen.stamp.mtime, frozen.stamp.inode) {
        return Err(changed());
    }
    file(frozen, (copy, None), &stamp, content).map(Some)
}

/// What is written down of a copy.
fn file(
    frozen: &Frozen,
    (copy, volume): (PathBuf, Option<String>),
    stamp: &Stamp,
    content: String,
) -> io::Result<ReferenceFile> {
    let nanos = |time: i128| i64::try_from(time).map_err(io::Error::other);
    let (ctime, mtime) = (nanos(stamp.ctime)?, nanos(stamp.mtime)?);
    let (path, size, inode, blob) = (frozen.path.clone(), stamp.size, stamp.inode, frozen.blob);
    let map = frozen.map.clone();
    let file = ReferenceFile { path, copy, volume, size, inode, ctime, mtime, blob, content, map };
    if recorded(&file) == *stamp {
        Ok(file)
    } else {
        Err(io::Error::other("its times cannot be written down"))
    }
}

/// Puts a reference in place of the one before, of whose copies those that are spare stay and the others go first. Whether
/// there is one now.
fn replace(record: &Path, mut reference: Reference) -> Result<bool, Failure> {
    if let Kept::There(old) = read(record) {
        if !reference.files.is_empty() {
            reference.spare = spared(&old);
        }
        let is_left = |dir: &&PathBuf| !reference.dirs.contains(dir) && !reference.spare.dirs.contains(dir);
        let left: Vec<PathBuf> = old.dirs.iter().chain(&old.spare.dirs).filter(is_left).cloned().collect();
        remove_dirs(&left)?;
        let is_left = |volume: &&ReferenceVolume| !reference.volumes.contains(volume);
        remove_volumes(old.volumes.iter().filter(is_left))?;
    }
    let written = || -> io::Result<bool> {
        if reference.files.is_empty() {
            return remove_record(record).map(|()| false);
        }
        if let Some(dir) = record.parent() {
            durable::create_dirs(dir, 0o700)?;
        }
        let mut text = serde_json::to_vec_pretty(&reference)?;
        text.push(b'\n');
        durable::replace(record, &text, 0o600).map(|()| true)
    };
    written().map_err(|error| {
        let what = format!("{} cannot be written", pathtext::show(record));
        Failure::new(FailureKind::Other, what, "see that this user may write there").because(error)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::beside;

    #[test]
    fn only_what_lies_in_a_directory_of_ours_is_a_pinned_copy() {
        let pinned = Path::new("/v01/state/staging/.stillpoint-tree-1/0/1");
        assert_eq!(beside(pinned), Some(Path::new("/v01/state/staging")));
        assert_eq!(beside(Path::new("/srv/app/database")), None);
    }
}
