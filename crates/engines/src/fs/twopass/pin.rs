//! A tree pinned in two passes.
//!
//! Crash story: the copies lie in the pinner's staging directory, which is journalled. A pin that was harvested
//! removes it when it is released; one that was not leaves the first pass to the next attempt, and the pinner
//! removes it at its end.

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    entries::Entries,
    entry::{Body, Entry, Harvest, Kind},
    id::SourceId,
    port::{Clock, Failure, Pin, Progress, Stage},
    problem::Problem,
    time::Deadline,
    verdict::Stillness,
};
use os::tree::{Census, Resolved};

use super::{copies::Copies, mapped::Blame, stage::Brought, table::Place};
use crate::fs::{
    difference::Differences,
    scope::{Look, Scope},
};

/// Everything in the tree as it was pinned.
pub(super) struct TreePin {
    pub source: SourceId,
    pub scope: Arc<Scope>,
    pub clock: Arc<dyn Clock>,
    pub copies: Arc<Copies>,
    /// The look under the freeze, and what it saw.
    pub look: Look,
    pub census: Arc<Census>,
    pub brought: Brought,
    pub blame: Blame,
    /// What was brought in again since somebody has or had it mapped.
    pub mapped: BTreeSet<PathBuf>,
    pub harvested: bool,
}

impl Pin for TreePin {
    fn unchanged(&mut self, until: Deadline) -> Result<Stillness, Failure> {
        if let Some(filesystem) = &self.look.foreign_clock {
            let what = format!("{filesystem} stamps files by a clock that is not this machine's");
            return Ok(Stillness::NotShown(what));
        }
        if self.scope.resolve()? != self.look.resolved {
            let what = "a symbolic link on the way to it was changed under the locks";
            return Ok(Stillness::NotShown(what.to_owned()));
        }
        let changes = self.scope.changes(&*self.clock, &self.census, self.look.floor, until)?;
        self.blame.is_over();
        Ok(if changes.count == 0 {
            let names = self.census.names();
            let detail = format!("{names} names compared, none changed{}", self.blame.caveat());
            Stillness::NothingChanged(detail)
        } else {
            Stillness::NotShown(Differences::from(changes).in_words())
        })
    }

    fn harvest(&mut self, progress: &dyn Progress) -> Result<Harvest, Failure> {
        let mut entries = Entries::default();
        let harvest = self.harvest_into(&mut entries, progress)?;
        Ok(Harvest { entries: entries.iter().collect(), ..harvest })
    }

    fn harvest_into(&mut self, entries: &mut Entries, progress: &dyn Progress) -> Result<Harvest, Failure> {
        progress.begin(Stage::Scanning, None);
        self.harvested = true;
        let census = std::mem::take(&mut self.census);
        let mut brought = std::mem::take(&mut self.brought);
        let mut blamed = self.blame.problems(&census);
        let distrusted = Distrusted::new(self);
        let unproven = self.copies.unproven();
        // What stands above the tree comes before it: then everything is in order as it is put in.
        entries.extend(way(&self.look.resolved));
        census.each(&mut |spot, mark, mut entry| {
            match spot.filter(|_| !brought.files.is_empty()).and_then(|spot| brought.files.remove(&spot)) {
                Some(Some(brought)) => entry = brought,
                Some(None) => return,
                None => {
                    if let Some(place) = mark.and_then(Place::of_mark) {
                        entry.body = self.copies.body(place);
                    }
                }
            }
            distrusted.mark(&mut entry);
            if matches!(&entry.body, Body::At(path) if unproven.contains(path)) {
                brought.problems.push(moved_about(&entry.path));
            }
            entries.push(entry);
        });
        let mut problems = census.problems();
        problems.append(&mut self.look.problems);
        problems.append(&mut brought.problems);
        problems.append(&mut blamed);
        let problems = problems.into_iter().map(|p| p.of(&self.source)).collect();
        progress.end();
        Ok(Harvest { problems, ..Harvest::default() })
    }

    fn release(mut self: Box<Self>) -> Result<(), Failure> {
        self.undo()
    }
}

/// Files that were mapped. A page that was dirty at the cut may be stored to after it without moving a time, and the
/// mapping be gone before the next backup looks. So no later backup may carry over a file that was mapped: its change
/// time becomes that of the harvest, too young to be trusted, and it is read even if a parent has its stamp.
struct Distrusted<'a> {
    mapped: HashSet<&'a PathBuf>,
    now: Timestamp,
}

impl<'a> Distrusted<'a> {
    fn new(pin: &'a TreePin) -> Self {
        Self { mapped: pin.mapped.iter().chain(pin.blame.paths()).collect(), now: pin.clock.now() }
    }

    fn mark(&self, entry: &mut Entry) {
        if self.mapped.is_empty() || entry.kind != Kind::File || !self.mapped.contains(&entry.path) {
            return;
        }
        entry.meta.ctime = self.now;
        if entry.body == Body::Carried {
            entry.body = Body::At(entry.path.clone());
        }
    }
}

impl TreePin {
    fn undo(&mut self) -> Result<(), Failure> {
        if self.harvested { Ok(self.copies.remove()?) } else { Ok(()) }
    }
}

impl Drop for TreePin {
    fn drop(&mut self) {
        if let Err(failure) = self.undo() {
            tracing::warn!(source = %self.source, failure = failure.in_full(), "a pin is left behind");
        }
    }
}

fn moved_about(path: &Path) -> Problem {
    Problem::missing(
        path,
        "the filesystem moved its extents about while it was pinned: what is stored may be a mixture of its states",
        "let no balance or defragmentation run beside a backup, and make another one",
    )
}

/// Links on the way to the root and the directories above, each once.
pub(in crate::fs) fn way(resolved: &Resolved) -> Vec<Entry> {
    let mut seen = HashSet::new();
    let mut way = resolved.way();
    way.retain(|entry| seen.insert(entry.path.clone()));
    way
}
