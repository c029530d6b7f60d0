//! A census of a tree: every name with all its attributes, kept compactly, so that a later look needs no more
//! than one `statx` for each name.
//!
//! What a later look leaves out, and why that is safe. A stamp is believed if its change time was a second
//! old or more when the look that took it began ([`model::entry::Stamp::is_settled_at`]).
//!
//! - *Extended attributes, ACLs, what a symbolic link says*: each change of them moves the change time of the
//!   name. Stamp, mode, owner, group, links and device equal and settled: they are as they were read.
//! - *Listing a directory*: a name that is made, removed, renamed or replaced in it moves its modification and
//!   change times. They are taken before the names are; found equal and settled later, before anything
//!   else is done, they prove the same names. Something mounted over a name is not a change of the directory:
//!   it shows in device and inode of the name, which is looked at in any case.
//! - [`Census::changes`] never lists at all: whatever changed since a look began has a change time of that
//!   moment or later, by the kernel's own clock.
//!
//! What could not be read is tried again in every look. The work is done by all processors, in pieces of a
//! directory; what comes of it does not depend on who does which. Excludes and carved paths have to be the same
//! in all looks of one census.
//!
//! Crash story: reads only. A look that comes too late leaves the census as good as before: what it says was
//! true at one of the looks, and is asked again in the next.

mod again;
mod look;
mod record;
mod spread;

#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    ffi::CString,
    io,
    num::NonZeroU32,
    ops::ControlFlow,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use jiff::Timestamp;
use model::{
    entry::{Entry, Stamp, tree_order},
    problem::Problem,
};

use self::{
    look::{Chunk, Looker, look_at_root},
    record::{Folder, Member},
    spread::spread,
};
use super::rules::Vanished;
use crate::mounts::Mounts;

pub use again::Changes;

/// More threads than this are not worth their making for marks.
const MOST_MARKERS: usize = 8;

/// How many names one piece of work has at most.
const PIECE: usize = 1024;

/// One look at a tree.
pub struct Pass<'a> {
    /// Where the tree begins; a real path without symbolic links, the same in all looks of a census.
    pub root: &'a Path,
    /// Whether a path relative to the root is left out, with everything below it.
    pub exclude: &'a (dyn Fn(&Path) -> bool + Sync),
    /// Absolute paths that are left out, with everything below them.
    pub carved: &'a HashSet<PathBuf>,
    /// For telling what is mounted below the root.
    pub mounts: &'a Mounts,
    /// What to say of names that vanish meanwhile.
    pub vanished: Vanished,
    /// Before anything was looked at.
    pub started: Timestamp,
    /// Whether to give up; asked every now and then.
    pub late: &'a (dyn Fn() -> bool + Sync),
}

impl Pass<'_> {
    fn leaves_out(&self, path: &Path) -> bool {
        let relative = path.strip_prefix(self.root).unwrap_or(path);
        self.carved.contains(path) || (self.exclude)(relative)
    }
}

/// Why a look was not finished.
#[derive(Debug)]
pub enum Stopped {
    /// It got late; so many names were looked at.
    Late(u64),
    /// The root cannot be looked at, or is no directory.
    Lost(io::Error),
}

/// A name of a census, until its next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spot {
    folder: u32,
    member: usize,
}

/// How far a census was handed out.
#[derive(Debug, Default)]
pub struct Course {
    begun: bool,
    /// Directories that are being handed out, each with the member that is next.
    levels: Vec<(u32, usize)>,
}

/// Every name of a tree, with 104 bytes and the name for each.
#[derive(Debug, Default)]
pub struct Census {
    root: Option<Member>,
    /// By index, the root's first; what is gone leaves a gap.
    folders: Vec<Option<Folder>>,
}

