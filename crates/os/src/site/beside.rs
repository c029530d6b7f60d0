//! What is written beside the places of a restore.
//!
//! Crash story: see [`super`]. Dropped before the swap, everything is removed and crossed off the journal;
//! what cannot be removed stays in the journal for `thaw` or the next run.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use model::{
    aligned::Pool,
    entry::Kind,
    pathtext,
    port::{Failure, FailureKind, Journal},
    port_restore::{Beside, NotSwapped, Reading, Swapped, Writing},
    problem::Problem,
    reference::ReferenceFile,
    restore::{Exchange, Listed, Listing, Part, RestorePlan, Target, Work, work},
    undo::{Move, Ticket, Undo},
};
use rustix::fs::{AtFlags, FileType, Mode};

use super::{
    attributes::{Place, Setter, forget_inherited, open_dir},
    flush::Flusher,
    reached::Reached,
    swap::{self, SwapError, exists},
    verify,
    write::{NewFile, Ways, WrittenFile, cannot},
};
use crate::staging;

/// A staging directory and what is journalled for it.
#[derive(Debug)]
struct Area {
    path: PathBuf,
    dir: OwnedFd,
    ticket: Option<Ticket>,
}

/// Everything that is written beside.
pub(super) struct LocalBeside<'a> {
    plan: &'a RestorePlan,
    listing: &'a Listing,
    work: Work,
    journal: Arc<dyn Journal>,
    setter: Setter,
    buffers: Pool,
    flusher: Flusher,
    areas: BTreeMap<PathBuf, Area>,
    reached: Reached,
}

impl<'a> LocalBeside<'a> {
    /// Makes the staging directories.
    pub fn begin(
        plan: &'a RestorePlan,
        listing: &'a Listing,
        journal: &Arc<dyn Journal>,
    ) -> Result<Self, Failure> {
        let mut beside = Self {
            plan,
            listing,
            work: work(plan, listing),
            journal: Arc::clone(journal),
            setter: Setter::new(plan.privileged),
            buffers: Pool::default(),
            flusher: Flusher::default(),
            areas: BTreeMap::new(),
            reached: Reached::default(),
        };
        let dirs = plan.parts.iter().map(|p| &p.beside).chain(plan.drops.iter().map(|d| &d.beside));
        for dir in dirs {
            if !beside.areas.contains_key(dir) {
                let area = beside.make_area(dir)?;
                beside.areas.insert(dir.clone(), area);
            }
        }
        Ok(beside)
    }

    fn make_area(&self, beside: &Path) -> Result<Area, Failure> {
        let fail = |e: io::Error| cannot("written to", beside, e);
        let path = staging::new_name(beside, "restore").map_err(fail)?;
        let ticket = self.journal.intend(Undo::RemoveTree { path: path.clone() }, None)?;
        let made = (|| {
            rustix::fs::mkdir(&path, Mode::RWXU)?;
            forget_inherited(&path)?;
            rustix::fs::mkdir(path.join("new"), Mode::RWXU)?;
            rustix::fs::mkdir(path.join("old"), Mode::RWXU)?;
            Ok(OwnedFd::from(File::open(&path)?))
        })();
        match made {
            Ok(dir) => Ok(Area { path, dir, ticket: Some(ticket) }),
            Err(error) => {
                if staging::remove(&path).is_ok() {
                    self.journal.done(ticket);
                }
                Err(fail(error))
            }
        }
    }

    fn area(&self, part: &Part) -> Result<&Area, Failure> {
        self.areas.get(&part.beside).ok_or_else(|| {
            let what = format!("nothing was prepared beside {}", pathtext::show(&part.to));
            Failure::new(FailureKind::Other, what, "")
        })
    }

