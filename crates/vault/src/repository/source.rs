//! The manifest as a source that rustic_core archives.
//!
//! rustic_core turns every file that it cannot open or read into a log line and goes on, so every fault is
//! noted here, by entry, before it is handed over; [`super::compare`] then tells what is missing and why.
//!
//! Crash story: reads only. A live file is read only if its stamp is the entry's before and after the
//! reading; pinned copies belong to us and do not change.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Kind, Manifest, Stamp, tree_order},
    known::Known,
    size::Bytes,
};
use rustic_core::{ErrorKind, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticError, RusticResult};
use rustix::fs::{Mode, OFlags};

use super::node::{self, Names};

const BUFFER: usize = 128 * 1024;

/// Why an entry could not be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What happened, as a problem says it.
    pub(crate) what: String,
    /// What a person can do.
    pub(crate) remedy: &'static str,
}

/// What is fed to the archiver: a manifest and a few entries more, merged in tree order.
#[derive(Clone)]
pub(crate) struct Feed(Arc<Inner>);

struct Inner {
    manifest: Arc<Manifest>,
    more: Vec<Entry>,
    order: Vec<Slot>,
    /// Stamps in the parents: see [`Inner::ctime`].
    parents: Vec<Arc<Known>>,
    faults: Mutex<BTreeMap<usize, Fault>>,
    /// Nothing more is fed.
    stopped: AtomicBool,
}

#[derive(Clone, Copy)]
enum Slot {
    Manifest(usize),
    More(usize),
}

impl Feed {
    /// Feeds the manifest, and those of `more` whose paths it lacks.
    pub(crate) fn new(manifest: Arc<Manifest>, more: Vec<Entry>, parents: Vec<Arc<Known>>) -> Self {
        let mut order = Vec::with_capacity(manifest.entries.len() + more.len());
        let mut rest = more.iter().enumerate().peekable();
        for (i, entry) in manifest.entries.iter().enumerate() {
            while let Some((j, _)) = rest.next_if(|(_, m)| tree_order(&m.path, &entry.path).is_lt()) {
                order.push(Slot::More(j));
            }
            let _same = rest.next_if(|(_, m)| m.path == entry.path);
            order.push(Slot::Manifest(i));
        }
        order.extend(rest.map(|(j, _)| Slot::More(j)));
        Self(Arc::new(Inner {
            manifest,
            more,
            order,
            parents,
            faults: Mutex::default(),
            stopped: AtomicBool::new(false),
        }))
    }

    /// The entries in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (usize, &Entry)> {
        (0..self.0.order.len()).filter_map(|i| Some((i, self.0.entry(i)?)))
    }

    /// Feeds nothing more: whoever archives it is soon at its end, with a tree that must not be used.
    pub(crate) fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }

    /// Why the entry at this place could not be stored, if that is known.
    pub(crate) fn fault(&self, place: usize) -> Option<Fault> {
        self.0.faults().get(&place).cloned()
    }

    /// Stamps that a later pass may trust: what of this manifest is stored under its true times.
    pub(crate) fn settled(&self) -> Known {
        let mut known = Known::default();
        for (_, entry) in self.entries().filter(|(_, e)| e.kind == Kind::File) {
            if self.0.ctime(entry) == entry.meta.ctime {
                known.insert(&entry.path, entry.meta.stamp());
            }
        }
        known
    }
}

impl Inner {
    fn entry(&self, place: usize) -> Option<&Entry> {
        match self.order.get(place)? {
            Slot::Manifest(i) => self.manifest.entries.get(*i),
            Slot::More(j) => self.more.get(*j),
        }
    }

    /// The change time to store: a smudge if the stamp was too young to be trusted. rustic_core carries
    /// content over wherever a parent has the same stamp, so a file that is to be read although its stamp
    /// is a parent's (a database, a file mapped writable) is smudged too.
    fn ctime(&self, entry: &Entry) -> Timestamp {
        if entry.kind != Kind::File {
            return entry.meta.ctime;
        }
        let stamp = entry.meta.stamp();
        let must_be_read = matches!(entry.body, Body::At(_) | Body::Inline(_));
        let would_be_carried = node::is_smudged(Some(entry.meta.ctime))
            || self.parents.iter().any(|known| known.has(&entry.path, &stamp));
        if !stamp.is_settled_at(self.manifest.taken_at) || (must_be_read && would_be_carried) {
            node::smudged(self.manifest.taken_at)
        } else {
            entry.meta.ctime
        }
    }

    fn note(&self, place: usize, fault: Fault) {
        self.faults().entry(place).or_insert(fault);
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadSource for Feed {
    type Open = Opener;
    type Iter = Nodes;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> Self::Iter {
        Nodes { feed: self.0.clone(), next: 0, names: Names::default() }
    }
}

/// The nodes of a feed, in order.
pub(crate) struct Nodes {
    feed: Arc<Inner>,
    next: usize,
    names: Names,
}

impl Iterator for Nodes {
    type Item = RusticResult<ReadSourceEntry<Opener>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let place = self.next;
            self.next += 1;
            if self.feed.stopped.load(Ordering::Relaxed) {
                return None;
            }
            let entry = self.feed.entry(place)?;
            let Some(node) = node::node(entry, self.feed.ctime(entry), &self.names) else { continue };
            let open = (entry.kind == Kind::File).then(|| Opener { feed: self.feed.clone(), place });
            return Some(Ok(ReadSourceEntry { path: entry.path.clone(), node, open }));
        }
    }
}

