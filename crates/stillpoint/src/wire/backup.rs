//! One application's turn of `backup`, from its plan to retention: the very path that `demo` takes too.
//!
//! Crash story: nothing is held here; see `orchestrate::backup`. The lock of the run is the first thing
//! taken and the last thing dropped.

use std::{collections::HashMap, panic::resume_unwind, path::PathBuf, sync::Arc, thread, time::Instant};

use engines::sqlite::Fingerprint;
use model::{
    decide::decide,
    id::SourceId,
    inventory::Application,
    plan::{CutPlan, Facts},
    port::{Failure, FailureKind, Progress, Shelf, Silent, Store},
    problem::{Effect, Problem},
    record::StoredBackup,
    retention::RetentionPlan,
};
use orchestrate::{
    backup::{self, BackupReport, Job, Rehearsal},
    cut::patience::Patience,
    retire::{self, Reclaim},
};
use vault::repository::Repository;

use super::{drivers, history, lock::RunLock, log_store, reference, run::Run, stoppable::Stoppable};
use crate::signals::Interrupt;

/// What is asked for.
pub struct Request<'a> {
    /// The application.
    pub application: &'a Application,
    /// A label given by a person.
    pub label: Option<String>,
    /// Where progress is reported.
    pub progress: &'a dyn Progress,
    /// Whether somebody asked us to stop.
    pub interrupt: &'a Interrupt,
}

/// What one turn came to.
pub struct Turn {
    /// The backup, or why there is none.
    pub outcome: Result<BackupReport, Failure>,
    /// What went wrong beside it: old pins that stay, a history line that could not be written, retention
    /// that had to wait.
    pub notes: Vec<Problem>,
}

/// Finds out and decides: the plan that `plan` prints and [`take`] executes.
///
/// # Errors
/// If the staging directory cannot be made.
pub fn plan(run: &Run<'_>, application: &Application) -> Result<(CutPlan, Facts), Failure> {
    let facts = drivers::facts(run, application)?;
    Ok((decide(run.inventory, application, &facts), facts))
}

/// Makes a backup, writes its history line, and lets retention follow.
pub fn take(run: &Run<'_>, request: Request<'_>) -> Turn {
    let started = Instant::now();
    let application = request.application;
    let mut notes = Vec::new();
    let lock = match RunLock::take(&run.inventory.state(), &application.relpath) {
        Ok(lock) => lock,
        // Another run is at work: it writes the history line.
        Err(failure) => return Turn { outcome: Err(failure), notes },
    };
    // Opened once: deriving the key takes longer than much of the rest.
    let mut opened = None;
    let outcome = store(run, &request, &mut opened, &mut notes);
    if let Err(failure) = history::note(run.inventory, application, &outcome, started.elapsed()) {
        notes.push(noted(&failure));
    }
    if let (true, Some(repository)) = (outcome.is_ok(), &mut opened) {
        match logs(run, &request, repository) {
            Ok(problems) => notes.extend(problems),
            Err(failure) => notes.push(noted(&failure)),
        }
        if let Err(failure) = retention(run, &request, repository) {
            notes.push(noted(&failure));
        }
    }
    drop(lock);
    Turn { outcome, notes }
}

/// Takes a cut and lets it go again, under the lock of the run: nothing is stored.
///
/// # Errors
/// As for a backup, up to the thaw.
pub fn rehearse(run: &Run<'_>, request: &Request<'_>) -> Result<(Rehearsal, Vec<Problem>), Failure> {
    let _lock = RunLock::take(&run.inventory.state(), &request.application.relpath)?;
    let mut notes = Vec::new();
    let rehearsal = with_job(run, request, &mut None, &mut notes, (Arc::default(), backup::rehearse))?;
    Ok((rehearsal, notes))
}

/// From the sweep to the listed backup.
fn store(
    run: &Run<'_>,
    request: &Request<'_>,
    opened: &mut Option<Repository>,
    notes: &mut Vec<Problem>,
) -> Result<BackupReport, Failure> {
    let spare = reference::spare(run, request.application);
    with_job(run, request, opened, notes, (spare, backup::run))
}

