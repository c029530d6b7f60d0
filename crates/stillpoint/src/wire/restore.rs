//! A restore, from the request to the report: the path of `restore`, and of `demo`, which restores every
//! cut.
//!
//! Crash story: see `orchestrate::restore`. For a restore in place the command holds the application's run
//! lock from the plan to the end, so no backup looks at a half-restored application.

mod placed;

use std::path::{Path, PathBuf};

use engines::server::dump;
use model::{
    inventory::{Application, Database},
    pathtext,
    port::{Failure, FailureKind, Hold, Progress},
    port_restore::{Contents, Fetch, ServerTarget},
    problem::Effect,
    record::StoredBackup,
    restore::{Request, RestorePlan, RestoreReport, Target},
    server::{ServerAccess, ServerForm, ServerRecord},
};
use orchestrate::restore::{self, Job};
use os::{durable, hold::StopHook, site::LocalSite, staging::Staging};
use vault::repository::Repository;

use super::{
    recover::{Ready, WalTarget},
    run::Run,
    served::{self, FilesTarget, LoadTarget},
};

/// How many threads write: while some wait for the disk others unpack. Each has up to 5 MiB.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(4, |cores| (8 * cores.get()).clamp(8, 16))
}

/// What is asked for.
#[must_use]
pub fn request(
    run: &Run<'_>,
    application: &Application,
    backup: StoredBackup,
    target: Target,
    accept_incomplete: bool,
) -> Request {
    let directories = application.directories.iter().map(|directory| directory.path.clone());
    let databases = application.databases.iter().filter_map(|database| match database {
        Database::Sqlite { path, .. } => Some(path.clone()),
        Database::Server(_) => None,
    });
    let mut keep_out: Vec<PathBuf> = directories.chain(databases).collect();
    keep_out.push(run.inventory.partition.clone());
    Request {
        application: application.name.clone(),
        backup,
        target,
        keep_out,
        has_hooks: application.hooks.is_some(),
        accept_incomplete,
        servers: vec![],
        only: vec![],
        read_back: false,
        trust_copies: false,
    }
}

/// Opens the backup and makes the plan, and hands both to `then`: the backup stays open, and locked against
/// removal, until it returns.
///
/// # Errors
/// If the backup cannot be read or the restore is refused; or what `then` says.
pub fn with_plan<T>(
    repository: &mut Repository,
    request: &Request,
    then: impl FnOnce(&RestorePlan, &dyn Contents) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let contents = Fetch::open(repository, &request.backup.id)?;
    let plan = restore::plan(request, &*contents, &LocalSite)?;
    then(&plan, &*contents)
}

/// Executes a plan without database servers.
///
/// # Errors
/// If nothing was restored; what was there is as it was, unless the failure says otherwise.
pub fn execute(
    run: &Run<'_>,
    application: &Application,
    plan: &RestorePlan,
    contents: &dyn Contents,
    progress: &dyn Progress,
) -> Result<RestoreReport, Failure> {
    execute_with(run, application, plan, contents, progress, &mut [])
}

