//! The main path of `backup`: one function, [`run`], that reads as a table of contents.
//!
//! Crash story, line by line of [`run`]:
//! - until the cut is taken nothing is stored but what was stored ahead, which no list shows;
//! - between freeze and thaw the guards of [`crate::cut::host`] own what is held;
//! - from the thaw on nobody is held. Pins are owned by [`crate::cut::host::Pinned`] values and journalled: a run that ends
//!   before they are released leaves them to the next run's sweep;
//! - `store` lists nothing; `publish` writes the snapshot, last of all. A run that ends before it leaves
//!   unreferenced bytes, a run that ends after it has made a backup, even if its pins are still there.
//!
//! One application is backed up by one run at a time (the program holds a lock); restores and other
//! applications may run beside it.

use std::sync::Arc;

use model::{
    entry::Manifest,
    id::{ServerName, VmName},
    plan::CutPlan,
    port::{Clock, Failure, FailureKind, Hold, Pinner, Progress, Store},
    record::StoredBackup,
};

use crate::cut::{crew::Crew, host, patience::Patience, prepare::prepare};

mod harvest;
mod record;
mod rehearse;
pub mod report;

pub use rehearse::{Rehearsal, rehearse};
pub use report::{BackupReport, StallMs};

/// A backup to make, and all that is needed for it.
pub struct Job<'a> {
    /// What to do.
    pub plan: &'a CutPlan,
    /// This server.
    pub server: ServerName,
    /// The VM that the application runs in.
    pub vm: VmName,
    /// A label given by a person.
    pub label: Option<String>,
    /// One driver for each hold of the plan.
    pub holds: Vec<Box<dyn Hold>>,
    /// One driver for each pin of the plan.
    pub pinners: Vec<Box<dyn Pinner>>,
    /// Where it is stored.
    pub store: &'a mut dyn Store,
    /// The backups of this application so far, in any order: a new one is compared with them (promise 6).
    pub previous: &'a [StoredBackup],
    /// The clocks.
    pub clock: &'a dyn Clock,
    /// Where progress is reported.
    pub progress: &'a dyn Progress,
    /// How often the cut is tried.
    pub patience: Patience,
    /// Random bits, for the cut's id and for uneven pauses.
    pub seed: u64,
}

/// Makes a backup: the whole way from a plan to a listed backup.
///
/// # Errors
/// [`FailureKind::Refused`] if the plan is, or if no source can be backed up; otherwise the failure of the
/// cut or of the store. Nothing is listed then, and nothing is held or pinned, except what the failure names.
/// What is merely missing from the backup is a problem in the report.
pub fn run(job: Job<'_>) -> Result<BackupReport, Failure> {
    let Job { plan, server, vm, label, holds, pinners, store, previous, clock, progress, patience, seed } =
        job;
    refused(plan)?;
    let started = clock.moment();

    // Nobody is held.
    let mut crew = Crew::new(plan, clock, patience, seed, holds, pinners);
    prepare(&mut crew, store, progress)?;

    // Freeze, pin, prove, thaw.
    let mut cut = host::take(&mut crew)?;
    let mut pins = std::mem::take(&mut cut.pins);
    crew.rest();

    // Everybody runs again; the bytes come from the pins.
    let outcome = (|| {
        let goods = harvest::gather(&mut pins, &mut cut, progress)?;
        // What was not looked at under the freeze was settled before it: see `Body::Carried`.
        let manifest = Arc::new(Manifest::merge(cut.frozen_at, goods));
        let cut_record = record::of_cut(plan, server, vm, &cut, seed);
        let mut draft = store.store(manifest, &cut_record, progress)?;
        draft.problems.extend(harvest::afterwards(&mut pins));
        let seconds = clock.moment().since(started).as_secs_f64();
        let record = record::of_backup(plan, cut_record, &draft, label, previous, seconds);
        let id = store.publish(draft, &record.short)?;
        Ok((id, record))
    })();

    let left = host::release(pins);
    drop(crew);
    report::of(outcome, cut, left, clock.moment().since(started))
}

/// A plan that says that it is not to be executed is not. There is no report then that would name its problems,
/// so that the failure does.
fn refused(plan: &CutPlan) -> Result<(), Failure> {
    let Some(refusal) = &plan.refused else { return Ok(()) };
    let failure = Failure::new(FailureKind::Refused, refusal.what.clone(), refusal.remedy.clone());
    let problems: Vec<String> = plan.problems.iter().map(ToString::to_string).collect();
    Err(if problems.is_empty() { failure } else { failure.because(problems.join("; ")) })
}