impl Census {
    /// Looks at a tree, for the first time or again. Marks of names that are otherwise than before are gone
    /// afterwards. Returns what went wrong in passing; what is wrong for good is in [`Self::problems`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn update(&mut self, pass: &Pass<'_>) -> Result<Vec<Problem>, Stopped> {
        let root = look_at_root(pass).map_err(Stopped::Lost)?;
        let identity = root.identity();
        self.root = Some(root);
        if self.folder(0).is_none_or(|folder| folder.identity != identity || folder.path != pass.root) {
            self.folders = vec![Some(Folder::new(pass.root.to_owned(), identity, 0))];
        }
        self.work(pass, self.chunks())
    }

    /// How many names there are, the root among them.
    #[must_use]
    pub fn names(&self) -> u64 {
        1 + self.folders.iter().flatten().map(|folder| folder.members.len() as u64).sum::<u64>()
    }

    /// The regular files that have no mark.
    #[must_use]
    pub fn unmarked_files(&self) -> Vec<Spot> {
        let mut spots = Vec::new();
        for (folder, at) in (0..).zip(&self.folders) {
            for (member, known) in at.iter().flat_map(|folder| folder.members.iter().enumerate()) {
                if known.mark.is_none() && known.is_file() {
                    spots.push(Spot { folder, member });
                }
            }
        }
        spots
    }

    /// The stamps of the regular files.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> {
        let members = self.folders.iter().flatten().flat_map(|folder| &folder.members);
        members.filter(|member| member.is_file()).map(|member| member.record.stamp())
    }

    /// As [`Self::mark_files`], by all processors.
    pub fn mark_all_files(&mut self, mark: &(dyn Fn(&Path, &Stamp) -> Option<NonZeroU32> + Sync)) {
        let folders = Mutex::new(self.folders.iter_mut().flatten());
        let work = || {
            loop {
                // Not in the loop's head: the lock would be held meanwhile.
                let next = folders.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(folder) = next else { break };
                folder.mark_files(&mut |path, stamp| mark(path, stamp));
            }
        };
        thread::scope(|scope| {
            let others = thread::available_parallelism().map_or(0, |cores| cores.get().min(MOST_MARKERS) - 1);
            // Where no thread can be made, those that are there do the work.
            (0..others).for_each(|_| drop(thread::Builder::new().spawn_scoped(scope, work)));
            work();
        });
    }

    /// Marks regular files that have no mark, where `mark` says so. A mark stays until the file is otherwise than it
    /// was at the last look.
    pub fn mark_files(&mut self, mark: &mut dyn FnMut(&Path, &Stamp) -> Option<NonZeroU32>) {
        self.folders.iter_mut().flatten().for_each(|folder| folder.mark_files(mark));
    }

    /// Takes the marks away that this accepts.
    pub fn unmark_if(&mut self, is_over: &dyn Fn(NonZeroU32) -> bool) {
        let members = self.folders.iter_mut().flatten().flat_map(|folder| &mut folder.members);
        members.for_each(|member| member.mark = member.mark.filter(|mark| !is_over(*mark)));
    }

    /// Takes away the mark of one regular file, if that is what stands at this path.
    pub fn unmark(&mut self, path: &Path) {
        let Some(spot) = self.find(path) else { return };
        if let Some(folder) = self.folders.get_mut(spot.folder as usize).and_then(Option::as_mut)
            && let Some(member) = folder.members.get_mut(spot.member)
        {
            member.mark = None;
        }
    }

    /// Everything about a name; `None` if nothing is stored of it.
    #[must_use]
    pub fn entry(&self, spot: Spot) -> Option<Entry> {
        let folder = self.folder(spot.folder)?;
        let member = folder.members.get(spot.member)?;
        member.entry(folder.path_of(member))
    }

    /// Hands out everything that is stored, in the order of [`tree_order`], with its mark. Regular files have
    /// [`model::entry::Body::Carried`] until somebody knows better.
    pub fn each(&self, each: &mut dyn FnMut(Option<Spot>, Option<NonZeroU32>, Entry)) {
        let mut all = Course::default();
        self.go_on(&mut all, &|_| true, &mut |spot, mark, entry| {
            each(spot, mark, entry);
            ControlFlow::Continue(())
        });
    }

    /// The same from where a course stands, of those whose mark `is_asked` wants, until `each` breaks it off or all is
    /// handed out. The census has to be the same all the while.
    pub fn go_on(
        &self,
        course: &mut Course,
        is_asked: &dyn Fn(Option<NonZeroU32>) -> bool,
        each: &mut dyn FnMut(Option<Spot>, Option<NonZeroU32>, Entry) -> ControlFlow<()>,
    ) {
        let Some(root) = self.folder(0) else { return };
        if !std::mem::replace(&mut course.begun, true) {
            course.levels.push((0, 0));
            let asked = self.root.as_ref().filter(|member| is_asked(member.mark));
            let entry = asked.and_then(|member| member.entry(root.path.clone()));
            if entry.is_some_and(|entry| each(None, None, entry).is_break()) {
                return;
            }
        }
        while let Some((index, next)) = course.levels.last_mut() {
            let (index, member) = (*index, std::mem::replace(next, *next + 1));
            let Some((folder, known)) = self.folder(index).and_then(|f| Some((f, f.members.get(member)?)))
            else {
                course.levels.pop();
                continue;
            };
            course.levels.extend(known.folder.map(|below| (below.get(), 0)));
            if is_asked(known.mark)
                && let Some(entry) = known.entry(folder.path_of(known))
                && each(Some(Spot { folder: index, member }), known.mark, entry).is_break()
            {
                return;
            }
        }
    }

    /// What is missing or worth knowing, in the order of [`tree_order`].
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let folders = || self.folders.iter().flatten();
        let extras = || {
            let members = folders().flat_map(|folder| &folder.members);
            members.chain(&self.root).filter_map(|member| member.extra.as_deref())
        };
        let mut problems: Vec<Problem> = folders().filter_map(|folder| folder.problem.clone()).collect();
        problems.extend(extras().flat_map(|extra| extra.problems.iter().cloned()));
        let unread = extras().filter_map(|extra| extra.unread.as_ref());
        problems.extend(unread.min_by(|a, b| by_path(a, b)).cloned());
        problems.sort_by(by_path);
        problems
    }

    fn folder(&self, index: u32) -> Option<&Folder> {
        self.folders.get(index as usize)?.as_ref()
    }

    fn find(&self, path: &Path) -> Option<Spot> {
        let mut folder = 0;
        let mut below = path.strip_prefix(&self.folder(0)?.path).ok()?.iter().peekable();
        while let Some(name) = below.next() {
            let name = CString::new(name.as_bytes()).ok()?;
            let at = self.folder(folder)?;
            let member = at.members.binary_search_by(|member| at.name(member).cmp(&name)).ok()?;
            if below.peek().is_none() {
                return Some(Spot { folder, member });
            }
            folder = at.members.get(member)?.folder?.get();
        }
        None
    }

    /// The whole tree in pieces.
    fn chunks(&self) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for (folder, at) in (0..).zip(&self.folders) {
            let Some(at) = at else { continue };
            let count = at.members.len();
            let ends = (0..count.max(1)).step_by(PIECE);
            chunks.extend(ends.map(|from| Chunk { folder, from, to: count.min(from + PIECE) }));
        }
        chunks
    }

    /// Looks at these pieces, and at whatever has to be entered in consequence.
    fn work(&mut self, pass: &Pass<'_>, mut wave: Vec<Chunk>) -> Result<Vec<Problem>, Stopped> {
        let mut problems = Vec::new();
        let looked = AtomicU64::new(0);
        while !wave.is_empty() {
            let found = spread(
                &wave,
                pass.late,
                || Looker::new(pass),
                |chunk, looker| {
                    let found = self.folder(chunk.folder).and_then(|folder| looker.look(*chunk, folder));
                    let added = found.as_ref().and_then(|f| Some(f.listing.as_ref()?.added.len()));
                    let names = chunk.to - chunk.from + added.unwrap_or(0);
                    looked.fetch_add(names as u64, Ordering::Relaxed);
                    found
                },
            );
            let Some(found) = found else { return Err(Stopped::Late(looked.into_inner())) };
            wave = self.apply_all(pass, found, &mut problems);
        }
        problems.sort_by(by_path);
        Ok(problems)
    }
}

fn by_path(a: &Problem, b: &Problem) -> std::cmp::Ordering {
    match (&a.path, &b.path) {
        (Some(a), Some(b)) => tree_order(a, b),
        (a, b) => a.cmp(b),
    }
}
