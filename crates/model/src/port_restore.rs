//! The ports of a restore: reading a backup ([`Fetch`], [`Contents`]) and writing on the target machine
//! ([`Site`], [`Beside`]).
//!
//! Crash story: everything is written beside what it replaces, in directories that the journal names before
//! they are made. [`Beside::swap`] writes down every rename before it does the first; until its last line a
//! dead run's successor brings the old state back, after it the old state is only still to be removed.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    id::{BackupId, SourceId},
    port::{Failure, FailureKind, Hold, Journal},
    problem::Problem,
    reference::ReferenceFile,
    restore::{Listed, Listing, Opened, Place, RestorePlan, SiteFacts},
};

/// What takes the bytes of a file, in order. A failure ends the reading and is handed through.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), Failure> + 'a;

/// What takes whole files: the number of each, and its content.
pub type Take<'a> = dyn FnMut(usize, Result<&[u8], Failure>) + 'a;

/// What gives the bytes of a file from an offset on: fills the front of the buffer, and says how much; 0 at the end.
pub type Tap<'a> = dyn FnMut(u64, &mut [u8]) -> Result<usize, Failure> + 'a;

/// Where a file may be divided for several threads: at multiples of this, in bytes. Blocks of every filesystem
/// and chunks of page files divide it.
pub const SHARE: u64 = 8 << 20;

/// How much of a file one thread takes at once, in bytes, unless only little is left for all of them: a multiple of
/// [`SHARE`].
pub const STRETCH: u64 = 4 * SHARE;

/// Why what was written was not put in place.
#[derive(Debug)]
pub struct NotSwapped {
    /// What failed.
    pub failure: Failure,
    /// Some names are new and some are old, and the journal still says how to bring the old back: until then
    /// nobody should be started on it. Otherwise everything is as it was.
    pub is_mixed: bool,
}

impl From<Failure> for NotSwapped {
    /// Everything is as it was.
    fn from(failure: Failure) -> Self {
        Self { failure, is_mixed: false }
    }
}

/// The repository that a backup is read from.
pub trait Fetch: Send {
    /// Reads the list of everything in a backup. The repository stays locked against removal until the
    /// result is dropped.
    ///
    /// # Errors
    /// [`crate::port::FailureKind::Refused`] for a tree with names that no filesystem has; else if it cannot
    /// be read.
    fn open(&mut self, backup: &BackupId) -> Result<Box<dyn Contents + '_>, Failure>;
}

