//! Changed extents only: of a large file of pages whose frozen copy of the backup before still exists, the chunks that
//! lie on the same extents in both copies are carried over from that backup without being read.
//!
//! Which chunks those are decides [`model::extents::chunks_to_read`]; here it gets its maps, which are taken now: the
//! older copy's after the newer one's, and compared with the digest of the map that it had when it was the newer one. If it
//! has another by now, or none is recorded, both maps are taken with the older copy's before and after the newer one's. Dirty
//! pages are on disk before a map is taken, since until then it
//! shows where the bytes stood before. The older copy has to be, by inode and times, what it was when its backup was
//! stored, on the same device as the newer one, and the content that its backup has for it the one that was recorded.
//! Whatever is in doubt is read.
//!
//! What is stored of a file that is worth keeping is handed on, for the next backup's reference
//! (`crate::reference`).
//!
//! Crash story: reads only, but for syncing pinned copies and for clones in a journalled directory of our own.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use model::{
    entry::{Body, Entry, Stamp},
    extents::{Map, chunks_to_read},
    problem::Problem,
    reference::{LARGE, ReferenceFile},
};
use os::{
    extents::{is_on_realtime_device, look, map_of, skips_what_is_shared},
    tree::stamp_of,
};

use super::{
    catch_up::{Behind, CatchUp},
    digest::{digest, digest_of_map},
    found::Stored,
    index::{Index, Place},
    large::Large,
    parent::Base,
};
use crate::{
    reference::Keeper,
    repository::{backend::Backend, feed::Feed},
    thin::{Home, Pinned},
};

/// So many differences of one file are named.
const MOST_NAMED: usize = 3;

/// A file as the backup before has it.
pub(crate) struct Older {
    /// Its frozen copy, and what that was when it was stored.
    pub(crate) file: ReferenceFile,
    /// What was stored of it.
    pub(crate) content: Vec<Place>,
}

impl Older {
    /// A file of the reference with what its backup has for it, if that is what was recorded and all of it is there.
    pub(crate) fn proven(stored: &Stored, file: ReferenceFile) -> Option<Self> {
        let is_recorded =
            stored.count as u64 == file.size.0.div_ceil(file.blob.max(1)) && stored.digest == file.content;
        let (content, length) = stored.content.as_ref().filter(|_| is_recorded)?;
        (*length == file.size.0).then(|| Self { file, content: content.clone() })
    }
}

/// A pinned copy that was stored as it is.
pub(crate) struct Frozen {
    /// The original's path.
    pub(crate) path: PathBuf,
    /// Where the copy is.
    pub(crate) copy: PathBuf,
    /// What it lies in.
    pub(crate) home: Home,
    /// What it was before it was read.
    pub(crate) stamp: Stamp,
    /// The size of its blobs.
    pub(crate) blob: u64,
    /// The digest of its map, if it lies in a directory.
    pub(crate) map: Option<String>,
    /// What was stored of it.
    content: Vec<Place>,
    /// The digest of that, once somebody asked.
    digest: OnceLock<String>,
}

impl Frozen {
    /// The digest of what was stored of it.
    pub(crate) fn digest(&self, index: &Index) -> String {
        self.digest.get_or_init(|| digest(&index.names(&self.content))).clone()
    }
}

/// What a backup knows of the one before, and learns for the one after.
pub(crate) struct Carry {
    older: HashMap<PathBuf, Older>,
    /// Copies of files with several names.
    shared: HashSet<PathBuf>,
    /// Everything is read, and what would have been carried over is compared with it.
    proves: bool,
    /// Where copies are kept for the next backup.
    keeper: Keeper,
    found: Mutex<Found>,
}

/// A pinned copy that is being stored.
struct Begun {
    /// Where it is kept from.
    copy: PathBuf,
    home: Home,
    /// What it was.
    stamp: Stamp,
    /// The size of its blobs.
    blob: u64,
    /// The digest of its map, if it lies in a directory.
    map: Option<String>,
}

#[derive(Default)]
struct Found {
    /// Pinned copies that are being stored.
    begun: HashMap<PathBuf, Begun>,
    /// Older copies that are of no use but to be cloned over.
    behind: Vec<Behind>,
    catching_up: Option<CatchUp>,
    frozen: Vec<Frozen>,
    problems: Vec<Problem>,
    /// Why older copies are no use, and whose.
    doubts: BTreeMap<String, Vec<PathBuf>>,
}