    /// Where an object of the backup is written.
    pub fn place(&self, part: usize, path: &Path) -> Result<Place, Failure> {
        let area = self.area(&self.plan.parts[part])?;
        let fail = |error| cannot("reached", path, error);
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Place::below(&area.dir, &self.relative(part, path)).map_err(fail);
        };
        if path == self.plan.parts[part].from {
            return Place::below(&area.dir, &self.relative(part, path)).map_err(fail);
        }
        let open = || open_dir(&area.dir, &self.relative(part, above));
        let dir = self.reached.get(part, above, open).map_err(fail)?;
        Ok(Place { dir, name: name.to_owned() })
    }

    /// The same as a path relative to the staging directory.
    fn relative(&self, part: usize, path: &Path) -> PathBuf {
        let slot = Path::new("new").join(part.to_string());
        match path.strip_prefix(&self.plan.parts[part].from) {
            Ok(rest) if !rest.as_os_str().is_empty() => slot.join(rest),
            _ => slot,
        }
    }

    /// The staging path of a part.
    pub fn slot(&self, part: usize) -> Result<PathBuf, Failure> {
        Ok(self.area(&self.plan.parts[part])?.path.join("new").join(part.to_string()))
    }

    /// Every item with its part, in order.
    pub fn items(&self) -> impl DoubleEndedIterator<Item = (usize, &'a Listed)> + '_ {
        let listing: &'a Listing = self.listing;
        self.plan.parts.iter().enumerate().flat_map(move |(index, part)| {
            listing.entries()[listing.below(&part.from)].iter().map(move |e| (index, e))
        })
    }

    /// The rest of what [`verify`] needs.
    pub fn context(&self) -> (&'a RestorePlan, &'a Listing, &Work, &Setter) {
        (self.plan, self.listing, &self.work, &self.setter)
    }

    fn make_dir(&self, part: usize, path: &Path) -> Result<(), Failure> {
        let made = match self.place(part, path) {
            Ok(place) => rustix::fs::mkdirat(&place.dir, &place.name, Mode::RWXU).map_err(io::Error::from),
            Err(failure) => return Err(failure),
        };
        made.map_err(|e| cannot("made", path, e))
    }

    fn make_link(&self, item: (usize, usize), original: (usize, usize)) -> Result<(), Failure> {
        let entries = self.listing.entries();
        let (path, from) = (&entries[item.1].path, &entries[original.1].path);
        let (new, old) = (self.place(item.0, path)?, self.place(original.0, from)?);
        rustix::fs::linkat(&old.dir, &old.name, &new.dir, &new.name, AtFlags::empty())
            .map_err(|e| cannot("linked", path, e.into()))
    }

    fn make_special(&self, part: usize, item: &Listed) -> Result<Vec<Problem>, Failure> {
        let place = self.place(part, &item.path)?;
        let mode = Mode::RUSR | Mode::WUSR;
        let node = |kind, device| rustix::fs::mknodat(&place.dir, &place.name, kind, mode, device);
        let made = match &item.kind {
            Kind::File | Kind::Dir => return Ok(Vec::new()),
            Kind::Symlink(target) => rustix::fs::symlinkat(target, &place.dir, &place.name),
            Kind::Fifo => node(FileType::Fifo, 0),
            Kind::CharDevice(device) => node(FileType::CharacterDevice, *device),
            Kind::BlockDevice(device) => node(FileType::BlockDevice, *device),
        };
        match made {
            Ok(()) => Ok(self.setter.set(&place, item)),
            Err(rustix::io::Errno::PERM) => Ok(vec![Problem::missing(
                &item.path,
                "a device cannot be made by this user",
                "restore as root",
            )]),
            Err(error) => Err(cannot("made", &item.path, error.into())),
        }
    }

    /// All renames that put the parts in place.
    fn moves(&self) -> Result<Vec<Move>, Failure> {
        let mut moves = Vec::new();
        for (index, part) in self.plan.parts.iter().enumerate() {
            let area = self.area(part)?;
            let slot = self.slot(index)?;
            match part.exchange {
                Exchange::Whole => moves.extend(one_move(area, &part.to, Some(slot))),
                Exchange::Children(_) => children(area, part, &slot, &mut moves)?,
            }
        }
        for drop in &self.plan.drops {
            if let Some(area) = self.areas.get(&drop.beside) {
                moves.extend(one_move(area, &drop.path, None));
            }
        }
        Ok(moves)
    }

    fn staging(&self) -> Vec<PathBuf> {
        self.areas.values().map(|a| a.path.clone()).collect()
    }

    /// Renames everything, or nothing. The ticket is that of the old state, still to be removed.
    fn exchange(&mut self) -> Result<Ticket, NotSwapped> {
        let moves = self.moves()?;
        let staging = self.staging();
        let back = |moves| Undo::SwapBack { moves, staging: staging.clone() };
        let ticket = self.journal.intend(back(moves.clone()), None)?;
        // From here on the staging directories hold what must not be lost: only the new undo may remove them.
        // Crossing off need not reach the disk by itself, but does so with the amendment after it.
        for area in self.areas.values_mut() {
            if let Some(ticket) = area.ticket.take() {
                self.journal.done(ticket);
            }
        }
        let swapped = (|| {
            self.journal.amend(ticket, back(moves.clone()), None)?;
            swap::make(&moves, &mut swap::rename_new)?;
            swap::sync(&moves)?;
            self.journal.amend(ticket, back(Vec::new()), None)
        })();
        let Err(failure) = swapped else { return Ok(ticket) };
        let kind = failure.kind;
        match swap::swap_back(&moves, &staging) {
            Ok(()) => {
                self.journal.done(ticket);
                let what = "what was restored could not be put in place; everything is as it was before";
                Err(Failure::new(kind, what, failure.remedy.clone()).because(failure).into())
            }
            // The names are back; only what was written beside is left.
            Err(SwapError::Remove(error)) => {
                let what = format!(
                    "what was restored could not be put in place ({}); everything is as it was before, but \
                     what was written is left",
                    failure.in_full()
                );
                Err(Failure::new(kind, what, "run `stillpoint thaw` to remove it").because(error).into())
            }
            Err(error) => {
                let what = format!(
                    "what was restored could not be put in place ({}), nor could everything be put back",
                    failure.in_full()
                );
                let remedy = "run `stillpoint thaw` to put it back; nothing is lost, it lies in the directories \
                              .stillpoint-restore-…";
                let failure = Failure::new(FailureKind::Other, what, remedy).because(error);
                Err(NotSwapped { failure, is_mixed: true })
            }
        }
    }

    /// What cannot be renamed keeps its place, and gets its attributes now.
    fn set_roots(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for part in self.plan.parts.iter().filter(|p| matches!(p.exchange, Exchange::Children(_))) {
            let Some(item) = self.listing.find(&part.from) else { continue };
            let opened = File::open("/").and_then(|root| {
                let below = part.to.strip_prefix("/").unwrap_or(&part.to);
                Place::below(&OwnedFd::from(root), below)
            });
            match opened {
                Ok(place) => problems.extend(self.setter.set(&place, item)),
                Err(error) => {
                    problems.push(Problem::weaker(
                        &part.to,
                        format!("its attributes are not set: {error}"),
                        "",
                    ));
                }
            }
        }
        problems
    }

    fn clean_up(&self, ticket: Ticket) -> Swapped {
        let keep = matches!(self.plan.target, Target::InPlace { keep_old: true });
        let mut swapped = Swapped::default();
        let mut left = false;
        for area in self.areas.values() {
            if keep {
                swapped.kept.push(set_aside(&area.path));
            } else if let Err(error) = swap::remove(&area.path) {
                left = true;
                let what = format!("what was there before could not be removed: {}", chain(&error));
                swapped.problems.push(Problem::note(&area.path, what));
            }
        }
        if !left {
            self.journal.done(ticket);
        }
        // Last, since the removal above changes the times of a root that holds its own staging directory.
        swapped.problems.extend(self.set_roots());
        swapped
    }

    fn remove_all(&mut self) -> Result<(), Failure> {
        let mut first = None;
        for area in self.areas.values_mut() {
            let Some(ticket) = area.ticket else { continue };
            match staging::remove(&area.path) {
                Ok(()) => {
                    area.ticket = None;
                    self.journal.done(ticket);
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Beside for LocalBeside<'_> {
    fn directories(&self) -> Result<Vec<Problem>, Failure> {
        for (index, part) in self.plan.parts.iter().enumerate() {
            if part.from == Path::new("/") {
                self.make_dir(index, &part.from)?;
            }
        }
        for (part, item) in self.items() {
            if item.kind == Kind::Dir {
                self.make_dir(part, &item.path)?;
            }
        }
        Ok(self
            .work
            .parted
            .iter()
            .map(|item| {
                let what = "was a hard link to a file of another directory, and is a file of its own now";
                Problem::note(&self.listing.entries()[*item].path, what)
            })
            .collect())
    }

    fn file<'s>(&'s self, part: usize, item: &'s Listed) -> Result<Box<dyn Writing + 's>, Failure> {
        let ways = Ways { setter: &self.setter, buffers: &self.buffers, flusher: &self.flusher };
        Ok(Box::new(NewFile::create(self.place(part, &item.path)?, item, ways)?))
    }

    fn clone_of<'s>(
        &'s self,
        part: usize,
        item: &'s Listed,
        copy: &ReferenceFile,
    ) -> Result<Option<Box<dyn Writing + 's>>, Failure> {
        let ways = Ways { setter: &self.setter, buffers: &self.buffers, flusher: &self.flusher };
        let new = NewFile::clone_of(self.place(part, &item.path)?, item, copy, ways)?;
        Ok(new.map(|new| Box::new(new) as Box<dyn Writing>))
    }

    fn complete(&self, lost: &[PathBuf]) -> Result<Vec<Problem>, Failure> {
        let mut problems = Vec::new();
        for (part, item) in self.items() {
            problems.extend(self.make_special(part, item)?);
        }
        let entries = self.listing.entries();
        for (item, original) in &self.work.links {
            if lost.contains(&entries[original.1].path) {
                let what =
                    format!("is a hard link to {}, which is lost", pathtext::show(&entries[original.1].path));
                problems.push(Problem::missing(&entries[item.1].path, what, ""));
            } else {
                self.make_link(*item, *original)?;
            }
        }
        Ok(problems)
    }

    fn verify(&self) -> Result<Vec<Problem>, Failure> {
        verify::all(self)
    }

    fn seal(&self) -> Result<Vec<Problem>, Failure> {
        let mut problems = Vec::new();
        for (index, item) in self.items().rev().filter(|(_, item)| item.kind == Kind::Dir) {
            let part = &self.plan.parts[index];
            if item.path == part.from && part.exchange != Exchange::Whole {
                continue;
            }
            let place = self.place(index, &item.path)?;
            let set = self.setter.set(&place, item);
            if set.is_empty() {
                verify::one(&place, item, &self.setter, &mut problems);
            }
            problems.extend(set);
        }
        problems.extend(self.setter.left_out());
        Ok(problems)
    }

    fn reread<'s>(&'s self, part: usize, item: &'s Listed) -> Result<Box<dyn Reading + 's>, Failure> {
        Ok(Box::new(WrittenFile::open(&self.place(part, &item.path)?, item, &self.buffers)?))
    }

    fn lies(&self, part: usize) -> Result<PathBuf, Failure> {
        self.slot(part)
    }

    fn sync(&self) -> Result<(), Failure> {
        if let (Some(error), Some(area)) = (self.flusher.take_failure(), self.areas.values().next()) {
            return Err(cannot("written to disk", &area.path, error));
        }
        for area in self.areas.values() {
            rustix::fs::syncfs(&area.dir).map_err(|e| cannot("written to disk", &area.path, e.into()))?;
        }
        Ok(())
    }

    fn swap(mut self: Box<Self>) -> Result<Swapped, NotSwapped> {
        let ticket = self.exchange()?;
        Ok(self.clean_up(ticket))
    }

    fn leave_incomplete(mut self: Box<Self>) -> Result<PathBuf, Failure> {
        let Some(part) = self.plan.parts.first() else {
            return Err(Failure::new(FailureKind::Other, "there is nothing to leave", ""));
        };
        let mut name = part.to.file_name().unwrap_or_default().to_owned();
        let random = staging::random_hex().map_err(|e| cannot("named", &part.to, e))?;
        name.push(format!(".incomplete-{}", &random[..8]));
        let named = part.to.with_file_name(name);
        swap::rename_new(&self.slot(0)?, &named).map_err(|e| cannot("renamed", &part.to, e))?;
        self.remove_all()?;
        Ok(named)
    }

    fn discard(mut self: Box<Self>) -> Result<(), Failure> {
        self.remove_all()
    }
}

impl Drop for LocalBeside<'_> {
    fn drop(&mut self) {
        if let Err(failure) = self.remove_all() {
            tracing::warn!(failure = %failure.in_full(), "an unfinished restore is left behind, for `thaw`");
        }
    }
}

/// The rename of one name, unless nothing is there and nothing is to come.
fn one_move(area: &Area, live: &Path, new: Option<PathBuf>) -> Option<Move> {
    let had = exists(live);
    let old = area.path.join("old").join(live.file_name().unwrap_or_default());
    (had || new.is_some()).then(|| Move { live: live.to_owned(), new, old, had })
}

/// The renames of everything directly in a directory that cannot be renamed itself.
fn children(area: &Area, part: &Part, slot: &Path, moves: &mut Vec<Move>) -> Result<(), Failure> {
    let mut names = std::collections::BTreeSet::new();
    for dir in [part.to.as_path(), slot] {
        let entries = std::fs::read_dir(dir).map_err(|e| cannot("read", dir, e))?;
        for entry in entries {
            let name = entry.map_err(|e| cannot("read", dir, e))?.file_name();
            if !staging::is_ours(Path::new(&name)) {
                names.insert(name);
            }
        }
    }
    for name in names {
        let new = slot.join(&name);
        moves.extend(one_move(area, &part.to.join(&name), exists(&new).then_some(new)));
    }
    Ok(())
}

/// Gives the old state the name by which people know it; under its first name if that cannot be.
fn set_aside(path: &Path) -> PathBuf {
    let Ok(named) = staging::new_name(path.parent().unwrap_or(Path::new("/")), "old") else {
        return path.to_owned();
    };
    if swap::rename_new(path, &named).is_ok() { named } else { path.to_owned() }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
