//! Two passes, live migration's algorithm: an unlocked first pass, rounds that shrink the difference, the last
//! round under the freeze.
//!
//! A file needs nothing more if its stamp is the one it had when its content was stored or staged, and that
//! stamp was settled then (`Stamp::is_settled_at`); everything else is brought into the staging directory. The
//! fast form clones, also in the first pass. The plain form hands the first pass over to be stored ahead. A
//! tree that spans filesystems is cloned where that works and copied elsewhere. Files that a held process has
//! mapped writable are brought in again under the freeze, since stores to them may leave no trace.
//!
//! Crash story: nothing but the staging directory is written; it is journalled before it is made and goes with
//! the harvested pin, or with the pinner. One pinner may run beside others, also of the same tree.

mod copies;
mod pin;
mod stage;
mod table;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use model::{
    entry::{Entry, Kind, Manifest},
    id::SourceId,
    known::Known,
    pathtext,
    plan::TreePlan,
    port::{Clock, Difference, Failure, FailureKind, Journal, Pin, Pinner},
    size::Bytes,
    time::Deadline,
};
use os::{durable::create_dirs, staging::Staging, tree::Vanished};

use self::{
    copies::{Copies, Way},
    pin::TreePin,
    stage::{Outcome, Round},
    table::{Place, Seen, Table},
};
use super::scope::{Manner, Scan, Scope};

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
    /// not count.
    pub staged: Bytes,
}

impl Default for Limits {
    fn default() -> Self {
        Self { staged: Bytes(1 << 30) }
    }
}

/// Asked under the freeze for the files that held processes have mapped writable and shared, by real path.
pub type Maps = Arc<dyn Fn() -> Vec<PathBuf> + Send + Sync>;

/// Pins a directory in two passes.
pub struct TreePinner {
    source: SourceId,
    scope: Arc<Scope>,
    form: Form,
    staging: PathBuf,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    maps: Option<Maps>,
    limits: Limits,
    table: Table,
    copies: Option<Arc<Copies>>,
    /// By device, whether its files can be cloned, once that is known.
    clonable: HashMap<u64, bool>,
    /// What the unlocked rounds have copied.
    copied: Bytes,
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
            maps: None,
            limits: Limits::default(),
            table: Table::default(),
            copies: None,
            clonable: HashMap::new(),
            copied: Bytes(0),
        })
    }

    /// With a source of shared writable maps.
    #[must_use]
    pub fn with_maps(mut self, maps: Maps) -> Self {
        self.maps = Some(maps);
        self
    }

    /// With other bounds.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    fn unlocked_scan(&self, xattrs: bool) -> Result<Scan, Failure> {
        let manner = Manner { vanished: Vanished::Expected, xattrs, until: None };
        self.scope.scan(&*self.clock, manner)
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
                self.copied = Bytes(0);
                self.copies = Some(Arc::clone(&copies));
                Ok(copies)
            }
        }
    }

    /// Sorts the first pass: known files need nothing, clonable ones are cloned, the rest is to be stored ahead.
    /// Returns by index what a parent of the backup has or shall have, and whether anything of it is new.
    fn first_pass(
        &mut self,
        scan: &Scan,
        known: &Known,
        copies: &Copies,
    ) -> Result<(Vec<bool>, bool), Failure> {
        let mut in_parent = vec![false; scan.entries.len()];
        let mut any_new = false;
        let mut round = Round::new(self, copies, scan.started, None);
        for (index, entry) in scan.entries.iter().enumerate().filter(|(_, e)| e.kind == Kind::File) {
            let stamp = entry.meta.stamp();
            let is_known = known.has(&entry.path, &stamp);
            if !is_known && round.pinner.clones(entry) {
                match round.take_unlocked(entry, Way::Clone)? {
                    Outcome::Taken(_) | Outcome::Skipped => continue,
                    Outcome::CannotClone => {}
                }
            }
            let settled = is_known || stamp.is_settled_at(scan.started);
            round.pinner.table.insert(&entry.path, Seen { stamp, settled, place: Place::Parent });
            in_parent[index] = true;
            any_new |= !is_known;
        }
        Ok((in_parent, any_new))
    }
}

impl Pinner for TreePinner {
    fn source(&self) -> SourceId {
        self.source.clone()
    }

    fn prepare(&mut self, known: &Known) -> Result<Option<Manifest>, Failure> {
        let copies = self.copies()?;
        let mut scan = self.unlocked_scan(self.form == Form::Plain)?;
        let (in_parent, any_new) = self.first_pass(&scan, known, &copies)?;
        if !any_new {
            return Ok(None);
        }
        let way = way(&scan.resolved);
        let mut in_parent = in_parent.into_iter();
        scan.entries.retain(|entry| in_parent.next() == Some(true) || entry.kind != Kind::File);
        scan.entries.extend(way);
        Ok(Some(Manifest::merge(scan.started, scan.entries)))
    }

    fn round(&mut self) -> Result<Difference, Failure> {
        let copies = self.copies()?;
        self.refuse_while_pinned(&copies)?;
        let scan = self.unlocked_scan(false)?;
        let mut difference = Difference::default();
        let mut round = Round::new(self, &copies, scan.started, None);
        for entry in scan.entries.iter().filter(|e| e.kind == Kind::File) {
            let stamp = entry.meta.stamp();
            if round.pinner.table.trusted(&entry.path, &stamp).is_some() {
                continue;
            }
            let way = if round.pinner.clones(entry) { Way::Clone } else { Way::Copy };
            // What is copied before it has settled would be copied again under the freeze all the same.
            let worth = stamp.is_settled_at(scan.started) && round.pinner.has_room_for(stamp.size);
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

    fn pin(&mut self, until: Deadline) -> Result<Box<dyn Pin>, Failure> {
        let copies = self.copies()?;
        self.refuse_while_pinned(&copies)?;
        let manner = Manner { vanished: Vanished::Problem, xattrs: true, until: Some(until) };
        if until.has_passed(self.clock.moment()) {
            return Err(self.scope.too_late("nothing was looked at yet"));
        }
        let mut scan = self.scope.scan(&*self.clock, manner)?;
        let mapped = self.maps.as_ref().map(|maps| maps().into_iter().collect()).unwrap_or_default();
        let left_out = Round::new(self, &copies, scan.started, Some(until)).finish(&mut scan, &mapped)?;
        Ok(Box::new(TreePin {
            source: self.source.clone(),
            scope: Arc::clone(&self.scope),
            clock: Arc::clone(&self.clock),
            copies,
            scan,
            left_out,
            harvested: false,
        }))
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
