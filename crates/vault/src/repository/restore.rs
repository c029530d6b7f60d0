//! Reading a backup for a restore: the port [`Fetch`].
//!
//! rustic_core's own restore panics when the disk is full and only logs what it could not set, and its reading does not
//! compare names; so [`Blobs`] reads, by an index of our own.
//!
//! Crash story: reads only, under restic's shared lock, which is journalled before it is made. Writers may run
//! beside us; whoever deletes is kept out by the lock. A repository that cannot be written to is read without.
//!
//! Nobody waits for the lock's second look, which tells whether somebody who deletes began in the same fifth of a second:
//! what he deletes is missing, and nothing is handed over that does not have its name. It is asked for, and says who it
//! was, as soon as something is missing.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use model::{
    aligned::{Aligned, Pool},
    entry::Kind,
    id::BackupId,
    pathtext,
    port::{Failure, FailureKind},
    port_restore::{Contents, Fetch, STRETCH, Sink, Take, Tap, read_whole},
    problem::{Effect, Problem},
    reference::ReferenceFile,
    restore::{Listed, Listing},
    size::Bytes,
};

use super::{
    blobs::{Blobs, MOST, Unread, is_enough},
    error::RepositoryError,
    lock::{Lock, LockKind},
    open::Repository,
    walk::{self, Stored as Found},
};
use crate::archiver::{Name, Place, digest};

impl Fetch for Repository {
    fn open(&mut self, backup: &BackupId) -> Result<Box<dyn Contents + '_>, Failure> {
        Ok(Box::new(self.stored(backup)?))
    }
}

impl Repository {
    fn stored(&mut self, backup: &BackupId) -> Result<Stored, Failure> {
        let list = || -> Result<(Blobs, Found), Failure> {
            let snapshot = self.snapshot(backup)?;
            let parts = self.blobs()?;
            let found = walk::all(&parts, Name::from_id(&snapshot.tree))?;
            Ok((parts, found))
        };
        let (lock, parts, mut found) = match self.locks.take_unsettled(LockKind::Shared, |_| Ok(list())) {
            Ok((mut lock, listed)) => {
                let lacks = |found: &Found| found.problems.iter().any(|p| p.effect == Effect::Missing);
                if listed.as_ref().map_or(true, |(_, found)| lacks(found)) {
                    lock.settle()?;
                }
                let (parts, found) = listed?;
                (Some(lock), parts, found)
            }
            Err(RepositoryError::Storage(error)) => {
                let (parts, mut found) = list()?;
                let what = format!("the repository is read without a lock: {error}");
                let note = Problem::new(Effect::Note, None, what, "let nobody prune it meanwhile");
                found.problems.insert(0, note);
                (None, parts, found)
            }
            Err(error) => return Err(error.into()),
        };
        part_unequal(&mut found);
        let zeros = zeros(&found, &parts);
        let Found { entries, contents, places, problems } = found;
        let listing = Listing::new(entries, problems)?.with_zeros(zeros);
        // It is not needed any more for anything but this backup.
        self.forget_index();
        let ends = Mutex::default();
        let mut stored = Stored {
            listing,
            contents,
            places,
            parts,
            ends,
            buffers: Pool::default(),
            copies: Vec::new(),
            lock: Mutex::new(lock),
            refused: OnceLock::new(),
        };
        let kept = self.kept_copies(backup);
        stored.copies = kept.into_iter().filter(|copy| stored.is_recorded(copy)).collect();
        Ok(stored)
    }
}

/// One backup, open for reading.
struct Stored {
    listing: Listing,
    /// The content of each item of the listing, as a stretch of the places.
    contents: Vec<Range<u32>>,
    places: Vec<Place>,
    parts: Blobs,
    /// Of large items that are read: where each of their parts ends, in bytes.
    ends: Mutex<HashMap<usize, Arc<[u64]>>>,
    buffers: Pool,
    copies: Vec<ReferenceFile>,
    lock: Mutex<Option<Lock>>,
    /// Who was in the way, once it was asked for.
    refused: OnceLock<Option<Failure>>,
}

impl Stored {
    fn item(&self, item: usize) -> Result<(&Listed, &[Place]), Failure> {
        let content = self.contents.get(item).map(|at| at.start as usize..at.end as usize);
        match (self.listing.entries().get(item), content.and_then(|at| self.places.get(at))) {
            (Some(entry), Some(places)) if entry.kind == Kind::File => Ok((entry, places)),
            _ => Err(Failure::new(FailureKind::Other, "there is no such file in the backup", "")),
        }
    }

    /// Whether what was recorded of a frozen copy is what is stored: size, and the names of all parts.
    fn is_recorded(&self, copy: &ReferenceFile) -> bool {
        let Some((_, places)) = self.listing.position(&copy.path).and_then(|item| self.item(item).ok())
        else {
            return false;
        };
        let parts: Result<Vec<(Name, u64)>, _> = places.iter().map(|place| self.parts.at(*place)).collect();
        let Ok(parts) = parts else { return false };
        let names: Vec<Name> = parts.iter().map(|(name, _)| *name).collect();
        parts.iter().map(|(_, size)| size).sum::<u64>() == copy.size.0 && digest(&names) == copy.content
    }

