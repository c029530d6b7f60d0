//! The staging directory of one source, and bringing one file into it.
//!
//! Crash story: numbered files in a journalled directory. A half-written one is never named by an entry: it is
//! used only after the source's stamp was found to be the same before and after.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use model::{
    entry::{Body, Stamp},
    extents::Map,
    size::Bytes,
};
use os::{
    extents::{clone_file, clone_range, clone_rest, is_unsupported, map_of, skips_what_is_shared},
    staging::{Staging, StagingError, is_no_space},
    tree,
};
use rustix::{
    fs::{IFlags, SeekFrom, ioctl_getflags, ioctl_setflags, seek},
    io::Errno,
};

use super::table::Place;

/// How many files share one directory of the staging directory.
const PER_DIRECTORY: u32 = 4096;
/// How much is copied between two looks at the clock.
const CHUNK: usize = 1 << 20;
/// From this size on it pays to compare extents with the clone of the round before instead of cloning anew.
const WORTH_COMPARING: u64 = 1 << 20;
/// How much is cloned between two looks at the clock. Nobody can write the file meanwhile, so while it is in use
/// this is also for its writers' sake: in 16 MiB there are seldom more than 1000 extents, 40 ms.
const PIECE: u64 = 16 << 20;
/// How many extents of clones are kept in memory at the most (32 bytes each).
const MOST_EXTENTS: usize = 2 << 20;

/// A directory of numbered copies.
#[derive(Debug)]
pub(super) struct Copies {
    staging: Mutex<Option<Staging>>,
    path: PathBuf,
    next: AtomicU32,
    maps: Mutex<Maps>,
}

/// Where the extents of clones lie, by number, on filesystems where an older clone is compared.
#[derive(Debug, Default)]
struct Maps {
    /// As they were when the unlocked rounds had made them: under the freeze only the live file is mapped.
    known: HashMap<u32, Map>,
    /// What was believed under the freeze and is still to be shown: outside these ranges the clone has this map.
    unproven: HashMap<u32, (Map, Vec<Range<u64>>)>,
    /// Sum over `known`.
    extents: usize,
}

impl Maps {
    fn keep(&mut self, number: u32, map: Map) {
        if self.extents + map.extents() <= MOST_EXTENTS {
            self.extents += map.extents();
            self.known.insert(number, map);
        }
    }

    /// Takes away what is known of a clone that is about to be changed.
    fn forget(&mut self, number: u32) -> Option<Map> {
        self.unproven.remove(&number);
        let map = self.known.remove(&number)?;
        self.extents -= map.extents();
        Some(map)
    }
}

/// A clone that may be there already.
struct Older {
    number: u32,
    is_there: bool,
    /// Its map, as of the last time that it was brought up to date.
    known: Option<Map>,
}

/// Why a file could not be brought in.
#[derive(Debug)]
pub(super) enum Untaken {
    /// Its name is gone, or something else stands there.
    Vanished,
    /// It cannot be opened or read.
    Unreadable(io::Error),
    /// These two filesystems cannot share extents.
    CannotClone(io::Error),
    /// There is not enough time left.
    TooLate,
    /// The staging directory is the trouble.
    Staging(io::Error),
}

/// A file that was brought in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    pub number: u32,
    /// The stamp after the copying.
    pub stamp: Stamp,
    /// It was the same before the copying: the copy is the content of this stamp.
    pub whole: bool,
    /// How large the copy is.
    pub bytes: Bytes,
}

/// How a file is brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Clone,
    Copy,
}

/// When a file is brought in.
#[derive(Clone, Copy)]
pub(super) struct When<'a> {
    /// Everybody is held: what can be done after the thaw is left until then.
    pub frozen: bool,
    /// Asked every now and then.
    pub late: &'a (dyn Fn() -> bool + Sync),
}

impl Copies {
    pub(super) fn new(staging: Staging) -> Self {
        let path = staging.path().to_owned();
        Self { staging: Mutex::new(Some(staging)), path, next: AtomicU32::new(0), maps: Mutex::default() }
    }

