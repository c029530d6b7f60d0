//! Bringing a census up to date, and comparing it with the tree without changing it.
//!
//! Crash story: memory, and reads.

use std::{
    io,
    num::NonZeroU32,
    os::fd::AsFd,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use model::{entry::tree_order, problem::Problem};
use rustix::fs::CWD;

use super::{
    Census, Pass, Stopped,
    look::{Chunk, Findings, Listing, Seen, enter, vanished},
    record::{Folder, Member, Names, Record, Standing, is_settled},
    spread::spread,
};
use crate::tree::{
    changed_since,
    meta::{device, status},
    rules::{circle, is_gone, pseudo_mount, unreadable},
};

/// What a comparison shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// How many names are otherwise. Names that are new show in their directory.
    pub count: u64,
    /// The first of them.
    pub first: Option<PathBuf>,
}

impl Census {
    /// What is otherwise now than at the last look, and whatever changed at `floor` or later: the kernel's clock
    /// of stamps before that look began ([`crate::tree::clock_of_stamps`]).
    ///
    /// # Errors
    /// [`Stopped::Late`].
    pub fn changes(&self, floor: Timestamp, late: &(dyn Fn() -> bool + Sync)) -> Result<Changes, Stopped> {
        let work: Vec<Chunk> = self.chunks().into_iter().filter(|chunk| chunk.to > chunk.from).collect();
        let looked = AtomicU64::new(0);
        let compare = |chunk: &Chunk, (): &mut ()| {
            looked.fetch_add((chunk.to - chunk.from) as u64, Ordering::Relaxed);
            let found = self.folder(chunk.folder).map(|folder| changed(*chunk, folder, floor));
            found.filter(|paths| !paths.is_empty())
        };
        let found = spread(&work, late, || (), compare);
        let Some(found) = found else { return Err(Stopped::Late(looked.into_inner())) };
        let mut paths: Vec<PathBuf> = found.into_iter().flatten().collect();
        if let (Some(root), Some(member)) = (self.folder(0), &self.root)
            && is_otherwise(status(CWD, &*root.path), member, floor)
        {
            paths.push(root.path.clone());
        }
        paths.sort_by(|a, b| tree_order(a, b));
        paths.dedup();
        Ok(Changes { count: paths.len() as u64, first: paths.into_iter().next() })
    }

    /// Takes over what was found; returns the directories that are to be entered.
    pub(super) fn apply_all(
        &mut self,
        pass: &Pass<'_>,
        found: Vec<Findings>,
        problems: &mut Vec<Problem>,
    ) -> Vec<Chunk> {
        let mut wave = Vec::new();
        let mut found = found.into_iter().peekable();
        while let Some(mut one) = found.next() {
            while let Some(more) = found.next_if(|more| more.folder == one.folder) {
                one.absorb(more);
            }
            self.apply(pass, one, problems, &mut wave);
        }
        // What was entered may be gone again, with a directory above it.
        wave.retain(|chunk| self.folder(chunk.folder).is_some());
        wave
    }

    fn apply(
        &mut self,
        pass: &Pass<'_>,
        found: Findings,
        problems: &mut Vec<Problem>,
        wave: &mut Vec<Chunk>,
    ) {
        let index = found.folder;
        // Its directory is gone, and it with it.
        let Some(folder) = self.folders.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let mut orphans = Vec::new();
        if let Some(error) = found.lost {
            lose(pass, folder, &error, problems, &mut orphans);
        } else {
            let mut gone = Vec::new();
            for (member, seen) in found.changed {
                folder.take_over(member, seen, &mut gone, &mut orphans);
            }
            let listing = found.listing;
            let removed = listing.as_ref().map(|l| &l.removed[..]).unwrap_or_default();
            let unlisted = |member: &usize| removed.binary_search(member).is_ok();
            let missed =
                gone.iter().filter(|member| !unlisted(member)).filter_map(|m| folder.members.get(*m));
            let missed: Vec<PathBuf> = missed.map(|member| folder.path_of(member)).collect();
            vanished(pass, &missed, problems);
            vanished(pass, &found.vanished, problems);
            gone.extend(removed);
            folder.replace(pass, listing, gone, &mut orphans);
            self.decide(pass, index, wave);
        }
        self.forget(orphans);
    }

    /// Enters directories that are new, unless something speaks against it.
    fn decide(&mut self, pass: &Pass<'_>, index: u32, wave: &mut Vec<Chunk>) {
        let Some(folder) = self.folder(index) else { return };
        let undecided = folder.members.iter().enumerate().filter(|(_, m)| m.is_dir() && !m.decided);
        let undecided: Vec<(usize, PathBuf)> =
            undecided.map(|(at, member)| (at, folder.path_of(member))).collect();
        for (at, path) in undecided {
            let Some(member) = self.folder(index).and_then(|folder| folder.members.get(at)) else { continue };
            let identity = member.identity();
            let obstacle = if self.is_above(index, identity) {
                Some(circle(&path))
            } else if member.mount_point {
                pseudo_mount(pass.mounts, &path)
            } else {
                None
            };
            let below = u32::try_from(self.folders.len()).ok().and_then(NonZeroU32::new);
            if obstacle.is_none()
                && let Some(below) = below
            {
                self.folders.push(Some(Folder::new(path, identity, index)));
                wave.push(Chunk { folder: below.get(), from: 0, to: 0 });
            }
            let Some(folder) = self.folders.get_mut(index as usize).and_then(Option::as_mut) else {
                continue;
            };
            if let Some(member) = folder.members.get_mut(at) {
                member.decided = true;
                match obstacle {
                    Some(problem) => member.say(problem),
                    None => member.folder = below,
                }
            }
        }
    }

