//! From plan values to drivers: every hold and every pin of a plan gets the one that carries it out.
//!
//! Crash story: building a driver holds nobody and pins nothing.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use engines::{
    fs::{Form, Held, SnapshotPinner, TreePinner, VolumePinner, Volumes},
    server::{
        self, ServerLock,
        dump::DumpPinner,
        files::{FilesForm, FilesPinner},
        physical::PhysicalPinner,
    },
    sqlite::{self, Holder, SqliteLock, SqlitePinner},
};
use model::{
    id::SourceId,
    inventory::{Application, Database, ProcessSelector},
    plan::{CutPlan, Facts, HoldMethod, PinMethod, PinPlan, ServerPlan, TreePlan},
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
        Database::Sqlite { path, .. } => Some(sqlite::probe(database.id(), path, &staging(run, path))),
        Database::Server(_) => None,
    });
    let servers = application.databases.iter().filter_map(|database| match database {
        Database::Server(found) => Some(server::probe(found, &|path| staging(run, path))),
        Database::Sqlite { .. } => None,
    });
    let directories = application.directories.iter().map(|directory| {
        let exclude: Vec<String> = directory.exclude.iter().map(|glob| glob.glob().to_owned()).collect();
        engines::fs::probe(&directory.id(), &directory.path, &exclude, &staging_dir)
    });
    Ok(Facts {
        sqlite: sqlite.collect(),
        directories: directories.collect(),
        servers: servers.collect(),
        process: application.process.as_ref().map(process::facts),
    })
}

/// Builds the drivers of a plan. `fingerprint` tells what the backup before says of a database; `spare` are frozen copies
/// that may be cloned over.
///
/// # Errors
/// If the watchdog, whom no hold may hold, cannot be started; or for a plan that no driver understands.
pub fn build(
    run: &Run<'_>,
    plan: &CutPlan,
    facts: &Facts,
    fingerprint: &dyn Fn(&SourceId) -> Option<sqlite::Fingerprint>,
    spare: &Arc<HashMap<PathBuf, PathBuf>>,
) -> Result<Drivers, Failure> {
    let means =
        sqlite::Means { helper: run.helper.clone(), journal: run.journal(), clock: Arc::clone(&run.clock) };
    let mut holds: Vec<Box<dyn Hold>> = Vec::new();
    let mut holders: HashMap<SourceId, Holder> = HashMap::new();
    let mut servers: HashMap<SourceId, server::Holder> = HashMap::new();
    let mut held: Vec<Arc<Mutex<Vec<ProcessRef>>>> = Vec::new();
    let serving = serving(facts);
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
            // Both holds are of one session, and the final one follows the slow one in every plan.
            HoldMethod::ServerSlowLock(lock) => {
                let server = ServerLock::new(lock, plan.stall_budget, server_means(run));
                servers.insert(lock.source.clone(), server.holder());
                holds.extend(server.into_holds());
            }
            HoldMethod::ServerFinalLock(_) => {}
            HoldMethod::ServerProcess { source, process, method } => {
                let selector = ProcessSelector::Process(*process);
                let except = [run.logbook().watchdog_pid()?];
                let server = ProcessHold::new(selector, method.clone(), except, run.journal());
                let server = server.serving(source.clone());
                held.push(server.held());
                holds.push(Box::new(server));
            }
            HoldMethod::Processes { selector, method } => {
                let mut except = vec![run.logbook().watchdog_pid()?];
                // A server that is part of this application's unit has to answer while the others stand still.
                except.extend(serving.iter().copied());
                let processes = ProcessHold::new(selector.clone(), method.clone(), except, run.journal());
                held.push(processes.held());
                holds.push(Box::new(processes));
            }
        }
    }
    let pinning = Pinning {
        run,
        means: &means,
        holders: &holders,
        servers: &servers,
        held: all_of(held),
        volumes: Volumes::new(run.journal(), Arc::clone(&run.clock), run.inventory.state().join("staging")),
        fingerprint,
    };
    let mut pinners: Vec<_> = plan.pins.iter().map(|pin| pinning.pinner(pin)).collect::<Result<_, _>>()?;
    pinners.iter_mut().for_each(|pinner| pinner.reuse(Arc::clone(spare)));
    Ok(Drivers { holds, pinners })
}