    /// Whether the directory was removed.
    pub(super) fn are_gone(&self) -> bool {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Removes the directory, if it is still there.
    pub(super) fn remove(&self) -> Result<(), StagingError> {
        let staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner).take();
        staging.map_or(Ok(()), Staging::release)
    }

    pub(super) fn path_of(&self, number: u32) -> PathBuf {
        self.path.join(format!("{:x}", number / PER_DIRECTORY)).join(format!("{number:x}"))
    }

    /// Where the bytes of a file are.
    pub(super) fn body(&self, place: Place) -> Body {
        match place {
            Place::Parent => Body::Carried,
            Place::Staged { number, .. } => Body::At(self.path_of(number)),
        }
    }

    /// Takes a copy that nobody needs any more, to be cloned over; nothing where that is no gain, or it is not what such a
    /// copy is. Whatever is in it, it is a copy of no state.
    pub(super) fn adopt(&self, spare: &Path, size: Bytes) -> Option<u32> {
        let adopted = || -> io::Result<Option<u32>> {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(spare)?;
            let (meta, top) = (file.metadata()?, std::fs::metadata(&self.path)?);
            // One that was left by another file of that name is no less work than a new one.
            let is_like_it = meta.len() / 2 <= size.0 && size.0 / 2 <= meta.len();
            let is_a_copy = meta.is_file()
                && (meta.nlink(), meta.mode() & 0o7777) == (1, 0o600)
                && (meta.uid(), meta.gid(), meta.dev()) == (top.uid(), top.gid(), top.dev());
            if !is_like_it || !is_a_copy || !skips_what_is_shared(&file)? {
                return Ok(None);
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.path_of(number);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::rename(spare, path)?;
            Ok(Some(number))
        };
        adopted().unwrap_or_else(|error| {
            tracing::debug!(spare = %spare.display(), %error, "a new clone is made");
            None
        })
    }

    /// Brings a file in as it is now, over the copy `old` of it if there is one.
    pub(super) fn take(
        &self,
        path: &Path,
        way: Way,
        old: Option<u32>,
        when: When<'_>,
    ) -> Result<Taken, Untaken> {
        let source = open_source(path)?;
        let before = stamp_of(&source).map_err(Untaken::Unreadable)?;
        let (number, target) = self.target(old).map_err(Untaken::Staging)?;
        let known = self.maps().forget(number);
        match way {
            Way::Clone if skips_what_is_shared(&target).map_err(Untaken::Staging)? => {
                clone_over(&source, &target, before.size, when)?;
            }
            Way::Clone if before.size.0 < WORTH_COMPARING => clone_whole(&source, &target)?,
            Way::Clone => {
                let older = Older { number, is_there: old.is_some(), known };
                self.clone_compared(&source, &target, older, before.size, when)?;
            }
            Way::Copy => copy_data(&source, &target, before.size, when.late)?,
        }
        let after = stamp_of(&source).map_err(Untaken::Unreadable)?;
        let bytes = Bytes(target.metadata().map_err(Untaken::Staging)?.len());
        Ok(Taken { number, stamp: after, whole: before == after && bytes == after.size, bytes })
    }

    /// Clones what differs from an older clone, if there is one; everything, where that cannot be told.
    fn clone_compared(
        &self,
        source: &File,
        target: &File,
        older: Older,
        size: Bytes,
        when: When<'_>,
    ) -> Result<(), Untaken> {
        let number = older.number;
        let updated = match older.known {
            Some(known) if when.frozen => update_clone(source, target, &known, size).map(|ranges| {
                self.maps().unproven.insert(number, (known, ranges));
            }),
            _ if older.is_there => {
                update_and_prove(source, target, size).map(|map| self.maps().keep(number, map))
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        match updated {
            Ok(()) => return Ok(()),
            Err(error) if is_no_space(&error) => return Err(Untaken::Staging(error)),
            Err(error) => tracing::debug!(%error, "extents are not compared: the whole file is cloned"),
        }
        clone_whole(source, target)?;
        if !when.frozen
            && let Ok(map) = map_of(target)
        {
            self.maps().keep(number, map);
        }
        Ok(())
    }

    /// The copies of which it cannot be shown that they are what was pinned: the filesystem moved their extents
    /// about meanwhile. To be asked once after the thaw.
    pub(super) fn unproven(&self) -> HashSet<PathBuf> {
        let unproven = std::mem::take(&mut self.maps().unproven);
        let doubtful = |(number, (map, ranges)): (u32, (Map, Vec<Range<u64>>))| {
            let path = self.path_of(number);
            let now = File::open(&path).and_then(|file| map_of(&file));
            (!now.is_ok_and(|now| map.holds_outside(&ranges, &now))).then_some(path)
        };
        unproven.into_iter().filter_map(doubtful).collect()
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        // Nothing is left half-done under it.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(&self, old: Option<u32>) -> io::Result<(u32, File)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if let Some(number) = old {
            return Ok((number, options.open(self.path_of(number))?));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path_of(number);
        options.create_new(true).mode(0o600);
        match (options.open(&path), path.parent()) {
            // The first of its directory, or another thread is about to make that.
            (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(parent)?;
                Ok((number, options.open(path)?))
            }
            (opened, _) => Ok((number, opened?)),
        }
    }
}

/// Opens a regular file without following a link, waiting for a fifo's writer or changing its access time.
pub(super) fn open_source(path: &Path) -> Result<File, Untaken> {
    let open = |more: i32| {
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | more).open(path)
    };
    // O_NOATIME is for the owner and for root only.
    let opened = match open(libc::O_NOATIME) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => open(0),
        opened => opened,
    };
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Untaken::Vanished,
        _ => Untaken::Unreadable(error),
    })?;
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        Ok(_) => Err(Untaken::Vanished),
        Err(error) => Err(Untaken::Unreadable(error)),
    }
}