/// What is known of a file from the backup before.
pub(crate) struct Compared {
    older: Vec<Place>,
    /// Ranges of chunk numbers that may have changed.
    changed: Vec<Range<u64>>,
    /// The numbers of the chunks that are read; nothing if all are.
    chunks: Option<Vec<u32>>,
    /// How many chunks there are now.
    count: usize,
}

impl Compared {
    fn new(older: Vec<Place>, changed: Vec<Range<u64>>, count: usize, proves: bool) -> Self {
        let chunks = (!proves).then(|| changed.iter().cloned().flatten().map(|n| n as u32).collect());
        Self { older, changed, chunks, count }
    }

    /// The chunks that are read, in order; nothing if all are.
    pub(crate) fn chunks(&self) -> Option<&[u32]> {
        self.chunks.as_deref()
    }

    /// The whole content, of what was read.
    pub(crate) fn whole(&self, read: Vec<Place>) -> Vec<Place> {
        let Some(chunks) = self.chunks() else { return read };
        let mut whole = self.older.clone();
        // Whatever is beyond the end of the older one is among what was read.
        whole.resize(self.count, 0);
        for (chunk, place) in chunks.iter().zip(&read) {
            whole[*chunk as usize] = *place;
        }
        whole
    }

    /// The chunks that would have been carried over and are others.
    fn wrong(&self, content: &[Place]) -> Vec<usize> {
        let is_changed = |n: usize| self.changed.iter().any(|range| range.contains(&(n as u64)));
        let pairs = content.iter().zip(&self.older).enumerate();
        pairs.filter(|(n, (here, there))| here != there && !is_changed(*n)).map(|(n, _)| n).collect()
    }
}

