//! The manifest as what the archiver stores.
//!
//! A file that cannot be opened or read is left out of the stored tree and its fault is noted here, by entry;
//! [`super::compare`] then tells what is missing and why.
//!
//! Crash story: memory only.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use model::{
    entry::{Body, Entry, Kind, Manifest, Stamp, Xattr},
    known::Known,
    size::Bytes,
};

use super::{gentle::Gentle, node};

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
    /// By the place at which each comes, in order.
    more: Vec<(usize, Entry)>,
    /// Stamps in the parents: see [`Inner::ctime`].
    parents: Vec<Arc<Known>>,
    gentle: Gentle,
    faults: Mutex<BTreeMap<usize, Fault>>,
    /// Nothing more is fed.
    stopped: AtomicBool,
    /// Bytes of files that were read.
    read: AtomicU64,
}

/// Where an entry of a feed stands.
enum Slot<'a> {
    Manifest(usize),
    More(&'a Entry),
}

impl Feed {
    /// Feeds the manifest, and those of `more`, which are in tree order, whose paths it lacks.
    pub(crate) fn new(
        manifest: Arc<Manifest>,
        more: Vec<Entry>,
        parents: Vec<Arc<Known>>,
        gentle: Gentle,
    ) -> Self {
        let mut placed: Vec<(usize, Entry)> = Vec::with_capacity(more.len());
        for entry in more {
            let at = manifest.entries.place_of(&entry.path);
            if manifest.entries.path(at).is_none_or(|path| path != entry.path) {
                placed.push((at + placed.len(), entry));
            }
        }
        Self(Arc::new(Inner {
            manifest,
            more: placed,
            parents,
            gentle,
            faults: Mutex::default(),
            stopped: AtomicBool::new(false),
            read: AtomicU64::new(0),
        }))
    }

    /// The entries in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (usize, Entry)> {
        (0..self.len()).filter_map(|i| Some((i, self.entry(i)?)))
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.0.manifest.entries.len() + self.0.more.len()
    }

    /// The entry at this place, made anew.
    pub(crate) fn entry(&self, place: usize) -> Option<Entry> {
        match self.0.slot(place) {
            Slot::Manifest(at) => self.0.manifest.entries.get(at),
            Slot::More(entry) => Some(entry.clone()),
        }
    }

    /// The size of the entry at this place, if it is a regular file.
    pub(crate) fn file_size(&self, place: usize) -> Option<Bytes> {
        match self.0.slot(place) {
            Slot::Manifest(at) => self.0.manifest.entries.file_size(at),
            Slot::More(entry) => (entry.kind == Kind::File).then_some(entry.meta.size),
        }
    }

    /// The directory that the entry at this place stands in, and its name; `/` has neither.
    pub(crate) fn name(&self, place: usize) -> Option<(&Path, &OsStr)> {
        match self.0.slot(place) {
            Slot::Manifest(at) => self.0.manifest.entries.name(at),
            Slot::More(entry) => Some((entry.path.parent()?, entry.path.file_name()?)),
        }
    }

    /// The path of the entry at this place.
    pub(crate) fn path(&self, place: usize) -> Option<PathBuf> {
        match self.0.slot(place) {
            Slot::Manifest(at) => self.0.manifest.entries.path(at),
            Slot::More(entry) => Some(entry.path.clone()),
        }
    }

    /// What the entry at this place is.
    pub(crate) fn kind(&self, place: usize) -> Option<&Kind> {
        match self.0.slot(place) {
            Slot::Manifest(at) => self.0.manifest.entries.kind(at),
            Slot::More(entry) => Some(&entry.kind),
        }
    }

    /// Where the bytes of the entry at this place come from.
    pub(crate) fn body(&self, place: usize) -> Option<&Body> {
        match self.0.slot(place) {
            Slot::Manifest(at) => self.0.manifest.entries.body(at),
            Slot::More(entry) => Some(&entry.body),
        }
    }

    /// The extended attributes of the entry at this place.
    pub(crate) fn xattrs(&self, place: usize) -> &[Xattr] {
        match self.0.slot(place) {
            Slot::Manifest(at) => self.0.manifest.entries.xattrs(at),
            Slot::More(entry) => &entry.meta.xattrs,
        }
    }

    /// The stamp of the entry at this place.
    pub(crate) fn stamp(&self, place: usize) -> Option<Stamp> {
        match self.0.slot(place) {
            Slot::Manifest(at) => self.0.manifest.entries.stamp(at),
            Slot::More(entry) => Some(entry.meta.stamp()),
        }
    }

    /// Feeds nothing more: whoever archives it gives up soon.
    pub(crate) fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Relaxed)
    }

    /// How hard the disks are gone at.
    pub(crate) fn gentle(&self) -> &Gentle {
        &self.0.gentle
    }

    /// Waits until so many bytes may be read.
    pub(super) fn wait_for(&self, bytes: usize) {
        self.0.gentle.wait_for(bytes as u64, || self.is_stopped());
    }

    /// So many bytes of files were read.
    pub(crate) fn was_read(&self, bytes: u64) {
        self.0.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How many bytes of files were read.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.0.read.load(Ordering::Relaxed)
    }

    /// When the manifest was taken.
    pub(super) fn taken_at(&self) -> Timestamp {
        self.0.manifest.taken_at
    }

    /// The change time to store for an entry.
    pub(crate) fn ctime(&self, entry: &Entry) -> Timestamp {
        self.0.ctime(entry)
    }

    /// Whether a later pass may trust the stamp of this file: it is stored under its true times.
    pub(crate) fn is_settled(&self, entry: &Entry) -> bool {
        entry.kind == Kind::File && self.0.ctime(entry) == entry.meta.ctime
    }

    /// Takes note of why an entry cannot be stored; the first fault stands.
    pub(crate) fn note(&self, place: usize, fault: Fault) {
        self.0.faults().entry(place).or_insert(fault);
    }

    /// Why the entry at this place could not be stored, if that is known.
    pub(crate) fn fault(&self, place: usize) -> Option<Fault> {
        self.0.faults().get(&place).cloned()
    }
}

impl Inner {
    fn slot(&self, place: usize) -> Slot<'_> {
        let before = self.more.partition_point(|(at, _)| *at < place);
        match self.more.get(before) {
            Some((at, entry)) if *at == place => Slot::More(entry),
            _ => Slot::Manifest(place - before),
        }
    }

    /// The change time to store: a smudge if the stamp was too young to be trusted. A file that is to be read
    /// although its stamp is a parent's (a database, a file mapped writable) is smudged too: its stamp proves
    /// nothing, and other programs would carry its content over.
    fn ctime(&self, entry: &Entry) -> Timestamp {
        if entry.kind != Kind::File {
            return entry.meta.ctime;
        }
        let stamp = entry.meta.stamp();
        let must_be_read = matches!(entry.body, Body::At(_) | Body::Inline(_));
        let would_be_carried = || {
            node::is_smudged(Some(entry.meta.ctime))
                || self.parents.iter().any(|known| known.has(&entry.path, &stamp))
        };
        if !stamp.is_settled_at(self.manifest.taken_at) || (must_be_read && would_be_carried()) {
            node::smudged(self.manifest.taken_at)
        } else {
            entry.meta.ctime
        }
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
