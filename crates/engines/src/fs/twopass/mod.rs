//! Two passes, live migration's algorithm: an unlocked first pass, rounds that shrink the difference, the last
//! round under the freeze.
//!
//! A file needs nothing more if its stamp is the one it had when its content was stored or staged, and that
//! stamp was settled then (`Stamp::is_settled_at`); everything else is brought into the staging directory. The
//! fast form clones, also in the first pass, but for small files: to store one ahead costs less than to make and
//! remove a name for its clone, and should it change, it is read into memory under the freeze. The plain form hands
//! all of the first pass over to be stored ahead. A tree that spans filesystems is cloned where that works and copied elsewhere. Files that a held process has
//! mapped writable are brought in again under the freeze, since stores to them may leave no trace. While somebody
//! who is not held has files mapped so, the cut is weaker; a mapping that lives only between two looks at all
//! processes, of which none is under the freeze, is not seen (the module `mapped`).
//!
//! Under the freeze no more is done than has to be: one `statx` for each name, compared with the census of the last
//! unlocked look, which holds attributes and paths ([`os::tree::Census`]); again one for each name after the last
//! pin. Files that need nothing carry a mark from the unlocked rounds on. Entries are made after the thaw.
//!
//! Crash story: nothing but the staging directory is written; it is journalled before it is made and goes with
//! the harvested pin, or with the pinner. One pinner may run beside others, also of the same tree. Copies that nobody needs any
//! more ([`Pinner::reuse`]) are renamed into it before they are cloned over, so that they go with it too, half done or not.

mod copies;
mod mapped;
mod pin;
mod small;
mod stage;
mod table;
mod together;

use std::{
    collections::HashMap, num::NonZeroU32, ops::ControlFlow, path::PathBuf, sync::Arc, time::Duration,
};

use jiff::Timestamp;
use model::{
    entries::Entries,
    entry::{Entry, Kind, Manifest, SETTLING},
    id::SourceId,
    known::Known,
    pathtext,
    plan::TreePlan,
    port::{Clock, Difference, Failure, FailureKind, Journal, Pin, Pinner},
    size::Bytes,
    time::{Deadline, Moment},
};
use os::{
    durable::create_dirs,
    staging::Staging,
    tree::{Census, Course, Vanished},
};

use self::{
    copies::{Copies, Way},
    mapped::Suspects,
    pin::TreePin,
    stage::{Outcome, Round},
    table::{AHEAD, Place, Table},
};
use super::scope::{Look, Scope};

pub use mapped::Held;
pub(super) use pin::way;

/// How files are brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Cloned, where the filesystem can do it ([`model::plan::PinMethod::TwoPassReflink`]).
    Fast,
    /// Stored ahead, and copied where they changed since ([`model::plan::PinMethod::TwoPassCopy`]).
    Plain,
}

/// Bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most that is copied into the staging directory, in all rounds and under the freeze each. Clones do
    /// not count. What is larger is read after the thaw, which makes the cut weaker.
    pub staged: Bytes,
    /// Files that are smaller than this are stored ahead in the fast form too. 0 for whoever needs a pinned copy of
    /// every file.
    pub ahead: Bytes,
    /// So many files are handed over together to be stored ahead: what is known of each takes 100 bytes meanwhile.
    pub part: usize,
}

/// So many files of the first pass are looked at together: their entries are in memory meanwhile.
const TOGETHER: usize = 4096;

/// More than this in files that changed within the last second is worth a second's wait before the first
/// pass: most of it will have settled then, and need not be copied while everybody is held.
const WORTH_A_WAIT: Bytes = Bytes(64 << 20);

/// A look that began less than this ago is as good as another one, as long as nobody is held; a first pass that found
/// nothing to do then needs no round after it. The pin looks at what has changed since.
const FRESH: Duration = Duration::from_secs(5);

/// The same of a first pass that found something to store ahead, when that is done: somebody writes there.
const STILL_FRESH: Duration = Duration::from_secs(1);

impl Default for Limits {
    fn default() -> Self {
        Self { staged: Bytes(256 << 20), ahead: small::SMALL, part: 1 << 18 }
    }
}

/// What a first pass found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sorted {
    /// Files that are to be stored ahead.
    any_new: bool,
    /// Files that were to be cloned.
    any_cloned: bool,
}

