//! Writing one regular file.
//!
//! Crash story: the file is new, in a staging directory that nobody else can enter; dropped unfinished, it is removed.

use std::{
    fs::{File, Metadata},
    io,
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use model::{
    aligned::{Pool, is_zero},
    entry::Stamp,
    pathtext,
    port::{Failure, FailureKind},
    port_restore::{Finished, Reading, Stretch, Writing},
    reference::ReferenceFile,
    restore::Listed,
    size::Bytes,
};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use super::{
    attributes::{PERMISSIONS, Place, Setter},
    direct::{self, Batches, STEP, Window},
    flush::Flusher,
    verify,
};
use crate::{extents::clone_file, staging::is_no_space};

/// Shorter runs of zeros, at the end of a part, are written: no filesystem has smaller blocks.
const SHORTEST_HOLE: usize = 4096;

/// How files are written.
pub(super) struct Ways<'a> {
    pub setter: &'a Setter,
    pub buffers: &'a Pool,
    pub flusher: &'a Flusher,
}

/// A file that is being written.
pub(super) struct NewFile<'a> {
    file: File,
    /// The same past the page cache.
    direct: Option<File>,
    place: Place,
    item: &'a Listed,
    ways: Ways<'a>,
    /// Bytes that were appended.
    appended: AtomicU64,
    /// Where the last byte lies that was written.
    reaches: AtomicU64,
    is_finished: bool,
}

impl<'a> NewFile<'a> {
    pub fn create(place: Place, item: &'a Listed, ways: Ways<'a>) -> Result<Self, Failure> {
        let fail = |error: io::Error| cannot("made", &item.path, error);
        let mut new = Self::create_in(place, item, ways)?;
        if item.meta.size.0 >= direct::FROM && direct::is_for(&new.file) {
            new.file.set_len(item.meta.size.0).map_err(fail)?;
            let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            // A disk that cannot do it is written to through the cache.
            let opened = rustix::fs::openat(&new.place.dir, &new.place.name, flags, Mode::empty());
            new.direct = opened.ok().map(File::from);
        }
        Ok(new)
    }

    /// An empty file.
    fn create_in(place: Place, item: &'a Listed, ways: Ways<'a>) -> Result<Self, Failure> {
        let fail = |error: io::Error| cannot("made", &item.path, error);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Mostly this is what it will stay. Nobody else can come here.
        let mode = Mode::from_raw_mode(item.meta.mode & 0o777) | Mode::RUSR | Mode::WUSR;
        let opened = rustix::fs::openat(&place.dir, &place.name, flags, mode);
        let file = File::from(opened.map_err(|error| fail(error.into()))?);
        let (appended, reaches) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { file, direct: None, place, item, ways, appended, reaches, is_finished: false })
    }

    /// A file with all bytes of a frozen copy; nothing if that is not as it was stored, or cannot be cloned here.
    pub fn clone_of(
        place: Place,
        item: &'a Listed,
        copy: &ReferenceFile,
        ways: Ways<'a>,
    ) -> Result<Option<Self>, Failure> {
        let size = item.meta.size.0;
        let Some((frozen, _)) = open_copy(copy).filter(|_| copy.size.0 == size) else { return Ok(None) };
        let new = Self::create_in(place, item, ways)?;
        let cloned = clone_file(&frozen, &new.file).and_then(|()| new.file.metadata());
        match cloned {
            // Whoever wrote to the copy meanwhile has changed its times.
            Ok(meta) if meta.len() == size && is_as_stored(&frozen, copy) => {}
            Ok(_) => return Ok(None),
            Err(error) if is_no_space(&error) => return Err(new.failed(error)),
            Err(error) => {
                tracing::debug!(path = %item.path.display(), %error, "it cannot be cloned");
                return Ok(None);
            }
        }
        new.appended.store(size, Ordering::Relaxed);
        new.reaches.store(size, Ordering::Relaxed);
        Ok(Some(new))
    }

    fn write(&self, bytes: &[u8], mut at: u64) -> io::Result<()> {
        for step in bytes.chunks(STEP) {
            let is_hole = step.len() >= SHORTEST_HOLE && is_zero(step);
            let end = at + step.len() as u64;
            if !is_hole {
                self.file.write_all_at(step, at)?;
                self.reaches.fetch_max(end, Ordering::Relaxed);
            }
            at = end;
        }
        Ok(())
    }

    fn failed(&self, error: io::Error) -> Failure {
        cannot("written", &self.item.path, error)
    }
}