fn server_means(run: &Run<'_>) -> server::Means {
    server::Means { journal: run.journal(), clock: Arc::clone(&run.clock), helper: run.helper.clone() }
}

/// The processes of servers that are asked under the freeze.
fn serving(facts: &Facts) -> Vec<u32> {
    facts.servers.iter().filter_map(|f| f.served_by.as_ref()).map(|who| who.process.pid).collect()
}

/// The processes that any of the holds holds at the time of asking.
fn all_of(held: Vec<Arc<Mutex<Vec<ProcessRef>>>>) -> Held {
    Arc::new(move || {
        let lists = held.iter().map(|list| list.lock().unwrap_or_else(PoisonError::into_inner).clone());
        lists.flatten().collect()
    })
}

/// What all pinners of a plan share.
struct Pinning<'a> {
    run: &'a Run<'a>,
    means: &'a sqlite::Means,
    holders: &'a HashMap<SourceId, Holder>,
    servers: &'a HashMap<SourceId, server::Holder>,
    held: Held,
    /// Sources on one volume share its snapshot.
    volumes: Volumes,
    fingerprint: &'a dyn Fn(&SourceId) -> Option<sqlite::Fingerprint>,
}

impl Pinning<'_> {
    fn pinner(&self, pin: &PinPlan) -> Result<Box<dyn Pinner>, Failure> {
        let (journal, clock) = (self.run.journal(), Arc::clone(&self.run.clock));
        let (source, staging) = (pin.source.clone(), pin.staging.clone());
        Ok(match &pin.method {
            PinMethod::TwoPassReflink(plan) => self.tree(pin, plan, Form::Fast)?,
            PinMethod::TwoPassCopy(plan) => self.tree(pin, plan, Form::Plain)?,
            PinMethod::BtrfsSnapshot(plan) => {
                Box::new(SnapshotPinner::new(source, plan, staging, journal, clock)?)
            }
            PinMethod::VolumeSnapshot(plan) => {
                let volume = self.volumes.share(&plan.volume, plan.size);
                Box::new(VolumePinner::new(source, plan, volume, clock)?)
            }
            PinMethod::SqliteReflink(_) | PinMethod::SqliteTransaction(_) | PinMethod::SqlitePages(_) => {
                let holder = self.holders.get(&source).cloned().ok_or_else(|| without_lock(&source))?;
                let previous = (self.fingerprint)(&source);
                Box::new(SqlitePinner::new(pin, holder, self.means.clone(), previous)?)
            }
            PinMethod::ServerVolumes(plan) => self.files(pin, plan, FilesForm::Volumes)?,
            PinMethod::ServerReflink(plan) => self.files(pin, plan, FilesForm::Reflink)?,
            PinMethod::ServerPhysical(plan) => {
                Box::new(PhysicalPinner::new(pin, plan, self.server(pin)?, server_means(self.run))?)
            }
            PinMethod::ServerDump(plan) => {
                Box::new(DumpPinner::new(pin, plan, self.server(pin)?, server_means(self.run))?)
            }
        })
    }

    fn tree(&self, pin: &PinPlan, plan: &TreePlan, form: Form) -> Result<Box<dyn Pinner>, Failure> {
        let (journal, clock) = (self.run.journal(), Arc::clone(&self.run.clock));
        let pinner = TreePinner::new(pin.source.clone(), plan, form, pin.staging.clone(), journal, clock)?;
        Ok(Box::new(pinner.with_held(Arc::clone(&self.held))))
    }

    fn files(&self, pin: &PinPlan, plan: &ServerPlan, form: FilesForm) -> Result<Box<dyn Pinner>, Failure> {
        let (journal, clock) = (self.run.journal(), Arc::clone(&self.run.clock));
        let (holder, held) = (self.server(pin)?, Arc::clone(&self.held));
        Ok(Box::new(FilesPinner::new(pin, plan, form, holder, &self.volumes, held, journal, clock)?))
    }

    fn server(&self, pin: &PinPlan) -> Result<server::Holder, Failure> {
        self.servers.get(&pin.source).cloned().ok_or_else(|| without_lock(&pin.source))
    }
}

fn without_lock(source: &SourceId) -> Failure {
    let what = format!("{source} is to be pinned without its lock");
    Failure::new(FailureKind::Refused, what, "please report this plan")
}
