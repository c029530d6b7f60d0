//! Sharing extents between files, and telling which ranges of two files may differ without reading them.
//!
//! Crash story: cloning a whole file is one step for the kernel; a file that was being brought up to date
//! range by range is of no use after a crash and goes with its staging directory. Whoever compares must see
//! to it that the live file is not written meanwhile; what a filesystem moves on its own (balance,
//! defragmentation) is noticed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    ops::Range,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::{Mutex, PoisonError},
};

use model::{
    extents::{Extent, Map},
    size::Bytes,
};
use rustix::{
    io::Errno,
    ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode},
};

/// `struct file_clone_range`, linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct CloneRange {
    source_fd: i64,
    source_offset: u64,
    source_length: u64,
    target_offset: u64,
}

const FICLONERANGE: Opcode = opcode::write::<CloneRange>(0x94, 13);

/// How many extents are asked for at once.
const BATCH: usize = 256;

/// `struct fiemap` with room for [`BATCH`] extents, linux/fiemap.h.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [FiemapExtent; BATCH],
}

/// `struct fiemap_extent`, linux/fiemap.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` without extents: what its opcode counts.
#[repr(C)]
struct FiemapHead([u64; 4]);

const FS_IOC_FIEMAP: Opcode = opcode::read_write::<FiemapHead>(b'f', 11);
/// Write the file's dirty pages before mapping it.
const FIEMAP_FLAG_SYNC: u32 = 1;
/// The last extent of the file.
const FIEMAP_EXTENT_LAST: u32 = 1;
/// Other files have it too.
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
/// UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE, DATA_TAIL, UNWRITTEN: an equal
/// address does not mean equal bytes.
const DOUBTFUL: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800;

/// Makes `dst` share all extents of `src` (`FICLONE`). What `dst` held beyond the length of `src` stays:
/// truncate it first.
///
/// # Errors
/// `EXDEV` or `EOPNOTSUPP` where the filesystem cannot do it ([`is_unsupported`]); `EINVAL` for this pair of
/// files, such as one with and one without checksums on btrfs; `ENOSPC`, `EDQUOT`.
pub fn clone_file(src: &File, dst: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(dst, src)?)
}

/// Makes `dst` share this range of `src`, at the same offset (`FICLONERANGE`). The range begins and ends at
/// block boundaries, or ends at the end of `src`.
///
/// # Errors
/// As [`clone_file`]; `EINVAL` for a range that is not aligned.
pub fn clone_range(src: &File, dst: &File, range: Range<u64>) -> io::Result<()> {
    if range.is_empty() {
        // A length of 0 would mean everything from here on.
        return Ok(());
    }
    clone_from(src, dst, range.start, range.end - range.start)
}

/// Makes `dst` share everything of `src` from `start` on, up to the end that `src` has at that moment.
/// `start` is at a block boundary and before the end.
///
/// # Errors
/// As [`clone_range`].
pub fn clone_rest(src: &File, dst: &File, start: u64) -> io::Result<()> {
    clone_from(src, dst, start, 0)
}

fn clone_from(src: &File, dst: &File, start: u64, length: u64) -> io::Result<()> {
    let request = CloneRange {
        source_fd: i64::from(src.as_raw_fd()),
        source_offset: start,
        source_length: length,
        target_offset: start,
    };
    // SAFETY: FICLONERANGE reads a `struct file_clone_range`, whose layout `CloneRange` has; the descriptor in
    // it is open for the whole call because `src` is borrowed.
    Ok(unsafe { ioctl(dst, Setter::<FICLONERANGE, CloneRange>::new(request)) }?)
}

/// Whether an error of [`clone_file`] means that these two filesystems can never do it, rather than that this
/// file cannot be cloned.
#[must_use]
pub fn is_unsupported(error: &io::Error) -> bool {
    let never = [Errno::XDEV, Errno::OPNOTSUPP, Errno::NOTTY, Errno::NOSYS];
    Errno::from_io_error(error).is_some_and(|e| never.contains(&e))
}