/// Pins a directory in two passes.
pub struct TreePinner {
    source: SourceId,
    scope: Arc<Scope>,
    form: Form,
    staging: PathBuf,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    held: Option<Held>,
    suspects: Suspects,
    limits: Limits,
    table: Table,
    /// What the last look saw, with the places of files that need nothing as marks.
    census: Arc<Census>,
    copies: Option<Arc<Copies>>,
    /// By device, whether its files can be cloned, once that is known.
    clonable: HashMap<u64, bool>,
    /// What the unlocked rounds have copied.
    copied: Bytes,
    /// Until when no round is needed after a first pass that left nothing to do for one.
    idle_until: Option<Moment>,
    /// A look before the first pass, and when it began.
    looked: Option<(Moment, Look)>,
    /// Copies that may be cloned over, by the paths of their originals.
    spare: Arc<HashMap<PathBuf, PathBuf>>,
    /// How far the first pass was handed over to be stored ahead, and when it began.
    ahead: Option<(Course, Timestamp)>,
}

impl TreePinner {
    /// A pinner of this directory. Pinned copies are put into a new directory in `staging`, which is
    /// made if it is missing; in the fast form it should be on the directory's filesystem.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] for an exclude pattern that is not understood.
    pub fn new(
        source: SourceId,
        plan: &TreePlan,
        form: Form,
        staging: PathBuf,
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            source,
            scope: Arc::new(Scope::new(plan)?),
            form,
            staging,
            journal,
            clock,
            held: None,
            suspects: Suspects::default(),
            limits: Limits::default(),
            table: Table::default(),
            census: Arc::default(),
            copies: None,
            clonable: HashMap::new(),
            copied: Bytes(0),
            idle_until: None,
            looked: None,
            spare: Arc::default(),
            ahead: None,
        })
    }

    /// With somebody to ask under the freeze who is held.
    #[must_use]
    pub fn with_held(mut self, held: Held) -> Self {
        self.held = Some(held);
        self
    }

    /// With other bounds.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Does something with the census of the last look; there is a new one if a pin still has that.
    fn with_census<T>(
        &mut self,
        then: impl FnOnce(&mut Self, &mut Census) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut census = Arc::try_unwrap(std::mem::take(&mut self.census)).unwrap_or_default();
        let result = then(self, &mut census);
        self.census = Arc::new(census);
        result
    }

    fn unlocked_look(&self, census: &mut Census) -> Result<Look, Failure> {
        self.scope.look(&*self.clock, census, Vanished::Expected, None)
    }

    /// Marks the files that need nothing as long as they stay as they are, so that nobody has to think of them
    /// under the freeze.
    fn mark(&self, census: &mut Census) {
        let table = &self.table;
        census.mark_files(&mut |path, stamp| table.trusted(path, stamp).and_then(Place::mark));
    }

    /// The staging directory, made anew if a released pin took it away.
    fn copies(&mut self) -> Result<Arc<Copies>, Failure> {
        match &self.copies {
            Some(copies) if !copies.are_gone() => Ok(Arc::clone(copies)),
            _ => {
                create_dirs(&self.staging, 0o700).map_err(|error| {
                    let place = pathtext::show(&self.staging);
                    let what = format!("the directory for pinned copies {place} cannot be made");
                    Failure::new(FailureKind::Other, what, "see that this user can write there")
                        .because(error)
                })?;
                let copies = Arc::new(Copies::new(Staging::create(&self.journal, &self.staging, "tree")?));
                self.table.forget_staged();
                self.with_census(|_, census| {
                    census.unmark_if(&|mark| Place::of_mark(mark) != Some(Place::Parent));
                    Ok(())
                })?;
                self.copied = Bytes(0);
                self.copies = Some(Arc::clone(&copies));
                Ok(copies)
            }
        }
    }

    /// Sorts the first pass: known files need nothing, large ones are cloned if they can be, the rest is to be stored
    /// ahead. What needs nothing more if it stays as it is, is marked; of small files nothing else is kept.
    fn first_pass(
        &mut self,
        census: &mut Census,
        started: Timestamp,
        known: &Known,
        copies: &Copies,
    ) -> Result<Sorted, Failure> {
        let mut sorted = Sorted::default();
        census.mark_all_files(&|path, stamp| known.has(path, stamp).then(|| Place::Parent.mark()).flatten());
        let mut round = Round::new(self, copies, started, None);
        let ahead = round.pinner.limits.ahead;
        for spots in census.unmarked_files().chunks(TOGETHER) {
            let entries: Vec<Entry> = spots.iter().filter_map(|spot| census.entry(*spot)).collect();
            let mut large: Vec<&Entry> = entries.iter().filter(|entry| entry.meta.size >= ahead).collect();
            sorted.any_new |= large.len() < entries.len();
            sorted.any_cloned |= large.iter().any(|entry| round.pinner.clones(entry));
            // Some are cloned already.
            let is_staged = |entry: &Entry| {
                let place = round.pinner.table.trusted(&entry.path, &entry.meta.stamp());
                matches!(place, Some(Place::Staged { .. }))
            };
            large.retain(|entry| !is_staged(entry));
            let cloned = round.clone_together(&large)?;
            for (entry, _) in large.into_iter().zip(cloned).filter(|(_, taken)| taken.is_none()) {
                sorted.any_new |= round.first_alone(entry)?;
            }
        }
        let table = &self.table;
        census.mark_files(&mut |path, stamp| match stamp.size < ahead {
            true => stamp.is_settled_at(started).then_some(AHEAD),
            false => table.trusted(path, stamp).and_then(Place::mark_ahead),
        });
        Ok(sorted)
    }

    /// Clones the large files that changed after the backup before: no parent has them, whatever it has.
    fn clone_ahead(&mut self, started: Timestamp, parent: Timestamp) -> Result<(), Failure> {
        let (copies, parent) = (self.copies()?, parent.as_nanosecond());
        self.with_census(|pinner, census| {
            let mut round = Round::new(pinner, &copies, started, None);
            for spots in census.unmarked_files().chunks(TOGETHER) {
                let entries: Vec<Entry> = spots.iter().filter_map(|spot| census.entry(*spot)).collect();
                let ahead = round.pinner.limits.ahead;
                let is_new = |entry: &&Entry| {
                    let stamp = entry.meta.stamp();
                    stamp.size >= ahead && stamp.ctime > parent && stamp.is_settled_at(started)
                };
                let new: Vec<&Entry> = entries.iter().filter(is_new).collect();
                round.clone_together(&new)?;
            }
            Ok(())
        })
    }

    /// The next files that are neither cloned nor in a parent.
    fn next_to_be_stored(&mut self, census: &Census, known: &Known) -> Option<Manifest> {
        let (mut course, taken_at) = self.ahead.take()?;
        let (mut entries, Limits { ahead, part, .. }) = (Entries::default(), self.limits);
        // What has another mark is in a parent or was cloned.
        let is_asked = |mark: Option<NonZeroU32>| mark.is_none_or(|mark| mark == AHEAD);
        census.go_on(&mut course, &is_asked, &mut |_, _, entry| {
            let is_ahead = || entry.meta.size < ahead || self.table.place(&entry.path) == Some(Place::Parent);
            let is_new =
                entry.kind == Kind::File && is_ahead() && !known.has(&entry.path, &entry.meta.stamp());
            if is_new {
                entries.push(entry);
            }
            if entries.len() >= part { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if entries.len() >= part {
            self.ahead = Some((course, taken_at));
        }
        (!entries.is_empty()).then_some(Manifest { taken_at, entries })
    }

    fn shrink(
        &mut self,
        census: &Census,
        started: Timestamp,
        copies: &Copies,
    ) -> Result<Difference, Failure> {
        let mut difference = Difference::default();
        let mut round = Round::new(self, copies, started, None);
        let entries: Vec<Entry> =
            census.unmarked_files().into_iter().filter_map(|spot| census.entry(spot)).collect();
        let is_new = |entry: &&Entry| round.pinner.table.trusted(&entry.path, &entry.meta.stamp()).is_none();
        let changed: Vec<&Entry> = entries.iter().filter(is_new).collect();
        let cloned = round.clone_together(&changed)?;
        for (entry, taken) in changed.into_iter().zip(cloned) {
            if let Some(taken) = taken {
                difference.files += 1;
                difference.bytes = difference.bytes + taken.bytes;
                continue;
            }
            let stamp = entry.meta.stamp();
            let way = if round.pinner.clones(entry) { Way::Clone } else { Way::Copy };
            // What is copied before it has settled would be copied again under the freeze all the same.
            let worth = stamp.is_settled_at(started) && round.pinner.has_room_for(stamp.size);
            if (way == Way::Clone || worth)
                && let Outcome::Taken(bytes) = round.take_unlocked(entry, way)?
            {
                if way == Way::Copy {
                    round.pinner.copied = round.pinner.copied + bytes;
                }
                difference.files += 1;
                difference.bytes = difference.bytes + bytes;
            }
        }
        Ok(difference)
    }
}

/// What the files hold whose stamps cannot be trusted yet.
fn young(census: &Census, started: Timestamp) -> Bytes {
    census.stamps().filter(|stamp| !stamp.is_settled_at(started)).map(|stamp| stamp.size).sum()
}

impl Pinner for TreePinner {
    fn source(&self) -> SourceId {
        self.source.clone()
    }

    fn reuse(&mut self, spare: Arc<HashMap<PathBuf, PathBuf>>) {
        self.spare = spare;
    }

    fn look_ahead(&mut self, parent: Option<Timestamp>) {
        let begun = self.clock.moment();
        let looked = self.with_census(|pinner, census| pinner.unlocked_look(census));
        if let (Ok(look), Some(parent)) = (&looked, parent)
            && let Err(failure) = self.clone_ahead(look.started, parent)
        {
            tracing::debug!("nothing is cloned ahead: {}", failure.in_full());
        }
        // What is wrong shows again in the first pass.
        self.looked = looked.ok().map(|look| (begun, look));
    }

    fn prepare(&mut self, known: &Known) -> Result<Option<Manifest>, Failure> {
        let copies = self.copies()?;
        self.refuse_while_pinned(&copies)?;
        self.with_census(|pinner, census| {
            census.unmark_if(&|_| true);
            let begun = pinner.clock.moment();
            let (begun, mut look) = match pinner.looked.take() {
                Some((begun, look)) if pinner.clock.moment().since(begun) < FRESH => (begun, look),
                _ => (begun, pinner.unlocked_look(census)?),
            };
            if young(census, look.started) > WORTH_A_WAIT {
                pinner.clock.sleep(SETTLING);
                look = pinner.unlocked_look(census)?;
            }
            let sorted = pinner.first_pass(census, look.started, known, &copies)?;
            pinner.suspects.look(census)?;
            let is_idle = !sorted.any_cloned && census.unmarked_files().is_empty();
            let fresh = if sorted.any_new { STILL_FRESH } else { FRESH };
            pinner.idle_until = is_idle.then(|| begun.after(fresh));
            pinner.ahead = sorted.any_new.then(|| (Course::default(), look.started));
            Ok(pinner.next_to_be_stored(census, known))
        })
    }

    fn more_ahead(&mut self, known: &Known) -> Option<Manifest> {
        let census = Arc::clone(&self.census);
        self.next_to_be_stored(&census, known)
    }

    fn round(&mut self) -> Result<Difference, Failure> {
        self.ahead = None;
        let copies = self.copies()?;
        self.refuse_while_pinned(&copies)?;
        if self.idle_until.take().is_some_and(|until| self.clock.moment() < until) {
            return Ok(Difference::default());
        }
        self.with_census(|pinner, census| {
            let look = pinner.unlocked_look(census)?;
            // Before the files are brought in: the freeze shall come soon after that.
            pinner.suspects.look(census)?;
            let difference = pinner.shrink(census, look.started, &copies)?;
            pinner.mark(census);
            Ok(difference)
        })
    }

    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        let copies = self.copies()?;
        self.refuse_while_pinned(&copies)?;
        if until.has_passed(self.clock.moment()) {
            return Err(self.scope.too_late("nothing was looked at yet"));
        }
        let held = self.held.as_ref().map(|held| held()).unwrap_or_default();
        let (again, blame) = self.suspects.under_the_freeze(held);
        let (look, brought) = self.with_census(|pinner, census| {
            let look = pinner.scope.look(&*pinner.clock, census, Vanished::Problem, Some(until))?;
            let brought = Round::new(pinner, &copies, look.started, Some(until)).finish(census, &again)?;
            Ok((look, brought))
        })?;
        Ok(Box::new(TreePin {
            source: self.source.clone(),
            scope: Arc::clone(&self.scope),
            clock: Arc::clone(&self.clock),
            copies,
            look,
            census: Arc::clone(&self.census),
            brought,
            blame,
            mapped: again,
            harvested: false,
        }))
    }

    fn rest(&mut self) {
        self.census = Arc::default();
        self.table = Table::default();
    }
}

impl TreePinner {
    /// Copies are brought up to date in place, so no pin may need them as they are.
    fn refuse_while_pinned(&self, copies: &Arc<Copies>) -> Result<(), Failure> {
        // The pinner's own, and the caller's.
        if Arc::strong_count(copies) <= 2 {
            return Ok(());
        }
        let what = format!("{} is pinned already", pathtext::show(&self.scope.root));
        Err(Failure::new(FailureKind::Refused, what, "release the pin first"))
    }

    fn clones(&self, entry: &Entry) -> bool {
        self.form == Form::Fast && self.clonable.get(&entry.meta.device) != Some(&false)
    }

    fn has_room_for(&self, size: Bytes) -> bool {
        self.copied + size <= self.limits.staged
    }
}