impl Carry {
    /// Begins with what the backup before has.
    pub(crate) fn new(older: Vec<Older>, proves: bool, keeper: Keeper) -> Self {
        let mut copies = HashSet::new();
        let copies_of = older.iter().map(|older| &older.file.copy);
        let shared = copies_of.filter(|copy| !copies.insert(*copy)).cloned().collect();
        let older = older.into_iter().map(|older| (older.file.path.clone(), older)).collect();
        Self { older, shared, proves, keeper, found: Mutex::default() }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares a file with its older copy, before any of it is read; returns how many bytes of it will not be.
    pub(crate) fn compare(&self, entry: &Entry, large: &mut Large) -> u64 {
        let size = entry.meta.size;
        let Some(blob) = large.blob().filter(|_| size >= LARGE) else { return 0 };
        let (Body::At(copy), Some(file)) = (&entry.body, large.pinned()) else {
            self.prove(entry, large, blob);
            return 0;
        };
        // A file that is read where it lives is not frozen.
        let frozen = match self.keeper.freeze(copy, file) {
            Ok(Some(frozen)) => frozen,
            Ok(None) => return 0,
            Err(error) => {
                let what =
                    format!("its frozen copy cannot be kept, so the next backup reads it whole: {error}");
                self.found().problems.push(Problem::note(&entry.path, what));
                return 0;
            }
        };
        let file = frozen.file.as_ref().unwrap_or(file);
        let Ok(stamp) = synced(file).and_then(|()| file.metadata()).map(|meta| stamp_of(&meta)) else {
            return 0;
        };
        // Whoever reads it finds out, too; here chunks would be carried over that it does not have.
        if stamp.size != size {
            return 0;
        }
        let older = self.older.get(&entry.path);
        let newer_at = frozen.path.clone();
        let pinned = frozen.pinned.as_ref();
        let before = older.map(|older| Before::take(older, file, blob, pinned.map(Arc::as_ref)));
        let Ok((newer, space)) = look(file) else { return 0 };
        // A copy that shares little with the original would cost as much as another original.
        if pinned.is_some() || space.own <= space.shared {
            let map = pinned.is_none().then(|| digest_of_map(&newer));
            let home = pinned.cloned().map_or(Home::Directory, Home::Pinned);
            self.found()
                .begun
                .insert(entry.path.clone(), Begun { copy: frozen.path, home, stamp, blob, map });
        }
        let changed = before.map(|before| before.and_then(|before| before.changed(&newer, file, blob)));
        let (older, changed) = match (older, changed) {
            (Some(older), Some(Ok(changed))) => (older.content.clone(), changed),
            (_, Some(Err(why))) => {
                self.found().doubts.entry(why).or_default().push(entry.path.clone());
                return 0;
            }
            _ => return 0,
        };
        self.note_behind(&entry.path, (&newer_at, newer.extents()), &changed, blob);
        let compared = Compared::new(older, changed, size.0.div_ceil(blob) as usize, self.proves);
        let bytes = |n: &u32| blob.min(size.0 - u64::from(*n) * blob);
        let read = compared.chunks().map_or(size.0, |chunks| chunks.iter().map(bytes).sum());
        large.compare_with(compared);
        large.look_for_changed(&newer);
        size.0 - read
    }

    /// Notes what an older copy lacks, if it lies in a directory and is the copy of this file alone.
    fn note_behind(&self, path: &Path, (newer, extents): (&Path, usize), changed: &[Range<u64>], blob: u64) {
        let is_alone =
            |older: &&Older| older.file.volume.is_none() && !self.shared.contains(&older.file.copy);
        let Some(Older { file, .. }) = self.older.get(path).filter(is_alone) else { return };
        let ranges = changed.iter().map(|chunks| chunks.start * blob..chunks.end * blob).collect();
        self.found().behind.push(Behind { older: file.clone(), newer: newer.to_owned(), ranges, extents });
    }

    /// Begins to bring the older copies up to date: everything has been compared with them.
    pub(crate) fn begin_catching_up(&self, backend: &Arc<Backend>) {
        let mut found = self.found();
        let behind = std::mem::take(&mut found.behind);
        found.catching_up = (!behind.is_empty()).then(|| CatchUp::begin(behind, Arc::clone(backend)));
    }

    /// Whether a file is read although a parent has its stamp, since its older copy is to be proven.
    pub(crate) fn is_to_be_proven(&self, path: &Path) -> bool {
        self.proves && self.older.contains_key(path)
    }

    /// A file whose stamp is the parent's is read where it lives: all of it has to be what is stored.
    fn prove(&self, entry: &Entry, large: &mut Large, blob: u64) {
        let Some(older) = self.older.get(&entry.path).filter(|older| older.file.blob == blob) else { return };
        let is_same = entry.body == Body::Carried && older.file.size == entry.meta.size;
        if self.proves && is_same {
            let (copy, stamp) = (older.file.copy.clone(), recorded(&older.file));
            let begun = Begun { copy, home: home(&older.file), stamp, blob, map: older.file.map.clone() };
            self.found().begun.insert(entry.path.clone(), begun);
            large.compare_with(Compared::new(older.content.clone(), Vec::new(), older.content.len(), true));
        }
    }

    /// A file is stored: what is kept of it, and whether it is what was carried over in the nights before.
    pub(crate) fn stored(&self, entry: &Entry, large: &Large, content: &[Place]) {
        let mut found = self.found();
        let Some(Begun { copy, home, stamp, blob, map }) = found.begun.remove(&entry.path) else { return };
        if self.proves
            && let Some(compared) = large.compared()
        {
            found.problems.extend(alarm(&entry.path, &compared.wrong(content), blob));
        }
        let (path, content) = (entry.path.clone(), content.to_vec());
        let digest = OnceLock::new();
        found.frozen.push(Frozen { path, copy, home, stamp, blob, map, content, digest });
    }

    /// The older copies of files that were carried over by their stamps still are their frozen copies.
    pub(crate) fn carried(&self, feed: &Feed, bases: &[Base]) {
        if self.older.is_empty() {
            return;
        }
        let carried = |entry: &Entry| entry.body == Body::Carried && !self.is_to_be_proven(&entry.path);
        for (_, entry) in feed.entries().filter(|(_, entry)| carried(entry)) {
            let Some(older) = self.older.get(&entry.path) else { continue };
            let stamp = entry.meta.stamp();
            let mut bases = bases.iter().map(|base| &base.contents);
            let content = bases.find_map(|contents| contents.content(contents.find(&entry.path, &stamp)?));
            if content == Some(&older.content) {
                self.carry_on(older);
            }
        }
    }

    fn carry_on(&self, older: &Older) {
        let (stamp, home, content) = (recorded(&older.file), home(&older.file), older.content.clone());
        let ReferenceFile { path, copy, blob, map, .. } = older.file.clone();
        let digest = OnceLock::new();
        self.found().frozen.push(Frozen { path, copy, home, stamp, blob, map, content, digest });
    }

    /// What was found wrong or worth knowing, once.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut found = self.found();
        let doubts = std::mem::take(&mut found.doubts);
        let problems = std::mem::take(&mut found.problems).into_iter();
        problems.chain(doubts.into_iter().filter_map(|(why, paths)| doubt(&why, paths))).collect()
    }