/// Sweeps, plans, builds the drivers, which may clone over what is spare, and hands it all over.
fn with_job<T>(
    run: &Run<'_>,
    request: &Request<'_>,
    opened: &mut Option<Repository>,
    notes: &mut Vec<Problem>,
    (spare, then): (Arc<HashMap<PathBuf, PathBuf>>, impl FnOnce(Job<'_>) -> Result<T, Failure>),
) -> Result<T, Failure> {
    notes.extend(run.sweep()?.left);
    notes.extend(reference::drop_unwanted(run.inventory, Some(&request.application.relpath)).left);
    // Opening a repository and reading its index is arithmetic, finding out is waiting for files and servers.
    let (found, planned) = thread::scope(|scope| {
        let repository = scope.spawn(|| begun(run, request.application));
        let planned = plan(run, request.application).and_then(|(plan, facts)| {
            // Only for SQLite it has to be known what the repository says.
            let mut drivers = match facts.sqlite.is_empty() {
                true => Some(drivers::build(run, &plan, &facts, &|_| None, &spare)?),
                false => None,
            };
            if plan.refused.is_none() {
                let parent = history::last_end(run.inventory, request.application);
                let pinners = drivers.iter_mut().flat_map(|drivers| &mut drivers.pinners);
                pinners.for_each(|pinner| pinner.look_ahead(parent));
            }
            Ok((plan, facts, drivers))
        });
        (repository.join().unwrap_or_else(|panic| resume_unwind(panic)), planned)
    });
    let (repository, begun) = found?;
    let repository = opened.insert(repository);
    let previous = repository.backups()?;
    let (plan, facts, drivers) = planned?;
    if plan.refused.is_none() {
        begun?;
    }
    let drivers = match drivers {
        Some(drivers) => drivers,
        None => {
            let fingerprints = Fingerprints::of(repository, &previous);
            drivers::build(run, &plan, &facts, &|source| fingerprints.get(source), &spare)?
        }
    };
    let mut store = Stoppable { store: &mut *repository as &mut dyn Store, interrupt: request.interrupt };
    let done = then(Job {
        plan: &plan,
        server: run.inventory.server.clone(),
        vm: run.inventory.vm.clone(),
        label: request.label.clone(),
        holds: drivers.holds,
        pinners: drivers.pinners,
        store: &mut store,
        previous: &previous,
        clock: &*run.clock,
        progress: request.progress,
        patience: Patience::default(),
        seed: run.seed,
    });
    notes.extend(repository.reference_problems());
    done
}

/// The repository of an application, and whether what it holds could be read: that is asked for first of all.
fn begun(run: &Run<'_>, application: &Application) -> Result<(Repository, Result<(), Failure>), Failure> {
    let mut repository = run.open(application)?;
    repository.use_reference(reference::of(run, application));
    repository.go_at(application.settings.pace);
    let begun = repository.begin_backup();
    Ok((repository, begun))
}

/// Stores the log archive, if there is one, so that a backup is enough for it to be off this machine.
fn logs(run: &Run<'_>, request: &Request<'_>, repository: &mut Repository) -> Result<Vec<Problem>, Failure> {
    if !log_store::spool(run, request.application).exists() {
        return Ok(Vec::new());
    }
    log_store::store(run, request.application, repository, &Silent)
}

/// Removes what is no longer kept. It must not be in the way of the backup that was made: whoever else uses
/// the repository at this moment makes it wait for the next run.
fn retention(run: &Run<'_>, request: &Request<'_>, repository: &mut Repository) -> Result<(), Failure> {
    let plan = retire::plan_by(repository, &request.application.settings, &*run.clock)?;
    match carry_out(run, request, repository, &plan) {
        Ok(()) => Ok(()),
        Err(failure) if failure.kind == FailureKind::Locked => {
            Err(Failure::new(failure.kind, "retention waits for the next run", "").because(failure))
        }
        Err(failure) => Err(failure),
    }
}

fn carry_out(
    run: &Run<'_>,
    request: &Request<'_>,
    repository: &mut Repository,
    plan: &RetentionPlan,
) -> Result<(), Failure> {
    if plan.remove.is_empty() {
        return Ok(());
    }
    // Backups go first: none that is listed may be without the logs after it.
    let logs = log_store::plan(run, request.application, repository, plan)?;
    retire::carry_out(repository, plan, Reclaim::Never, request.progress)?;
    if let Some(logs) = logs.filter(|logs| !logs.is_empty()) {
        log_store::drop_old(run, request.application, repository, &logs)?;
    }
    repository.reclaim(request.progress)?;
    Ok(())
}

fn noted(failure: &Failure) -> Problem {
    Problem::new(Effect::Note, None, failure.in_full(), "")
}

/// What the newest backup says of the databases in it.
struct Fingerprints(Vec<(SourceId, Fingerprint)>);

impl Fingerprints {
    fn of(repository: &mut Repository, previous: &[StoredBackup]) -> Self {
        let newest =
            previous.iter().filter(|backup| backup.record.is_some()).max_by_key(|backup| backup.time);
        let record = newest.and_then(|backup| match repository.cut_record(&backup.id) {
            Ok(record) => record,
            Err(error) => {
                // Without it the databases are checked again, which costs time and nothing else.
                tracing::info!(%error, "the record of the newest cut cannot be read");
                None
            }
        });
        let evidence = record.map(|record| record.evidence).unwrap_or_default();
        let known = evidence.into_iter().filter_map(|evidence| {
            let fingerprint = Fingerprint::from_checks(evidence.checks.iter().map(String::as_str))?;
            Some((evidence.source, fingerprint))
        });
        Self(known.collect())
    }

    fn get(&self, source: &SourceId) -> Option<Fingerprint> {
        self.0.iter().find(|(known, _)| known == source).map(|(_, fingerprint)| fingerprint.clone())
    }
}
