//! The files of a feed as they are read.
//!
//! Crash story: reads only. A live file is read only if its stamp is the entry's before and after the
//! reading; pinned copies belong to us and do not change.

use std::{
    fs::{File, Metadata},
    io::{self, IoSliceMut},
    num::NonZero,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use model::{
    entry::{Body, Entry, Stamp},
    extents::Map,
    size::Bytes,
};
use os::{direct, tree::stamp_of};
use rustix::{
    fs::{Advice, Mode, OFlags},
    io::{Errno, ReadWriteFlags, preadv2},
};

use super::{
    feed::{Fault, Feed},
    original::Original,
};

/// Files up to this size in bytes are in the page cache as a whole or not at all.
const PAGE: u64 = 4096;

/// One file of a feed, open for reading.
pub(crate) struct Source {
    feed: Feed,
    place: usize,
    content: Content,
    size: Bytes,
    /// Nothing of it was in the page cache, and nothing is left there.
    cold: bool,
    /// Where the same bytes may be in memory.
    original: Option<Original>,
    /// The same pinned copy again, for reading past the page cache.
    direct: Option<File>,
}

enum Content {
    Inline(Vec<u8>),
    Pinned(File),
    Live(File, Stamp),
}

impl Content {
    fn open(entry: Entry) -> Result<Self, Fault> {
        match entry.body {
            Body::Inline(bytes) => Ok(Self::Inline(bytes)),
            Body::Nothing => Err(Fault { what: "no content was pinned for it".into(), remedy: "" }),
            Body::At(pinned) => {
                let (file, _) = open(&pinned).map_err(|error| {
                    let remedy = "see that nothing removes the pinned copies while a backup runs";
                    Fault { what: format!("its pinned copy cannot be read: {error}"), remedy }
                })?;
                Ok(Self::Pinned(file))
            }
            Body::Carried => {
                let (file, now) = open(&entry.path).map_err(|error| Fault {
                    what: format!("cannot be read: {error}"),
                    remedy: match error.kind() {
                        io::ErrorKind::PermissionDenied => "run as a user who may read it, or exclude it",
                        _ => "",
                    },
                })?;
                let stamp = entry.meta.stamp();
                if stamp_of(&now) != stamp {
                    return Err(changed("before it was read"));
                }
                Ok(Self::Live(file, stamp))
            }
        }
    }
}

fn inline(bytes: &[u8], buffer: &mut [u8], from: u64) -> io::Result<()> {
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let part = bytes.get(from..).and_then(|rest| rest.get(..buffer.len()));
    buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
    Ok(())
}

fn changed(when: &str) -> Fault {
    Fault { what: format!("it changed {when}"), remedy: "the next backup looks at it again" }
}

/// Opens a regular file without following a link at its end, waiting for a pipe, or touching its time of
/// access where we may.
pub(super) fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file: File = rustix::fs::open(path, flags | OFlags::NOATIME, Mode::empty())
        .or_else(|error| match error {
            rustix::io::Errno::PERM => rustix::fs::open(path, flags, Mode::empty()),
            other => Err(other),
        })?
        .into();
    let now = file.metadata()?;
    if now.is_file() { Ok((file, now)) } else { Err(io::Error::other("it is not a regular file any more")) }
}

/// Whether the first, the middle and the last page of a file are not in the page cache. `RWF_NOWAIT` (Linux 4.14) reads
/// only from there; filesystems that do not know it count as warm.
fn is_cold(file: &File, size: u64) -> bool {
    let Some(last) = size.checked_sub(1) else { return false };
    let is_absent = |at: u64| {
        let mut byte = [0];
        let got = preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
        got == Err(Errno::AGAIN)
    };
    is_absent(0) && (size <= PAGE || (is_absent(last / 2) && is_absent(last)))
}

impl Source {
    /// Opens the file at this place of a feed.
    ///
    /// # Errors
    /// If it cannot be opened, or is a live file that changed.
    pub(crate) fn open(feed: &Feed, place: usize) -> Result<Self, Fault> {
        let mut source = Self::opened(feed, place)?;
        source.cold = source.is_cold();
        source.direct = source.opened_past_cache();
        Ok(source)
    }

    fn opened(feed: &Feed, place: usize) -> Result<Self, Fault> {
        let missing = || Fault { what: "it is not in the manifest".into(), remedy: "" };
        let entry = feed.entry(place).ok_or_else(missing)?;
        let (size, content) = (entry.meta.size, Content::open(entry)?);
        Ok(Self { feed: feed.clone(), place, content, size, cold: false, original: None, direct: None })
    }

    /// Reads the whole file at this place of a feed into the buffer. One that is in the page cache takes one system
    /// call, which asks for a byte more than there should be.
    ///
    /// # Errors
    /// If it cannot be opened or read, is a live file that changed, or has another length.
    pub(crate) fn read_whole(feed: &Feed, place: usize, buffer: &mut Vec<u8>) -> Result<(), Fault> {
        let mut source = Self::opened(feed, place)?;
        let size = source.size.0 as usize;
        feed.wait_for(size);
        buffer.resize(size + 1, 0);
        if let Some(file) = source.file() {
            let got = preadv2(file, &mut [IoSliceMut::new(buffer)], 0, ReadWriteFlags::NOWAIT);
            if got == Ok(size) && source.is_as_before() {
                buffer.truncate(size);
                return Ok(());
            }
            source.cold = got == Err(Errno::AGAIN) && source.is_cold();
        }
        buffer.truncate(size);
        source.fill(buffer, 0)?;
        source.finish()
    }