    /// Where each part of an item ends, in bytes; the last at its listed size.
    fn ends(&self, item: usize) -> Result<Arc<[u64]>, Failure> {
        let known = || self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let (entry, places) = self.item(item)?;
        let is_large = entry.meta.size.0 > STRETCH;
        if let Some(ends) = is_large.then(|| known().get(&item).map(Arc::clone)).flatten() {
            return Ok(ends);
        }
        let mut size: u64 = 0;
        let mut ends = Vec::with_capacity(places.len());
        for place in places {
            let part = self.parts.at(*place).map_err(|error| damaged(entry, MISSING_PART).because(error))?;
            size = size.saturating_add(part.1);
            ends.push(size);
        }
        let listed = entry.meta.size.0;
        if size != listed {
            let what = format!("has {size} bytes in the repository, but is listed with {listed}");
            return Err(damaged(entry, &what));
        }
        let ends: Arc<[u64]> = ends.into();
        if is_large {
            known().insert(item, Arc::clone(&ends));
        }
        Ok(ends)
    }
}

/// An item's size in bytes, and its parts.
fn sized<'a>((entry, places): (&Listed, &'a [Place])) -> (usize, &'a [Place]) {
    (usize::try_from(entry.meta.size.0).unwrap_or(usize::MAX), places)
}

/// Files that are cut from a stream of their content.
struct Files<'a, 'b> {
    sizes: &'a [usize],
    /// The number of the first that was not taken.
    next: usize,
    /// What there is of it.
    begun: Vec<u8>,
    take: &'a mut Take<'b>,
}

impl Files<'_, '_> {
    /// Hands over those that end with or within these bytes, which become those of the next one.
    fn take_next(&mut self, content: &mut &[u8]) {
        while let Some(lacks) = self.sizes.get(self.next).map(|size| size - self.begun.len()) {
            let Some((rest, behind)) = content.split_at_checked(lacks) else { return };
            *content = behind;
            if self.begun.is_empty() {
                (self.take)(self.next, Ok(rest));
            } else {
                self.begun.extend_from_slice(rest);
                (self.take)(self.next, Ok(&self.begun));
                self.begun.clear();
            }
            self.next += 1;
        }
    }
}

/// Parts of a file that follow each other.
struct Parts<'a> {
    entry: &'a Listed,
    /// Where the first begins in the file, in bytes.
    from: u64,
    ends: &'a [u64],
    places: &'a [Place],
}

impl Stored {
    /// Whether the tap gives these parts.
    fn is_content(
        &self,
        parts: &Parts<'_>,
        buffer: &mut Aligned,
        tap: &mut Tap<'_>,
    ) -> Result<bool, Failure> {
        let at = |end: u64| usize::try_from(end - parts.from).unwrap_or(usize::MAX);
        buffer.resize(parts.ends.last().map_or(0, |end| at(*end)));
        let mut filled = 0;
        while filled < buffer.len() {
            match tap(parts.from + filled as u64, &mut buffer[filled..])? {
                0 => return Ok(false),
                more => filled += more,
            }
        }
        let mut names = Vec::with_capacity(parts.places.len());
        for place in parts.places {
            let part = self.parts.at(*place);
            names.push(part.map_err(|error| damaged(parts.entry, MISSING_PART).because(error))?.0);
        }
        let begins = [parts.from].into_iter().chain(parts.ends.iter().copied());
        let contents = begins.zip(parts.ends).map(|(from, to)| &buffer[at(from)..at(*to)]);
        Ok(Name::of_all(&contents.collect::<Vec<_>>()) == names)
    }

    /// The lock's second look is over, and showed nobody: whoever deletes explains what is missing, and not the disk.
    ///
    /// # Errors
    /// Who was in the way.
    fn refuse_if_locked(&self) -> Result<(), Failure> {
        let refused = self.refused.get_or_init(|| {
            let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            lock.as_mut().and_then(|lock| lock.settle().err()).map(Failure::from)
        });
        match refused {
            Some(by) => Err(Failure::new(by.kind, by.in_full(), by.remedy.clone())),
            None => Ok(()),
        }
    }
}

impl Contents for Stored {
    fn listing(&self) -> &Listing {
        &self.listing
    }

