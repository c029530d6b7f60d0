//! Contents of files that are stored already, by path and stamp: what a backup carries over without opening
//! anything.
//!
//! A million files take about 50 MB: 24 bytes for each file and 4 for each of its blobs, sorted by the first
//! half of a SHA-256 over path and stamp. That half is long enough that nobody finds two files that share it.
//!
//! Crash story: memory and reading only.

use std::{
    collections::{HashMap, HashSet},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use model::{entry::Stamp, known::Known, reference::LARGE};
use sha2::{Digest, Sha256};

use super::{
    blobs::{Blobs, no_tree},
    cores,
    found::{Content, Found, MANY, Stored, look_up_all},
    index::Place,
    name::Name,
    node::{StoredKind, StoredNode},
};
use crate::repository::error::RepositoryError;

/// Half a SHA-256 over path and stamp.
type Key = [u8; 16];

fn key(path: &Path, stamp: &Stamp) -> Key {
    let mut hash = Sha256::new();
    hash.update(stamp.size.0.to_le_bytes());
    hash.update(stamp.mtime.to_le_bytes());
    hash.update(stamp.ctime.to_le_bytes());
    hash.update(stamp.inode.to_le_bytes());
    hash.update(path.as_os_str().as_bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&hash.finalize()[..16]);
    key
}

/// Which of so many buckets, a power of two, a key belongs to: by its first bits, so that they are in order.
fn bucket_of(key: &Key, buckets: usize) -> usize {
    let [a, b, c, d, ..] = *key;
    ((u64::from(u32::from_be_bytes([a, b, c, d])) * buckets as u64) >> 32) as usize
}

#[derive(Clone, Copy)]
struct File {
    key: Key,
    from: u32,
    blobs: u32,
}

/// Contents by path and stamp.
#[derive(Default, Clone)]
pub(crate) struct Contents {
    files: Vec<File>,
    places: Vec<Place>,
    /// Where the files begin whose keys begin with these bits, and where the last of them end; nothing until they are
    /// sorted. Keys are evenly spread, so each is among a few.
    starts: Vec<u32>,
}

/// So many files, or half as many, have the same first bits of their keys.
const TOGETHER: usize = 8;

impl Contents {
    /// Adds a file.
    pub(crate) fn add(&mut self, path: &Path, stamp: &Stamp, content: &[Place]) {
        let (from, blobs) = (self.places.len() as u32, content.len() as u32);
        self.files.push(File { key: key(path, stamp), from, blobs });
        self.places.extend_from_slice(content);
        self.starts.clear();
    }

    /// Makes it ready for [`Self::get`].
    pub(crate) fn sort(&mut self) {
        // Parts that are sorted are merged.
        self.files.sort_by_key(|file| file.key);
        let buckets = (self.files.len() / TOGETHER).next_power_of_two();
        self.starts = Vec::with_capacity(buckets + 1);
        let mut at = 0;
        for bucket in 0..buckets {
            let is_before = |file: &File| bucket_of(&file.key, buckets) < bucket;
            at += self.files[at..].iter().take_while(|file| is_before(file)).count();
            self.starts.push(at as u32);
        }
        self.starts.push(self.files.len() as u32);
    }

    /// The number of the file with this path and stamp.
    pub(crate) fn find(&self, path: &Path, stamp: &Stamp) -> Option<usize> {
        debug_assert!(!self.starts.is_empty() || self.files.is_empty(), "sorted before it is asked");
        let key = key(path, stamp);
        let bucket = bucket_of(&key, self.starts.len().checked_sub(1)?);
        let (from, to) = (self.starts[bucket] as usize, self.starts[bucket + 1] as usize);
        self.files[from..to].binary_search_by_key(&key, |file| file.key).ok().map(|at| from + at)
    }

    /// The content of the file with this number.
    pub(crate) fn content(&self, number: usize) -> Option<&[Place]> {
        let file = self.files.get(number)?;
        self.places.get(file.from as usize..(file.from + file.blobs) as usize)
    }

    fn append(&mut self, other: Self) {
        let by = self.places.len() as u32;
        self.files.extend(other.files.iter().map(|file| File { from: file.from + by, ..*file }));
        self.places.extend_from_slice(&other.places);
        self.starts.clear();
    }
}

/// What is stored already, for the archiver and for those who pin.
#[derive(Default, Clone)]
pub(crate) struct Base {
    /// Which stamps there are.
    pub(crate) known: Arc<Known>,
    /// What they stand for.
    pub(crate) contents: Arc<Contents>,
    /// What is stored of the files that were asked for by path, whatever their stamps are.
    pub(crate) wanted: Arc<HashMap<PathBuf, Stored>>,
    /// The directories that were read for this: each stands in its pack as its name says.
    pub(crate) read: Arc<HashSet<Name>>,
}

impl Base {
    /// This and what another one has.
    pub(crate) fn and(mut self, other: Self) -> Self {
        Arc::make_mut(&mut self.known).append(Arc::unwrap_or_clone(other.known));
        let contents = Arc::make_mut(&mut self.contents);
        contents.append(Arc::unwrap_or_clone(other.contents));
        contents.sort();
        self
    }
}

/// Directories that are still to be read.
struct Todo {
    dirs: Vec<(PathBuf, Name)>,
    /// How many threads are reading one.
    busy: usize,
}

struct Queue {
    todo: Mutex<Todo>,
    changed: Condvar,
}

impl Queue {
    fn todo(&self) -> MutexGuard<'_, Todo> {
        self.todo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next directory; nothing when all are read.
    fn next(&self) -> Option<(PathBuf, Name)> {
        let mut todo = self.todo();
        loop {
            if let Some(next) = todo.dirs.pop() {
                todo.busy += 1;
                return Some(next);
            }
            if todo.busy == 0 {
                return None;
            }
            todo = self.changed.wait(todo).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, found: Vec<(PathBuf, Name)>) {
        let mut todo = self.todo();
        todo.busy -= 1;
        todo.dirs.extend(found);
        self.changed.notify_all();
    }
}

/// One thread's share.
#[derive(Default)]
struct Share {
    known: Known,
    contents: Contents,
    wanted: HashMap<PathBuf, Stored>,
    read: HashSet<Name>,
    unreadable: Vec<(PathBuf, RepositoryError)>,
}

/// Reads a whole stored tree: the stamps and contents of all its files that can be carried over, which are not
/// smudged and whose parts are all in the index; the contents of the wanted files; and which of its directories cannot
/// be read.
pub(crate) fn read(
    blobs: Blobs<'_>,
    root: Name,
    wanted: &HashSet<PathBuf>,
) -> (Base, Vec<(PathBuf, RepositoryError)>) {
    let first = vec![(PathBuf::from("/"), root)];
    let queue = Queue { todo: Mutex::new(Todo { dirs: first, busy: 0 }), changed: Condvar::new() };
    let mut shares: Vec<Share> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cores()).map(|_| scope.spawn(|| share(blobs, &queue, wanted))).collect();
        // A thread cannot panic: everything in it returns errors.
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut all = shares.pop().unwrap_or_default();
    for share in shares {
        all.known.append(share.known);
        all.contents.append(share.contents);
        all.wanted.extend(share.wanted);
        all.read.extend(share.read);
        all.unreadable.extend(share.unreadable);
    }
    all.contents.sort();
    all.unreadable.sort_by(|a, b| a.0.cmp(&b.0));
    let (known, contents, wanted) = (Arc::new(all.known), Arc::new(all.contents), Arc::new(all.wanted));
    (Base { known, contents, wanted, read: Arc::new(all.read) }, all.unreadable)
}

fn share(blobs: Blobs<'_>, queue: &Queue, wanted: &HashSet<PathBuf>) -> Share {
    let mut share = Share::default();
    while let Some((dir, tree)) = queue.next() {
        let mut found = Vec::new();
        match share.directory(blobs, &dir, &tree, wanted, &mut found) {
            Ok(()) => drop(share.read.insert(tree)),
            Err(error) => share.unreadable.push((dir, error)),
        }
        queue.done(found);
    }
    share
}

impl Share {
    fn directory(
        &mut self,
        blobs: Blobs<'_>,
        dir: &Path,
        tree: &Name,
        wanted: &HashSet<PathBuf>,
        found: &mut Vec<(PathBuf, Name)>,
    ) -> Result<(), RepositoryError> {
        let stored = blobs.unproven_tree(tree)?;
        let nodes = stored.read(StoredNode::parse_tree)?.map_err(|error| no_tree(tree, &error))?;
        let (mut path, mut files) = (PathBuf::new(), Vec::new());
        for node in &nodes {
            // Anew each time: a name that is none must not lead the next ones elsewhere.
            path.clear();
            path.push(dir);
            path.push(node.file_name());
            if let Some(subtree) = node.subtree {
                found.push((path.clone(), subtree));
            } else if let Some(file) = StoredFile::of(node, &path, wanted) {
                if file.content.names.len() < MANY {
                    self.add(&path, &file, file.content.look_up(blobs.index));
                } else {
                    files.push((path.clone(), file));
                }
            }
        }
        let contents: Vec<Content<'_>> = files.iter().map(|(_, file)| file.content).collect();
        for ((path, file), found) in files.iter().zip(look_up_all(blobs.index, &contents)) {
            self.add(path, file, found);
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, file: &StoredFile<'_>, found: Found) {
        if let (Some(stamp), Some((content, _))) = (file.stamp, &found.places) {
            self.known.insert(path, stamp);
            self.contents.add(path, &stamp, content);
        }
        if file.content.is_wanted {
            self.wanted.insert(path.to_owned(), found.into());
        }
    }
}

/// A file that can be carried over, or is wanted.
struct StoredFile<'n> {
    stamp: Option<Stamp>,
    content: Content<'n>,
}

impl<'n> StoredFile<'n> {
    fn of(node: &'n StoredNode<'_>, path: &Path, wanted: &HashSet<PathBuf>) -> Option<Self> {
        let is_large = node.kind == StoredKind::File && node.size >= LARGE.0;
        let (is_wanted, stamp) = (is_large && wanted.contains(path), node.stamp());
        let names = node.content.as_deref().unwrap_or_default();
        (is_wanted || stamp.is_some()).then_some(Self { stamp, content: Content { names, is_wanted } })
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use model::{entry::Stamp, size::Bytes};

    use super::Contents;

    fn path(n: u32) -> PathBuf {
        Path::new("/d").join(n.to_string())
    }

    #[test]
    fn every_file_is_found_and_no_other() {
        let stamp = |n: u32| Stamp { size: Bytes(u64::from(n)), mtime: 1, ctime: 2, inode: 3 };
        for count in [0, 1, 7, 8, 9, 100, 5000_u32] {
            let mut parts = [Contents::default(), Contents::default()];
            (0..count).for_each(|n| parts[n as usize % 2].add(&path(n), &stamp(n), &[n, n + 1]));
            let [mut all, other] = parts;
            all.sort();
            all.append(other);
            all.sort();
            for n in 0..count {
                let found = all.find(&path(n), &stamp(n)).and_then(|number| all.content(number));
                assert_eq!(found, Some(&[n, n + 1][..]), "{n} of {count}");
                assert_eq!(all.find(&path(n), &stamp(n + 1)), None);
            }
            assert_eq!(all.find(&path(count), &stamp(count)), None);
        }
    }
}