pub(super) fn stamp_of(file: &File) -> io::Result<Stamp> {
    file.metadata().map(|meta| tree::stamp_of(&meta))
}

fn clone_whole(source: &File, target: &File) -> Result<(), Untaken> {
    target.set_len(0).map_err(Untaken::Staging)?;
    match clone_file(source, target) {
        // btrfs: a file without copy-on-write and one with it share nothing, so let both be of one kind.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            let alike = ioctl_getflags(source)
                .and_then(|flags| ioctl_setflags(target, flags & IFlags::NOCOW))
                .map_err(io::Error::from);
            alike.and_then(|()| clone_file(source, target)).map_err(untaken)
        }
        cloned => cloned.map_err(untaken),
    }
}

/// Clones over an older clone, or into a new file, where the kernel skips what is shared already. This compares and
/// clones in one step, waits for writes that are under way, and cannot be misled by extents that are moved.
fn clone_over(source: &File, target: &File, size: Bytes, when: When<'_>) -> Result<(), Untaken> {
    if target.metadata().map_err(Untaken::Staging)?.len() > size.0 {
        target.set_len(size.0).map_err(Untaken::Staging)?;
    }
    let mut at = 0;
    let cloned = loop {
        if size.0 - at <= PIECE {
            break if size.0 == 0 { Ok(()) } else { clone_rest(source, target, at) };
        }
        if (when.late)() {
            return Err(Untaken::TooLate);
        }
        match clone_range(source, target, at..at + PIECE) {
            Ok(()) => at += PIECE,
            Err(error) => break Err(error),
        }
    };
    match cloned {
        // It has become shorter, or is of another kind.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => clone_whole(source, target),
        cloned => cloned.map_err(untaken),
    }
}

/// Clones again what differs from an older clone, of which this is the map; says what that was.
fn update_clone(source: &File, target: &File, known: &Map, size: Bytes) -> io::Result<Vec<Range<u64>>> {
    let ranges = map_of(source)?.differing_from(known);
    target.set_len(size.0)?;
    ranges.iter().try_for_each(|range| clone_range(source, target, range.clone()))?;
    Ok(ranges)
}

