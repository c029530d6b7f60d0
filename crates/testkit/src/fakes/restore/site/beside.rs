//! What is written beside, in memory.
//!
//! Crash story: see the parent.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use model::{
    entry::Kind,
    port::{Failure, FailureKind, Journal},
    port_restore::{Beside, Finished, NotSwapped, Reading, Stretch, Swapped, Writing},
    problem::Problem,
    restore::{Exchange, Listed, Listing, RestorePlan, Target, Work, work},
    undo::{Move, Ticket, Undo},
};

use super::{FakeSite, Thing, is_ours};

pub(super) struct FakeBeside<'a> {
    site: &'a FakeSite,
    plan: &'a RestorePlan,
    listing: &'a Listing,
    work: Work,
    journal: Arc<dyn Journal>,
    /// By the directory beside whose names they lie.
    areas: BTreeMap<PathBuf, (PathBuf, Option<Ticket>)>,
}

impl<'a> FakeBeside<'a> {
    pub fn begin(
        site: &'a FakeSite,
        plan: &'a RestorePlan,
        listing: &'a Listing,
        journal: &Arc<dyn Journal>,
    ) -> Result<Self, Failure> {
        let (journal, work) = (Arc::clone(journal), work(plan, listing));
        let mut beside = Self { site, plan, listing, work, journal, areas: BTreeMap::new() };
        for dir in plan.parts.iter().map(|p| &p.beside).chain(plan.drops.iter().map(|d| &d.beside)) {
            if !beside.areas.contains_key(dir) {
                beside.make_area(dir)?;
            }
        }
        Ok(beside)
    }

    fn make_area(&mut self, dir: &Path) -> Result<(), Failure> {
        let number = {
            let mut state = self.site.state();
            state.numbers += 1;
            state.numbers
        };
        let path = dir.join(format!(".stillpoint-restore-{number}"));
        let ticket = self.journal.intend(Undo::RemoveTree { path: path.clone() }, None)?;
        // From here on it is removed when this is dropped, made or not.
        self.areas.insert(dir.to_owned(), (path.clone(), Some(ticket)));
        self.site.script.step("site.begin")?;
        for name in [path.clone(), path.join("new"), path.join("old")] {
            self.make(&name, Kind::Dir, vec![]);
        }
        Ok(())
    }

    fn make(&self, path: &Path, kind: Kind, bytes: Vec<u8>) {
        self.site.state().names.insert(path.to_owned(), Thing { kind, bytes });
    }

    fn place(&self, part: usize, path: &Path) -> PathBuf {
        let slot = self.areas[&self.plan.parts[part].beside].0.join("new").join(part.to_string());
        match path.strip_prefix(&self.plan.parts[part].from) {
            Ok(rest) if !rest.as_os_str().is_empty() => slot.join(rest),
            _ => slot,
        }
    }

    fn items(&self) -> impl Iterator<Item = (usize, &Listed)> {
        self.plan.parts.iter().enumerate().flat_map(|(index, part)| {
            self.listing.entries()[self.listing.below(&part.from)].iter().map(move |e| (index, e))
        })
    }

    fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut add = |area: &Path, live: &Path, new: Option<PathBuf>| {
            let had = self.site.exists(live);
            let old = area.join("old").join(live.file_name().unwrap_or_default());
            if had || new.is_some() {
                moves.push(Move { live: live.to_owned(), new, old, had });
            }
        };
        for (index, part) in self.plan.parts.iter().enumerate() {
            let area = &self.areas[&part.beside].0;
            let slot = self.place(index, &part.from);
            if part.exchange == Exchange::Whole {
                add(area, &part.to, Some(slot));
                continue;
            }
            let names: Vec<PathBuf> = self.site.state().names.keys().cloned().collect();
            let mut both: Vec<_> = names
                .iter()
                .filter(|p| p.parent().is_some_and(|d| d == part.to || d == slot) && !is_ours(p))
                .filter_map(|p| p.file_name())
                .collect();
            both.sort();
            both.dedup();
            for name in both {
                let new = slot.join(name);
                add(area, &part.to.join(name), self.site.exists(&new).then_some(new));
            }
        }
        for drop in &self.plan.drops {
            add(&self.areas[&drop.beside].0, &drop.path, None);
        }
        moves
    }

    fn exchange(&mut self) -> Result<Ticket, NotSwapped> {
        let moves = self.moves();
        let staging: Vec<PathBuf> = self.areas.values().map(|(path, _)| path.clone()).collect();
        let back = |moves| Undo::SwapBack { moves, staging: staging.clone() };
        let ticket = self.journal.intend(back(moves.clone()), None)?;
        for (_, ticket) in self.areas.values_mut() {
            if let Some(ticket) = ticket.take() {
                self.journal.done(ticket);
            }
        }
        let swapped = (|| {
            for one in &moves {
                if one.had {
                    self.site.rename(&one.live, &one.old)?;
                }
                if let Some(new) = &one.new {
                    self.site.rename(new, &one.live)?;
                }
            }
            self.journal.amend(ticket, back(vec![]), None)
        })();
        let Err(failure) = swapped else { return Ok(ticket) };
        if self.site.take_back(&moves).is_err() {
            return Err(NotSwapped { failure, is_mixed: true });
        }
        if staging.iter().try_for_each(|dir| self.site.remove(dir)).is_ok() {
            self.journal.done(ticket);
        }
        Err(failure.into())
    }

    fn remove_all(&mut self) -> Result<(), Failure> {
        let mut first = Ok(());
        for (path, ticket) in self.areas.values_mut() {
            let Some(open) = *ticket else { continue };
            match self.site.remove(path) {
                Ok(()) => {
                    *ticket = None;
                    self.journal.done(open);
                }
                Err(failure) => first = first.and(Err(failure)),
            }
        }
        first
    }
}

impl Beside for FakeBeside<'_> {
    fn directories(&self) -> Result<Vec<Problem>, Failure> {
        self.site.script.step("beside.directories")?;
        for (index, _) in self.plan.parts.iter().enumerate().filter(|(_, p)| p.from == Path::new("/")) {
            self.make(&self.place(index, Path::new("/")), Kind::Dir, vec![]);
        }
        for (part, item) in self.items().filter(|(_, item)| item.kind == Kind::Dir) {
            self.make(&self.place(part, &item.path), Kind::Dir, vec![]);
        }
        Ok(vec![])
    }

    fn file<'s>(&'s self, part: usize, item: &'s Listed) -> Result<Box<dyn Writing + 's>, Failure> {
        self.site.script.step("beside.file")?;
        let path = self.place(part, &item.path);
        let (size, bytes) = (item.meta.size.0, Mutex::default());
        Ok(Box::new(FakeFile { beside: self, path, size, bytes }))
    }

    fn complete(&self, lost: &[PathBuf]) -> Result<Vec<Problem>, Failure> {
        self.site.script.step("beside.complete")?;
        for (part, item) in self.items().filter(|(_, i)| !matches!(i.kind, Kind::File | Kind::Dir)) {
            self.make(&self.place(part, &item.path), item.kind.clone(), vec![]);
        }
        let mut problems = Vec::new();
        let entries = self.listing.entries();
        for (item, original) in &self.work.links {
            let from = &entries[original.1].path;
            if lost.contains(from) {
                problems.push(Problem::missing(&entries[item.1].path, "is a link to what is lost", ""));
                continue;
            }
            let bytes = self.site.state().names[&self.place(original.0, from)].bytes.clone();
            self.make(&self.place(item.0, &entries[item.1].path), Kind::File, bytes);
        }
        Ok(problems)
    }

    fn verify(&self) -> Result<Vec<Problem>, Failure> {
        self.site.script.step("beside.verify")?;
        let state = self.site.state();
        let is_there = |part, item: &Listed| {
            let size = item.meta.size.0;
            let same =
                |t: &Thing| t.kind == item.kind && (t.kind != Kind::File || t.bytes.len() as u64 == size);
            state.names.get(&self.place(part, &item.path)).is_some_and(same)
        };
        let missing = self.items().filter(|(part, item)| !is_there(*part, item));
        Ok(missing.map(|(_, item)| Problem::missing(&item.path, "was not restored", "")).collect())
    }

    fn seal(&self) -> Result<Vec<Problem>, Failure> {
        self.site.script.step("beside.seal")?;
        Ok(vec![])
    }

    fn reread<'s>(&'s self, part: usize, item: &'s Listed) -> Result<Box<dyn Reading + 's>, Failure> {
        self.site.script.step("beside.reread")?;
        let none = || Failure::new(FailureKind::Other, "it was not written", "");
        let thing = self.site.state().names.get(&self.place(part, &item.path)).cloned().ok_or_else(none)?;
        Ok(Box::new(FakeReading(thing.bytes)))
    }

    fn sync(&self) -> Result<(), Failure> {
        self.site.script.step("beside.sync")
    }

    fn swap(mut self: Box<Self>) -> Result<Swapped, NotSwapped> {
        let ticket = self.exchange()?;
        let keep = matches!(self.plan.target, Target::InPlace { keep_old: true });
        let mut swapped = Swapped::default();
        let mut left = false;
        for (path, _) in self.areas.values() {
            if keep {
                swapped.kept.push(path.clone());
            } else if let Err(failure) = self.site.remove(path) {
                left = true;
                swapped.problems.push(Problem::note(path, failure.in_full()));
            }
        }
        if !left {
            self.journal.done(ticket);
        }
        Ok(swapped)
    }

    fn leave_incomplete(mut self: Box<Self>) -> Result<PathBuf, Failure> {
        let part = &self.plan.parts[0];
        let mut name = part.to.clone().into_os_string();
        name.push(".incomplete-1");
        self.site.rename(&self.place(0, &part.from), Path::new(&name))?;
        self.remove_all()?;
        Ok(name.into())
    }

    fn discard(mut self: Box<Self>) -> Result<(), Failure> {
        self.remove_all()
    }
}