/// One backup, open for reading, from several threads at once.
pub trait Contents: Sync {
    /// Everything in it.
    fn listing(&self) -> &Listing;
    /// Hands over these bytes of the regular file at this index of the listing, in order. Every part has been
    /// compared with its cryptographic name before it is handed over, and all parts of the file together have
    /// the listed size.
    ///
    /// # Errors
    /// [`crate::port::FailureKind::Damaged`] if stored bytes are missing or wrong; else what the sink says.
    fn read(&self, item: usize, range: Range<u64>, sink: &mut Sink<'_>) -> Result<(), Failure>;
    /// Hands over the content of these regular files, each as a whole, in order, with its number among them; of one that
    /// cannot be read, why. For small ones, which are read together.
    fn read_each(&self, items: &[usize], take: &mut Take<'_>) {
        for (number, item) in items.iter().enumerate() {
            match read_whole(self, *item) {
                Ok(content) => take(number, Ok(&content)),
                Err(failure) => take(number, Err(failure)),
            }
        }
    }
    /// Whether what the tap gives is the content of that file, in all its parts that begin within the range, and nothing
    /// more behind the last of all: by the cryptographic names of the parts, without reading what is stored.
    ///
    /// # Errors
    /// What the tap says; if the backup does not say what the file holds.
    fn matches(&self, item: usize, range: Range<u64>, tap: &mut Tap<'_>) -> Result<bool, Failure>;
    /// Frozen copies of its files that are kept on this machine: what was recorded of them is what the backup has. Whether
    /// they still are what was recorded is for the [`Site`] to see.
    fn copies(&self) -> &[ReferenceFile] {
        &[]
    }
}

/// The content of a regular file.
///
/// # Errors
/// As [`Contents::read`].
pub fn read_whole<C: Contents + ?Sized>(contents: &C, item: usize) -> Result<Vec<u8>, Failure> {
    let size = contents.listing().entries().get(item).map_or(0, |entry| entry.meta.size.0);
    let mut content = Vec::new();
    contents.read(item, 0..size, &mut |bytes| {
        content.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(content)
}

/// The machine that a backup is restored on.
pub trait Site: Sync {
    /// Looks at the places that would be written. Changes nothing.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn survey(&self, places: &[Place], listing: &Listing, watched: &[PathBuf]) -> Result<SiteFacts, Failure>;
    /// The device numbers of the filesystems that these frozen copies lie on; nothing for one that is not as it was stored.
    fn copies(&self, copies: &[ReferenceFile]) -> Vec<Option<u64>> {
        vec![None; copies.len()]
    }
    /// Which processes have one of these files open.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn open_by(&self, paths: &[PathBuf]) -> Result<Vec<Opened>, Failure>;
    /// Makes the directories beside the places, in which everything is written.
    ///
    /// # Errors
    /// If one cannot be made; then none is left.
    fn begin<'a>(
        &'a self,
        plan: &'a RestorePlan,
        listing: &'a Listing,
        journal: &Arc<dyn Journal>,
    ) -> Result<Box<dyn Beside + 'a>, Failure>;
    /// Removes the old state that a swap has kept, all but binary logs of servers, which no backup holds: they are
    /// put into a directory of their own. Without it everything stays kept.
    fn remove_old(&self, kept: &[PathBuf], _journal: &Arc<dyn Journal>) -> Swapped {
        Swapped { kept: kept.to_vec(), problems: Vec::new() }
    }
}

/// Where an object of the backup lies while it is written beside; `None` if it is not restored.
pub type Lies<'a> = dyn Fn(&Path) -> Option<PathBuf> + 'a;

/// A database server that a restore in place replaces or loads.
pub trait ServerTarget {
    /// The source.
    fn source(&self) -> SourceId;
    /// Stops it before its directories are replaced, and starts it after; nothing if it has no hooks, or runs on.
    fn service(&self) -> Option<Box<dyn Hold>>;
    /// Makes what was written beside such that it can be put in place: replays logs, finishes transactions. Called
    /// before anybody is stopped.
    ///
    /// # Errors
    /// If it cannot be put in place: then nothing is.
    fn ready(&mut self, lies: &Lies<'_>) -> Result<Vec<Problem>, Failure>;
    /// Replaces databases of the running server. Called with the application stopped, before anything is swapped.
    ///
    /// # Errors
    /// If they are not replaced; says what the server has now.
    fn load(&mut self) -> Result<Vec<Problem>, Failure>;
    /// After a failure, before anybody is started again: undoes [`ServerTarget::load`].
    ///
    /// # Errors
    /// If it cannot be undone; says what the server has now.
    fn put_back(&mut self) -> Result<(), Failure>;
    /// After everything is in place and it was started: whether it answers and its tables open. From here on nothing
    /// is put back.
    ///
    /// # Errors
    /// If it does not answer.
    fn check(&mut self) -> Result<Vec<Problem>, Failure>;
}

/// What is written beside. Dropping it removes it.
pub trait Beside: Sync {
    /// Makes all directories, closed to everyone else. Called first.
    ///
    /// # Errors
    /// [`crate::port::FailureKind::NoSpace`] or anything else that makes going on pointless.
    fn directories(&self) -> Result<Vec<Problem>, Failure>;
    /// Makes one regular file, with its attributes once its bytes are there. May be called from several
    /// threads.
    ///
    /// # Errors
    /// If it cannot be made.
    fn file<'s>(&'s self, part: usize, item: &'s Listed) -> Result<Box<dyn Writing + 's>, Failure>;
    /// Makes one regular file as a clone of a frozen copy, all of it written but for its attributes; nothing if the copy is
    /// not what was recorded, before and after, or cannot be cloned here.
    ///
    /// # Errors
    /// As [`Beside::file`].
    fn clone_of<'s>(
        &'s self,
        _part: usize,
        _item: &'s Listed,
        _copy: &ReferenceFile,
    ) -> Result<Option<Box<dyn Writing + 's>>, Failure> {
        Ok(None)
    }
    /// Makes hard links, symbolic links, devices and pipes. `lost` names the files that could not be written,
    /// for hard links to them.
    ///
    /// # Errors
    /// [`crate::port::FailureKind::NoSpace`] or anything else that makes going on pointless.
    fn complete(&self, lost: &[PathBuf]) -> Result<Vec<Problem>, Failure>;
    /// Compares everything that was written with the listing, entry by entry, and looks for anything more;
    /// all but the attributes of directories.
    ///
    /// # Errors
    /// If it cannot be looked at.
    fn verify(&self) -> Result<Vec<Problem>, Failure>;
    /// Sets the attributes of the directories, deepest first, and compares each at once: after it a closed
    /// directory can neither be written nor looked into. Called last before the swap.
    ///
    /// # Errors
    /// If a directory cannot be reached.
    fn seal(&self) -> Result<Vec<Problem>, Failure>;
    /// Opens a file that was written, to compare its bytes. Called after [`Beside::sync`], or for a clone, so that they can
    /// be had from the disk.
    ///
    /// # Errors
    /// If it cannot be opened.
    fn reread<'s>(&'s self, part: usize, item: &'s Listed) -> Result<Box<dyn Reading + 's>, Failure>;
    /// Where the object of this part lies, with all it holds.
    ///
    /// # Errors
    /// If it cannot be told.
    fn lies(&self, _part: usize) -> Result<PathBuf, Failure> {
        Err(Failure::new(FailureKind::Other, "it is not known where the restored lies", ""))
    }
    /// Writes everything to disk.
    ///
    /// # Errors
    /// If the disk says that it could not.
    fn sync(&self) -> Result<(), Failure>;
    /// Puts everything that was written in place of what is there. On an error the old state is back,
    /// unless the error says otherwise.
    ///
    /// # Errors
    /// What failed, and whether the old state could be brought back.
    fn swap(self: Box<Self>) -> Result<Swapped, NotSwapped>;
    /// Puts an incomplete tree of `--to` beside its place, under a name that says so, and returns the name.
    ///
    /// # Errors
    /// If it cannot be renamed; it is removed then.
    fn leave_incomplete(self: Box<Self>) -> Result<PathBuf, Failure>;
    /// Removes what was written.
    ///
    /// # Errors
    /// If something is left.
    fn discard(self: Box<Self>) -> Result<(), Failure>;
}

/// A regular file that is being written. Dropping it unfinished removes it.
pub trait Writing: Send + Sync {
    /// Begins to write these bytes of it. Several threads may write several stretches at once, each of which begins
    /// at a multiple of [`SHARE`] and ends at one or with the file.
    ///
    /// # Errors
    /// [`crate::port::FailureKind::NoSpace`] or what the filesystem says.
    fn stretch(&self, range: Range<u64>) -> Result<Box<dyn Stretch + '_>, Failure>;
    /// Sets size and attributes, and compares them with what the file then has.
    ///
    /// # Errors
    /// If bytes of it were not written; what the filesystem says.
    fn finish(self: Box<Self>) -> Result<Finished, Failure>;
}

/// A part of a file that is being written.
pub trait Stretch {
    /// Appends bytes; long runs of zeros become holes.
    ///
    /// # Errors
    /// [`crate::port::FailureKind::NoSpace`] or what the filesystem says.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Failure>;
    /// Writes what is not written yet.
    ///
    /// # Errors
    /// As [`Stretch::append`].
    fn end(self: Box<Self>) -> Result<(), Failure>;
}

/// A file that was written, read back.
pub trait Reading {
    /// Fills the front of the buffer with the bytes from an offset on, from the disk where that can be had; 0 at the end.
    ///
    /// # Errors
    /// If they cannot be read.
    fn at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, Failure>;
}

/// A regular file that was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finished {
    /// Attributes that could not be set, or are not what was set.
    pub problems: Vec<Problem>,
}

/// After the point of no return.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swapped {
    /// Where the old state is kept, if it was to be kept or could not be removed.
    pub kept: Vec<PathBuf>,
    /// What could not be cleaned up or set; nothing of the restored content is missing.
    pub problems: Vec<Problem>,
}