fn execute_with(
    run: &Run<'_>,
    application: &Application,
    plan: &RestorePlan,
    contents: &dyn Contents,
    progress: &dyn Progress,
    servers: &mut [Box<dyn ServerTarget + '_>],
) -> Result<RestoreReport, Failure> {
    let hooks = application.hooks.as_ref().filter(|_| plan.hooks);
    let stop = hooks.map(|hooks| {
        Box::new(StopHook::new(hooks.stop.clone(), hooks.start.clone(), run.journal())) as Box<dyn Hold>
    });
    restore::run_with(plan, &job(run, contents, progress), stop, servers)
}

fn job<'a>(run: &'a Run<'_>, contents: &'a dyn Contents, progress: &'a dyn Progress) -> Job<'a> {
    Job {
        contents,
        site: &LocalSite,
        journal: run.journal(),
        clock: &*run.clock,
        progress,
        threads: threads(),
    }
}

/// Executes a plan, with the database servers in it, and the logs that are replayed into them.
///
/// # Errors
/// As [`execute`]. A server's copy that cannot be made to open where it lies is a problem of the report.
pub fn execute_all(
    run: &Run<'_>,
    application: &Application,
    request: &Request,
    plan: &RestorePlan,
    contents: &dyn Contents,
    progress: &dyn Progress,
    logs: &Ready,
) -> Result<RestoreReport, Failure> {
    if request.servers.is_empty() && logs.wals().is_empty() {
        return execute(run, application, plan, contents, progress);
    }
    match &plan.target {
        Target::Directory { dir } => {
            let mut report = execute(run, application, plan, contents, progress)?;
            if report.is_complete() {
                placed::settle(run, request, dir, logs, progress, &mut report);
                placed::put_databases(dir, logs, &mut report);
            }
            Ok(report)
        }
        Target::InPlace { .. } => in_place(run, application, request, plan, contents, progress, logs),
    }
}

/// What servers need besides their directories is restored to a staging directory first.
fn in_place(
    run: &Run<'_>,
    application: &Application,
    request: &Request,
    plan: &RestorePlan,
    contents: &dyn Contents,
    progress: &dyn Progress,
    logs: &Ready,
) -> Result<RestoreReport, Failure> {
    let staging = staging(run, "restore-server")?;
    let beside: Vec<PathBuf> =
        request.servers.iter().filter_map(|server| server.record.beside.clone()).collect();
    if !beside.is_empty() {
        extract(run, request, beside, contents, staging.path(), progress)?;
    }
    let below = |path: &Path| staging.path().join(path.strip_prefix("/").unwrap_or(path));
    let journal = run.journal();
    let loads: Vec<(&ServerRecord, PathBuf, ServerAccess)> = request
        .servers
        .iter()
        .filter(|server| server.record.form == ServerForm::Dump)
        .filter_map(|server| {
            let known = served::known(application, &server.record.source)?;
            Some((&server.record, below(server.record.beside.as_deref()?), known.access.clone()))
        })
        .collect();
    let goals: Vec<dump::Target<'_>> = loads
        .iter()
        .map(|(_, _, access)| dump::Target { access, journal: &journal, staging: staging.path() })
        .collect();
    let mut servers: Vec<Box<dyn ServerTarget + '_>> = Vec::new();
    for ((record, root, _), target) in loads.iter().zip(&goals) {
        let cut = plan.cut.clone().ok_or_else(no_cut)?;
        servers.push(Box::new(LoadTarget::new((*record).clone(), root, target, cut)));
    }
    for server in request.servers.iter().filter(|server| server.record.form != ServerForm::Dump) {
        let known = served::known(application, &server.record.source);
        let beside = server.record.beside.as_deref().map(below);
        let staging = staging.path().to_owned();
        servers.push(Box::new(FilesTarget::new(
            server.record.clone(),
            known,
            beside,
            staging,
            run.journal(),
            logs.roll(&server.record.source, progress),
        )));
    }
    servers.extend(logs.wals().iter().map(|wal| Box::new(WalTarget(wal)) as Box<dyn ServerTarget + '_>));
    let report = execute_with(run, application, plan, contents, progress, &mut servers)?;
    drop(servers);
    staging.release()?;
    Ok(report)
}

fn no_cut() -> Failure {
    Failure::new(FailureKind::Damaged, "the backup has a dump but no cut", "restore with --to DIR")
}

/// A directory of ours in the partition, for whatever is restored only to be used and removed.
///
/// # Errors
/// If it cannot be made.
pub fn staging(run: &Run<'_>, label: &str) -> Result<Staging, Failure> {
    let parent = run.inventory.state().join("staging");
    durable::create_dirs(&parent, 0o700).map_err(|error| {
        let what = format!("{} cannot be made", pathtext::show(&parent));
        Failure::new(FailureKind::Other, what, "run it as the user who owns the partition").because(error)
    })?;
    Ok(Staging::create(&run.journal(), &parent, label)?)
}

/// Restores some objects of a backup below a directory of ours, each under its original path, after a look at the
/// free space there.
///
/// # Errors
/// If there is not enough space, or anything of it cannot be restored.
pub fn extract(
    run: &Run<'_>,
    request: &Request,
    only: Vec<PathBuf>,
    contents: &dyn Contents,
    dir: &Path,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    for above in only.iter().filter_map(|path| path.strip_prefix("/").ok()?.parent()) {
        std::fs::create_dir_all(dir.join(above)).map_err(|error| {
            let what = format!("{} cannot be made", pathtext::show(&dir.join(above)));
            Failure::new(FailureKind::Other, what, "").because(error)
        })?;
    }
    let request = Request {
        target: Target::Directory { dir: dir.to_owned() },
        keep_out: Vec::new(),
        read_back: false,
        has_hooks: false,
        only,
        ..request.clone()
    };
    let plan = restore::plan(&request, contents, &LocalSite)?;
    let report = restore::run(&plan, &job(run, contents, progress), None)?;
    match report.problems.iter().find(|problem| problem.effect == Effect::Missing) {
        None => Ok(()),
        Some(problem) => {
            let what = format!("a part of the backup cannot be restored: {problem}");
            Err(Failure::new(FailureKind::Damaged, what, "use another backup"))
        }
    }
}