impl Writing for NewFile<'_> {
    fn stretch(&self, range: Range<u64>) -> Result<Box<dyn Stretch + '_>, Failure> {
        let direct = self.direct.as_ref();
        let way = direct.map(|file| Batches::new(file, self.ways.buffers, range.clone()));
        Ok(Box::new(NewStretch { of: self, rest: range, appended: 0, way }))
    }

    fn finish(mut self: Box<Self>) -> Result<Finished, Failure> {
        let size = self.item.meta.size.0;
        let appended = self.appended.load(Ordering::Relaxed);
        if appended != size {
            let shown = pathtext::show(&self.item.path);
            let what = format!("{shown} has {appended} bytes in the backup, not {size}");
            return Err(Failure::new(FailureKind::Damaged, what, "check the repository"));
        }
        // A hole at the end was not written; the last block of a disk was written in full.
        if self.direct.is_some() || self.reaches.load(Ordering::Relaxed) < size {
            self.file.set_len(size).map_err(|error| self.failed(error))?;
        }
        self.is_finished = true;
        let mut problems = self.ways.setter.set_open(&self.file, self.item);
        if problems.is_empty() {
            verify::open(&self.file, self.item, self.ways.setter, &mut problems);
        }
        Ok(Finished { problems })
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.is_finished
            && let Err(error) = rustix::fs::unlinkat(&self.place.dir, &self.place.name, AtFlags::empty())
        {
            tracing::warn!(path = %self.item.path.display(), %error, "an unfinished file is left");
        }
    }
}

/// A part of a file that is being written.
struct NewStretch<'a> {
    of: &'a NewFile<'a>,
    /// What is still to come of it.
    rest: Range<u64>,
    appended: u64,
    way: Option<Batches<'a>>,
}

impl Stretch for NewStretch<'_> {
    fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let length = bytes.len() as u64;
        if length > self.rest.end - self.rest.start {
            let what = format!("{} has more bytes than are listed", pathtext::show(&self.of.item.path));
            return Err(Failure::new(FailureKind::Damaged, what, "check the repository"));
        }
        let written = match &mut self.way {
            Some(batches) => batches.append(bytes),
            None => self.of.write(bytes, self.rest.start),
        };
        written.map_err(|error| self.of.failed(error))?;
        self.rest.start += length;
        self.appended += length;
        self.of.appended.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    fn end(mut self: Box<Self>) -> Result<(), Failure> {
        let Some(batches) = &mut self.way else {
            self.of.ways.flusher.cached(&self.of.place.dir, self.appended);
            return Ok(());
        };
        let written = batches.end().and_then(|()| self.of.ways.flusher.wrote(&self.of.file, self.appended));
        written.map_err(|error| self.of.failed(error))
    }
}

/// Opens a frozen copy, if it is what was recorded of it; with the device number of its filesystem.
pub(super) fn open_copy(copy: &ReferenceFile) -> Option<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(&copy.copy, flags, Mode::empty()).ok()?);
    let device = file.metadata().ok()?.dev();
    is_as_stored(&file, copy).then_some((file, device))
}

fn is_as_stored(file: &File, copy: &ReferenceFile) -> bool {
    let nanos = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    let stamp = |meta: Metadata| Stamp {
        size: Bytes(meta.len()),
        mtime: nanos(meta.mtime(), meta.mtime_nsec()),
        ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        inode: meta.ino(),
    };
    file.metadata().is_ok_and(|meta| meta.is_file() && stamp(meta) == copy.stamp())
}

/// A written file that is read back.
pub(super) struct WrittenFile<'a> {
    file: File,
    /// The same past the page cache.
    direct: Option<Window<'a>>,
    item: &'a Listed,
}

impl<'a> WrittenFile<'a> {
    pub fn open(place: &Place, item: &'a Listed, buffers: &'a Pool) -> Result<Self, Failure> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&place.dir, &place.name, flags, Mode::empty());
        let chmod =
            |bits| rustix::fs::chmodat(&place.dir, &place.name, Mode::from_raw_mode(bits), AtFlags::empty());
        let opened = match open() {
            // Its own mode keeps even its owner out: it is opened for a moment, where nobody else can come.
            Err(Errno::ACCESS) => found_mode(place).and_then(|mode| {
                chmod(mode | 0o400)?;
                let opened = open();
                chmod(mode)?;
                opened
            }),
            opened => opened,
        };
        let file = File::from(opened.map_err(|e| cannot("read back", &item.path, e.into()))?);
        // So that the disk is asked, not memory; a filesystem that cannot do it is compared all the same.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        let is_large = item.meta.size.0 >= direct::FROM && direct::is_for(&file);
        let past = || {
            let name = format!("/proc/self/fd/{}", file.as_raw_fd());
            let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
            rustix::fs::open(name, flags, Mode::empty()).ok()
        };
        let direct = if is_large { past().map(|file| Window::new(file.into(), buffers)) } else { None };
        Ok(Self { file, direct, item })
    }
}

impl Reading for WrittenFile<'_> {
    fn at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, Failure> {
        loop {
            let read = match &mut self.direct {
                Some(window) => window.at(offset, buffer),
                None => self.file.read_at(buffer, offset),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| cannot("read back", &self.item.path, error)),
            }
        }
    }
}

fn found_mode(place: &Place) -> rustix::io::Result<u32> {
    let found = rustix::fs::statat(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(found.st_mode & PERMISSIONS)
}

/// A failure to do this to a file.
pub(super) fn cannot(what: &str, path: &Path, error: io::Error) -> Failure {
    let full = is_no_space(&error);
    let kind = if full { FailureKind::NoSpace } else { FailureKind::Other };
    let remedy = if full { "free some space, or restore to another filesystem with --to DIR" } else { "" };
    Failure::new(kind, format!("{} cannot be {what}", pathtext::show(path)), remedy).because(error)
}