/// Whether files can be cloned from one directory's filesystem into another, found by trying. Needs leave to
/// write in `to_dir`, and in `from_dir` either leave to write or a file that can be read; no name appears in
/// `from_dir`, and nothing is left in either.
#[must_use]
pub fn clone_works(from_dir: &Path, to_dir: &Path) -> bool {
    let tried = || -> io::Result<bool> {
        let target = nameless(to_dir)?;
        let source = match nameless(from_dir) {
            Ok(mut source) => {
                source.write_all(&[1; 4096])?;
                source
            }
            Err(error) => match any_file(from_dir)? {
                Some(source) => source,
                None => return Err(error),
            },
        };
        clone_file(&source, &target)?;
        Ok(true)
    };
    tried().unwrap_or_else(|error| {
        tracing::debug!(from = %from_dir.display(), to = %to_dir.display(), %error, "no cloning");
        false
    })
}

/// A new file without a name. A filesystem without `O_TMPFILE` cannot clone either.
fn nameless(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir)
}

/// Some regular file of a directory that can be read and is on the directory's filesystem.
fn any_file(dir: &Path) -> io::Result<Option<File>> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() || entry.metadata()?.len() == 0 {
            continue;
        }
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(entry.path());
        if let Ok(file) = opened {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Whether a file lies on XFS, which skips what is shared already when a file is cloned over an older clone of it:
/// `xfs_reflink_remap_extent`, since Linux 5.9. So that costs a walk along the extents and no look at what else
/// shares them, which is what `FIEMAP` spends its time on there.
///
/// # Errors
/// What the filesystem says.
pub fn skips_what_is_shared(file: &File) -> io::Result<bool> {
    /// `XFS_SUPER_MAGIC`, linux/magic.h.
    const XFS: u64 = 0x5846_5342;
    Ok(rustix::fs::fstatfs(file)?.f_type as u64 == XFS)
}

/// Whether a file lies on the second device that an XFS can have for data ("realtime"): its addresses there may be those
/// of other bytes on the first. Filesystems that do not know the question have no such device.
#[must_use]
pub fn is_on_realtime_device(file: &File) -> bool {
    /// `struct fsxattr`, linux/fs.h: the flags come first.
    #[repr(C)]
    struct Attributes {
        flags: u32,
        _rest: [u32; 6],
    }
    const FS_IOC_FSGETXATTR: Opcode = opcode::read::<Attributes>(b'X', 31);
    /// `FS_XFLAG_REALTIME`, linux/fs.h.
    const REALTIME: u32 = 1;
    // SAFETY: FS_IOC_FSGETXATTR writes a `struct fsxattr`, whose layout and size `Attributes` has.
    let got = unsafe { ioctl(file, Getter::<FS_IOC_FSGETXATTR, Attributes>::new()) };
    got.is_ok_and(|attributes| attributes.flags & REALTIME != 0)
}

/// How many extents a file has, or `None` where the filesystem does not tell. Dirty pages are not written
/// first, so a file that is being written may have a few more or less.
///
/// # Errors
/// What the filesystem says.
pub fn extent_count(file: &File) -> io::Result<Option<u64>> {
    let mut map = Box::new(Fiemap::asking(0..u64::MAX, 0, 0));
    match fiemap(file, &mut map) {
        Ok(()) => Ok(Some(u64::from(map.mapped))),
        Err(error) if is_unsupported(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The map of a file as it is now, its dirty pages written first.
///
/// # Errors
/// `EOPNOTSUPP` where the filesystem has no extent maps.
pub fn map_of(file: &File) -> io::Result<Map> {
    Ok(look(file)?.0)
}

/// The map of a file within these ranges, which are ordered and apart, its dirty pages written first; outside of them it
/// shows nothing.
///
/// # Errors
/// As [`map_of`].
pub fn map_within(file: &File, ranges: &[Range<u64>]) -> io::Result<Map> {
    let mut found = Map::new(file.metadata()?.len());
    for range in ranges {
        each_extent_in(file, range.clone(), |extent| {
            let from = extent.logical.max(range.start);
            let to = extent.logical.saturating_add(extent.length).min(range.end);
            if from < to {
                let physical = (extent.flags & DOUBTFUL == 0)
                    .then(|| extent.physical.saturating_add(from - extent.logical));
                found.push(Extent { logical: from, length: to - from, physical });
            }
        })?;
    }
    Ok(found)
}

/// How much of a file has a place on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// What other files have, too.
    pub shared: Bytes,
    /// What it has for itself: removing it would free that.
    pub own: Bytes,
}

/// The same, with how much of it is shared with other files.
///
/// # Errors
/// As [`map_of`].
pub fn look(file: &File) -> io::Result<(Map, Space)> {
    let mut found = Map::new(file.metadata()?.len());
    let mut space = Space::default();
    each_extent(file, |extent| {
        let physical = (extent.flags & DOUBTFUL == 0).then_some(extent.physical);
        found.push(Extent { logical: extent.logical, length: extent.length, physical });
        let is_shared = extent.flags & FIEMAP_EXTENT_SHARED != 0;
        let part = if is_shared { &mut space.shared } else { &mut space.own };
        *part = *part + Bytes(extent.length);
    })?;
    Ok((found, space))
}

/// All extents of a file in order, its dirty pages written first.
fn each_extent(file: &File, take: impl FnMut(&FiemapExtent)) -> io::Result<()> {
    each_extent_in(file, 0..u64::MAX, take)
}

/// The extents in a range.
fn each_extent_in(file: &File, range: Range<u64>, mut take: impl FnMut(&FiemapExtent)) -> io::Result<()> {
    /// XFS looks for each extent who else has it, under the lock of a fourth of the filesystem: two that ask at once take
    /// turns extent by extent, which costs three to five times as much as one after the other.
    static TURN: Mutex<()> = Mutex::new(());
    let takes_turns = skips_what_is_shared(file)?;
    let _turn = takes_turns.then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
    let mut map = Box::new(Fiemap::asking(range.clone(), FIEMAP_FLAG_SYNC, BATCH));
    loop {
        fiemap(file, &mut map)?;
        let batch = map.extents.get(..map.mapped as usize).unwrap_or(&map.extents);
        batch.iter().for_each(&mut take);
        match batch.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => {
                let next = last.logical.saturating_add(last.length);
                if next <= map.start {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "an extent map that does not advance",
                    ));
                }
                if next >= range.end {
                    return Ok(());
                }
                *map = Fiemap::asking(next..range.end, FIEMAP_FLAG_SYNC, BATCH);
            }
            _ => return Ok(()),
        }
    }
}