/// The same, of a clone whose map is not known, and makes sure of it; hands over the map that it has then.
fn update_and_prove(source: &File, target: &File, size: Bytes) -> io::Result<Map> {
    let before = map_of(target)?;
    let ranges = update_clone(source, target, &before, size)?;
    let after = map_of(target)?;
    if before.holds_outside(&ranges, &after) {
        Ok(after)
    } else {
        Err(io::Error::new(io::ErrorKind::Interrupted, "extents are being moved"))
    }
}

fn untaken(error: io::Error) -> Untaken {
    if is_no_space(&error) {
        Untaken::Staging(error)
    } else if is_unsupported(&error) || error.kind() == io::ErrorKind::InvalidInput {
        Untaken::CannotClone(error)
    } else {
        Untaken::Unreadable(error)
    }
}

/// Copies what is data; holes stay holes.
fn copy_data(
    source: &File,
    target: &File,
    size: Bytes,
    late: &(dyn Fn() -> bool + Sync),
) -> Result<(), Untaken> {
    let has_holes = source.metadata().map_err(Untaken::Unreadable)?.blocks() * 512 < size.0;
    if has_holes {
        target.set_len(0).map_err(Untaken::Staging)?;
    }
    let next =
        |at| if has_holes { next_data(source, at, size.0) } else { Ok((at < size.0).then_some(at..size.0)) };
    let mut buffer = Vec::new();
    let mut at = 0;
    while let Some(data) = next(at).map_err(Untaken::Unreadable)? {
        at = data.start;
        while at < data.end {
            if late() {
                return Err(Untaken::TooLate);
            }
            let want = usize::try_from(data.end - at).unwrap_or(CHUNK).min(CHUNK);
            buffer.resize(want, 0);
            let got = source.read_at(&mut buffer, at).map_err(Untaken::Unreadable)?;
            if got == 0 {
                // Shorter than it was: the stamp will tell.
                return target.set_len(at).map_err(Untaken::Staging);
            }
            target.write_all_at(&buffer[..got], at).map_err(Untaken::Staging)?;
            at += got as u64;
        }
    }
    target.set_len(size.0).map_err(Untaken::Staging)
}

/// The next range with data at or after `at` and before `end`; all of it where the filesystem does not say.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    if at >= end {
        return Ok(None);
    }
    let start = match seek(file.as_fd(), SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some(at..end)),
        Err(error) => return Err(error.into()),
    };
    let stop = seek(file.as_fd(), SeekFrom::Hole(start)).unwrap_or(end);
    Ok((start < end).then(|| start..stop.min(end)))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::{Read, Seek, SeekFrom, Write},
        os::unix::fs::MetadataExt,
    };

    use model::size::Bytes;

    use super::{copy_data, open_source};

    #[test]
    fn a_copy_keeps_bytes_and_holes() {
        let dir = tempfile::tempdir().unwrap();
        let mut source = File::create_new(dir.path().join("s")).unwrap();
        source.write_all(&[1; 5000]).unwrap();
        source.seek(SeekFrom::Start(20 << 20)).unwrap();
        source.write_all(&[2; 5000]).unwrap();
        source.set_len(40 << 20).unwrap();
        let source = File::open(dir.path().join("s")).unwrap();
        let path = dir.path().join("t");
        fs::write(&path, vec![9; 100_000]).unwrap();
        let target = File::options().read(true).write(true).open(&path).unwrap();
        copy_data(&source, &target, Bytes(40 << 20), &|| false).unwrap();
        assert!(fs::read(&path).unwrap() == fs::read(dir.path().join("s")).unwrap());
        let blocks = fs::metadata(&path).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks: the holes were filled");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        open_source(&fifo).unwrap_err();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        open_source(&dir.path().join("link")).unwrap_err();
        let mut text = String::new();
        fs::write(dir.path().join("f"), "x").unwrap();
        open_source(&dir.path().join("f")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }
}