impl Drop for FakeBeside<'_> {
    fn drop(&mut self) {
        // What cannot be removed stays in the journal, where tests see it.
        let _ = self.remove_all();
    }
}

struct FakeFile<'a> {
    beside: &'a FakeBeside<'a>,
    path: PathBuf,
    size: u64,
    /// By the place of the first in the file.
    bytes: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Writing for FakeFile<'_> {
    fn stretch(&self, range: Range<u64>) -> Result<Box<dyn Stretch + '_>, Failure> {
        Ok(Box::new(FakeStretch { of: self, at: range.start, bytes: Vec::new() }))
    }

    fn finish(self: Box<Self>) -> Result<Finished, Failure> {
        self.beside.site.script.step("file.finish")?;
        let mut whole = Vec::new();
        for (at, bytes) in self.bytes.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if at != whole.len() as u64 {
                return Err(Failure::new(FailureKind::Damaged, "a part of it was not written", ""));
            }
            whole.extend(bytes);
        }
        if whole.len() as u64 != self.size {
            return Err(Failure::new(FailureKind::Damaged, "it has another size", ""));
        }
        self.beside.make(&self.path, Kind::File, whole);
        Ok(Finished::default())
    }
}

struct FakeStretch<'a> {
    of: &'a FakeFile<'a>,
    at: u64,
    bytes: Vec<u8>,
}

impl Stretch for FakeStretch<'_> {
    fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.of.beside.site.script.step("file.append")?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn end(self: Box<Self>) -> Result<(), Failure> {
        self.of.bytes.lock().unwrap_or_else(PoisonError::into_inner).insert(self.at, self.bytes);
        Ok(())
    }
}

struct FakeReading(Vec<u8>);

impl Reading for FakeReading {
    fn at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, Failure> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let length = buffer.len().min(self.0.len() - from);
        buffer[..length].copy_from_slice(&self.0[from..from + length]);
        Ok(length)
    }
}