    fn is_cold(&self) -> bool {
        self.file().is_some_and(|file| is_cold(file, self.size.0))
    }

    /// A pinned copy that is not in the page cache needs not go through it, where its filesystem can do without.
    fn opened_past_cache(&self) -> Option<File> {
        let Body::At(path) = self.feed.entry(self.place)?.body else { return None };
        let before = self.pinned().filter(|_| self.cold)?.metadata().ok()?;
        let (again, now) = open(&path).ok()?;
        let is_same = (now.dev(), now.ino()) == (before.dev(), before.ino());
        (is_same && direct::set(&again, true).is_ok()).then_some(again)
    }

    /// Whether a live file still has the stamp that it had when it was opened, and a pinned copy its length.
    fn is_as_before(&self) -> bool {
        match &self.content {
            Content::Inline(_) => true,
            Content::Pinned(file) => file.metadata().is_ok_and(|now| now.len() == self.size.0),
            Content::Live(file, stamp) => file.metadata().is_ok_and(|now| stamp_of(&now) == *stamp),
        }
    }

    /// The pinned copy that it is read from, if it is.
    pub(crate) fn pinned(&self) -> Option<&File> {
        match &self.content {
            Content::Pinned(file) => Some(file),
            Content::Inline(_) | Content::Live(..) => None,
        }
    }

    fn file(&self) -> Option<&File> {
        match &self.content {
            Content::Inline(_) => None,
            Content::Pinned(file) | Content::Live(file, _) => Some(file),
        }
    }

    /// Leaves nothing of this part in the page cache if nothing was there before: a backup reads everything once, and
    /// what the applications need would have to make room. Without effect on the result.
    pub(crate) fn forget(&self, from: u64, length: u64) {
        if let Some(file) = self.file().filter(|_| self.cold) {
            let _advice = rustix::fs::fadvise(file, from, NonZero::new(length), Advice::DontNeed);
        }
    }

    /// Fills the buffer with what stands from this byte on, when it may.
    ///
    /// # Errors
    /// If it cannot be read, or ends before the buffer is full.
    pub(crate) fn read(&self, buffer: &mut [u8], from: u64) -> Result<(), Fault> {
        self.feed.wait_for(buffer.len());
        self.fill(buffer, from)
    }

    /// From now on takes from the original of a pinned copy what is in memory there and provably the same.
    pub(crate) fn look_for_original(&mut self) {
        let taken_at = self.feed.taken_at();
        let entry = self.feed.entry(self.place);
        self.original =
            entry.zip(self.pinned()).and_then(|(entry, copy)| Original::of(&entry, copy, taken_at));
    }

    /// The same, of which only these ranges are to be read; `map` is that of the pinned copy.
    pub(crate) fn look_for_original_within(&mut self, map: &Map, ranges: &[Range<u64>]) {
        let taken_at = self.feed.taken_at();
        let entry = self.feed.entry(self.place);
        self.original = entry
            .zip(self.pinned())
            .and_then(|(entry, copy)| Original::within(&entry, copy, taken_at, (map, ranges)));
    }

    fn fill(&self, buffer: &mut [u8], from: u64) -> Result<(), Fault> {
        if self.original.as_ref().is_some_and(|original| original.read(buffer, from)) {
            return Ok(());
        }
        let got = match &self.content {
            Content::Inline(bytes) => inline(bytes, buffer, from),
            Content::Pinned(file) | Content::Live(file, _) => file.read_exact_at(buffer, from),
        };
        got.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.other_length(),
            _ => self.unreadable(&error, from),
        })
    }

    /// Fills the beginning of this memory, which begins with a block and has [`direct::room`], with what stands from this
    /// byte on. Leaves it in the page cache only if it was there before.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn read_once(&self, memory: &mut [u8], length: usize, from: u64) -> Result<(), Fault> {
        self.feed.wait_for(length);
        if self.original.as_ref().is_some_and(|original| original.read(&mut memory[..length], from)) {
            return Ok(());
        }
        let got = self.direct.as_ref().map_or(0, |file| direct::read(file, memory, length, from));
        if got < length {
            let from = from + got as u64;
            self.fill(&mut memory[got..length], from)?;
            self.forget(from, (length - got) as u64);
        }
        Ok(())
    }

    /// Called after everything was read: whether it is still what it was when it was opened, and no longer.
    ///
    /// # Errors
    /// If it is not.
    pub(crate) fn finish(&self) -> Result<(), Fault> {
        let Some(file) = self.file() else { return Ok(()) };
        self.forget(0, 0);
        let more = loop {
            match file.read_at(&mut [0], self.size.0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match more {
            Ok(0) => {}
            Ok(_) => return Err(self.other_length()),
            Err(error) => return Err(self.unreadable(&error, self.size.0)),
        }
        match &self.content {
            Content::Live(..) if !self.is_as_before() => Err(changed("while it was read")),
            _ => Ok(()),
        }
    }

    fn unreadable(&self, error: &io::Error, from: u64) -> Fault {
        let whose = if matches!(self.content, Content::Pinned(_)) { "its pinned copy " } else { "" };
        Fault {
            what: format!("{whose}cannot be read from byte {from}: {error}"),
            remedy: "look into the kernel's log for errors of the disk, and bring the file back from an older \
                     backup if it is damaged",
        }
    }

    fn other_length(&self) -> Fault {
        match self.content {
            Content::Live(..) => changed("while it was read"),
            Content::Pinned(_) | Content::Inline(_) => Fault {
                what: format!("its pinned copy has not the {} bytes that it should have", self.size.0),
                remedy: "the next backup looks at it again",
            },
        }
    }
}