    /// Makes the digests that will be asked for: there is a moment for it while others wait for the disk.
    pub(crate) fn make_digests(&self, index: &Index) {
        for frozen in &self.found().frozen {
            frozen.digest(index);
        }
    }

    /// What can be kept, and where.
    pub(crate) fn into_kept(self) -> (Vec<Frozen>, Keeper) {
        let found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(catching_up) = found.catching_up {
            catching_up.finish();
        }
        (found.frozen, self.keeper)
    }
}

/// An older copy that was found to be what it was when it was stored, with its map.
struct Before<'a> {
    recorded: &'a ReferenceFile,
    copy: File,
    /// Its map; nothing if what was written down of it is compared with.
    map: Option<Map>,
    /// If they lie in two snapshots: the newer one, and where both hold the same.
    snapshots: Option<(&'a Pinned, &'a [Range<u64>])>,
}

impl<'a> Before<'a> {
    /// Makes sure of the older copy of a file, and takes its map; or says why it is no use.
    fn take(older: &'a Older, newer: &File, blob: u64, pinned: Option<&'a Pinned>) -> Result<Self, String> {
        let recorded = &older.file;
        if recorded.blob != blob {
            return Err(format!("it was cut into parts of {} bytes, and is now of {blob}", recorded.blob));
        }
        let (copy, snapshots) = match (&recorded.volume, pinned) {
            (None, None) => {
                let copy =
                    open_copy(&recorded.copy).map_err(|error| format!("it cannot be opened: {error}"))?;
                let device = |file: &File| file.metadata().map(|meta| meta.dev());
                if device(&copy).map_err(unknown)? != device(newer).map_err(unknown)? {
                    return Err("it is on another filesystem".into());
                }
                (copy, None)
            }
            (Some(name), Some(pinned)) => {
                let (copy, same) = pinned.open_before(name, &recorded.copy, open_copy)?;
                (copy, Some((pinned, same)))
            }
            _ => return Err("it was frozen in another way".into()),
        };
        is_as_stored(&copy, recorded)?;
        if is_on_realtime_device(&copy) || is_on_realtime_device(newer) {
            return Err("it is on a realtime device, whose addresses are also those of other bytes".into());
        }
        let map = match recorded.map {
            Some(_) => None,
            None => Some(synced(&copy).and_then(|()| map_of(&copy)).map_err(unknown)?),
        };
        Ok(Self { recorded, copy, map, snapshots })
    }

    /// The chunks that may have changed, by the map of the newer copy that was taken since.
    fn changed(self, newer: &Map, newer_file: &File, blob: u64) -> Result<Vec<Range<u64>>, String> {
        let mut after = map_of(&self.copy).map_err(unknown)?;
        let mut anew = None;
        let before = match self.map {
            Some(map) => map,
            // It is where it was when it was the newer one, and has not been elsewhere and come back since.
            None if self.recorded.map == Some(digest_of_map(&after)) => after.clone(),
            None => {
                let before = after;
                anew = Some(map_of(newer_file).map_err(unknown)?);
                after = map_of(&self.copy).map_err(unknown)?;
                before
            }
        };
        let newer = anew.as_ref().unwrap_or(newer);
        is_as_stored(&self.copy, self.recorded)?;
        let changed = match self.snapshots {
            None => chunks_to_read(&before, newer, &after, blob),
            Some((pinned, _)) if !pinned.is_untouched() => {
                return Err("something was written to its snapshot".into());
            }
            Some((_, same)) => chunks_to_read(&before, &newer.trusted_within(same), &after, blob),
        };
        changed.ok_or_else(|| "the filesystem is moving its extents about".into())
    }
}

