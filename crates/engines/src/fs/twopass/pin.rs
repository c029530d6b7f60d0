//! A tree pinned in two passes.
//!
//! Crash story: the copies lie in the pinner's staging directory, which is journalled. A pin that was harvested
//! removes it when it is released; one that was not leaves the first pass to the next attempt, and the pinner
//! removes it at its end.

use std::{collections::HashSet, sync::Arc};

use model::{
    entry::{Entry, Harvest},
    id::SourceId,
    port::{Clock, Failure, Pin, Progress, Stage},
    problem::Problem,
    time::Deadline,
    verdict::Stillness,
};
use os::tree::{Resolved, Vanished};

use super::copies::Copies;
use crate::fs::{
    difference::differences,
    scope::{Manner, Scan, Scope},
};

/// Everything in the tree as it was pinned.
pub(super) struct TreePin {
    pub source: SourceId,
    pub scope: Arc<Scope>,
    pub clock: Arc<dyn Clock>,
    pub copies: Arc<Copies>,
    /// The scan under the freeze, its entries with bodies.
    pub scan: Scan,
    /// Indexes of entries whose content could not be had, ordered.
    pub left_out: Vec<usize>,
    pub harvested: bool,
}

impl Pin for TreePin {
    fn unchanged(&mut self, until: Deadline) -> Result<Stillness, Failure> {
        let manner = Manner { vanished: Vanished::Expected, xattrs: false, until: Some(until) };
        let now = self.scope.scan(&*self.clock, manner)?;
        Ok(judge(&self.scan, &now))
    }

    fn harvest(&mut self, progress: &dyn Progress) -> Result<Harvest, Failure> {
        progress.begin(Stage::Scanning, None);
        self.harvested = true;
        let mut entries = std::mem::take(&mut self.scan.entries);
        let mut left_out = self.left_out.iter().copied().peekable();
        let mut index = 0..;
        entries.retain(|_| index.next().is_some_and(|index| left_out.next_if_eq(&index).is_none()));
        entries.extend(way(&self.scan.resolved));
        let problems = std::mem::take(&mut self.scan.problems);
        let problems = problems.into_iter().map(|p: Problem| p.of(&self.source)).collect();
        progress.end();
        Ok(Harvest { entries, problems, ..Harvest::default() })
    }

    fn release(mut self: Box<Self>) -> Result<(), Failure> {
        self.undo()
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

/// Links on the way to the root and the directories above, each once.
pub(in crate::fs) fn way(resolved: &Resolved) -> Vec<Entry> {
    let mut seen = HashSet::new();
    let mut way = resolved.way();
    way.retain(|entry| seen.insert(entry.path.clone()));
    way
}

/// Whether a scan shows that nothing changed since the pinning scan began.
fn judge(pinned: &Scan, now: &Scan) -> Stillness {
    if let Some(filesystem) = &now.foreign_clock {
        return Stillness::NotShown(format!(
            "{filesystem} stamps files by a clock that is not this machine's"
        ));
    }
    if pinned.resolved != now.resolved {
        return Stillness::NotShown(
            "a symbolic link on the way to it was changed under the locks".to_owned(),
        );
    }
    let found = differences(&pinned.entries, &now.entries, pinned.floor);
    if found.count == 0 {
        Stillness::NothingChanged(format!("{} names compared, none changed", now.entries.len()))
    } else {
        Stillness::NotShown(found.in_words())
    }
}