impl Fiemap {
    fn asking(range: Range<u64>, flags: u32, room: usize) -> Self {
        Self {
            start: range.start,
            length: range.end.saturating_sub(range.start),
            flags,
            mapped: 0,
            // BATCH fits.
            count: room as u32,
            reserved: 0,
            extents: [FiemapExtent::default(); BATCH],
        }
    }
}

fn fiemap(file: &File, map: &mut Fiemap) -> io::Result<()> {
    // SAFETY: FS_IOC_FIEMAP reads and writes a `struct fiemap` followed by `count` extents; `Fiemap` has that
    // layout and room for BATCH of them, and `asking` never puts a larger number into `count`.
    Ok(unsafe { ioctl(file, Updater::<FS_IOC_FIEMAP, Fiemap>::new(map)) }?)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::{clone_works, extent_count};

    #[test]
    fn cloning_between_filesystems_does_not_work() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!clone_works(std::path::Path::new("/proc/self"), dir.path()));
        assert!(!clone_works(dir.path(), std::path::Path::new("/nonexistent")));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn extents_are_counted_or_said_to_be_unknown() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        file.sync_all().unwrap();
        if let Some(count) = extent_count(&file).unwrap() {
            assert!((1..=25).contains(&count), "{count}");
        }
        assert!(extent_count(&File::open("/proc/self/status").unwrap()).unwrap().is_none());
    }
}