/// What an older copy lies in.
fn home(file: &ReferenceFile) -> Home {
    file.volume.clone().map_or(Home::Directory, Home::Kept)
}

/// Sees to it that the next map of a pinned copy shows where its bytes are. On XFS that is done when it is cloned, which
/// writes the original's dirty pages first: a clone has none of its own, and its map asks for that once more. To make a clone
/// durable beside costs a flush of the device; the record of it is written later, and XFS's log keeps that order.
fn synced(file: &File) -> io::Result<()> {
    if skips_what_is_shared(file)? { Ok(()) } else { file.sync_all() }
}

fn unknown(error: io::Error) -> String {
    format!("its extents cannot be compared: {error}")
}

/// Opens a copy of ours for reading, and nothing else.
fn open_copy(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// The stamp that a copy has to have.
pub(crate) fn recorded(file: &ReferenceFile) -> Stamp {
    file.stamp()
}

fn is_as_stored(copy: &File, file: &ReferenceFile) -> Result<(), String> {
    match copy.metadata().map(|meta| stamp_of(&meta)) {
        Ok(stamp) if stamp == recorded(file) => Ok(()),
        Ok(_) => {
            Err("it was changed since it was stored, maybe by a backup that did not come to its end".into())
        }
        Err(error) => Err(unknown(error)),
    }
}

/// Files that are read whole although there is an older copy.
fn doubt(why: &str, mut paths: Vec<PathBuf>) -> Option<Problem> {
    paths.sort();
    let others = match paths.len() {
        0 | 1 => String::new(),
        n => format!(", like {} others", n - 1),
    };
    let what = format!("is read whole{others}: of its frozen copy of the backup before, {why}");
    Some(Problem::note(paths.first()?, what))
}

/// What was carried over in the nights before is not what the disk holds now.
fn alarm(path: &Path, wrong: &[usize], blob: u64) -> Option<Problem> {
    let first = wrong.first()?;
    let named = wrong.iter().take(MOST_NAMED).map(|n| (*n as u64 * blob).to_string()).collect::<Vec<_>>();
    let more = if wrong.len() > MOST_NAMED { " and more" } else { "" };
    tracing::error!(path = %path.display(), first, count = wrong.len(), "carried parts are not what was read");
    let what = format!(
        "{} of its parts of {blob} bytes, at bytes {}{more}, are not what the backups since the last full reading have for \
         them, although their extents did not change; this backup has what was read now",
        wrong.len(),
        named.join(", ")
    );
    let remedy = "look into the kernel's log for errors of the disk, check this file with its database's own tools, and trust \
                  the backups since the last full reading as little as this one until one of the two is found good";
    Some(Problem::weaker(path, what, remedy))
}

#[cfg(test)]
mod tests {
    use super::Compared;

    #[test]
    fn what_was_read_stands_between_what_was_carried() {
        let compared = Compared::new(vec![10, 11, 12, 13], vec![1..2, 3..5], 5, false);
        assert_eq!(compared.chunks(), Some(&[1, 3, 4][..]));
        assert_eq!(compared.whole(vec![21, 23, 24]), [10, 21, 12, 23, 24]);
        let shorter = Compared::new(vec![10, 11, 12, 13], vec![1..2, 2..3], 3, false);
        assert_eq!(shorter.whole(vec![21, 22]), [10, 21, 22]);
    }

    #[test]
    fn what_was_not_changed_is_proven_by_what_was_read() {
        let compared = Compared::new(vec![10, 11, 12, 13], vec![1..2, 4..5], 4, true);
        assert_eq!(compared.chunks(), None);
        assert_eq!(compared.whole(vec![10, 21, 12, 13]), [10, 21, 12, 13]);
        assert!(compared.wrong(&[10, 21, 12, 13]).is_empty());
        assert_eq!(compared.wrong(&[10, 21, 22, 13]), [2]);
        assert!(compared.wrong(&[10, 21]).is_empty(), "what is gone is not wrong");
    }
}