    /// Whether a directory is this one or above it.
    fn is_above(&self, mut index: u32, identity: (u64, u64)) -> bool {
        while let Some(folder) = self.folder(index) {
            if folder.identity == identity {
                return true;
            }
            if index == 0 {
                return false;
            }
            index = folder.above;
        }
        false
    }

    /// Takes directories out, with everything below them.
    fn forget(&mut self, mut orphans: Vec<NonZeroU32>) {
        while let Some(index) = orphans.pop() {
            if let Some(folder) = self.folders.get_mut(index.get() as usize).and_then(Option::take) {
                orphans.extend(folder.members.iter().filter_map(|member| member.folder));
            }
        }
    }
}

/// A directory that cannot be entered holds nothing.
fn lose(
    pass: &Pass<'_>,
    folder: &mut Folder,
    error: &io::Error,
    problems: &mut Vec<Problem>,
    orphans: &mut Vec<NonZeroU32>,
) {
    let is_gone = is_gone(error);
    if is_gone {
        problems.extend(pass.vanished.said_of(&folder.path));
    }
    folder.problem = (!is_gone).then(|| unreadable(&folder.path, error));
    folder.listed = None;
    folder.names = Names::default();
    orphans.extend(std::mem::take(&mut folder.members).iter().filter_map(|member| member.folder));
}

impl Folder {
    fn take_over(&mut self, index: usize, seen: Seen, gone: &mut Vec<usize>, orphans: &mut Vec<NonZeroU32>) {
        let Some(member) = self.members.get_mut(index) else { return };
        match seen {
            Seen::Gone => gone.push(index),
            Seen::Accessed(record) => member.record = record,
            Seen::Otherwise(new) => {
                let old = std::mem::replace(member, *new);
                member.name = old.name;
                if member.shows(old.device, &old.record) {
                    member.mark = old.mark;
                }
                if member.is_dir() && old.is_dir() && member.identity() == old.identity() {
                    member.folder = old.folder;
                    member.decided = old.folder.is_some();
                } else {
                    orphans.extend(old.folder);
                }
            }
        }
    }

    /// Takes names out and puts listed ones in.
    fn replace(
        &mut self,
        pass: &Pass<'_>,
        listing: Option<Listing>,
        mut gone: Vec<usize>,
        orphans: &mut Vec<NonZeroU32>,
    ) {
        gone.sort_unstable();
        gone.dedup();
        let (mut new_names, mut added) = (Names::default(), Vec::new());
        if let Some(Listing { before, names, added: members, .. }) = listing {
            self.settled = is_settled(&before, pass.started);
            self.listed = Some(before);
            self.problem = None;
            (new_names, added) = (names, members);
        }
        if gone.is_empty() && added.is_empty() {
            return;
        }
        if self.members.is_empty() {
            // What was listed for the first time stays in the memory where it is.
            (self.names, self.members) = (new_names, added);
            self.members.shrink_to_fit();
            self.names.fit();
            return;
        }
        let old_names = std::mem::take(&mut self.names);
        let mut gone = gone.into_iter().peekable();
        let mut members: Vec<Member> = Vec::with_capacity(self.members.len() + added.len());
        let mut put = |mut member: Member, from: &Names| {
            // More than 4 GiB of names do not fit into a directory.
            if let Some(start) = self.names.add(from.at(member.name)) {
                member.name = start;
                members.push(member);
            }
        };
        let mut added = added.into_iter().peekable();
        for (index, old) in std::mem::take(&mut self.members).into_iter().enumerate() {
            let name = old_names.at(old.name);
            while let Some(new) = added.next_if(|new| new_names.at(new.name) < name) {
                put(new, &new_names);
            }
            if gone.next_if_eq(&index).is_some() {
                orphans.extend(old.folder);
            } else {
                put(old, &old_names);
            }
        }
        added.for_each(|new| put(new, &new_names));
        members.shrink_to_fit();
        self.members = members;
        self.names.fit();
    }
}

/// The names of a piece that are otherwise than the census says.
fn changed(chunk: Chunk, folder: &Folder, floor: Timestamp) -> Vec<PathBuf> {
    // Whether this is still the same directory shows in its own entry, and in those above it.
    let dir = match enter(&folder.path) {
        Ok(dir) => dir,
        Err(_) => return vec![folder.path.clone()],
    };
    let members = folder.members.get(chunk.from..chunk.to).unwrap_or_default();
    let stored = members.iter().filter(|member| member.standing == Standing::Stored);
    let otherwise =
        stored.filter(|member| is_otherwise(status(dir.as_fd(), folder.name(member)), member, floor));
    otherwise.map(|member| folder.path_of(member)).collect()
}

fn is_otherwise(now: io::Result<rustix::fs::Statx>, member: &Member, floor: Timestamp) -> bool {
    let Ok(now) = now else { return true };
    let record = Record::of(&now);
    !member.shows(device(&now), &record) || changed_since(record.ctime(), floor)
}