    fn read(&self, item: usize, range: Range<u64>, sink: &mut Sink<'_>) -> Result<(), Failure> {
        let (entry, places) = self.item(item)?;
        let ends = self.ends(item)?;
        let first = ends.partition_point(|end| *end <= range.start);
        let behind = ends.partition_point(|end| *end < range.end).saturating_add(1).min(places.len());
        if range.is_empty() || first >= behind {
            return Ok(());
        }
        let mut begin = if first == 0 { 0 } else { ends[first - 1] };
        let read = self.parts.each(&places[first..behind], &mut |bytes| {
            let end = begin + bytes.len() as u64;
            let wanted = range.start.max(begin)..range.end.min(end);
            let cut = |at: u64| usize::try_from(at - begin).unwrap_or(bytes.len());
            let part = &bytes[cut(wanted.start)..cut(wanted.end)];
            begin = end;
            sink(part)
        });
        match read {
            Ok(()) => Ok(()),
            Err(Unread::Damaged(error)) => {
                self.refuse_if_locked()?;
                Err(damaged(entry, "is damaged in the repository").because(error))
            }
            Err(Unread::Refused(failure)) => Err(failure),
        }
    }

    fn read_each(&self, items: &[usize], take: &mut Take<'_>) {
        let mut places = Vec::new();
        let mut sizes = Vec::with_capacity(items.len());
        for item in items {
            // One that is listed with another size is told by reading it alone, as are all behind it.
            let Ok((size, content)) = self.ends(*item).and_then(|_| self.item(*item)).map(sized) else {
                break;
            };
            sizes.push(size);
            places.extend_from_slice(content);
        }
        let mut files = Files { sizes: &sizes, next: 0, begun: Vec::new(), take: &mut *take };
        files.take_next(&mut &[][..]);
        let read = self.parts.each(&places, &mut |mut content| {
            files.take_next(&mut content);
            files.begun.extend_from_slice(content);
            Ok(())
        });
        // The damaged one is among the others.
        let next = files.next;
        let left = if read.is_ok() { sizes.len() } else { next };
        for (number, item) in items.iter().enumerate().skip(left) {
            match read_whole(self, *item) {
                Ok(content) => take(number, Ok(&content)),
                Err(failure) => take(number, Err(failure)),
            }
        }
    }

    fn matches(&self, item: usize, range: Range<u64>, tap: &mut Tap<'_>) -> Result<bool, Failure> {
        let (entry, places) = self.item(item)?;
        let ends = self.ends(item)?;
        let begin = |part: usize| if part == 0 { 0 } else { ends[part - 1] };
        let first = match range.start {
            0 => 0,
            start => ends.partition_point(|end| *end < start) + 1,
        };
        let behind = match range.is_empty() {
            true => first,
            false => (ends.partition_point(|end| *end < range.end) + 1).min(places.len()),
        };
        let mut buffer = self.buffers.take(0);
        let mut part = first;
        while part < behind {
            let from = begin(part);
            let is_more =
                |to: usize| ends[to] - from <= MOST as u64 && !is_enough(begin(to) - from, to - part);
            let to = (part + 1..behind).find(|to| !is_more(*to)).unwrap_or(behind);
            let parts = Parts { entry, from, ends: &ends[part..to], places: &places[part..to] };
            if !self.is_content(&parts, &mut buffer, tap)? {
                return Ok(false);
            }
            part = to;
        }
        let size = entry.meta.size.0;
        Ok(range.end < size || tap(size, &mut [0])? == 0)
    }

    fn copies(&self) -> &[ReferenceFile] {
        &self.copies
    }
}

const MISSING_PART: &str = "is damaged: a part of it is not in the repository";

fn damaged(entry: &Listed, what: &str) -> Failure {
    let remedy = "run `stillpoint check --read-data`, and restore this file from another backup or tier";
    Failure::new(FailureKind::Damaged, format!("{} {what}", pathtext::show(&entry.path)), remedy)
}

/// How much of large files is zeros: a sparse file may be larger than any disk that it is restored to.
fn zeros(found: &Found, parts: &Blobs) -> HashMap<usize, Bytes> {
    let is_large = |index: &usize| found.entries[*index].meta.size.0 > STRETCH;
    let zeros = |index: usize| found.content(index).iter().map(|place| parts.zeros_at(*place)).sum();
    let large = (0..found.entries.len()).filter(is_large).map(|index| (index, Bytes(zeros(index))));
    large.filter(|(_, zeros)| zeros.0 > 0).collect()
}

/// Names of one inode are restored as one file, unless they were read at different moments and differ.
fn part_unequal(found: &mut Found) {
    let mut first: HashMap<(u64, u64), usize> = HashMap::new();
    for index in 0..found.entries.len() {
        let entry = &found.entries[index];
        if entry.kind != Kind::File || entry.meta.links < 2 || entry.meta.inode == 0 {
            continue;
        }
        let original = *first.entry((entry.meta.device, entry.meta.inode)).or_insert(index);
        if found.content(original) != found.content(index) {
            let what = "was a hard link, but was stored with another content than its other names: restored \
                        as a file of its own";
            found.problems.push(Problem::note(&entry.path, what));
            found.entries[index].meta.links = 1;
        }
    }
}
