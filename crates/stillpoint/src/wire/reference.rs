//! The references of applications: which one a backup uses, what the plan says of it, and removing those that nobody wants,
//! and likewise the cached indexes of repositories.
//!
//! Crash story: see [`vault::reference`]. A reference is removed under the lock of its application's runs, so never while
//! a backup uses it; whose lock is taken keeps it until another time.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use model::{
    id::Relpath,
    inventory::{Application, Inventory},
    pathtext,
    port::{Failure, FailureKind, Shelf},
    problem::{Effect, Problem},
    reference::{Kept, reading},
    size::Bytes,
};
use vault::{
    reference::{self, Referencing},
    repository::{index_cache, keep_index_caches},
};

use super::{lock::RunLock, run::Run};
use crate::output::plan::PlannedReading;

/// The reference that a backup of this application uses and replaces.
pub fn of(run: &Run<'_>, application: &Application) -> Referencing {
    Referencing {
        record: reference::record_path(&run.inventory.state(), &application.relpath),
        relpath: application.relpath.clone(),
        choice: application.settings.reading(),
        now: run.clock.now(),
    }
}

/// The frozen copies that a backup may clone over; the caller holds the lock of the application's runs.
pub fn spare(run: &Run<'_>, application: &Application) -> Arc<HashMap<PathBuf, PathBuf>> {
    Arc::new(reference::spare(&of(run, application).record))
}

/// How the next backup would read, if the repository can be opened; a backup will say why it cannot.
pub fn planned(run: &Run<'_>, application: &Application) -> Option<PlannedReading> {
    let Referencing { record, choice, now, .. } = of(run, application);
    let kept = reference::read(&record);
    if !choice.keep {
        return Some(PlannedReading {
            reading: reading(choice, &kept, None, now),
            reference_bytes: own(&kept),
        });
    }
    let newest = run.open(application).and_then(|mut repository| repository.backups()).ok()?;
    let newest = newest.into_iter().filter(|backup| backup.record.is_some()).max_by_key(|backup| backup.time);
    let decided = reading(choice, &kept, newest.as_ref().map(|backup| &backup.id), now);
    Some(PlannedReading { reading: decided, reference_bytes: own(&kept) })
}

/// What the frozen copies of an application take up for themselves, if there are any.
pub fn bytes(run: &Run<'_>, application: &Application) -> Option<Bytes> {
    own(&reference::read(&of(run, application).record))
}

fn own(kept: &Kept) -> Option<Bytes> {
    match kept {
        // What a snapshot of a volume has for itself only its pool knows.
        Kept::There(reference) if reference.files.iter().all(|file| file.volume.is_some()) => None,
        Kept::There(reference) => Some(reference::own_bytes(reference)),
        Kept::Nothing | Kept::Unreadable(_) => None,
    }
}

/// What became of references that nobody wants.
#[derive(Debug, Default)]
pub struct Dropped {
    /// Whose were removed.
    pub removed: Vec<Relpath>,
    /// What could not be.
    pub left: Vec<Problem>,
}

/// Removes the references of applications that are not in the inventory any more, or are to have none; and the cached indexes of
/// those that are not in the inventory. `held` is the application whose lock the caller holds.
pub fn drop_unwanted(inventory: &Inventory, held: Option<&Relpath>) -> Dropped {
    let mut dropped = Dropped::default();
    let records = reference::records(&inventory.state()).unwrap_or_else(|failure| {
        dropped.left.push(noted(&failure));
        Vec::new()
    });
    for record in records {
        let relpath = match reference::read(&record) {
            Kept::There(found) if is_wanted(inventory, &found.relpath) => continue,
            Kept::There(found) => found.relpath,
            Kept::Nothing => continue,
            Kept::Unreadable(why) => {
                let what =
                    format!("the record of frozen copies {} cannot be read: {why}", pathtext::show(&record));
                let remedy = "remove it and the directories named .stillpoint-reference-* beside the pins";
                dropped.left.push(Problem::new(Effect::Note, None, what, remedy));
                continue;
            }
        };
        let done = if held == Some(&relpath) {
            reference::remove(&record).map(|()| true)
        } else {
            drop_one(inventory, &relpath)
        };
        match done {
            Ok(true) => dropped.removed.push(relpath),
            Ok(false) => {}
            Err(failure) => dropped.left.push(noted(&failure)),
        }
    }
    let state = inventory.state();
    let caches = inventory.applications.iter().map(|application| index_cache(&state, &application.relpath));
    if let Err(failure) = keep_index_caches(&state, &caches.collect()) {
        dropped.left.push(noted(&failure));
    }
    dropped
}

fn is_wanted(inventory: &Inventory, relpath: &Relpath) -> bool {
    let found = inventory.applications.iter().find(|application| application.relpath == *relpath);
    found.is_some_and(|found| found.settings.changed_extents_only)
}

/// Removes the reference of an application whose backup is not there any more.
///
/// # Errors
/// If something of it is left.
pub fn drop_orphan(
    run: &Run<'_>,
    application: &Application,
    repository: &mut impl Shelf,
) -> Result<(), Failure> {
    let Kept::There(found) = reference::read(&of(run, application).record) else { return Ok(()) };
    if repository.backups()?.iter().any(|backup| backup.id == found.backup) {
        return Ok(());
    }
    drop_one(run.inventory, &application.relpath).map(|_| ())
}

/// Removes a reference, unless a run of its application is at work; says whether it did.
fn drop_one(inventory: &Inventory, relpath: &Relpath) -> Result<bool, Failure> {
    let state = inventory.state();
    match RunLock::take(&state, relpath) {
        Ok(_lock) => reference::remove(&reference::record_path(&state, relpath)).map(|()| true),
        Err(failure) if failure.kind == FailureKind::Locked => Ok(false),
        Err(failure) => Err(failure),
    }
}

fn noted(failure: &Failure) -> Problem {
    Problem::new(Effect::Note, None, failure.in_full(), "")
}
