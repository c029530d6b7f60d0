//! Writing one regular file.
//!
//! Crash story: the file is new, in a staging directory that nobody else can enter, closed to others until it
//! has all its bytes; dropped unfinished, it is removed.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use model::{
    pathtext,
    port::{Failure, FailureKind},
    port_restore::{Comparing, Writing},
    problem::Problem,
    restore::Listed,
};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use super::attributes::{PERMISSIONS, Place, Setter};
use crate::staging::is_no_space;

/// Runs of zeros are looked for in steps of this size.
const STEP: usize = 64 * 1024;

/// Shorter runs of zeros, at the end of a part, are written: no filesystem has smaller blocks.
const SHORTEST_HOLE: usize = 4096;

/// A file that is being written.
pub(super) struct NewFile<'a> {
    file: File,
    place: Place,
    item: &'a Listed,
    setter: &'a Setter,
    offset: u64,
    finished: bool,
}

impl<'a> NewFile<'a> {
    pub fn create(place: Place, item: &'a Listed, setter: &'a Setter) -> Result<Self, Failure> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&place.dir, &place.name, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(opened.map_err(|e| cannot("made", &item.path, e.into()))?);
        Ok(Self { file, place, item, setter, offset: 0, finished: false })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for step in bytes.chunks(STEP) {
            let is_hole = step.len() >= SHORTEST_HOLE && step.iter().all(|b| *b == 0);
            if !is_hole {
                self.file.write_all_at(step, self.offset)?;
            }
            self.offset += step.len() as u64;
        }
        Ok(())
    }
}

impl Writing for NewFile<'_> {
    fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.write(bytes).map_err(|e| cannot("written", &self.item.path, e))
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Problem>, Failure> {
        if self.offset != self.item.meta.size.0 {
            let shown = pathtext::show(&self.item.path);
            let what =
                format!("{shown} has {} bytes in the backup, not {}", self.offset, self.item.meta.size.0);
            return Err(Failure::new(FailureKind::Damaged, what, "check the repository"));
        }
        self.file.set_len(self.offset).map_err(|e| cannot("written", &self.item.path, e))?;
        self.finished = true;
        Ok(self.setter.set(&self.place, self.item))
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = rustix::fs::unlinkat(&self.place.dir, &self.place.name, AtFlags::empty())
        {
            tracing::warn!(path = %self.item.path.display(), %error, "an unfinished file is left");
        }
    }
}

/// A written file that is compared with what it should hold.
pub(super) struct WrittenFile<'a> {
    file: File,
    item: &'a Listed,
    offset: u64,
    buffer: Vec<u8>,
}

impl<'a> WrittenFile<'a> {
    pub fn open(place: &Place, item: &'a Listed) -> Result<Self, Failure> {
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
        Ok(Self { file, item, offset: 0, buffer: Vec::new() })
    }
}

impl Comparing for WrittenFile<'_> {
    fn is_next(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        self.buffer.resize(bytes.len(), 0);
        match self.file.read_exact_at(&mut self.buffer, self.offset) {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(self.buffer == bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(cannot("read back", &self.item.path, error)),
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
