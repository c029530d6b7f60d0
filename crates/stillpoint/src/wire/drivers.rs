//! From plan values to drivers: every hold and every pin of a plan gets the one that carries it out.
//!
//! Crash story: building a driver holds nobody and pins nothing.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use engines::{
    fs::{Form, Held, SnapshotPinner, TreePinner},
    sqlite::{self, Holder, SqliteLock, SqlitePinner},
};
use model::{
    id::SourceId,
    inventory::{Application, Database, ProcessSelector},
    plan::{CutPlan, Facts, HoldMethod, PinMethod, PinPlan},
    port::{Failure, FailureKind, Hold, Pinner},
    undo::ProcessRef,
};
use os::{
    durable,
    hold::{ProcessHold, StopHook},
    process,
};

use super::run::Run;

/// The drivers of one plan.
pub struct Drivers {
    /// One for each hold.
    pub holds: Vec<Box<dyn Hold>>,
    /// One for each pin.
    pub pinners: Vec<Box<dyn Pinner>>,
}

/// Where pinned copies can be put, best first: in the partition, or else beside what is pinned, where a
/// clone may be possible.
fn staging(run: &Run<'_>, source: &Path) -> Vec<PathBuf> {
    let state = run.inventory.state().join("staging");
    std::iter::once(state).chain(source.parent().map(Path::to_owned)).collect()
}

/// Finds out what the plan is decided from. Holds nobody.
///
/// # Errors
/// If the staging directory cannot be made.
pub fn facts(run: &Run<'_>, application: &Application) -> Result<Facts, Failure> {
    let staging_dir = run.inventory.state().join("staging");
    durable::create_dirs(&staging_dir, 0o700).map_err(|error| {
        let what = format!("{} cannot be made", staging_dir.display());
        Failure::new(FailureKind::Other, what, "run it as the user who owns the partition").because(error)
    })?;
    let sqlite = application.databases.iter().filter_map(|database| match database {
        Database::Sqlite { path } => Some(sqlite::probe(database.id(), path, &staging(run, path))),
        Database::Server(_) => None,
    });
    let directories = application.directories.iter().map(|directory| {
        let exclude: Vec<String> = directory.exclude.iter().map(|glob| glob.glob().to_owned()).collect();
        engines::fs::probe(&directory.id(), &directory.path, &exclude, &staging_dir)
    });
    Ok(Facts {
        sqlite: sqlite.collect(),
        directories: directories.collect(),
        servers: vec![],
        process: application.process.as_ref().map(process::facts),
    })
}

/// Builds the drivers of a plan. `fingerprint` tells what the backup before says of a database.
///
/// # Errors
/// If the watchdog, whom no hold may hold, cannot be started; or for a plan that no driver understands.
pub fn build(
    run: &Run<'_>,
    plan: &CutPlan,
    fingerprint: &dyn Fn(&SourceId) -> Option<sqlite::Fingerprint>,
) -> Result<Drivers, Failure> {
    let means =
        sqlite::Means { helper: run.helper.clone(), journal: run.journal(), clock: Arc::clone(&run.clock) };
    let mut holds: Vec<Box<dyn Hold>> = Vec::new();
    let mut holders: HashMap<SourceId, Holder> = HashMap::new();
    let mut held: Vec<Arc<Mutex<Vec<ProcessRef>>>> = Vec::new();
    for hold in &plan.holds {
        match &hold.method {
            HoldMethod::StopHook { stop, start } => {
                holds.push(Box::new(StopHook::new(stop.clone(), start.clone(), run.journal())));
            }
            HoldMethod::SqliteLock { source, path, .. } => {
                let lock = SqliteLock::new(source.clone(), path, means.clone());
                holders.insert(source.clone(), lock.holder());
                holds.push(Box::new(lock));
            }
            HoldMethod::ServerSlowLock(lock) | HoldMethod::ServerFinalLock(lock) => {
                return Err(not_wired(&lock.source));
            }
            HoldMethod::ServerProcess { source, process, method } => {
                let selector = ProcessSelector::Process(*process);
                let except = [run.logbook().watchdog_pid()?];
                let server = ProcessHold::new(selector, method.clone(), except, run.journal());
                let server = server.serving(source.clone());
                held.push(server.held());
                holds.push(Box::new(server));
            }
            HoldMethod::Processes { selector, method } => {
                let except = [run.logbook().watchdog_pid()?];
                let processes = ProcessHold::new(selector.clone(), method.clone(), except, run.journal());
                held.push(processes.held());
                holds.push(Box::new(processes));
            }
        }
    }
    let held = all_of(held);
    let pinner = |pin| pinner(run, pin, &means, &holders, &held, fingerprint);
    let pinners = plan.pins.iter().map(pinner).collect::<Result<_, _>>()?;
    Ok(Drivers { holds, pinners })
}

/// The processes that any of the holds holds at the time of asking.
fn all_of(held: Vec<Arc<Mutex<Vec<ProcessRef>>>>) -> Held {
    Arc::new(move || {
        let lists = held.iter().map(|list| list.lock().unwrap_or_else(PoisonError::into_inner).clone());
        lists.flatten().collect()
    })
}

fn not_wired(source: &SourceId) -> Failure {
    Failure::new(FailureKind::Refused, format!("{source} cannot be backed up by this build"), "")
}

fn pinner(
    run: &Run<'_>,
    pin: &PinPlan,
    means: &sqlite::Means,
    holders: &HashMap<SourceId, Holder>,
    held: &Held,
    fingerprint: &dyn Fn(&SourceId) -> Option<sqlite::Fingerprint>,
) -> Result<Box<dyn Pinner>, Failure> {
    let tree = |plan, form| {
        let (journal, clock) = (run.journal(), Arc::clone(&run.clock));
        let pinner = TreePinner::new(pin.source.clone(), plan, form, pin.staging.clone(), journal, clock)?;
        Ok(Box::new(pinner.with_held(Arc::clone(held))) as Box<dyn Pinner>)
    };
    match &pin.method {
        PinMethod::TwoPassReflink(plan) => tree(plan, Form::Fast),
        PinMethod::TwoPassCopy(plan) => tree(plan, Form::Plain),
        PinMethod::BtrfsSnapshot(plan) => {
            let (journal, clock) = (run.journal(), Arc::clone(&run.clock));
            let pinner = SnapshotPinner::new(pin.source.clone(), plan, pin.staging.clone(), journal, clock)?;
            Ok(Box::new(pinner))
        }
        PinMethod::VolumeSnapshot(_)
        | PinMethod::ServerVolumes(_)
        | PinMethod::ServerReflink(_)
        | PinMethod::ServerPhysical(_)
        | PinMethod::ServerDump(_) => Err(not_wired(&pin.source)),
        PinMethod::SqliteReflink(_) | PinMethod::SqliteTransaction(_) | PinMethod::SqlitePages(_) => {
            let holder = holders.get(&pin.source).cloned().ok_or_else(|| {
                let what = format!("{} is to be pinned without its lock", pin.source);
                Failure::new(FailureKind::Refused, what, "please report this plan")
            })?;
            let previous = fingerprint(&pin.source);
            Ok(Box::new(SqlitePinner::new(pin, holder, means.clone(), previous)?))
        }
    }
}