/// Opens one file of a feed.
pub(crate) struct Opener {
    feed: Arc<Inner>,
    place: usize,
}

impl ReadSourceOpen for Opener {
    type Reader = Reader;

    fn open(self) -> RusticResult<Reader> {
        let opened = self.feed.entry(self.place).map_or_else(
            || Err(Fault { what: "it is not in the manifest".into(), remedy: "" }),
            |entry| Ok((Content::open(entry)?, entry.meta.size)),
        );
        match opened {
            Ok((content, size)) => {
                Ok(Reader { feed: self.feed, place: self.place, content, size, read: Bytes(0) })
            }
            Err(fault) => {
                let error = RusticError::new(ErrorKind::InputOutput, fault.what.as_str());
                self.feed.note(self.place, fault);
                Err(error)
            }
        }
    }
}

enum Content {
    Inline,
    Pinned(BufReader<File>),
    Live(BufReader<File>, Stamp),
}

impl Content {
    fn open(entry: &Entry) -> Result<Self, Fault> {
        match &entry.body {
            Body::Inline(_) => Ok(Self::Inline),
            Body::Nothing => Err(Fault { what: "no content was pinned for it".into(), remedy: "" }),
            Body::At(pinned) => {
                let file = open(pinned).map_err(|error| {
                    let remedy = "see that nothing removes the pinned copies while a backup runs";
                    Fault { what: format!("its pinned copy cannot be read: {error}"), remedy }
                })?;
                Ok(Self::Pinned(BufReader::with_capacity(BUFFER, file)))
            }
            Body::Carried => {
                let file = open(&entry.path).map_err(|error| Fault {
                    what: format!("cannot be read: {error}"),
                    remedy: match error.kind() {
                        io::ErrorKind::PermissionDenied => "run as a user who may read it, or exclude it",
                        _ => "",
                    },
                })?;
                let stamp = entry.meta.stamp();
                if stamp_of(&file).ok() != Some(stamp) {
                    return Err(changed("before it was read"));
                }
                Ok(Self::Live(BufReader::with_capacity(BUFFER, file), stamp))
            }
        }
    }
}

fn changed(when: &str) -> Fault {
    Fault { what: format!("it changed {when}"), remedy: "the next backup looks at it again" }
}

/// Opens a regular file without following a link at its end, waiting for a pipe, or touching its time of
/// access where we may.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file: File = rustix::fs::open(path, flags | OFlags::NOATIME, Mode::empty())
        .or_else(|error| match error {
            rustix::io::Errno::PERM => rustix::fs::open(path, flags, Mode::empty()),
            other => Err(other),
        })?
        .into();
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file any more"))
    }
}

fn stamp_of(file: &File) -> io::Result<Stamp> {
    let meta = file.metadata()?;
    let nanos = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Ok(Stamp {
        size: Bytes(meta.len()),
        mtime: nanos(meta.mtime(), meta.mtime_nsec()),
        ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        inode: meta.ino(),
    })
}

/// Reads one file of a feed to its end, and fails rather than giving more, less or other bytes than the
/// entry says.
pub(crate) struct Reader {
    feed: Arc<Inner>,
    place: usize,
    content: Content,
    size: Bytes,
    read: Bytes,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        match self.step(buffer) {
            Ok(count) => Ok(count),
            Err(fault) => {
                let error = io::Error::other(fault.what.clone());
                self.feed.note(self.place, fault);
                Err(error)
            }
        }
    }
}

impl Reader {
    fn step(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        if self.feed.stopped.load(Ordering::Relaxed) {
            return Err(Fault {
                what: "it is not stored any more".into(),
                remedy: "start the command again",
            });
        }
        let count = loop {
            let got = match &mut self.content {
                Content::Inline => Ok(self.inline(buffer)),
                Content::Pinned(file) | Content::Live(file, _) => file.read(buffer),
            };
            match got {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreadable(&error)),
            }
        };
        self.read = self.read + Bytes(count as u64);
        if self.read > self.size || (count == 0 && self.read < self.size) {
            return Err(self.other_length());
        }
        if count == 0
            && let Content::Live(file, stamp) = &self.content
            && stamp_of(file.get_ref()).ok() != Some(*stamp)
        {
            return Err(changed("while it was read"));
        }
        Ok(count)
    }

    fn inline(&self, buffer: &mut [u8]) -> usize {
        let Some(Body::Inline(bytes)) = self.feed.entry(self.place).map(|entry| &entry.body) else {
            return 0;
        };
        let from = usize::try_from(self.read.0).map_or(bytes.len(), |at| at.min(bytes.len()));
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        count
    }

    fn unreadable(&self, error: &io::Error) -> Fault {
        let whose = if matches!(self.content, Content::Pinned(_)) { "its pinned copy " } else { "" };
        Fault {
            what: format!("{whose}cannot be read from byte {}: {error}", self.read.0),
            remedy: "look into the kernel's log for errors of the disk, and bring the file back from an older \
                     backup if it is damaged",
        }
    }

    fn other_length(&self) -> Fault {
        match self.content {
            Content::Live(..) => changed("while it was read"),
            Content::Pinned(_) | Content::Inline => Fault {
                what: format!("its pinned copy has not the {} bytes that it should have", self.size.0),
                remedy: "the next backup looks at it again",
            },
        }
    }
}
